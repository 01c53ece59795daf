"""DINO: a student predicts, from any crop, what its own slow average says of the large crops; with DINOv2's options.

The teacher's answers are distributions over K prototypes that nobody named. Two opposed collapses threaten: one answer
for all pictures, which centring prevents, and the same flat answer for all, which the teacher's low temperature
(sharpening) prevents. Both can be turned off, to see it happen.

References: Caron et al., Emerging Properties in Self-Supervised Vision Transformers, arXiv:2104.14294; Oquab et al.,
DINOv2, arXiv:2304.07193 (KoLeo, masked patches, Sinkhorn in place of the centre). Details from facebookresearch/dino
`main_dino.py`: the centre moves after the loss, by the teacher's answers of all ranks; a view is not compared with
itself; only parameters follow; the last layer takes no gradient at first; each tensor's gradient is clipped by itself
(`--clip.policy tensor --clip.limit 3`). The teacher has no stochastic depth.

Differences:
- The teacher's temperature rises with each step, not each epoch.
- Class token and positions are exempt from weight decay, as everywhere here; DINO exempts vectors only.
- Query, key and value are three tensors here and are clipped each by itself; DINO clips them as one.
- Batch statistics, in towers and heads that have them, are each rank's own; DINO synchronises them.
- A head's loss is linear in the targets, so a small crop is compared with the sum of both; see `multicrop`.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from odonata.backbones.interface import Backbone
from odonata.data.pictures import View, ViewBatch
from odonata.data.preprocess import Preprocess
from odonata.errors import RecipeError
from odonata.nn.block_masks import masks_for_batch
from odonata.nn.centre import Centre
from odonata.nn.momentum import cosine_momentum, follow, slow_copy
from odonata.nn.patches import PatchDropout
from odonata.nn.precision import full_precision
from odonata.nn.prototype_head import MOST_SCORES, PrototypeHead, cross_entropy
from odonata.nn.sinkhorn import sinkhorn
from odonata.nn.transformer import DropPath
from odonata.represent.augmentations import byol
from odonata.represent.ibot import hidden_patches, koleo, patch_weights
from odonata.represent.multicrop import by_size, small_side, steps_of, target_figures, targets_of_others
from odonata.represent.representation import Representation, TowerOptions, embedding_spread
from odonata.weights.dino import PATCH_HEADS, fill_head, find_head


@dataclass(frozen=True)
class DINOConfig(TowerOptions):
    """DINO's options. Where the defaults differ from the paper's, its values are in brackets; see `recipes.dino`."""

    backbone: str = "vit-tiny4"
    """Tower by name (the paper: dino-s16), with options such as vit-tiny4:drop_path=0.1,registers=4."""
    small_crops: int = 4
    """Small crops beside the two large ones (the paper: 8 to 10)."""
    small_size: int = 0
    """Their side in pixels (0 = three sevenths of the large ones', in steps of 16: 96 beside 224)."""
    large_scale: tuple[float, float] = (0.4, 1.0)
    """Share of the picture that a large crop covers (DINOv2: from 0.32)."""
    small_scale: tuple[float, float] = (0.05, 0.4)
    """Share of the picture that a small crop covers (DINOv2: to 0.32)."""
    prototypes: int = 1024
    """K (the paper: 65,536)."""
    head_layers: int = 3
    """Layers of the head's MLP."""
    head_hidden: int = 512
    """Its width (the paper: 2048)."""
    head_dim: int = 128
    """Width of its unit-length output (the paper: 256)."""
    head_norm: bool = False
    """Normalise the head over the batch (DINO's ResNet-50: yes)."""
    norm_last_layer: bool = True
    """Keep the prototypes at length 1: steadier; DINO turns it off for its smallest towers."""
    temperature: float = 0.1
    """The student's."""
    teacher_temperature: float = 0.07
    """The teacher's after its warm-up; far below the student's it sharpens."""
    teacher_temperature_start: float = 0.04
    """The teacher's at the start."""
    teacher_warmup: float = 0.3
    """How long it rises: a share of the run, or steps (the paper: 30 epochs of 100 to 800)."""
    momentum: float = 0.996
    """How slowly the teacher follows at first; on a half cosine it comes to a standstill."""
    centering: Literal["centre", "sinkhorn", "none"] = "centre"
    """What balances the teacher's answers: a running mean that is subtracted, Sinkhorn (DINOv2), or nothing."""
    centre_momentum: float = 0.9
    """Share of the centre that stays in a step."""
    freeze_last_layer: float = 0.01
    """How long the prototypes take no gradient: a share of the run, or steps (the paper: 1 epoch of 100)."""
    koleo: float = 0.0
    """Weight of KoLeo, which spreads the class tokens of a batch (DINOv2: 0.1)."""
    ibot: float = 0.0
    """Weight of the masked-patch loss (DINOv2: 1); a Vision Transformer only."""
    mask_probability: float = 0.5
    """Share of the large crops in which patches are hidden from the student."""
    mask_ratio: tuple[float, float] = (0.1, 0.5)
    """Least and greatest share of hidden patches in them."""
    mask_shape: Literal["blocks", "random"] = "blocks"
    """Hidden patches form rectangles, or lie anywhere."""
    patch_head: Literal["shared", "separate"] = "shared"
    """Whether masked patches have a head of their own (DINOv2's largest: separate)."""


class DINO(Representation):
    """Student, teacher, and the centre of the teacher's answers.

    Args:
        config: the method's options.
        backbone: the student's tower.
        preprocess: of the pictures.

    Raises:
        RecipeError: an option that the method or the tower cannot have.
    """

    def __init__(self, config: DINOConfig, backbone: Backbone, preprocess: Preprocess) -> None:
        super().__init__(config, backbone, preprocess)
        _check(config, backbone)
        self.config = config
        self.chance = math.log(config.prototypes)
        self.head = _make_head(config, backbone.num_features)
        self.slow_backbone, self.slow_head = _quiet(slow_copy(backbone)), slow_copy(self.head)
        self.centre = Centre(config.prototypes, config.centre_momentum)
        self.patch_head: PrototypeHead | None = None
        self.slow_patch_head: PrototypeHead | None = None
        self.mask_token: nn.Parameter | None = None
        self.patch_centre: Centre | None = None
        if config.ibot:
            self.mask_token = nn.Parameter(torch.zeros(backbone.config.width))
            self.patch_centre = Centre(config.prototypes, config.centre_momentum)
            if config.patch_head == "separate":
                self.patch_head = _make_head(config, backbone.config.width)
                self.slow_patch_head = slow_copy(self.patch_head)
        self.slowness, self.teacher_temperature, self.frozen = config.momentum, config.teacher_temperature_start, False

    @staticmethod
    def views(config: TowerOptions) -> Sequence[View]:
        """Two large crops, one always blurred and one sometimes solarised, and some small ones."""
        assert isinstance(config, DINOConfig)
        large, size = config.large_scale, config.image_size
        small = View(byol(small_side(config.small_size, size), config.small_scale, 0.5, 0.0), config.small_crops)
        views = (View(byol(size, large, 1.0, 0.0)), View(byol(size, large, 0.1, 0.2)))
        return (*views, small) if config.small_crops else views

    @property
    def encoder(self) -> Backbone:
        """The teacher's tower: it is better than the student's throughout (sec. 5.2)."""
        return self.slow_backbone

    def begin_step(self, step: int, steps: int) -> None:
        """Set the teacher's momentum and temperature, and whether the prototypes learn."""
        super().begin_step(step, steps)
        config = self.config
        self.slowness = cosine_momentum(step, steps, config.momentum)
        warmup = steps_of(config.teacher_warmup, steps)
        share = min(1.0, step / warmup) if warmup else 1.0
        start = config.teacher_temperature_start
        self.teacher_temperature = start + share * (config.teacher_temperature - start)
        self.frozen = step < steps_of(config.freeze_last_layer, steps)

    def after_backward(self) -> None:
        """Drop the prototypes' gradient in the first steps."""
        super().after_backward()
        if self.frozen:
            for head in (self.head, self.patch_head):
                for parameter in head.last_layer.parameters() if head else ():
                    parameter.grad = None

    def after_update(self) -> None:
        """Let the teacher follow."""
        follow(self.slow_backbone, self.backbone, self.slowness)
        follow(self.slow_head, self.head, self.slowness)
        if self.patch_head and self.slow_patch_head:
            follow(self.slow_patch_head, self.patch_head, self.slowness)

    def loss(self, batch: ViewBatch) -> dict[str, Tensor]:
        """Return the loss of a batch of crops and the entropies of the targets; then the centre moves."""
        views = [self.pixels(view) for view in batch.views]
        masks = self._masks(views) if self.config.ibot else None
        with torch.no_grad():
            teacher_features = self.slow_backbone.forward_features(torch.cat(views[:2]))
            teacher_pooled = self.slow_backbone.forward_head(teacher_features, pre_logits=True)
            teacher_scores = full_precision(self.slow_head(teacher_pooled))
            targets = self._targets(teacher_scores, self.centre)
        features, pooled = self._student(views, masks)
        loss = distillation_loss(
            self.head.project(pooled).unflatten(0, (len(views), -1)),
            self.head.last_layer(),
            targets.unflatten(0, (2, -1)),
            self.config.temperature,
        )
        figures = target_figures(targets)
        figures |= {"kl": loss.detach() - figures["teacher_entropy"], "spread": embedding_spread(pooled)}
        if self.config.koleo:
            first, second = pooled.unflatten(0, (len(views), -1))[:2]
            figures["koleo"] = koleo(first) + koleo(second)
        if masks is not None:
            figures["ibot"] = self._patch_loss(features, teacher_features, masks)
        extra = self.config.koleo * figures.get("koleo", 0) + self.config.ibot * figures.get("ibot", 0)
        self.centre.update(teacher_scores)
        return {"loss": loss + extra, **figures}

    def _student(self, views: list[Tensor], masks: Tensor | None) -> tuple[Tensor, Tensor]:
        """Features of the first run of views, the large ones, and the pooled features of all."""
        kept: list[Tensor] = []

        def encode(pictures: Tensor) -> Tensor:
            hide = contextlib.nullcontext()
            if masks is not None and self.mask_token is not None and not kept:
                hide = hidden_patches(self.backbone, masks, self.mask_token)
            with hide:
                features = self.backbone.forward_features(pictures)
            kept.append(features)
            return self.backbone.forward_head(features, pre_logits=True)

        pooled = by_size(views, encode)
        return kept[0], pooled

    def _targets(self, scores: Float[Tensor, "rows classes"], centre: Centre) -> Float[Tensor, "rows classes"]:
        if self.config.centering == "sinkhorn":
            return sinkhorn(scores, self.teacher_temperature)
        centred = centre(scores) if self.config.centering == "centre" else scores
        return (centred / self.teacher_temperature).softmax(1)

    def _masks(self, views: list[Tensor]) -> Tensor:
        size = self.backbone.config.patch_size
        grid = (views[0].shape[-2] // size, views[0].shape[-1] // size)
        config = self.config
        blocks = config.mask_shape == "blocks"
        return masks_for_batch(2 * len(views[0]), grid, config.mask_probability, config.mask_ratio, blocks).to(
            views[0].device
        )

    def _patch_loss(self, features: Tensor, teacher_features: Tensor, masks: Tensor) -> Tensor:
        """The loss of the hidden patches against the teacher, who sees them; then their centre moves."""
        assert self.patch_centre is not None
        head, slow_head = self.patch_head or self.head, self.slow_patch_head or self.slow_head
        patches = masks.shape[1]
        with torch.no_grad():
            scores = full_precision(slow_head(teacher_features[:, -patches:][masks]))
            targets = self._targets(scores, self.patch_centre)
        vectors = head.project(features[: len(masks), -patches:][masks])
        rows = _rows_at_once(len(vectors), head.last_layer.weight_v)
        losses = cross_entropy(vectors, head.last_layer(), targets, self.config.temperature, rows)
        self.patch_centre.update(scores)
        return (losses * patch_weights(masks)).sum()

    def load_published_rest(self, rest: Mapping[str, Tensor]) -> list[str]:
        """Take the heads, and the centre, from what a published training checkpoint holds beside the tower.

        Args:
            rest: tensors of one network, such as `module.head.mlp.0.weight`; and `center`, where the file has it.

        Returns:
            Notes: what was taken, what starts anew and why.
        """
        notes = fill_head((self.head, self.slow_head), find_head(rest), "head")
        if self.patch_head and self.slow_patch_head:
            notes += fill_head((self.patch_head, self.slow_patch_head), find_head(rest, PATCH_HEADS), "patch head")
        centre = next((value for name, value in rest.items() if name.split(".")[-1] == "center"), None)
        if centre is not None and centre.numel() == self.config.prototypes and "prototypes" in notes[0]:
            self.centre.value.copy_(centre.flatten())
            notes.append("centre: of the file")
        return notes


def distillation_loss(
    vectors: Float[Tensor, "crops batch bottleneck"],
    prototypes: Float[Tensor, "classes bottleneck"],
    targets: Float[Tensor, "large batch classes"],
    temperature: float,
    most: int = MOST_SCORES,
) -> Float[Tensor, ""]:
    """Return DINO's loss (eq. 2 and 3): the mean cross-entropy of each crop with each other large crop's target.

    Args:
        vectors: the head's unit-length outputs, large crops first.
        prototypes: K.
        targets: of the large crops; constants.
        temperature: the student's.
        most: scores kept for the backward pass; beyond it they are computed again, some rows at a time.
    """
    crops, batch, _ = vectors.shape
    rows = _rows_at_once(crops * batch, prototypes, most)
    wanted = targets_of_others(targets, crops)
    losses = [cross_entropy(v, prototypes, t, temperature, rows) for v, t in zip(vectors, wanted, strict=True)]
    return torch.stack([each.mean() for each in losses]).sum() / (len(targets) * (crops - 1))


def _rows_at_once(rows: int, prototypes: Tensor, most: int = MOST_SCORES) -> int:
    return 0 if rows * len(prototypes) <= most else max(1, most // len(prototypes))


def _make_head(config: DINOConfig, width: int) -> PrototypeHead:
    return PrototypeHead(
        width,
        config.prototypes,
        layers=config.head_layers,
        hidden=config.head_hidden,
        bottleneck=config.head_dim,
        batch_norm=config.head_norm,
        fixed_length=config.norm_last_layer,
    )


def _quiet(tower: Backbone) -> Backbone:
    """Take what is random out of the teacher."""
    for module in tower.modules():
        if isinstance(module, DropPath):
            module.rate = 0.0
        elif isinstance(module, PatchDropout):
            module.ratio = 0.0
        elif isinstance(module, nn.Dropout):
            module.p = 0.0
    return tower


def _check(config: DINOConfig, backbone: Backbone) -> None:
    def refuse(wrong: bool, why: str) -> None:
        if wrong:
            raise RecipeError(why)

    refuse(config.prototypes < 2, f"--prototypes is {config.prototypes}; the loss needs 2 or more")
    for name in ("temperature", "teacher_temperature", "teacher_temperature_start"):
        value = getattr(config, name)
        refuse(value <= 0, f"--{name.replace('_', '-')} is {value}; it must be positive")
    refuse(config.head_layers < 1, f"--head-layers is {config.head_layers}; the head has one or more")
    low, high = config.mask_ratio
    refuse(not 0 < low <= high < 1, f"--mask-ratio {low} {high}: want two shares between 0 and 1, the lower first")
    patched = hasattr(backbone, "patch_embed") and hasattr(backbone.config, "patch_size")
    refuse(
        bool(config.ibot) and (not patched or backbone.num_features != getattr(backbone.config, "width", 0)),
        f"--ibot hides patches, and {config.backbone} has none that stay tokens to the end: take a vit",
    )
    refuse(
        bool(config.ibot) and getattr(backbone.config, "patch_dropout", 0) > 0,
        "--ibot does not go with a patch_dropout of the tower: hidden patches must stay",
    )
