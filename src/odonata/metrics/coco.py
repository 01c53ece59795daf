"""COCO's figures for boxes and for masks, computed by faster-coco-eval (equal to pycocotools to the last digit).

AP is the mean over ten IoU thresholds from .50 to .95, over classes, of the precision at 101 recalls; objects are small
below 32² pixels of area, large from 96² on. Where there is no object of a kind its figure is NaN, where the COCO API
writes -1. Classes without an object do not count.

The library is imported on use.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from odonata.errors import DataError
from odonata.metrics.figure import Figure
from odonata.metrics.object_matches import Found, Truth, average_precision, check_pairs, match_class

SIZES = {"small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}
"""Areas in square pixels, as COCO divides them."""


@dataclass(frozen=True, eq=False)
class CocoFigures:
    """What COCO's evaluation reports, each from 0 to 1 or NaN.

    Args:
        ap: average precision over IoU .50 to .95.
        ap50, ap75: at one IoU.
        ap_small, ap_medium, ap_large: for objects of a size.
        ar1, ar10, ar100: average recall of the surest 1, 10, 100 detections of each class in a picture.
        ar_small, ar_medium, ar_large: average recall of 100 for objects of a size.
        per_class: class name to its AP.
        per_class50: class name to its AP at IoU .50.
        curves: IoU to the precision at recalls 0, .01, …, 1 of every class; NaN for a class without objects.
        pictures: how many there were.
        objects: how many were to be found.
        objects_by_size: the same for each size.
        interval50: 95 % bootstrap interval of ap50 over pictures, where it was asked for.
        kind: "boxes" or "masks".
    """

    ap: float
    ap50: float
    ap75: float
    ap_small: float
    ap_medium: float
    ap_large: float
    ar1: float
    ar10: float
    ar100: float
    ar_small: float
    ar_medium: float
    ar_large: float
    per_class: dict[str, float]
    per_class50: dict[str, float]
    curves: dict[float, Float[np.ndarray, "recalls classes"]]
    pictures: int
    objects: int
    objects_by_size: dict[str, int] = field(default_factory=dict[str, int])
    interval50: tuple[float, float] | None = None
    kind: Literal["boxes", "masks"] = "boxes"

    def flat(self) -> dict[str, float]:
        """The twelve figures by the names that COCO's tables use, for logs."""
        names = ("AP", "AP50", "AP75", "AP_S", "AP_M", "AP_L", "AR1", "AR10", "AR100", "AR_S", "AR_M", "AR_L")
        values = (
            *(self.ap, self.ap50, self.ap75, self.ap_small, self.ap_medium, self.ap_large),
            *(self.ar1, self.ar10, self.ar100, self.ar_small, self.ar_medium, self.ar_large),
        )
        return dict(zip(names, values, strict=True))

    def figures(self) -> dict[str, Figure]:
        """The same with counts and, for AP50, its interval."""
        plain = {name: Figure(value, None, None, self.pictures) for name, value in self.flat().items()}
        if self.interval50 is not None:
            low, high = self.interval50
            plain["AP50"] = Figure(self.ap50, low, high, self.pictures, "interval over pictures")
        return plain

    def to_dict(self) -> dict[str, Any]:
        """As plain values; NaN becomes None."""
        return {
            "kind": self.kind,
            "pictures": self.pictures,
            "objects": self.objects,
            "objects_by_size": self.objects_by_size,
            **{name: _plain(value) for name, value in self.flat().items()},
            "AP50_interval": None if self.interval50 is None else list(self.interval50),
            "per_class": {name: _plain(value) for name, value in self.per_class.items()},
            "per_class50": {name: _plain(value) for name, value in self.per_class50.items()},
        }


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else value


def coco_figures(
    truths: Sequence[Truth],
    found: Sequence[Found],
    names: Sequence[str],
    *,
    kind: Literal["boxes", "masks"] = "boxes",
    resamples: int = 0,
    seed: int = 0,
) -> CocoFigures:
    """Compare detections with what was there.

    Args:
        truths: the objects of each picture.
        found: the detections of each picture, in the same order; at most 100 of a class in a picture count.
        names: of the classes, by label.
        kind: whether boxes or masks must overlap.
        resamples: for the interval of AP50 over pictures (boxes only); 0 for none.
        seed: of the resampling.

    Raises:
        DataError: both do not speak of the same pictures and classes, masks are missing, or there is no object.
    """
    check_pairs(truths, found, len(names))
    if sum(int((~truth.ignored).sum()) for truth in truths) == 0:
        raise DataError(f"there is no object in {len(truths)} pictures: AP has no meaning")
    if kind == "masks":
        _check_masks(truths, found)
    precision, recall, sizes = _evaluate(truths, found, len(names), kind)
    interval = ap50_interval(truths, found, len(names), resamples, seed) if resamples and kind == "boxes" else None
    # Axes: IoU, recall, class, size (all, small, medium, large), number of detections (1, 10, 100).
    ap = [_mean(precision[:, :, :, size, 2]) for size in range(4)]
    ar = [_mean(recall[:, :, 0, most]) for most in range(3)]
    by_class = {
        name: (_mean(precision[:, :, label, 0, 2]), _mean(precision[0, :, label, 0, 2]))
        for label, name in enumerate(names)
    }
    return CocoFigures(
        *(ap[0], _mean(precision[0, :, :, 0, 2]), _mean(precision[5, :, :, 0, 2])),
        *ap[1:],
        *ar,
        *(_mean(recall[:, :, size, 2]) for size in (1, 2, 3)),
        per_class={name: both[0] for name, both in by_class.items()},
        per_class50={name: both[1] for name, both in by_class.items()},
        curves={iou: np.where(curve < 0, np.nan, curve) for iou, curve in _curves(precision)},
        pictures=len(truths),
        objects=sum(sizes.values()),
        objects_by_size=sizes,
        interval50=interval,
        kind=kind,
    )


