"""What the methods of this room share: a tower, how it sees pixels, where its weights begin, and how it warms up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from odonata.backbones.interface import Backbone
from odonata.data.pictures import View, ViewBatch
from odonata.data.preprocess import Preprocess
from odonata.engine.method import Method


@dataclass(frozen=True)
class TowerOptions:
    """Options of every method of this room."""

    learns_classes: ClassVar[bool] = False
    """Whether the method needs labels."""
    backbone: str = ""
    """Tower by name (`odonata show backbones`), with options: resnet50, vit-s16, resnet18:stem=cifar, …; empty: that of
    --init, or resnet8."""
    image_size: int = 0
    """Side of the pictures that the tower sees, in pixels (0 = that of --init, or the tower's own)."""
    init: str = ""
    """Begin at these weights: a run of this room, or published weights; heads start anew."""
    init_part: str = ""
    """Which network of a training checkpoint, where it holds several: teacher, student, encoder_q, …"""
    head_warmup: float = -1.0
    """Share of the run in which only the heads learn; -1: a tenth with --init, else none."""
    backbone_lr: float = -1.0
    """Factor on the tower's rate; -1: a tenth with --init, else 1."""
    epochs: float = 0.0
    """Passes over the data instead of --steps (0 = --steps counts)."""
    lr_per: int = 256
    """--optim.lr is meant for so many pictures a step and scaled to the batch in proportion (0 = take it as it is)."""


class Representation(Method):
    """A method that learns a tower from pictures.

    Args:
        config: its options.
        backbone: the tower that learns, without a classifier.
        preprocess: gives the mean and standard deviation that the tower expects.
    """

    classifies = False
    """Whether the method learns classes: then it has `logits`, and accuracy is what it is measured by."""
    chance: float | None = None
    """The loss of a model that knows nothing, such as ln K: where it stays, nothing is learned."""
    mean: Tensor
    std: Tensor

    def __init__(self, config: TowerOptions, backbone: Backbone, preprocess: Preprocess) -> None:
        super().__init__()
        self.options = config
        self.backbone = backbone
        self.register_buffer("mean", torch.tensor(preprocess.mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(preprocess.std)[:, None, None], persistent=False)
        self.warming = False

    @staticmethod
    def views(config: TowerOptions) -> Sequence[View]:
        """Return how each picture is looked at in a step; overridden by the method."""
        raise TypeError("a method of this room says how it looks at pictures")

    @property
    def encoder(self) -> Backbone:
        """The tower that is measured and exported; the one that learns, unless the method says otherwise."""
        return self.backbone

    def load_published_rest(self, rest: dict[str, Tensor]) -> list[str]:
        """Take what a published training checkpoint holds besides the tower (heads, queues), and return notes.

        Args:
            rest: those tensors under their own names.
        """
        return []

    def loss(self, batch: ViewBatch) -> dict[str, Tensor]:
        """See `Method.loss`."""
        raise TypeError("a method of this room has a loss")

    def pixels(self, view: UInt8[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 height width"]:
        """Bytes as the tower expects them."""
        return (view.float().div_(255) - self.mean) / self.std

    def begin_step(self, step: int, steps: int) -> None:
        """See `Method.begin_step`."""
        self.warming = step < self.options.head_warmup * steps

    def after_backward(self) -> None:
        """Leave the tower alone while only heads learn: random heads would undo what it knows."""
        if self.warming:
            for parameter in self.backbone.parameters():
                parameter.grad = None


def embedding_spread(embeddings: Float[Tensor, "batch dim"]) -> Float[Tensor, ""]:
    """Return the mean standard deviation of unit-length embeddings over the batch, times √dim.

    1 where they fill all directions evenly, 0 where all are the same (SimSiam, Chen and He 2020, sec. 4.1).
    """
    unit = torch.nn.functional.normalize(embeddings.detach().float(), dim=1)
    return unit.std(0).mean() * unit.shape[1] ** 0.5
