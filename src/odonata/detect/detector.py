"""What the detectors of this room share: options, how pixels are prepared, and how many boxes become few."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, cast

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from odonata.backbones.interface import Backbone, channels_last
from odonata.data.detections import Detections
from odonata.data.framing import Framing
from odonata.data.object_batches import ObjectBatch
from odonata.data.objects import ObjectSource
from odonata.engine.method import Method
from odonata.engine.presets import with_preset as with_preset
from odonata.errors import RecipeError
from odonata.ops.nms import batched_nms, nms


@dataclass(frozen=True)
class DetectorOptions:
    """Options of every detector."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Named conventions: preset → fields with their values."""

    preset: str = ""
    """Named set of conventions and sizes; fills in fields left at their defaults (`odonata show NAME --presets`)."""
    backbone: str = "resnet10-small-gn"
    """Tower by name (`odonata show backbones`), with options: resnet50:norm=frozen_batch, …"""
    init: str = ""
    """Begin at these weights: a run of this room, a published detector, or a published tower; what does not fit starts
    anew."""
    freeze: int = 0
    """Stages of the tower, from the stem up, that do not learn."""
    backbone_lr: float = 1.0
    """Factor on the tower's rate."""
    epochs: float = 0.0
    """Passes over the data instead of --steps (0 = --steps counts)."""
    framing: Framing = field(default_factory=lambda: Framing(size=256, max_size=448))
    """What pictures are scaled to."""
    scale_policy: Literal["single", "multi-scale", "pyramid", "snip", "tiles"] = "single"
    """`single`: one size. `multi-scale`: trained at one of the sizes at random. `pyramid`: that, and predicted at all
    of them. `snip`: a pyramid, each size for its range of objects; the others are ignored in training (1711.08189).
    `tiles`: trained, evaluated and predicted on windows of the picture."""
    scale_sizes: tuple[int, ...] = ()
    """Framing sizes in pixels, smallest first; empty: 0.75, 1 and 1.5 times that of the framing."""
    scale_ranges: tuple[tuple[float, float], ...] = ()
    """Least and largest √area, in the picture's own pixels, of objects that count at each size; empty: for SNIP, from
    the sizes of the training set's objects."""
    scale_test_ranges: tuple[tuple[float, float], ...] = ()
    """The same for prediction; empty: a quarter lower and a fifth higher than in training."""
    tile: int = 0
    """Side of a window in the picture's own pixels (0 = the framing's size)."""
    tile_overlap: float = 0.2
    """Share of a window that the next one repeats, 0 to below 1."""
    tile_min_visible: float = 0.5
    """Share of an object's box that must lie in a training window; what shows less is ignored."""
    score_threshold: float = 0.05
    """Least score of a detection, 0 to 1."""
    nms_threshold: float = 0.6
    """Overlap (IoU) above which the less sure of two boxes of a class is dropped."""
    pre_nms: int = 1000
    """Candidates kept of each level before that."""
    max_detections: int = 100
    """Detections kept of a picture."""

    def __post_init__(self) -> None:
        for name in ("score_threshold", "nms_threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise RecipeError(f"--{name.replace('_', '-')} is {getattr(self, name)}; it lies in [0, 1]")
        if not 0 <= self.tile_overlap < 1 or not 0 <= self.tile_min_visible <= 1 or self.tile < 0:
            raise RecipeError(
                f"--tile {self.tile} wants 0 or more, --tile-overlap {self.tile_overlap} [0, 1), "
                f"--tile-min-visible {self.tile_min_visible} [0, 1]"
            )

    def fitted(self, train: ObjectSource) -> DetectorOptions:
        """These options with what a method takes from its training set filled in, such as anchors; here nothing."""
        return self


class Detector(Method):
    """A network from pictures to boxes.

    Args:
        config: its options.
        num_classes: categories in the table; a background class, where the method has one, is its own affair.
    """

    needs_masks: ClassVar[bool] = False
    """Whether it learns from masks."""
    suppresses: ClassVar[bool] = True
    """Whether `dense`, where it has one, gives boxes that still need suppression."""

    def __init__(self, config: DetectorOptions, num_classes: int) -> None:
        super().__init__()
        self.options, self.num_classes = config, num_classes

    @property
    @abstractmethod
    def tower(self) -> nn.Module:
        """The network that `--init` may fill from published towers; its rate is scaled by `backbone_lr`."""

    @abstractmethod
    def loss(self, batch: ObjectBatch) -> dict[str, Tensor]:
        """Return what is minimised under `"loss"`, and its parts.

        Objects under `ignore` are neither positives nor negatives.
        """

    @abstractmethod
    def predict(self, batch: ObjectBatch) -> list[Detections]:
        """Return what is found in each picture, in pixels of the frame; only images and sizes are read."""

    @property
    def dense_threshold(self) -> float:
        """What a score of `dense` must be above to count."""
        return self.options.score_threshold

    def pixels(self, batch: ObjectBatch) -> Float[Tensor, "batch 3 height width"]:
        """The batch as the network expects it."""
        return channels_last(self.options.framing.normalize(batch.images, batch.sizes))


def freeze_stages(tower: nn.Module, stages: int) -> None:
    """Stop the stem and the first stages of a tower from learning.

    Raises:
        RecipeError: the tower has no such stages.
    """
    if stages == 0:
        return
    if not isinstance(tower, Backbone) or not hasattr(tower, "stem") or not hasattr(tower, "stages"):
        raise RecipeError("--freeze is for towers with a stem and stages, such as residual networks")
    parts = list(cast(nn.ModuleList, tower.stages))
    if stages > len(parts):
        raise RecipeError(f"--freeze is {stages}, and the tower has {len(parts)} stages")
    for part in (cast(nn.Module, tower.stem), *parts[:stages]):
        for parameter in part.parameters():
            parameter.requires_grad_(False)


def best_of_level(
    scores: Float[Tensor, "cells classes"], threshold: float, most: int
) -> tuple[Int64[Tensor, " kept"], Int64[Tensor, " kept"], Float[Tensor, " kept"]]:
    """The surest pairs of cell and class of one level.

    Args:
        scores: from 0 to 1.
        threshold: a score must be above it.
        most: pairs kept.

    Returns:
        cells, classes and scores, the surest first.
    """
    flat = scores.flatten()
    chosen = (flat > threshold).nonzero().squeeze(1)
    best, order = flat[chosen].topk(min(most, chosen.numel()))
    chosen = chosen[order]
    return chosen // scores.shape[1], chosen % scores.shape[1], best


def keep_best(
    boxes: Float[Tensor, "candidates 4"],
    scores: Float[Tensor, " candidates"],
    labels: Int64[Tensor, " candidates"],
    options: DetectorOptions,
    agnostic: bool = False,
) -> Int64[Tensor, " kept"]:
    """Indices of the candidates that survive suppression within each class, the surest first, at most so many.

    Args:
        boxes, scores, labels: of all candidates of a picture.
        options: give the threshold and the number.
        agnostic: suppress across classes.
    """
    if agnostic:
        return nms(boxes, scores, options.nms_threshold)[: options.max_detections]
    return batched_nms(boxes, scores, labels, options.nms_threshold)[: options.max_detections]


def clip_to(boxes: Float[Tensor, "candidates 4"], size: Sequence[int] | Tensor) -> Float[Tensor, "candidates 4"]:
    """Boxes cut at the edge of a picture of (height, width)."""
    height, width = float(size[0]), float(size[1])
    return torch.minimum(boxes.clamp(min=0), boxes.new_tensor([width, height, width, height]))


def found(
    boxes: Float[Tensor, "objects 4"],
    scores: Float[Tensor, " objects"],
    labels: Int64[Tensor, " objects"],
    size: Sequence[int] | Tensor,
    **more: Any,
) -> Detections:
    """Detections of one picture in its frame."""
    return Detections(boxes, scores, labels, (int(size[0]), int(size[1])), **more)
