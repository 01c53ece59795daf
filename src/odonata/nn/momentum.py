"""Slow copies of networks, and queues of what they said: the state of momentum contrast and self-distillation."""

from __future__ import annotations

import copy
import math
from typing import TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Float, Shaped
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)


def slow_copy(network: Network) -> Network:
    """Returns a copy that takes no gradients; its weights follow by `follow`."""
    copied = copy.deepcopy(network)
    for parameter in copied.parameters():
        parameter.requires_grad_(False)
    return copied


@torch.no_grad()
def follow(slow: nn.Module, fast: nn.Module, momentum: float) -> None:
    """Moves the slow weights: slow ← m·slow + (1 − m)·fast (MoCo, He et al. 2019, eq. 2).

    Parameters only: running statistics stay each network's own, as MoCo, DINO and MoBY have it.
    """
    ours: list[Tensor] = [p.data for p in slow.parameters()]
    theirs: list[Tensor] = [p.detach() for p in fast.parameters()]
    torch._foreach_lerp_(ours, theirs, 1 - momentum)  # pyright: ignore[reportPrivateUsage]


def cosine_momentum(step: int, steps: int, start: float) -> float:
    """Returns the momentum at a step, on a half cosine from `start` to 1 (BYOL, Grill et al. 2020, sec. 3.2)."""
    return 1 - (1 - start) * (math.cos(math.pi * step / max(1, steps)) + 1) / 2


@torch.no_grad()
def gather_rows(x: Shaped[Tensor, "batch *rest"]) -> Shaped[Tensor, "all_batches *rest"]:
    """Returns the rows of all ranks, in order of rank; without ranks, the rows themselves. No gradient passes."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return x
    parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, x.contiguous())
    return torch.cat(parts)


class Queue(nn.Module):
    """The last K embeddings, unit length, oldest overwritten first (MoCo, He et al. 2019, sec. 3.2).

    Args:
        size: K.
        dim: of an embedding.

    Its content is a buffer: a checkpoint holds it, and all ranks hold the same. It starts with random directions, as
    the original's does.
    """

    rows: Tensor
    position: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("rows", nn.functional.normalize(torch.randn(size, dim), dim=1))
        self.register_buffer("position", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def push(self, embeddings: Float[Tensor, "batch dim"]) -> None:
        """Puts embeddings of all ranks in, around the end where K is no multiple of their number."""
        found = gather_rows(embeddings.detach().to(self.rows.dtype))[-len(self.rows) :]
        places = (self.position + torch.arange(len(found), device=found.device)) % len(self.rows)
        self.rows[places] = found
        self.position.copy_((self.position + len(found)) % len(self.rows))

    def forward(self) -> Float[Tensor, "queue dim"]:
        """Returns the embeddings, apart from what is pushed later."""
        return self.rows.clone()
