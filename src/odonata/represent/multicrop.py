"""What SwAV and DINO share: crops of several sizes, targets from the large ones, and what is watched of targets.

Every crop is asked for the target of each large crop of its picture but itself. The cross-entropy is linear in the
target, so a crop's targets are added first: one softmax over K for each crop, however many targets it has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby

import torch
from jaxtyping import Float
from torch import Tensor

from odonata.nn.centre import mean_row


def small_side(wanted: int, large: int) -> int:
    """Return the side of small crops: what is wanted, or for 0 three sevenths of the large ones', in steps of 16."""
    return wanted or 16 * max(1, round(large * 3 / 7 / 16))


def by_size(views: Sequence[Tensor], encode: Callable[[Tensor], Tensor]) -> Float[Tensor, "rows dim"]:
    """Return the encodings of views, each run of equal size in one pass: a small crop costs what its tokens cost.

    Args:
        views: each of shape [batch, 3, height, width].
        encode: from pictures to rows.

    Returns:
        Rows of the first view, then of the second, and so on.
    """
    runs = [list(run) for _, run in groupby(views, key=lambda view: view.shape[-2:])]
    return torch.cat([encode(torch.cat(run)) for run in runs])


def targets_of_others(
    targets: Float[Tensor, "large batch classes"], crops: int
) -> list[Float[Tensor, "batch classes"]]:
    """Return for each crop the sum of the targets of the large crops but itself; small crops share one tensor.

    Args:
        targets: of the large crops, which come first among the crops.
        crops: large and small.
    """
    total = targets.sum(0)
    others = [torch.cat([targets[:crop], targets[crop + 1 :]]).sum(0) for crop in range(len(targets))]
    return others + [total] * (crops - len(targets))


@torch.no_grad()
def target_figures(targets: Float[Tensor, "rows classes"]) -> dict[str, Tensor]:
    """Return what the collapse watch reads of targets, in nats.

    `teacher_entropy`: mean entropy of a target; ln K where all are uniform. `marginal_entropy`: entropy of their mean
    over all ranks; 0 where all choose one class.

    Source: DINO, Caron et al. 2021, sec. 5.3 and fig. 7.
    """
    mean = mean_row(targets)
    return {
        "teacher_entropy": -torch.xlogy(targets, targets).sum(1).mean(),
        "marginal_entropy": -torch.xlogy(mean, mean).sum(),
    }


def steps_of(amount: float, steps: int) -> int:
    """Return a number of steps that is given as a share of the run (below 1), or as it is."""
    return round(amount * steps) if amount < 1 else round(amount)
