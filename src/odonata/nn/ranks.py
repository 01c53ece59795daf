"""Figures over all ranks of a run, for losses whose denominator counts the whole batch."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


@torch.no_grad()
def mean_over_ranks(value: Tensor | float, like: Tensor, least: float = 1.0) -> Tensor:
    """Returns the mean over all ranks, never below `least`: what detectors divide their losses by.

    With gradients averaged over ranks, a sum divided by this is the sum over the whole batch divided by its count.

    Args:
        value: of this rank: a count, or a sum of weights.
        like: gives the device.
        least: keeps the division finite; 1 for counts.
    """
    total = torch.as_tensor(value, dtype=torch.float32, device=like.device)
    if dist.is_initialized() and dist.get_world_size() > 1:
        total = total.clone()
        dist.all_reduce(total)
        total = total / dist.get_world_size()
    return total.clamp(min=least)


@torch.no_grad()
def sum_over_ranks(values: Tensor) -> Tensor:
    """Returns the elementwise sum over all ranks, which must all call."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        values = values.clone()
        dist.all_reduce(values)
    return values


def place_among_ranks(count: int, like: Tensor) -> tuple[int, int]:
    """Returns how many things the ranks below this one have, and how many all have together; all ranks must call.

    Args:
        count: of this rank.
        like: gives the device.
    """
    if not (dist.is_initialized() and dist.get_world_size() > 1):
        return 0, count
    counts = torch.zeros(dist.get_world_size(), dtype=torch.long, device=like.device)
    counts[dist.get_rank()] = count
    dist.all_reduce(counts)
    return int(counts[: dist.get_rank()].sum()), int(counts.sum())