def _curves(precision: np.ndarray) -> list[tuple[float, np.ndarray]]:
    return [(iou, precision[place, :, :, 0, 2]) for place, iou in ((0, 0.5), (5, 0.75))]


def _mean(values: np.ndarray) -> float:
    """The mean of the figures that exist (-1 says that there was no object)."""
    there = values[values > -1]
    return float(there.mean()) if there.size else float("nan")


def _check_masks(truths: Sequence[Truth], found: Sequence[Found]) -> None:
    for number, (truth, guess) in enumerate(zip(truths, found, strict=True)):
        for name, rows in (("objects", truth), ("detections", guess)):
            if rows.masks is None and len(rows.labels):
                raise DataError(f"picture {number}, {name}: there are boxes only, and masks are to be compared")


def _evaluate(
    truths: Sequence[Truth], found: Sequence[Found], classes: int, kind: str
) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
    """Precision and recall in COCO's five and four axes, and the number of objects of each size."""
    from faster_coco_eval import COCO, COCOeval_faster

    objects = [row for number, truth in enumerate(truths) for row in _object_rows(number, truth, kind)]
    for place, row in enumerate(objects):
        row["id"] = place + 1
    shapes = [_shape(truth, guess) for truth, guess in zip(truths, found, strict=True)]
    truth_set = COCO(
        {
            "images": [{"id": n + 1, "height": h, "width": w} for n, (h, w) in enumerate(shapes)],
            "categories": [{"id": label + 1, "name": str(label)} for label in range(classes)],
            "annotations": objects,
        },
        print_function=_silent,
    )
    rows = [row for number, guess in enumerate(found) for row in _found_rows(number, guess, kind)]
    run = COCOeval_faster(
        truth_set, truth_set.loadRes(rows), "segm" if kind == "masks" else "bbox", print_function=_silent
    )
    run.evaluate()
    run.accumulate()
    counted = [row["area"] for row in objects if not row["iscrowd"]]
    # An area on the border belongs to both sizes for COCO; here to the larger, so that the counts add up.
    sizes = {name: sum(low <= area < high for area in counted) for name, (low, high) in SIZES.items()}
    shape = tuple(int(side) for side in run.eval["counts"])
    precision = np.asarray(run.eval["precision"], dtype=np.float64).reshape(shape)
    return precision, np.asarray(run.eval["recall"], dtype=np.float64).reshape(shape[0], *shape[2:]), sizes


def _silent(*_: object) -> None:
    """Takes the place of the library's reports."""


def _shape(truth: Truth, guess: Found) -> tuple[int, int]:
    """(height, width) of a picture, which only masks know; boxes need none."""
    masks = [*(truth.masks or ()), *(guess.masks or ())]
    return (int(masks[0]["size"][0]), int(masks[0]["size"][1])) if masks else (1, 1)


def _object_rows(number: int, truth: Truth, kind: str) -> list[dict[str, Any]]:
    from faster_coco_eval import mask as mask_api

    rows: list[dict[str, Any]] = []
    sizes = truth.sizes
    for place, box in enumerate(np.asarray(truth.boxes, dtype=np.float64).tolist()):
        row: dict[str, Any] = {
            "image_id": number + 1,
            "category_id": int(truth.labels[place]) + 1,
            "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
            "area": float(sizes[place]),
            "iscrowd": int(truth.ignored[place]),
        }
        if kind == "masks":
            assert truth.masks is not None
            row["segmentation"] = dict(truth.masks[place])
            if truth.areas is None:
                row["area"] = float(mask_api.area(row["segmentation"]))
        rows.append(row)
    return rows


def _found_rows(number: int, guess: Found, kind: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for place, box in enumerate(np.asarray(guess.boxes, dtype=np.float64).tolist()):
        row: dict[str, Any] = {
            "image_id": number + 1,
            "category_id": int(guess.labels[place]) + 1,
            "score": float(guess.scores[place]),
        }
        # Given a box, the library would take the area of a mask from it.
        if kind == "masks":
            assert guess.masks is not None
            row["segmentation"] = dict(guess.masks[place])
        else:
            row["bbox"] = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
        rows.append(row)
    return rows


def ap50_interval(
    truths: Sequence[Truth], found: Sequence[Found], classes: int, resamples: int = 200, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the boxes' AP50 over pictures.

    Detections are matched once; a resample only counts pictures anew.
    """
    matches = [match_class(truths, found, label) for label in range(classes)]
    generator = np.random.default_rng(seed)
    values: list[float] = []
    for _ in range(resamples):
        weights = np.bincount(generator.integers(len(truths), size=len(truths)), minlength=len(truths)).astype(float)
        each = [average_precision(match, weights) for match in matches]
        # A resample may hold no object at all.
        if not np.isnan(each).all():
            values.append(float(np.nanmean(each)))
    if not values:
        return float("nan"), float("nan")
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)
