"""What is measured of a segmenter: mean intersection over union and its kin, on pictures that training does not see."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from odonata.data.pictures import chosen_indices
from odonata.data.semantic import VOID, SemanticImage, SemanticSource
from odonata.engine.method import Method
from odonata.errors import DataError
from odonata.metrics.segmentation import confusion_matrix, segmentation_figures
from odonata.segment.assets import SegmenterAssets
from odonata.segment.predictor import SegmenterPredictor
from odonata.segment.segmenter import Segmenter


@dataclass(frozen=True)
class SegmentEvaluation:
    """What is measured on pictures that training does not see."""

    pictures: int = 200
    """Held-back pictures used (0 = nothing is measured)."""
    batch_size: int = 8
    """Pictures computed at a time."""


@dataclass
class Evaluator:
    """Measures a segmenter in training; made once."""

    assets: SegmenterAssets
    heldout: SemanticSource | None
    options: SegmentEvaluation

    @property
    def measures(self) -> bool:
        """Whether there is anything to measure."""
        return self.heldout is not None and bool(self.options.pictures)

    def measure(self, method: Method) -> dict[str, float]:
        """Return Long et al.'s four figures by name; `mIoU` decides which checkpoint is best."""
        assert isinstance(method, Segmenter) and self.heldout is not None
        chosen = [self.heldout[i] for i in chosen_indices(len(self.heldout), self.options.pictures)]
        model = SegmenterPredictor(method, self.assets, next(method.parameters()).device)
        total = sum(confusions(model, chosen, self.heldout.classes, batch_size=self.options.batch_size))
        assert isinstance(total, Tensor)
        return segmentation_figures(total, self.assets.classes).flat()


def confusions(
    model: SegmenterPredictor, samples: Sequence[SemanticImage], classes: Sequence[str], **options: Any
) -> Iterator[Int64[Tensor, "classes classes"]]:
    """Yield the matrix of confusion of each sample, by the model's table of classes.

    Args:
        model: the segmenter.
        samples: pictures with their maps.
        classes: the names that the maps count.
        options: those of `SegmenterPredictor.find`.

    Raises:
        DataError: the maps know a class that the model does not, or a map and its picture differ in size.
    """
    table = label_table(classes, model.classes)
    answers = model.find([sample.image for sample in samples], **options)
    for sample, answer in zip(samples, answers, strict=True):
        right = table[torch.from_numpy(sample.map.read()).long()]
        if answer.size != tuple(right.shape):
            raise DataError(
                f"{sample.map.name}: the map is {right.shape[1]} × {right.shape[0]} px, and its picture "
                f"{answer.size[1]} × {answer.size[0]}"
            )
        yield confusion_matrix(answer.map, right, len(model.classes))


def label_table(theirs: Sequence[str], ours: Sequence[str]) -> UInt8[Tensor, " labels"]:
    """Label of the maps → label of the model, by the classes' names; void stays void.

    Raises:
        DataError: a class of the maps is none of the model's.
    """
    unknown = [name for name in theirs if name not in ours]
    if unknown:
        raise DataError(
            f"the maps have classes that the model does not know: {', '.join(unknown[:6])}; it knows "
            f"{', '.join(ours[:12])}{', …' if len(ours) > 12 else ''}"
        )
    table = torch.full((VOID + 1,), VOID, dtype=torch.uint8)
    for label, name in enumerate(theirs):
        table[label] = ours.index(name)
    return table
