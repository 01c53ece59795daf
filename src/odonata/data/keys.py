"""Random numbers that depend on a key alone: (seed, epoch, index) names a generator.

Keys that lie near each other must not give streams that resemble each other, so they are hashed (BLAKE2b), not added:
with `seed + epoch`, epoch 1 of seed 0 would repeat epoch 0 of seed 1.
"""

import hashlib
import struct

import torch


def mix(*parts: int) -> int:
    """Hash integers to one unsigned 64-bit integer; the order of the parts matters."""
    packed = b"".join(struct.pack("<q", ((part + 2**63) % 2**64) - 2**63) for part in parts)
    return int.from_bytes(hashlib.blake2b(packed, digest_size=8).digest(), "little")


def keyed_generator(seed: int, epoch: int, index: int) -> torch.Generator:
    """The torch generator of one item in one epoch: the same wherever, whenever and by whichever worker it is made."""
    return torch.Generator().manual_seed(mix(seed, epoch, index) % 2**63)
