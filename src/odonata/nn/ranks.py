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
