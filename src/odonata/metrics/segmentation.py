"""Figures of semantic segmentation, all from one matrix of confusion: of the whole set, not the mean of its pictures.

The four of Long et al. (FCN, arXiv:1411.4038, section 5): pixel accuracy, mean accuracy, mean IoU, frequency-weighted
IoU. A class that is neither there nor predicted anywhere has no figure (NaN) and does not count in a mean; one that is
predicted where it is nowhere has IoU 0 and does count, as in the authors' code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float64, Int, Int64
from torch import Tensor

from odonata.errors import DataError


@dataclass(frozen=True)
class Segmentation:
    """What a segmentation scored, each from 0 to 1.

    Args:
        miou: mean over classes of intersection over union.
        pixel_accuracy: share of the pixels that are right.
        mean_accuracy: mean over classes of the share of the class's pixels that are right.
        frequency_weighted_iou: mean of the IoUs, weighted by the classes' pixels.
        iou: of every class; NaN where a class is neither there nor predicted.
        accuracy: of every class; NaN where a class is not there.
        confusion: rows are right classes, columns predicted ones; pixels.
        names: of the classes.
    """

    miou: float
    pixel_accuracy: float
    mean_accuracy: float
    frequency_weighted_iou: float
    iou: Float64[Tensor, " classes"]
    accuracy: Float64[Tensor, " classes"]
    confusion: Int64[Tensor, "classes classes"]
    names: tuple[str, ...] = ()

    def flat(self) -> dict[str, float]:
        """Return one figure per name, for logs."""
        return {
            "mIoU": self.miou,
            "pixel_accuracy": self.pixel_accuracy,
            "mean_accuracy": self.mean_accuracy,
            "frequency_weighted_iou": self.frequency_weighted_iou,
        }

    def to_dict(self) -> dict[str, Any]:
        """As plain values, with the IoU of every class by its name; NaN becomes None."""
        names = self.names or tuple(f"class {label}" for label in range(len(self.iou)))
        each = {name: None if value != value else value for name, value in zip(names, self.iou.tolist(), strict=True)}
        return {**self.flat(), "per_class": each, "pixels": int(self.confusion.sum())}


def confusion_matrix(
    predicted: Int[Tensor, "*pixels"], target: Int[Tensor, "*pixels"], classes: int, ignore: int = 255
) -> Int64[Tensor, "classes classes"]:
    """Count the pixels of each pair of right and predicted class. Matrices of several pictures add up.

    Args:
        predicted: the class of each pixel; whatever it says where the target is ignored.
        target: the right class, or `ignore`.
        classes: how many there are.
        ignore: value of pixels that do not count.

    Raises:
        DataError: the shapes differ, or a value is no class.
    """
    if predicted.shape != target.shape:
        raise DataError(f"the map of classes is {list(predicted.shape)}, the right one {list(target.shape)}")
    counted = target != ignore
    rows, columns = target[counted].long(), predicted[counted].long()
    for name, values in (("right", rows), ("predicted", columns)):
        if values.numel() and not 0 <= int(values.min()) <= int(values.max()) < classes:
            worst = int(values.max()) if int(values.max()) >= classes else int(values.min())
            raise DataError(
                f"the {name} map says class {worst}, but there are {classes} classes and {ignore} is ignored"
            )
    return torch.bincount(rows * classes + columns, minlength=classes * classes).view(classes, classes)


def segmentation_figures(confusion: Int[Tensor, "classes classes"], names: Sequence[str] = ()) -> Segmentation:
    """Return the figures of a matrix of confusion.

    Args:
        confusion: rows are right classes, columns predicted ones; pixels.
        names: of the classes.

    Raises:
        DataError: the matrix is not square, does not fit the names, or counts no pixel.
    """
    if confusion.ndim != 2 or confusion.shape[0] != confusion.shape[1] or len(names) not in (0, len(confusion)):
        raise DataError(f"a matrix of confusion {list(confusion.shape)} does not fit {len(names)} classes")
    counts = confusion.double()
    if counts.sum() == 0:
        raise DataError("no pixel has a class: every one is ignored")
    right, there, said = counts.diagonal(), counts.sum(1), counts.sum(0)
    iou, accuracy = right / (there + said - right), right / there
    share = there / there.sum()
    return Segmentation(
        miou=iou.nanmean().item(),
        pixel_accuracy=(right.sum() / counts.sum()).item(),
        mean_accuracy=accuracy.nanmean().item(),
        frequency_weighted_iou=(share * iou)[there > 0].sum().item(),
        iou=iou,
        accuracy=accuracy,
        confusion=confusion.long(),
        names=tuple(names),
    )
