"""What was there and what was found, picture by picture, and which belongs to which, as COCO decides it.

Detections are taken from the surest on; each gets the object of its class that it overlaps most among those still free,
if by the threshold at least; failing that, a crowd that it lies in, and then it counts neither for nor against. The
average precision made of this equals the COCO API's (tests hold it against faster-coco-eval), and it can be made anew
with pictures counted several times: that is the bootstrap.

Deliberate difference: a detection turned inside out (x2 < x1) is a miss here; COCO leaves it out, for its area lies in
none of the ranges.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from odonata.errors import DataError

RECALLS = np.linspace(0.0, 1.0, 101)
"""Recalls at which COCO reads the precision."""

Rle = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Truth:
    """The objects of one picture.

    Args:
        boxes: xyxy in absolute pixels.
        labels: class of each, from 0.
        crowd: objects that are neither to be found nor to be punished (COCO's crowds, VOC's difficult ones).
        areas: in pixels, for the classes of size; those of the boxes where None.
        masks: run-length encodings {"size", "counts"} of each object.
    """

    boxes: Float[np.ndarray, "objects 4"]
    labels: Int[np.ndarray, " objects"]
    crowd: Bool[np.ndarray, " objects"] | None = None
    areas: Float[np.ndarray, " objects"] | None = None
    masks: Sequence[Rle] | None = None

    @property
    def ignored(self) -> Bool[np.ndarray, " objects"]:
        """`crowd`, or all False."""
        return np.zeros(len(self.labels), dtype=bool) if self.crowd is None else self.crowd.astype(bool)

    @property
    def sizes(self) -> Float[np.ndarray, " objects"]:
        """`areas`, or those of the boxes."""
        return box_areas(self.boxes) if self.areas is None else np.asarray(self.areas, dtype=np.float64)


@dataclass(frozen=True, eq=False)
class Found:
    """What a detector says of one picture.

    Args:
        boxes: xyxy in absolute pixels.
        scores: higher is surer.
        labels: class of each, from 0.
        masks: run-length encodings {"size", "counts"} of each object.
    """

    boxes: Float[np.ndarray, "objects 4"]
    scores: Float[np.ndarray, " objects"]
    labels: Int[np.ndarray, " objects"]
    masks: Sequence[Rle] | None = None


@dataclass(frozen=True, eq=False)
class Matches:
    """The detections of one class in all pictures, the surest first.

    Args:
        scores: of each detection.
        hit: whether it belongs to an object.
        ignored: whether it counts neither for nor against.
        picture: in which it was found.
        positives: how many objects each picture has to be found.
    """

    scores: Float[np.ndarray, " detections"]
    hit: Bool[np.ndarray, " detections"]
    ignored: Bool[np.ndarray, " detections"]
    picture: Int[np.ndarray, " detections"]
    positives: Int[np.ndarray, " pictures"]


def check_pairs(truths: Sequence[Truth], found: Sequence[Found], classes: int) -> None:
    """Make sure that both speak of the same pictures and classes.

    Raises:
        DataError: a count, shape or label does not fit, or a score is not a number.
    """
    if len(truths) != len(found) or not truths:
        raise DataError(f"detections of {len(found)} pictures cannot be compared with the objects of {len(truths)}")
    for number, (truth, guess) in enumerate(zip(truths, found, strict=True)):
        for name, rows in (("objects", truth), ("detections", guess)):
            where = f"picture {number}, {name}"
            if rows.boxes.ndim != 2 or rows.boxes.shape[1] != 4 or len(rows.boxes) != len(rows.labels):
                raise DataError(f"{where}: boxes are {rows.boxes.shape} with {len(rows.labels)} labels, want [n, 4]")
            if rows.masks is not None and len(rows.masks) != len(rows.boxes):
                raise DataError(f"{where}: {len(rows.masks)} masks for {len(rows.boxes)} boxes")
            if len(rows.labels) and not 0 <= rows.labels.min() <= rows.labels.max() < classes:
                raise DataError(f"{where}: labels from {rows.labels.min()} to {rows.labels.max()}, classes: {classes}")
        if len(guess.scores) != len(guess.boxes):
            raise DataError(f"picture {number}: {len(guess.scores)} scores for {len(guess.boxes)} detections")
        if not np.isfinite(guess.scores).all():
            raise DataError(f"picture {number}: the score of a detection is not a number")


def box_areas(boxes: Float[np.ndarray, "objects 4"]) -> Float[np.ndarray, " objects"]:
    """Areas in square pixels; 0 for boxes that are turned inside out."""
    sides = np.clip(np.asarray(boxes, dtype=np.float64)[:, 2:] - boxes[:, :2], 0, None)
    return sides[:, 0] * sides[:, 1]


def overlaps(
    found: Float[np.ndarray, "detections 4"],
    boxes: Float[np.ndarray, "objects 4"],
    crowd: Bool[np.ndarray, " objects"] | None = None,
) -> Float[np.ndarray, "detections objects"]:
    """IoU of all pairs of xyxy boxes; for a crowd, the share of the detection that lies in it."""
    a, b = np.asarray(found, dtype=np.float64), np.asarray(boxes, dtype=np.float64)
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(2)
    whole = box_areas(a)[:, None] + box_areas(b)[None] - shared
    if crowd is not None:
        whole = np.where(crowd[None], box_areas(a)[:, None], whole)
    return np.divide(shared, whole, out=np.zeros_like(shared), where=whole > 0)


def greedy_pairs(
    shared: Float[np.ndarray, "detections objects"], crowd: Bool[np.ndarray, " objects"], threshold: float
) -> Int[np.ndarray, " detections"]:
    """Which object each detection belongs to, -1 for none.

    Args:
        shared: overlap of each detection, the surest first, with each object.
        crowd: objects that several detections may belong to.
        threshold: least overlap.
    """
    pairs = np.full(len(shared), -1, dtype=np.int64)
    if shared.size == 0:
        return pairs
    free = ~crowd
    # COCO asks for the threshold less a hair, and takes the last of equal objects.
    least = min(threshold, 1 - 1e-10)
    for row in np.flatnonzero((shared >= least).any(1)):
        for candidates in (free, crowd):
            values = np.where(candidates, shared[row], -1.0)
            best = len(values) - 1 - int(values[::-1].argmax())
            if values[best] >= least:
                pairs[row] = best
                free[best] = False
                break
    return pairs


def match_class(
    truths: Sequence[Truth],
    found: Sequence[Found],
    label: int | None,
    threshold: float = 0.5,
    max_detections: int = 100,
) -> Matches:
    """Match the boxes of one class in all pictures.

    Args:
        truths, found: of each picture.
        label: the class; None to take all objects and detections for one class.
        threshold: least IoU.
        max_detections: the surest so many of each picture are taken.
    """
    columns: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []
    positives = np.zeros(len(truths), dtype=np.int64)
    for number, (truth, guess) in enumerate(zip(truths, found, strict=True)):
        mine = np.ones(len(truth.labels), dtype=bool) if label is None else truth.labels == label
        theirs = np.ones(len(guess.labels), dtype=bool) if label is None else guess.labels == label
        boxes, crowd, scores = truth.boxes[mine], truth.ignored[mine], guess.scores[theirs]
        order = np.argsort(-scores, kind="stable")[:max_detections]
        pairs = greedy_pairs(overlaps(guess.boxes[theirs][order], boxes, crowd), crowd, threshold)
        ignored = np.concatenate([crowd, [False]])[pairs]
        columns.append((scores[order], (pairs >= 0) & ~ignored, ignored, np.full(len(order), number)))
        positives[number] = int((~crowd).sum())
    scores, hit, ignored, picture = (np.concatenate(column) for column in zip(*columns, strict=True))
    order = np.argsort(-scores, kind="stable")
    return Matches(scores[order], hit[order], ignored[order], picture[order], positives)


def precision_recall(
    matches: Matches, weights: Float[np.ndarray, " pictures"] | None = None
) -> tuple[Float[np.ndarray, " points"], Float[np.ndarray, " points"]]:
    """Precision and recall after each detection that counts, from the surest on.

    Args:
        matches: of one class.
        weights: how often each picture counts; once where None.
    """
    each = np.ones(len(matches.positives)) if weights is None else weights
    weight = np.where(matches.ignored, 0.0, each[matches.picture])
    hits, misses = np.cumsum(weight * matches.hit), np.cumsum(weight * ~matches.hit)
    total = float((matches.positives * each).sum())
    return hits / np.maximum(hits + misses, np.spacing(1)), hits / total if total else np.zeros_like(hits)


def average_precision(matches: Matches, weights: Float[np.ndarray, " pictures"] | None = None) -> float:
    """COCO's average precision, read at 101 recalls; NaN where there is nothing to be found."""
    each = np.ones(len(matches.positives)) if weights is None else weights
    if (matches.positives * each).sum() == 0:
        return float("nan")
    precision, recall = precision_recall(matches, weights)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    places = np.searchsorted(recall, RECALLS, side="left")
    return float(np.concatenate([best, np.zeros(1)])[np.minimum(places, len(best))].mean())
