"""The running mean of what a teacher says, over all ranks: subtracted, it keeps one answer from winning."""

from __future__ import annotations

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn


@torch.no_grad()
def mean_row(rows: Float[Tensor, "batch dim"]) -> Float[Tensor, "dim"]:
    """Returns the mean of the rows of all ranks, which may hold different numbers of them."""
    total = rows.sum(0)
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return total / len(rows)
    counted = torch.cat([total, total.new_tensor([len(rows)])])
    dist.all_reduce(counted)
    return counted[:-1] / counted[-1]


class Centre(nn.Module):
    """A moving average of rows (DINO, Caron et al. 2021, eq. 4). A buffer: checkpoints hold it, all ranks the same.

    Args:
        dim: width of a row.
        momentum: share that stays (DINO: 0.9).
    """

    value: Tensor

    def __init__(self, dim: int, momentum: float = 0.9) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("value", torch.zeros(dim))

    @torch.no_grad()
    def update(self, rows: Float[Tensor, "batch dim"]) -> None:
        """Moves towards the mean of the rows of all ranks."""
        self.value.lerp_(mean_row(rows).to(self.value.dtype), 1 - self.momentum)

    def forward(self, rows: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch dim"]:
        """Returns the rows less the centre."""
        return rows - self.value
