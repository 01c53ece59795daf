"""Balanced assignments by Sinkhorn's algorithm, over the rows of all ranks.

Notable: the iterations run on logarithms. Scores of ±1 divided by 0.05 reach ±20, and e²⁰ is beyond float16; with
sharper temperatures even float32 would lose whole rows. Constant factors (1/K for each column, 1/B for each row) cancel
in the last normalisation and are left out, so that ranks may hold different numbers of rows.

Reference: Cuturi, Sinkhorn Distances, arXiv:1306.0895; SwAV, Caron et al. 2020, arXiv:2006.09882, eq. 3 to 5.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from odonata.nn.precision import full_precision


@torch.no_grad()
def sinkhorn(
    scores: Float[Tensor, "batch classes"], epsilon: float, iterations: int = 3
) -> Float[Tensor, "batch classes"]:
    """Returns assignments that use each class about equally often over the rows of all ranks; each row sums to 1.

    Args:
        scores: similarity of each row with each class, any float type; computed in float32 or better.
        epsilon: what the scores are divided by: the smaller, the harder the assignments (SwAV: 0.05; as DINOv2's
            centring: the teacher's temperature).
        iterations: rounds over columns and rows (SwAV and DINOv2: 3); 0 is a plain softmax, which balances nothing.

    Source: SwAV `main_swav.py`, `distributed_sinkhorn`; DINOv2 `sinkhorn_knopp_teacher`.
    """
    logs = full_precision(scores) / epsilon
    if not iterations:
        return logs.softmax(1)
    for _ in range(iterations):
        logs = logs - _log_column_sums(logs)
        logs = logs.log_softmax(1)
    return logs.exp()


def _log_column_sums(logs: Float[Tensor, "batch classes"]) -> Float[Tensor, "classes"]:
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return logs.logsumexp(0)
    highest = logs.amax(0)
    dist.all_reduce(highest, dist.ReduceOp.MAX)
    sums = (logs - highest).exp().sum(0)
    dist.all_reduce(sums)
    return sums.log() + highest
