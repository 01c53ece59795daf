"""PASCAL VOC's average precision, by both of its definitions: eleven points (to 2009) and area (from 2010).

The matching is VOC's own and differs from COCO's: each detection is compared with the one object that it overlaps most,
whether that was found before or not, so a second detection of an object is false even where a neighbour is still free.
Difficult objects, and detections of them, count neither for nor against.

Boxes are continuous here, so the IoU has no "+ 1" for inclusive pixels; the reader of VOC files has taken it into the
boxes. Deliberate difference: the eleven recalls are exact tenths; steps of .1 that are added up miss a recall of .3 by
rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from odonata.errors import DataError
from odonata.metrics.object_matches import Found, Matches, Truth, check_pairs, overlaps, precision_recall


@dataclass(frozen=True)
class VocFigures:
    """Average precision of every class by both definitions, from 0 to 1; NaN where a class has no object.

    Args:
        area: class name to the area under the interpolated curve (2010 on).
        eleven_point: class name to the mean of the precision at recalls 0, .1, …, 1 (2007).
        threshold: least IoU.
        pictures: how many there were.
        objects: how many were to be found.
    """

    area: dict[str, float]
    eleven_point: dict[str, float]
    threshold: float
    pictures: int
    objects: int

    @property
    def mean_area(self) -> float:
        """Mean over the classes that have objects, by area."""
        return float(np.nanmean(list(self.area.values())))

    @property
    def mean_eleven_point(self) -> float:
        """Mean over the classes that have objects, by eleven points."""
        return float(np.nanmean(list(self.eleven_point.values())))

    def flat(self) -> dict[str, float]:
        """Return one figure per name, for logs."""
        return {"mAP": self.mean_area, "mAP_11": self.mean_eleven_point}


def voc_figures(
    truths: Sequence[Truth], found: Sequence[Found], names: Sequence[str], threshold: float = 0.5
) -> VocFigures:
    """Compare detections with what was there as VOC does.

    Args:
        truths: the objects of each picture; `crowd` marks the difficult ones.
        found: the detections of each picture, in the same order; all of them count.
        names: of the classes, by label.
        threshold: least IoU.

    Raises:
        DataError: both do not speak of the same pictures and classes, or there is no object.

    Source: Everingham et al., The PASCAL VOC Challenge, IJCV 2010, section 4.2; development kit, `VOCevaldet.m`.
    """
    check_pairs(truths, found, len(names))
    objects = sum(int((~truth.ignored).sum()) for truth in truths)
    if objects == 0:
        raise DataError(f"there is no object in {len(truths)} pictures: AP has no meaning")
    area: dict[str, float] = {}
    eleven: dict[str, float] = {}
    for label, name in enumerate(names):
        matches = voc_matches(truths, found, label, threshold)
        there = matches.positives.sum() > 0
        precision, recall = precision_recall(matches)
        area[name] = area_under(precision, recall) if there else float("nan")
        eleven[name] = eleven_points(precision, recall) if there else float("nan")
    return VocFigures(area, eleven, threshold, len(truths), objects)


def voc_matches(truths: Sequence[Truth], found: Sequence[Found], label: int, threshold: float = 0.5) -> Matches:
    """Match the boxes of one class in all pictures by VOC's rule."""
    columns: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []
    positives = np.zeros(len(truths), dtype=np.int64)
    for number, (truth, guess) in enumerate(zip(truths, found, strict=True)):
        mine, theirs = truth.labels == label, guess.labels == label
        difficult, scores = truth.ignored[mine], guess.scores[theirs]
        order = np.argsort(-scores, kind="stable")
        shared = overlaps(guess.boxes[theirs][order], truth.boxes[mine])
        hit, ignored = _judge(shared, difficult, threshold)
        columns.append((scores[order], hit, ignored, np.full(len(order), number)))
        positives[number] = int((~difficult).sum())
    scores, hit, ignored, picture = (np.concatenate(column) for column in zip(*columns, strict=True))
    order = np.argsort(-scores, kind="stable")
    return Matches(scores[order], hit[order], ignored[order], picture[order], positives)


def _judge(
    shared: Float[np.ndarray, "detections objects"], difficult: Bool[np.ndarray, " objects"], threshold: float
) -> tuple[Bool[np.ndarray, " detections"], Bool[np.ndarray, " detections"]]:
    """Which detections, the surest first, are hits, and which belong to difficult objects."""
    hit, ignored = np.zeros((2, len(shared)), dtype=bool)
    if shared.size == 0:
        return hit, ignored
    seen = np.zeros(shared.shape[1], dtype=bool)
    for row, best in enumerate(shared.argmax(1)):
        if shared[row, best] < threshold:
            continue
        ignored[row] = difficult[best]
        hit[row] = not (difficult[best] or seen[best])
        seen[best] = True
    return hit, ignored


def eleven_points(precision: Float[np.ndarray, " points"], recall: Float[np.ndarray, " points"]) -> float:
    """The mean over recalls 0, .1, …, 1 of the best precision at that recall or a higher one."""
    return float(np.mean([precision[recall >= tenth / 10].max(initial=0.0) for tenth in range(11)]))


def area_under(precision: Float[np.ndarray, " points"], recall: Float[np.ndarray, " points"]) -> float:
    """The area under the curve whose precision is made monotonous from the right."""
    best = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(recall, prepend=0.0) * best).sum())
