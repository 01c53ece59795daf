"""What is measured of a detector: average precision as COCO has it, on pictures that training does not see."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from odonata.data.detections import Detections
from odonata.data.objects import ObjectImage, ObjectSource
from odonata.data.pictures import chosen_indices
from odonata.detect.assets import DetectorAssets
from odonata.detect.detector import Detector
from odonata.detect.predictor import DetectorPredictor
from odonata.engine.method import Method
from odonata.metrics.coco import Found, Truth, coco_figures
from odonata.ops.masks import encode


@dataclass(frozen=True)
class DetectEvaluation:
    """What is measured on pictures that training does not see."""

    pictures: int = 200
    """Held-back pictures used (0 = nothing is measured)."""
    batch_size: int = 8
    """Pictures computed at a time."""


@dataclass
class Evaluator:
    """Measures a detector in training; made once."""

    assets: DetectorAssets
    heldout: ObjectSource | None
    options: DetectEvaluation

    @property
    def measures(self) -> bool:
        """Whether there is anything to measure."""
        return self.heldout is not None and bool(self.options.pictures) and self.heldout.num_objects > 0

    def measure(self, method: Method) -> dict[str, float]:
        """Return COCO's figures by name; `AP` decides which checkpoint is best."""
        assert isinstance(method, Detector) and self.heldout is not None
        chosen = [self.heldout[i] for i in chosen_indices(len(self.heldout), self.options.pictures)]
        device = next(method.parameters()).device
        found = detections_of(DetectorPredictor(method, self.assets, device), chosen, self.options.batch_size)
        names = [category.name for category in self.assets.categories]
        figures = coco_figures(truths(chosen), founds(found), names).flat()
        if method.needs_masks:
            masks = coco_figures(truths(chosen, True), founds(found, True), names, kind="masks").flat()
            figures |= {f"mask_{name}": value for name, value in masks.items()}
        return {name: value for name, value in figures.items() if not math.isnan(value)}


def detections_of(
    model: DetectorPredictor, samples: Sequence[ObjectImage], batch_size: int, **options: Any
) -> list[Detections]:
    """Return what a detector finds in samples, in their order."""
    return list(model.find([sample.image for sample in samples], batch_size=batch_size, **options))


def truths(samples: Sequence[ObjectImage], masks: bool = False) -> list[Truth]:
    """What lies in the samples, as the metrics take it."""
    return [
        Truth(
            sample.boxes,
            sample.labels,
            sample.crowd,
            sample.areas,
            [encode(torch.from_numpy(mask)) for mask in sample.masks()] if masks else None,
        )
        for sample in samples
    ]


def founds(answers: Sequence[Detections], masks: bool = False) -> list[Found]:
    """What was found, as the metrics take it."""
    rows: list[Found] = []
    for answer in answers:
        painted = None
        if masks and answer.masks is not None:
            painted = [encode(mask) for mask in answer.masks]
        rows.append(Found(answer.boxes.numpy(), answer.scores.numpy(), answer.labels.numpy().astype(np.int64), painted))
    return rows
