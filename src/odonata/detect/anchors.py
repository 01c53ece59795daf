"""Anchors from the objects of a training set: k-means with 1 − IoU as the distance, so that large boxes do not rule.

Source: Redmon and Farhadi 2016 (1612.08242), sec. 2, "Dimension Clusters".

Differences: the paper says nothing of how it begins. Here the first centres are drawn far apart (k-means++, Arthur and
Vassilvitskii 2007, with this distance), and of several beginnings the one with the best mean IoU is kept.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from odonata.data.framing import Framing
from odonata.data.objects import ObjectSource
from odonata.errors import DataError
from odonata.ops.boxes import shape_iou

MOST_BOXES = 20_000
"""Of more boxes than this, so many at random are looked at."""
_BEGINNINGS, _ROUNDS = 4, 100


def kmeans_anchors(sizes: Float[Tensor, "boxes 2"], k: int, seed: int = 0) -> Float[Tensor, "k 2"]:
    """Returns k widths and heights that overlap boxes of these sizes best on average, the smallest area first.

    Args:
        sizes: width and height of each box, in any unit.
        k: how many anchors; there are as many different boxes at least.
        seed: of the beginnings.

    Raises:
        DataError: fewer different boxes than anchors, or a box without area.

    >>> kmeans_anchors(torch.tensor([[10.0, 10], [12, 12], [40, 20], [44, 20]]), 2).tolist()
    [[11.0, 11.0], [42.0, 20.0]]
    """
    sizes = sizes.double()
    if len(sizes) and float(sizes.min()) <= 0:
        raise DataError("k-means of anchors: a box has no width or no height; `odonata check-data` names it")
    different = len(torch.unique(sizes, dim=0))
    if k < 1 or different < k:
        raise DataError(f"k-means of anchors: {k} anchors want as many boxes of different sizes; there are {different}")
    generator = torch.Generator().manual_seed(seed)
    if len(sizes) > MOST_BOXES:
        sizes = sizes[torch.randperm(len(sizes), generator=generator)[:MOST_BOXES]]
    tries = [_settle(sizes, _scattered(sizes, k, generator)) for _ in range(_BEGINNINGS)]
    best = max(tries, key=lambda anchors: mean_best_iou(sizes, anchors))
    return best[best.prod(1).argsort(stable=True)].float()


def mean_best_iou(sizes: Float[Tensor, "boxes 2"], anchors: Float[Tensor, "anchors 2"]) -> float:
    """Returns the mean over boxes of the IoU with the best anchor, both around one centre (table 1)."""
    return float(shape_iou(sizes.double(), anchors.double()).amax(1).mean())


def framed_sizes(source: ObjectSource, framing: Framing) -> Float[Tensor, "boxes 2"]:
    """Returns width and height, in pixels of the frame, of all objects of a set but crowds."""
    found = [
        (sample.boxes[~sample.crowd, 2:] - sample.boxes[~sample.crowd, :2])
        * np.array(framing.place(*sample.size).scale)
        for sample in source
    ]
    return torch.from_numpy(np.concatenate(found) if found else np.zeros((0, 2))).float()


def _scattered(sizes: Float[Tensor, "boxes 2"], k: int, generator: torch.Generator) -> Float[Tensor, "k 2"]:
    """k of the boxes, each drawn with a probability that grows with its distance from those before."""
    chosen = sizes[torch.randint(len(sizes), (1,), generator=generator)]
    for _ in range(k - 1):
        far = (1 - shape_iou(sizes, chosen).amax(1)).clamp(min=0).square() + 1e-12
        chosen = torch.cat([chosen, sizes[torch.multinomial(far, 1, generator=generator)]])
    return chosen


def _settle(sizes: Float[Tensor, "boxes 2"], anchors: Float[Tensor, "k 2"]) -> Float[Tensor, "k 2"]:
    """Anchors moved to the mean of their boxes until none changes hands; one without boxes takes the worst box."""
    owner: Tensor | None = None
    for _ in range(_ROUNDS):
        overlaps = shape_iou(sizes, anchors)
        best, now = overlaps.max(1)
        if owner is not None and torch.equal(now, owner):
            break
        owner = now
        counts = torch.bincount(now, minlength=len(anchors))
        total = torch.zeros_like(anchors).index_add_(0, now, sizes)
        anchors = torch.where(counts[:, None] > 0, total / counts.clamp(min=1)[:, None], sizes[best.argmin()])
    return anchors
