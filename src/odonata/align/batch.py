"""The batch of this room: pictures with one caption each."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass
class ImageTextBatch:
    """Pictures and captions, row by row.

    `images` are normalised pictures, or flat patches of any grid (NaFlex), and then `mask` and `grids` say which are
    real and how they lie. Rows of one `groups` value have the same content (picture or caption): not negatives.
    """

    images: Float[Tensor, "batch channels height width"] | Float[Tensor, "batch patches pixels"]
    tokens: Int[Tensor, "batch length"]
    groups: Int[Tensor, " batch"]
    mask: Bool[Tensor, "batch patches"] | None = None
    grids: Int[Tensor, "batch 2"] | None = None


def content_groups(captions: Sequence[str], pictures: Sequence[int]) -> Int[Tensor, " batch"]:
    """Return a number per row, equal for rows with the same caption or the same picture.

    The number is a hash of the caption (of the group's first row where pictures join captions), so that rows of
    different ranks compare too. Captions are the same if they differ in case and white space only.

    >>> groups = content_groups(["A dog", "a cat", "a  dog", "a bird"], [1, 2, 3, 2])
    >>> (groups[0] == groups[2]).item(), (groups[1] == groups[3]).item(), (groups[0] == groups[1]).item()
    (True, True, False)
    """
    hashes = [_hash(" ".join(caption.lower().split())) for caption in captions]
    parent = list(range(len(hashes)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for values in (hashes, pictures):
        first: dict[int, int] = {}
        for row, value in enumerate(values):
            a, b = root(first.setdefault(value, row)), root(row)
            parent[max(a, b)] = min(a, b)
    return torch.tensor([hashes[root(i)] for i in range(len(hashes))])


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
