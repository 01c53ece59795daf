"""Distillation: a student learns from labels and from what a teacher shows.

The thirteen classic losses under equal conditions, alone or several together (`--loss kd crd`), each with the weight
that its comparison used; between any two towers of the house. A teacher that knows words (CLIP, SigLIP) teaches by its
logits for the names of the classes.

References: Hinton et al., Distilling the Knowledge in a Neural Network, arXiv:1503.02531; Tian et al., Contrastive
Representation Distillation, arXiv:1910.10699, whose RepDistiller holds the weights and the two-stage schedules. Each
loss has its own file and reference under `odonata.distill.losses`.

Differences: the first stage of ab, ft and fsp takes a share of the run (30 of 240 epochs in RepDistiller) instead of
epochs beside it. With kd among the losses the cross-entropy has kd's published weight, 0.1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
import tyro
from jaxtyping import Float
from torch import Tensor, nn

from odonata.backbones.interface import Backbone
from odonata.data.pictures import View, ViewBatch
from odonata.data.preprocess import Preprocess
from odonata.distill.losses.interface import DistillLoss, Taps
from odonata.distill.taps import read_taps
from odonata.represent.classify import Augmentation, classifier_views
from odonata.represent.representation import Representation, TowerOptions

LossName = Literal["kd", "fitnets", "at", "sp", "cc", "vid", "rkd", "pkt", "ab", "ft", "fsp", "nst", "crd", "none"]


@dataclass(frozen=True)
class DistillConfig(TowerOptions):
    """Distillation of a teacher into a student."""

    learns_classes = True

    backbone: Annotated[str, tyro.conf.arg(name="student")] = "resnet8"
    """The student, by name."""
    teacher: str = ""
    """A run or published weights; empty: a resnet20, trained first on the same pictures."""
    teacher_part: str = ""
    """Which network of a training checkpoint, where the teacher's file holds several."""
    teacher_steps: int = 400
    """Steps of the teacher that is trained first, where none is given."""
    loss: tuple[LossName, ...] = ("kd",)
    """What is compared; `none` trains the student alone."""
    ce_weight: float = -1.0
    """Weight of the cross-entropy with the labels; -1: 0.1 with kd, else 1."""
    beta: float = -1.0
    """Weight of the losses; -1: each its published one."""
    temperature: float = 4.0
    """Of kd."""
    negatives: Literal["other_classes", "other_samples", "in_batch"] = "other_classes"
    """Whence crd draws its negatives."""
    num_negatives: int = 16384
    """How many crd draws."""
    first_stage: float = 0.125
    """Share of the run that ab, ft and fsp spend on their first stage."""
    augmentation: Augmentation = "shift"
    """none; flip; shift: pad by an eighth, cut and mirror (CIFAR's); crop; strong."""


class Distill(Representation):
    """Student, frozen teacher, and the losses between them.

    Args:
        config: the method's options.
        backbone: the student; gets a classifier.
        preprocess: of the student's pictures.
        classes: their number.
        teacher: what returns the teacher's taps of its normalised pictures.
        teacher_preprocess: of the teacher's pictures.
        losses: by name.
    """

    classifies = True
    teacher_mean: Tensor
    teacher_std: Tensor

    def __init__(
        self,
        config: DistillConfig,
        backbone: Backbone,
        preprocess: Preprocess,
        classes: int,
        teacher: nn.Module,
        teacher_preprocess: Preprocess,
        losses: dict[str, DistillLoss],
    ) -> None:
        super().__init__(config, backbone, preprocess)
        self.config = config
        self.chance = math.log(classes) if not losses else None
        self.teacher = teacher.eval().requires_grad_(False)
        self.losses = nn.ModuleDict(losses)
        self.register_buffer("teacher_mean", torch.tensor(teacher_preprocess.mean)[:, None, None], persistent=False)
        self.register_buffer("teacher_std", torch.tensor(teacher_preprocess.std)[:, None, None], persistent=False)
        self.ce_weight = config.ce_weight if config.ce_weight >= 0 else (0.1 if "kd" in losses else 1.0)
        self.first = any(loss.two_stage for loss in losses.values())

    @staticmethod
    def views(config: TowerOptions) -> Sequence[View]:
        """One view, the same for both."""
        assert isinstance(config, DistillConfig)
        return classifier_views(config.augmentation, config.image_size, (0.35, 1.0))

    def train(self, mode: bool = True) -> Distill:
        """The teacher stays in evaluation mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def begin_step(self, step: int, steps: int) -> None:
        """The first stage comes first, where a loss has one."""
        super().begin_step(step, steps)
        two_stage = any(loss.two_stage for loss in self._losses().values())
        self.first = two_stage and step < self.config.first_stage * steps

    def logits(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch classes"]:
        """Return the student's scores of normalised pictures."""
        return self.backbone(images)

    def loss(self, batch: ViewBatch) -> dict[str, Tensor]:
        """Return the weighted sum of all losses, each by its name, and the student's accuracy."""
        view = batch.views[0]
        with torch.no_grad():
            theirs: Taps = self.teacher((view.float().div(255) - self.teacher_mean) / self.teacher_std)
        ours: Taps = read_taps(self.backbone, self.pixels(view), "student")
        if self.first:
            parts = {k: loss.first_stage(ours, theirs)["loss"] for k, loss in self._losses().items() if loss.two_stage}
            total = torch.stack(list(parts.values())).sum()
            return {"loss": total + self._touch_all(), **{f"first/{k}": v.detach() for k, v in parts.items()}}
        assert ours.logits is not None
        entropy = F.cross_entropy(ours.logits.float(), batch.labels)
        total, logs = self.ce_weight * entropy, {"cross_entropy": entropy.detach()}
        for name, loss in self._losses().items():
            value = loss(ours, theirs, batch.labels, batch.indices)["loss"]
            total = total + (loss.beta if self.config.beta < 0 else self.config.beta) * value
            logs[name] = value.detach()
        accuracy = (ours.logits.detach().argmax(1) == batch.labels).float().mean()
        return {"loss": total + self._touch_all(), "accuracy": accuracy, **logs}

    def after_backward(self) -> None:
        """Keep what does not learn in this stage as it is."""
        super().after_backward()
        learning = {id(p) for loss in self._losses().values() for p in self._learning(loss)}
        for parameter in self.losses.parameters():
            if id(parameter) not in learning:
                parameter.grad = None
        if self.first:
            body = any(loss.init_trains_student for loss in self._losses().values())
            for name, parameter in self.backbone.named_parameters():
                if not body or name.startswith("head."):
                    parameter.grad = None

    def _learning(self, loss: DistillLoss) -> list[nn.Parameter]:
        return list((loss.init_parameters() if loss.two_stage else ()) if self.first else loss.main_parameters())

    def _losses(self) -> dict[str, DistillLoss]:
        return {name: loss for name, loss in self.losses.items() if isinstance(loss, DistillLoss)}

    def _touch_all(self) -> Tensor:
        """Zero, with a gradient of zero for every parameter: data-parallel training waits for all of them."""
        return 0.0 * torch.stack([p.sum() for p in self.parameters() if p.requires_grad]).sum()
