"""Which share of the objects is found at all: by size, by detections or by any set of boxes.

`matched_recall` gives every detection to one object at most, as an evaluation does. `best_recall` asks only whether
some box overlaps an object enough: the best that proposals or anchors allow, whatever the head makes of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from odonata.errors import DataError
from odonata.metrics.coco import SIZES
from odonata.metrics.object_matches import Found, Truth, greedy_pairs, overlaps

IOUS = np.linspace(0.5, 0.95, 10)


@dataclass(frozen=True)
class Recalls:
    """Shares of objects found, from 0 to 1; NaN where there is no object of a size.

    Args:
        all: of all objects.
        by_size: "small", "medium", "large" (COCO's areas) to the share of each.
        counts: how many objects each size has.
        threshold: least IoU.
    """

    all: float
    by_size: dict[str, float]
    counts: dict[str, int]
    threshold: float


def matched_recall(
    truths: Sequence[Truth],
    found: Sequence[Found],
    threshold: float = 0.5,
    *,
    max_detections: int = 100,
    by_class: bool = True,
) -> Recalls:
    """Return which share of the objects has a detection of its own.

    Args:
        truths, found: of each picture.
        threshold: least IoU.
        max_detections: the surest so many of each picture and class count.
        by_class: whether the class must be right too.

    Raises:
        DataError: the numbers of pictures differ, or there is no object.
    """
    _same(truths, found)
    reached: list[np.ndarray] = []
    for truth, guess in zip(truths, found, strict=True):
        hit = np.zeros(len(truth.labels), dtype=bool)
        for label in np.unique(truth.labels) if by_class else (None,):
            mine = np.flatnonzero(np.ones_like(hit) if label is None else truth.labels == label)
            theirs = np.flatnonzero(np.ones(len(guess.labels), dtype=bool) if label is None else guess.labels == label)
            order = theirs[np.argsort(-guess.scores[theirs], kind="stable")][:max_detections]
            crowd = truth.ignored[mine]
            pairs = greedy_pairs(overlaps(guess.boxes[order], truth.boxes[mine], crowd), crowd, threshold)
            hit[mine[pairs[pairs >= 0]]] = True
        reached.append(hit)
    return _recalls(truths, reached, threshold)


def best_recall(
    truths: Sequence[Truth], boxes: Sequence[Float[np.ndarray, "boxes 4"]], threshold: float = 0.5
) -> Recalls:
    """Return which share of the objects some box overlaps enough, several objects by one box included.

    Args:
        truths: of each picture.
        boxes: xyxy of each picture: anchors, proposals or detections.
        threshold: least IoU.

    Raises:
        DataError: the numbers of pictures differ, or there is no object.
    """
    _same(truths, boxes)
    reached: list[np.ndarray] = []
    for truth, rows in zip(truths, boxes, strict=True):
        reached.append(np.asarray((overlaps(rows, truth.boxes) >= threshold).any(axis=0)))
    return _recalls(truths, reached, threshold)


def average_recall(truths: Sequence[Truth], found: Sequence[Found], max_detections: int = 100) -> float:
    """Return the mean of the recall of class-free proposals over IoU .50, .55, …, .95.

    Source: Hosang et al., What makes for effective detection proposals?, arXiv:1502.05082, section 5; as COCO's AR.
    """
    each = [matched_recall(truths, found, iou, max_detections=max_detections, by_class=False).all for iou in IOUS]
    return float(np.mean(each))


def _recalls(truths: Sequence[Truth], reached: Sequence[Bool[np.ndarray, " objects"]], threshold: float) -> Recalls:
    wanted = np.concatenate([~truth.ignored for truth in truths])
    hit, areas = np.concatenate(list(reached))[wanted], np.concatenate([truth.sizes for truth in truths])[wanted]
    if hit.size == 0:
        raise DataError(f"there is no object in {len(truths)} pictures: recall has no meaning")
    inside = {name: (areas >= low) & (areas < high) for name, (low, high) in SIZES.items()}
    by_size = {name: float(hit[rows].mean()) if rows.any() else float("nan") for name, rows in inside.items()}
    return Recalls(float(hit.mean()), by_size, {name: int(rows.sum()) for name, rows in inside.items()}, threshold)


def _same(truths: Sequence[Truth], found: Sequence[object]) -> None:
    if len(truths) != len(found) or not truths:
        raise DataError(f"boxes of {len(found)} pictures cannot be compared with the objects of {len(truths)}")
