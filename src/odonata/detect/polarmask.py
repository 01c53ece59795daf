"""PolarMask: an outline is 36 distances from a centre, so that an object's mask costs hardly more than its box.

FCOS's points say, in place of four sides, how far the outline is in every tenth degree. The loss of an outline is the
logarithm of the greater over the smaller distances, which is near −log IoU of the areas and treats all rays as one
figure. The polar centerness is high where the shortest ray is not much shorter than the longest.

Notable:
- A point is trained near an object's mass centre (the paper), or near its box's middle (`centre="box"`: what the
  released code does).
- Boxes for the suppression are those around the outlines (the paper), or come from a branch of their own, which the
  released code kept (`boxes="branch"`).
- The score of a class is multiplied by centerness + 0.5, which the paper does not say; `centerness_shift` is the 0.5.
- An object in pieces is learned by the largest one. Its rays are those of each trained point, not of the centre.

Reference: Xie et al., PolarMask: Single Shot Instance Segmentation with Polar Representation, arXiv:1909.13226; the
conventions that the paper leaves open are those that xieenze/PolarMask documents.

Differences: scores are divided by 1 + `centerness_shift`, so that they stay within [0, 1]; their order is the same.
Rays cross the outline itself, not sampled contour pixels (`odonata.ops.polar`). Objects smaller than `min_side` are
ignored; the original learns them as background. What a crowd, or an object outside the range of a scale policy, covers
teaches nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from odonata.backbones.create import create
from odonata.backbones.fpn import FPNConfig, PyramidTower
from odonata.data.detections import Detections
from odonata.data.framing import Framing
from odonata.data.object_batches import ObjectBatch
from odonata.detect.dense import ConvTower, init_normal, level_points, level_strides, rows
from odonata.detect.detector import (
    Detector,
    DetectorOptions,
    best_of_level,
    clip_to,
    found,
    freeze_stages,
    keep_best,
)
from odonata.detect.fcos import INFINITE, box_loss
from odonata.detect.focal import focal_loss, one_hot
from odonata.detect.key_points import full_precision
from odonata.detect.polarmask_targets import PolarTargets, polar_targets
from odonata.errors import DataError
from odonata.nn.ranks import mean_over_ranks
from odonata.ops.box_coding import decode_distances
from odonata.ops.masks import polygons_to_mask
from odonata.ops.polar import polar_centerness, polar_iou, polar_polygons

_COCO = {
    "backbone": "resnet50:norm=frozen_batch",
    "fpn": FPNConfig(256, "p6p7-p5"),
    "layers": (1, 2, 3),
    "tower_depth": 4,
    "framing": Framing(size=768, max_size=1280),
}


@dataclass(frozen=True)
class PolarMaskConfig(DetectorOptions):
    """PolarMask; see the presets for the paper's sizes and the released code's conventions."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "r50": {**_COCO, "unit": "pixels"},
        "released-r50": {**_COCO, "unit": "pixels", "centre": "box", "boxes": "branch", "min_side": 10.0},
    }

    nms_threshold: float = 0.5
    """Overlap (IoU) above which the less sure of two boxes of a class is dropped."""
    fpn: FPNConfig = field(default_factory=lambda: FPNConfig(64))
    """The pyramid."""
    layers: tuple[int, ...] = (0, 1, 2, 3)
    """Stages of the tower that it stands on."""
    tower_depth: int = 2
    """Convolutions before each output."""
    rays: int = 36
    """Distances of an outline."""
    centre: Literal["mass", "box"] = "mass"
    """What a trained point is near to: the mean of the mask's pixels, or the middle of the box."""
    boxes: Literal["rays", "branch"] = "rays"
    """Where boxes come from: around the outline, or a branch of their own."""
    first_range: float = 0.0
    """Largest distance to a side of the box that the finest level is for, doubled from level to level (0 = 8 times its
    stride)."""
    radius: float = 1.5
    """A point is trained within so many strides of an object's centre (0 = anywhere in the box)."""
    unit: Literal["strides", "pixels"] = "strides"
    """What the exponentials of the outputs are measured in; in strides, every level begins at a size of its own."""
    min_side: float = 0.0
    """Objects with a side below so many pixels of the frame are ignored."""
    centerness_shift: float = 0.5
    """What is added to the centerness before it multiplies the score of the class."""
    prior: float = 0.01
    """Probability of an object that every point begins with (0 = no bias)."""
    alpha: float = 0.25
    """Weight of positives in the focal loss; negative: none."""
    gamma: float = 2.0
    """Focus on what is hard; 0 is cross-entropy."""


