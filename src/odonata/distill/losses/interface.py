"""What every distillation loss takes and offers, so that one method can drive all thirteen.

Notable:

- A loss sees a network as its taps on one batch: the maps of the stem and of every stage, what the stages were before
  their last activation, the pooled vector and the logits. It never sees the network, so any two can be paired; tokens
  of a transformer come as maps.
- Regressors, embeddings and heads are built from the shapes of both sides' taps, when the loss is built.
- Stages are paired one to one where both networks have as many, and by relative depth where they have not: each stage
  of the shorter network meets the stage of the longer one that ends at the same fraction of it, the last with the
  last. RepDistiller pairs from the front and drops what is left over, which is the same for equal numbers.
- Maps of different sizes meet at the smaller size, by adaptive average pooling, as in RepDistiller.
- Losses are taken in float32 at least, under autocast too, and no gradient reaches the teacher's taps.
"""

import importlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from odonata.distill.losses import LOSSES
from odonata.errors import RecipeError

Need = Literal["maps", "preactivations", "pooled", "logits", "labels", "indices"]
MapShape = tuple[int, int, int]
"""Channels, height and width."""


@dataclass
class Taps:
    """What a network showed of itself on one batch. What no loss needs may be left empty (`None` for tensors)."""

    maps: list[Tensor]
    """[stem, stage 1, …, stage L], each [batch channels height width]."""
    preactivations: list[Tensor]
    """Of stages 1 … L: the maps before the last activation. Where a network has none there, the maps themselves."""
    pooled: Tensor | None
    """[batch dim], before the classifier."""
    logits: Tensor | None
    """[batch classes]."""

    def exact(self, needs: frozenset[Need], detach: bool = False) -> "Taps":
        """Returns the taps that are needed in float32 at least, without their graph if `detach`."""

        def convert(tensor: Tensor) -> Tensor:
            tensor = tensor.detach() if detach else tensor
            return tensor.float() if tensor.itemsize < 4 else tensor

        return Taps(
            [convert(tensor) for tensor in self.maps] if "maps" in needs else [],
            [convert(tensor) for tensor in self.preactivations] if "preactivations" in needs else [],
            convert(self.pooled) if "pooled" in needs and self.pooled is not None else None,
            convert(self.logits) if "logits" in needs and self.logits is not None else None,
        )


@dataclass(frozen=True)
class TapShapes:
    """The shapes of a network's taps, without the batch."""

    name: str
    """What errors call the network."""
    maps: tuple[MapShape, ...] = ()
    """[stem, stage 1, …, stage L]."""
    preactivations: tuple[MapShape, ...] = ()
    """Stages 1 … L."""
    dim: int = 0
    """Of the pooled vector."""
    classes: int = 0
    """Number of logits."""

    @classmethod
    def of(cls, name: str, taps: Taps) -> "TapShapes":
        """Reads the shapes off the taps of any batch."""

        def shapes(maps: list[Tensor]) -> tuple[MapShape, ...]:
            return tuple((tensor.shape[1], tensor.shape[2], tensor.shape[3]) for tensor in maps)

        widths = [0 if tensor is None else tensor.shape[1] for tensor in (taps.pooled, taps.logits)]
        return cls(name, shapes(taps.maps), shapes(taps.preactivations), *widths)

    def __str__(self) -> str:
        maps = ", ".join("×".join(map(str, shape)) for shape in self.maps)
        return f"{self.name} (maps {maps}; pooled {self.dim}; classes {self.classes})"


