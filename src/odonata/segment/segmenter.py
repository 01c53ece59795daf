"""What the segmenters of this room share: options, how pixels are prepared, the loss, and probabilities of classes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from odonata.backbones.interface import Backbone, channels_last
from odonata.data.framing import Framing
from odonata.data.semantic import VOID
from odonata.data.semantic_batches import SemanticBatch
from odonata.engine.method import Method
from odonata.errors import RecipeError
from odonata.segment.losses import Over, pixel_cross_entropy


@dataclass(frozen=True)
class SegmenterOptions:
    """Options of every segmenter."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Named conventions: preset → fields with their values."""

    preset: str = ""
    """Named set of conventions and sizes; fills in fields left at their defaults (`odonata show NAME --presets`)."""
    backbone: str = "vgg-small"
    """Tower by name (`odonata show backbones`), with options: resnet50:output_stride=8, …"""
    init: str = ""
    """Begin at these weights: a run of this room, a published segmenter, or a published tower; what does not fit starts
    anew."""
    head_lr: float = 1.0
    """Factor on the rate of all but the tower (PSPNet: 10)."""
    bias_lr: float = 1.0
    """Factor on the rate of the convolutions' biases (Caffe: 2)."""
    epochs: float = 0.0
    """Passes over the data instead of --steps (0 = --steps counts)."""
    framing: Framing = field(default_factory=lambda: Framing(resize="keep", divisor=1))
    """What pictures are scaled to, and what pixels are normalised by."""
    scale: tuple[float, float] = (0.75, 1.5)
    """Least and largest factor on a picture in training, where --data.augment is standard."""
    rotate: float = 0.0
    """Largest angle, in degrees, that a picture is then turned by."""
    crop: int = 0
    """Side in pixels of what is cut out of a picture for training (0 = all of it)."""
    window: int = 0
    """Side in pixels of the windows that a picture is looked at in, in prediction (0 = the whole picture)."""
    window_overlap: float = 1 / 3
    """Share of a window that the next one repeats, 0 to below 1."""
    flip: bool = False
    """Also look at the mirrored picture in prediction; probabilities are averaged."""
    test_scales: tuple[float, ...] = (1.0,)
    """Factors on a picture that it is looked at with, in prediction; probabilities are averaged."""
    loss_over: Over = "pixels"
    """What the sum of the loss is divided by: pixels with a class, or pictures (FCN's own, with a rate of 1e-10)."""

    def __post_init__(self) -> None:
        if self.framing.resize == "letterbox":
            raise RecipeError("--framing.resize letterbox: margins have no class; keep, shortest or squash it is")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise RecipeError(f"--scale is {self.scale}; want two factors above 0, the lesser first")
        if not 0 <= self.window_overlap < 1:
            raise RecipeError(f"--window-overlap is {self.window_overlap}; it lies in [0, 1)")
        if not self.test_scales or min(self.test_scales) <= 0:
            raise RecipeError(f"--test-scales is {self.test_scales}; want one factor above 0, or several")
        for name in ("crop", "window"):
            if getattr(self, name) < 0:
                raise RecipeError(f"--{name} is {getattr(self, name)}; it is 0 or a side in pixels")


class Network(nn.Module, ABC):
    """From pictures to scores of classes."""

    backbone: Backbone
    """The tower; what else learns is the head."""

    @abstractmethod
    def forward(self, images: Float[Tensor, "batch 3 height width"], auxiliary: bool = False) -> list[Tensor]:
        """Return logits [batch, classes, height, width] as large as the pictures.

        Args:
            images: normalised, of any size.
            auxiliary: also those of outputs that only help in training, after the first.
        """


class Segmenter(Method):
    """A network from pictures to maps of classes.

    Args:
        config: its options.
        num_classes: classes in the table; void is none.
    """

    network: Network
    aux_weight: float = 0.0
    """What the loss of an auxiliary output counts."""

    def __init__(self, config: SegmenterOptions, num_classes: int) -> None:
        super().__init__()
        self.options, self.num_classes = config, num_classes

    @property
    def tower(self) -> Backbone:
        """The network that `--init` may fill from published towers."""
        return self.network.backbone

    def loss(self, batch: SemanticBatch) -> dict[str, Tensor]:
        """Return what is minimised under `"loss"`, its parts, and the share of pixels that are right."""
        main, *helpers = self.network(self.pixels(batch), auxiliary=self.aux_weight > 0)
        losses = {"main": pixel_cross_entropy(main, batch.maps, self.options.loss_over)}
        for logits in helpers:
            losses["auxiliary"] = pixel_cross_entropy(logits, batch.maps, self.options.loss_over)
        total = losses["main"] + self.aux_weight * losses.get("auxiliary", 0.0)
        with torch.no_grad():
            counted = batch.maps != VOID
            right = ((main.argmax(1) == batch.maps) & counted).sum() / counted.sum().clamp(min=1)
        return {"loss": total, **losses, "pixel_accuracy": right}

    def predict(self, batch: SemanticBatch) -> Float[Tensor, "batch classes height width"]:
        """Return the probability of each class at every pixel of the frame; only images and sizes are read."""
        return self.dense(self.pixels(batch)).float().softmax(1)

    def dense(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch classes height width"]:
        """Return logits of every pixel of normalised pictures: what is exported."""
        return self.network(images)[0]

    def pixels(self, batch: SemanticBatch) -> Float[Tensor, "batch 3 height width"]:
        """The batch as the network expects it; zero outside the pictures."""
        return channels_last(self.options.framing.normalize(batch.images, batch.sizes))


def padded_to(
    images: Float[Tensor, "batch 3 height width"], multiple: int, plus: int = 0
) -> Float[Tensor, "batch 3 new_height new_width"]:
    """Pictures padded right and below, by zero, to sides of a whole multiple, plus so many pixels more."""
    down, across = (-(side - plus) % multiple for side in images.shape[-2:])
    return nn.functional.pad(images, (0, across, 0, down)) if down or across else images
