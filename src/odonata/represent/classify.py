"""Classification with labels: the supervised baseline, and the fine-tuning of what was learned without them.

With `--init` it fine-tunes; `--optim.layer-decay 0.65` lets lower layers learn more slowly (BEiT, Bao et al.
2021). `--freeze` trains the classifier alone, a linear probe by gradient descent; with `--norm-head` a batch
normalisation without affine parameters stands before it (MAE, He et al. 2021, app. A.1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from odonata.backbones.interface import Backbone
from odonata.data.pictures import View, ViewBatch
from odonata.data.preprocess import Preprocess
from odonata.data.randaugment import RandAugment
from odonata.data.transforms import Compose, HorizontalFlip, PaddedCrop, RandomResizedCrop, Resize, Transform
from odonata.represent.representation import Representation, TowerOptions

Augmentation = Literal["none", "flip", "shift", "crop", "strong"]


@dataclass(frozen=True)
class ClassifyConfig(TowerOptions):
    """Supervised classification, and fine-tuning."""

    learns_classes = True
    layer_decay: float = 0.0
    """Each layer's rate is this times that of the layer above it, 0.65 in fine-tuning (0 = --optim.layer-decay)."""

    label_smoothing: float = 0.0
    """Share of the target spread over all classes."""
    mixup: float = 0.0
    """α of mixup (0 = off; MAE's fine-tuning: 0.8)."""
    cutmix: float = 0.0
    """α of CutMix (0 = off; MAE's fine-tuning: 1)."""
    drop_path: float = 0.0
    """Stochastic depth of the last block, for towers that have it."""
    augmentation: Augmentation = "crop"
    """none: resize only; flip: and mirror; shift: pad by an eighth, cut and mirror (CIFAR's); crop: Inception's crop
    and mirror; strong: and RandAugment."""
    crop_scale: tuple[float, float] = (0.35, 1.0)
    """Least and most share of the picture's area that a crop keeps (ImageNet's: 0.08)."""
    freeze: bool = False
    """Train the classifier only."""
    norm_head: bool = False
    """Batch normalisation without affine parameters before the classifier (MAE's linear probe)."""


class Classify(Representation):
    """A tower with a classifier.

    Args:
        config: the method's options.
        backbone: the tower; gets a classifier.
        preprocess: of the pictures.
        classes: their number.
    """

    classifies = True

    def __init__(self, config: ClassifyConfig, backbone: Backbone, preprocess: Preprocess, classes: int) -> None:
        super().__init__(config, backbone, preprocess)
        self.config = config
        self.classes = classes
        self.chance = math.log(classes)
        backbone.reset_head(classes)
        self.norm = nn.BatchNorm1d(backbone.num_features, affine=False, eps=1e-6) if config.norm_head else nn.Identity()
        if config.freeze:
            for name, parameter in backbone.named_parameters():
                parameter.requires_grad_(name.startswith("head."))

    @staticmethod
    def views(config: TowerOptions) -> Sequence[View]:
        """One view."""
        assert isinstance(config, ClassifyConfig)
        return classifier_views(config.augmentation, config.image_size, config.crop_scale)

    def train(self, mode: bool = True) -> Classify:
        """A frozen tower stays in evaluation mode: its statistics are part of it."""
        super().train(mode)
        if self.config.freeze:
            self.backbone.eval()
        return self

    def logits(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch classes"]:
        """Return the scores of normalised pictures."""
        pooled = self.backbone.forward_head(self.backbone.forward_features(images), pre_logits=True)
        return self.backbone.head(self.norm(pooled))

    def loss(self, batch: ViewBatch) -> dict[str, Tensor]:
        """Return the cross-entropy of a batch, and the accuracy where pictures are not mixed."""
        images, targets = self.pixels(batch.views[0]), F.one_hot(batch.labels, self.classes).float()
        mixed = self.training and (self.config.mixup > 0 or self.config.cutmix > 0)
        if mixed:
            images, targets = mix_pairs(images, targets, self.config.mixup, self.config.cutmix)
        logits = self.logits(images).float()
        loss = F.cross_entropy(logits, targets, label_smoothing=self.config.label_smoothing)
        if mixed:
            return {"loss": loss}
        return {"loss": loss, "accuracy": (logits.detach().argmax(1) == batch.labels).float().mean()}

    def begin_step(self, step: int, steps: int) -> None:
        """See `Representation.begin_step`."""
        super().begin_step(step, steps)

    def after_backward(self) -> None:
        """Leave the tower alone while only the classifier warms up."""
        if self.warming:
            for name, parameter in self.backbone.named_parameters():
                if not name.startswith("head."):
                    parameter.grad = None


def classifier_views(augmentation: Augmentation, size: int, crop_scale: tuple[float, float]) -> Sequence[View]:
    """Return the view that a classifier trains on.

    Args:
        augmentation: its name.
        size: side in pixels.
        crop_scale: least and most share of the picture's area that a crop keeps.
    """
    whole, crop = Resize((size, size)), RandomResizedCrop(size, crop_scale)
    steps: dict[str, tuple[Transform, ...]] = {
        "none": (whole,),
        "flip": (whole, HorizontalFlip()),
        "shift": (whole, PaddedCrop(size // 8), HorizontalFlip()),
        "crop": (crop, HorizontalFlip()),
        "strong": (crop, HorizontalFlip(), RandAugment(2, 9)),
    }
    return (View(Compose(steps[augmentation])),)


def mix_pairs(
    images: Float[Tensor, "batch 3 height width"], targets: Float[Tensor, "batch classes"], mixup: float, cutmix: float
) -> tuple[Float[Tensor, "batch 3 height width"], Float[Tensor, "batch classes"]]:
    """Mix each picture with that of the mirrored place in the batch, and its target likewise.

    Args:
        images: normalised pictures.
        targets: one-hot.
        mixup: α of the Beta distribution (Zhang et al. 2017, eq. 1); 0: never.
        cutmix: α of CutMix (Yun et al. 2019, eq. 1); 0: never. With both, each batch takes one of them.
    """
    cuts = cutmix > 0 and (mixup <= 0 or bool(torch.rand(()) < 0.5))
    alpha = torch.tensor(cutmix if cuts else mixup)
    keep = float(torch.distributions.Beta(alpha, alpha).sample())
    other = images.flip(0)
    if cuts:
        height, width = images.shape[-2:]
        h, w = int(height * math.sqrt(1 - keep)), int(width * math.sqrt(1 - keep))
        y, x = int(torch.randint(height, ())), int(torch.randint(width, ()))
        top, bottom = max(0, y - h // 2), min(height, y + h - h // 2)
        left, right = max(0, x - w // 2), min(width, x + w - w // 2)
        images = images.clone()
        images[:, :, top:bottom, left:right] = other[:, :, top:bottom, left:right]
        keep = 1 - (bottom - top) * (right - left) / (height * width)
    else:
        images = keep * images + (1 - keep) * other
    return images, keep * targets + (1 - keep) * targets.flip(0)