@dataclass
class Outputs:
    """What the head says of a batch: a list over levels of rows [batch, cells, fields]."""

    classes: list[Tensor]
    rays: list[Tensor]
    """In pixels, above 0."""
    sides: list[Tensor]
    """In pixels, above 0; empty without a branch of boxes."""
    centerness: list[Tensor]
    points: list[Tensor]

    def boxes(self, level: int) -> Float[Tensor, "batch cells 4"]:
        """Boxes of a level in pixels, of the branch or around the outlines."""
        points = self.points[level][None]
        if self.sides:
            return decode_distances(self.sides[level], points)
        outline = polar_polygons(points, self.rays[level])
        return torch.cat([outline.amin(-2), outline.amax(-2)], -1)


class PolarMask(Detector):
    """A pyramid and one head for all of its levels.

    Args:
        config: its options.
        num_classes: categories in the table.
    """

    needs_masks: ClassVar[bool] = True

    def __init__(self, config: PolarMaskConfig, num_classes: int) -> None:
        super().__init__(config, num_classes)
        self.config = config
        self.trunk = PyramidTower(create(config.backbone), config.layers, config.fpn)
        self.head = PolarHead(config, num_classes, len(self.trunk.strides))
        freeze_stages(self.trunk.backbone, config.freeze)

    @property
    def tower(self) -> nn.Module:
        """See `Detector.tower`."""
        return self.trunk.backbone

    def forward_head(self, images: Float[Tensor, "batch 3 height width"]) -> Outputs:
        """What the network says of prepared pictures."""
        maps = self.trunk(images)
        strides = level_strides(maps, self.trunk.strides, (images.shape[-2], images.shape[-1]), "nominal")
        said = self.head(maps, self.trunk.strides)
        return replace(said, points=level_points(maps, strides, 0.5))

    def ranges(self) -> list[tuple[float, float]]:
        """Least and largest distance to a side of the box that each level is for, in pixels."""
        first = self.config.first_range or 8 * self.trunk.strides[0]
        edges = [-1.0, *(first * 2**i for i in range(len(self.trunk.strides) - 1)), INFINITE]
        return list(pairwise(edges))

    def loss(self, batch: ObjectBatch) -> dict[str, Tensor]:
        """Return the losses of classes, outlines (eq. 8), centerness, and of boxes where they have a branch.

        Raises:
            DataError: the batch has no masks.
        """
        if batch.masks is None:
            raise DataError("PolarMask learns from outlines, and the batch has boxes only")
        out = self.forward_head(self.pixels(batch))
        logits, rays = torch.cat(out.classes, 1).float(), torch.cat(out.rays, 1).float()
        centerness = torch.cat(out.centerness, 1).float()[..., 0]
        goal = self.targets(batch, out.points)
        counted, positive = goal.labels >= -1, goal.labels >= 0
        per_point = focal_loss(
            logits[counted],
            one_hot(goal.labels[counted], self.num_classes),
            self.config.alpha if self.config.alpha >= 0 else None,
            self.config.gamma,
        )
        weight = polar_centerness(goal.rays[positive])
        positives = mean_over_ranks(positive.sum(), logits)
        total = mean_over_ranks(weight.sum(), weight, 1e-6)
        off = F.binary_cross_entropy_with_logits(centerness[positive], weight, reduction="sum")
        parts = {
            # the pictures are counted as well: the authors' way to never divide by 0
            "class": per_point.sum() / mean_over_ranks(positive.sum() + len(batch), logits),
            "mask": (weight * polar_iou_loss(rays[positive], goal.rays[positive])).sum() / total,
            "centerness": off / positives,
        }
        if out.sides:
            sides = torch.cat(out.sides, 1).float()[positive]
            parts["box"] = (weight * box_loss(sides, goal.sides[positive], "log-iou")).sum() / total
        return {"loss": sum(parts.values(), torch.zeros_like(positives)), **parts, "positives": positives}

    @torch.no_grad()
    def targets(self, batch: ObjectBatch, points: Sequence[Float[Tensor, "cells 2"]]) -> PolarTargets:
        """What every point of a batch is to say; see `polar_targets`."""
        everywhere = torch.cat(list(points))
        counts = [len(p) for p in points]
        strides = [everywhere.new_full((n,), float(s)) for s, n in zip(self.trunk.strides, counts, strict=True)]
        spans = [everywhere.new_tensor([span]).expand(n, 2) for span, n in zip(self.ranges(), counts, strict=True)]
        return polar_targets(
            batch,
            everywhere,
            torch.cat(strides),
            torch.cat(spans),
            count=self.config.rays,
            radius=self.config.radius or None,
            centre=self.config.centre,
            min_side=self.config.min_side,
        )

    def predict(self, batch: ObjectBatch) -> list[Detections]:
        """See `Detector.predict`; with masks."""
        out = self.forward_head(self.pixels(batch))
        boxes = [out.boxes(level).float() for level in range(len(out.rays))]
        return [self.chosen(out, boxes, number, batch.sizes[number]) for number in range(len(batch))]

    def chosen(self, out: Outputs, boxes: Sequence[Tensor], number: int, size: Tensor) -> Detections:
        """The detections of one picture with their masks.

        Args:
            out: of the whole batch.
            boxes: of each level, in pixels.
            number: of the picture.
            size: its (height, width) in the frame.
        """
        options = self.options
        kept: list[tuple[Tensor, ...]] = []
        for level, box in enumerate(boxes):
            chance = out.classes[level][number].float().sigmoid()
            # the threshold is on the class alone, as in FCOS
            score = self.score(chance, out.centerness[level][number]) * (chance > options.score_threshold)
            cells, labels, best = best_of_level(score, 0.0, options.pre_nms)
            rays = out.rays[level][number][cells].float()
            kept.append((clip_to(box[number][cells], size), best, labels, out.points[level][cells], rays))
        candidates, scores, labels, centres, rays = (torch.cat(parts) for parts in zip(*kept, strict=True))
        best = keep_best(candidates, scores, labels, options)
        height, width = int(size[0]), int(size[1])
        outlines = polar_polygons(centres[best], rays[best], (height, width)).flatten(1).tolist()
        drawn = [polygons_to_mask([outline], height, width) for outline in outlines]
        masks = torch.stack(drawn) if drawn else torch.zeros(0, height, width, dtype=torch.bool)
        return found(candidates[best], scores[best], labels[best], size, masks=masks.to(scores.device))

    def score(
        self, chance: Float[Tensor, "*cells classes"], centerness: Float[Tensor, "*cells 1"]
    ) -> Float[Tensor, "*cells classes"]:
        """Chance of a class times shifted centerness, over what that can be at most."""
        shift = self.config.centerness_shift
        return chance * (centerness.float().sigmoid() + shift) / (1 + shift)

    def dense(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> tuple[Float[Tensor, "batch cells 4"], Float[Tensor, "batch cells classes"]]:
        """All boxes in pixels of the frame and all scores of prepared pictures, before suppression; for export.

        Scores that the threshold on the class rules out are 0. There are no masks.
        """
        out = self.forward_head(images)
        boxes = torch.cat([out.boxes(level) for level in range(len(out.rays))], 1)
        chance = torch.cat(out.classes, 1).sigmoid()
        score = self.score(chance, torch.cat(out.centerness, 1))
        return boxes, score * (chance > self.config.score_threshold)

    @property
    def dense_threshold(self) -> float:
        """See `Detector.dense_threshold`."""
        return 0.0


class PolarHead(nn.Module):
    """Towers for classes and outlines, and for boxes where wanted, the same on every level.

    Args:
        config: of the method.
        num_classes: outputs of the class branch.
        levels: of the pyramid.
    """

    def __init__(self, config: PolarMaskConfig, num_classes: int, levels: int) -> None:
        super().__init__()
        channels, self.in_strides = config.fpn.channels, config.unit == "strides"
        self.class_tower = ConvTower(channels, config.tower_depth)
        self.mask_tower = ConvTower(channels, config.tower_depth)
        self.class_logits = nn.Conv2d(channels, num_classes, 3, padding=1)
        self.centerness = nn.Conv2d(channels, 1, 3, padding=1)
        self.ray_distances = nn.Conv2d(channels, config.rays, 3, padding=1)
        self.ray_scales = nn.Parameter(torch.ones(levels))
        init_normal(self.class_logits, config.prior or None)
        init_normal(self.centerness)
        init_normal(self.ray_distances)
        self.has_boxes = config.boxes == "branch"
        if self.has_boxes:
            self.box_tower = ConvTower(channels, config.tower_depth)
            self.box_distances = nn.Conv2d(channels, 4, 3, padding=1)
            self.box_scales = nn.Parameter(torch.ones(levels))
            init_normal(self.box_distances)

    def forward(
        self, maps: Sequence[Float[Tensor, "batch channels _height _width"]], strides: Sequence[int]
    ) -> Outputs:
        """Rows of every level, without points; distances are exp(scale · x) strides or pixels."""
        said = Outputs([], [], [], [], [])
        for level, x in enumerate(maps):
            class_map, unit = self.class_tower(x), strides[level] if self.in_strides else 1
            said.classes.append(rows(self.class_logits(class_map), self.class_logits.out_channels))
            said.centerness.append(rows(self.centerness(class_map), 1))
            raw = self.ray_distances(self.mask_tower(x)) * self.ray_scales[level]
            said.rays.append(rows(full_precision(raw).exp() * unit, raw.shape[1]))
            if self.has_boxes:
                raw = self.box_distances(self.box_tower(x)) * self.box_scales[level]
                said.sides.append(rows(full_precision(raw).exp() * unit, 4))
        return said


def polar_iou_loss(
    distances: Float[Tensor, "points rays"], targets: Float[Tensor, "points rays"]
) -> Float[Tensor, " points"]:
    """log(Σ max / Σ min) over the rays of each outline (eq. 8).

    Args:
        distances: said, above 0.
        targets: wanted, above 0.
    """
    return -polar_iou(distances, targets).log()