class DistillLoss(nn.Module, ABC):
    """The base of the thirteen. A subclass writes `loss`, and `init_loss` where it has a first stage of training.

    What is minimised is `ce_weight` times the cross-entropy with the labels plus `beta` times what `forward` returns
    under "loss". Parameters of the loss itself (regressors, embeddings, heads) learn together with the student.

    Args:
        student, teacher: shapes of the taps that will come.
    """

    needs: ClassVar[frozenset[Need]]
    """The taps, and what else of the batch, that `loss` reads."""
    beta: ClassVar[float] = 1.0
    """Published weight of the loss."""
    ce_weight: ClassVar[float] = 1.0
    """Published weight of the cross-entropy beside it."""
    two_stage: ClassVar[bool] = False
    """Whether a first stage of training minimises `init_loss` alone before the student learns its classes."""
    init_trains_student: ClassVar[bool] = False
    """Whether the student's body (all but its classifier) learns in the first stage."""

    def __init__(self, student: TapShapes, teacher: TapShapes) -> None:
        super().__init__()
        self.student, self.teacher = student, teacher

    def forward(
        self,
        student: Taps,
        teacher: Taps,
        labels: Int[Tensor, "batch"] | None = None,
        indices: Int[Tensor, "batch"] | None = None,
    ) -> dict[str, Tensor]:
        """Compute the loss of a batch.

        Args:
            student: taps of the student, with their graph.
            teacher: taps of the teacher on the same images.
            labels: classes, where `needs` names them.
            indices: which samples of the training set these are, where `needs` names them.

        Returns:
            "loss", before its weight `beta`, and other scalars worth logging.
        """
        with torch.autocast(device_of(student).type, enabled=False):
            exact_teacher = teacher.exact(self.needs, detach=True)
            return self.loss(student.exact(self.needs), exact_teacher, labels, indices)

    @abstractmethod
    def loss(self, student: Taps, teacher: Taps, labels: Tensor | None, indices: Tensor | None) -> dict[str, Tensor]:
        """What `forward` returns, from taps of full precision."""

    def first_stage(self, student: Taps, teacher: Taps) -> dict[str, Tensor]:
        """The loss of the first stage of training, for `two_stage` losses; its weight is 1."""
        with torch.autocast(device_of(student).type, enabled=False):
            return self.init_loss(student.exact(self.needs), teacher.exact(self.needs, detach=True))

    def init_loss(self, student: Taps, teacher: Taps) -> dict[str, Tensor]:
        """What `first_stage` returns, from taps of full precision."""
        raise TypeError(f"{type(self).__name__} has no first stage")

    def init_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of the loss that learn in the first stage."""
        return iter(())

    def main_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of the loss that learn together with the student."""
        return self.parameters()


def loss_class(name: str) -> type[DistillLoss]:
    """Returns the loss of that name in `LOSSES`.

    Raises:
        RecipeError: there is none.
    """
    if name not in LOSSES:
        raise RecipeError(f"there is no distillation loss {name!r}; there are {', '.join(LOSSES)}")
    module, _, attribute = LOSSES[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def device_of(taps: Taps) -> torch.device:
    """Where the taps lie."""
    tensors = [*taps.maps, *taps.preactivations, taps.pooled, taps.logits]
    return next(tensor.device for tensor in tensors if tensor is not None)


def pair_stages(student: int, teacher: int) -> list[tuple[int, int]]:
    """Pairs the stages 1 … `student` with the stages 1 … `teacher`, by relative depth, the last with the last.

    >>> pair_stages(3, 3), pair_stages(4, 12), pair_stages(4, 3)
    ([(1, 1), (2, 2), (3, 3)], [(1, 3), (2, 6), (3, 9), (4, 12)], [(2, 1), (3, 2), (4, 3)])
    """
    count = min(student, teacher)
    return [(-(-i * student // count), -(-i * teacher // count)) for i in range(1, count + 1)]


def stage_pairs(student: TapShapes, teacher: TapShapes) -> list[tuple[int, int]]:
    """Pairs the stages of two networks, as positions in `maps`.

    Raises:
        RecipeError: one of them has no stages.
    """
    for side in (student, teacher):
        if len(side.maps) < 2:
            raise RecipeError(f"this loss compares stages, and {side} has none after its stem; choose kd, rkd, pkt …")
    return pair_stages(len(student.maps) - 1, len(teacher.maps) - 1)


def to_common_size(
    a: Float[Tensor, "batch channels_a height_a width_a"], b: Float[Tensor, "batch channels_b height_b width_b"]
) -> tuple[Float[Tensor, "batch channels_a height width"], Float[Tensor, "batch channels_b height width"]]:
    """Pools two maps to the smaller of their heights and of their widths."""
    size = (min(a.shape[2], b.shape[2]), min(a.shape[3], b.shape[3]))
    a = a if a.shape[2:] == size else F.adaptive_avg_pool2d(a, size)
    b = b if b.shape[2:] == size else F.adaptive_avg_pool2d(b, size)
    return a, b


def needed(tensor: Tensor | None, what: str) -> Tensor:
    """Returns the tensor.

    Raises:
        RecipeError: it was not given.
    """
    if tensor is None:
        raise RecipeError(f"this loss needs {what}, and the batch or the network's taps bring none")
    return tensor
