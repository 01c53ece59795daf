"""RetinaNet: a class and a correction for every anchor of a pyramid, trained on all of them by the focal loss.

The paper found that one-stage detectors lost to two-stage ones because of the many easy negatives: with a loss that
hardly counts what is told easily, and outputs that begin by saying "rare", all anchors can be trained at once.

The weights that are about were trained under different conventions; each is a named preset, and a field:

| | `paper-r50` (Detectron) | `torchvision-r50` | `torchvision-r50-v2` | `mmdet-r50` |
|---|---|---|---|---|
| P6 from | C5 | P5 | C5 | C5 |
| P7 from P6 | rectified | rectified | rectified | as it is |
| head | plain | plain | group norm | plain |
| box loss | smooth L1, β = 0.11 | L1 | GIoU | L1 |
| divided by the positives of | the batch | each picture | each picture | the batch |
| anchors | at cells' middles | at corners, whole pixels | likewise | at corners |
| residual network | stride in the 1 × 1 | 3 × 3 | 3 × 3, live norms | 3 × 3 |

Reference: Lin, Goyal, Girshick, He and Dollár, Focal Loss for Dense Object Detection, arXiv:1708.02002; Detectron
`modeling/retinanet_heads.py`; torchvision `models/detection/retinanet.py`; mmdet `retina_head.py` and its configs.

Differences: Detectron keeps candidates of the coarsest level whatever their score; here the threshold holds on all
levels, as in torchvision and mmdet. An anchor that some object overlaps most learns the object that it overlaps most
itself (torchvision, Detectron); in mmdet it learns the object whose best it is. An object that touches no anchor is not
learned; torchvision gives it all anchors that have no other. Anchors with more than half of their area in
a crowd, or an IoU above 0.3 with an object outside a scale policy's range, teach nothing. The defaults are a small
network for laptops, with anchors from two strides up instead of four.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from odonata.backbones.create import create
from odonata.backbones.fpn import FPNConfig, PyramidTower
from odonata.data.detections import Detections
from odonata.data.framing import Framing
from odonata.data.object_batches import ObjectBatch
from odonata.detect.dense import ConvTower, StrideRule, choose, init_normal, level_strides, rows
from odonata.detect.dense_anchors import level_anchors, octave_sizes, sparing
from odonata.detect.detector import Detector, DetectorOptions, freeze_stages
from odonata.detect.focal import focal_loss, one_hot
from odonata.errors import RecipeError
from odonata.nn.ranks import mean_over_ranks
from odonata.ops.box_coding import decode_deltas, encode_deltas
from odonata.ops.boxes import iou_matrix, paired_giou
from odonata.ops.matching import match_by_iou

BoxLoss = Literal["smooth-l1", "l1", "giou"]

_COCO = {
    "backbone": "resnet50:norm=frozen_batch",
    "fpn": FPNConfig(256, "p6p7-c5"),
    "tower_depth": 4,
    "head_norm": "none",
    "anchor_scale": 4.0,
    "framing": Framing(size=800, max_size=1333),
}
_TORCHVISION = {
    "point_offset": 0.0,
    "stride_rule": "picture",
    "whole_anchors": True,
    "normalizer": "picture",
    "max_detections": 300,
}


@dataclass(frozen=True)
class RetinaNetConfig(DetectorOptions):
    """RetinaNet; see the presets for published conventions."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper-r50": {**_COCO, "backbone": "resnet50:norm=frozen_batch,stride_in=1x1"},
        "paper-r101": {**_COCO, "backbone": "resnet101:norm=frozen_batch,stride_in=1x1"},
        "torchvision-r50": {**_COCO, **_TORCHVISION, "fpn": FPNConfig(256, "p6p7-p5"), "box_loss": "l1"},
        "torchvision-r50-v2": {
            **_COCO,
            **_TORCHVISION,
            "backbone": "resnet50",
            "head_norm": "group",
            "head_bias": False,
            "box_loss": "giou",
        },
        "mmdet-r50": {
            **_COCO,
            "fpn": FPNConfig(256, "p6p7-c5", rectified_p6=False),
            "box_loss": "l1",
            "point_offset": 0.0,
            "framing": Framing(size=800, max_size=1333, rounding="nearest"),
        },
    }

    nms_threshold: float = 0.5
    """Overlap (IoU) above which the less sure of two boxes of a class is dropped."""
    fpn: FPNConfig = field(default_factory=lambda: FPNConfig(64))
    """The pyramid."""
    layers: tuple[int, ...] = (1, 2, 3)
    """Stages of the tower that it stands on."""
    tower_depth: int = 2
    """Convolutions before each output."""
    head_norm: Literal["none", "group", "batch"] = "group"
    """Normalisation after each of them."""
    head_bias: bool = True
    """Whether they have biases before a normalisation."""
    anchor_scale: float = 2.0
    """Side of a level's smallest anchor, in strides of the level."""
    octaves: int = 3
    """Sizes of anchors on a level."""
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Their heights by their widths."""
    whole_anchors: bool = False
    """Whether sizes and corners of anchors are whole pixels (torchvision)."""
    point_offset: float = 0.5
    """Share of a stride from a cell's corner to the middle of its anchors."""
    stride_rule: StrideRule = "nominal"
    """Whether strides are the levels' own, or follow from the sizes of picture and map (torchvision)."""
    positive_iou: float = 0.5
    """From this overlap on an anchor learns an object."""
    negative_iou: float = 0.4
    """Below this it is background; in between it learns nothing."""
    low_quality: bool = True
    """Whether the anchors that an object overlaps most learn it however little that is."""
    normalizer: Literal["batch", "picture"] = "batch"
    """Whether losses are divided by the positives of the batch, or picture by picture and averaged (torchvision)."""
    box_loss: BoxLoss = "smooth-l1"
    """Of the four offsets, or 1 − GIoU of the decoded box."""
    beta: float = 0.11
    """Where the smooth L1 loss turns from square to straight."""
    prior: float = 0.01
    """Probability of an object that every anchor begins with (0 = no bias)."""
    alpha: float = 0.25
    """Weight of positives in the focal loss; negative: none."""
    gamma: float = 2.0
    """Focus on what is hard; 0 is cross-entropy."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.negative_iou <= self.positive_iou <= 1:
            raise RecipeError(
                f"--negative-iou {self.negative_iou} and --positive-iou {self.positive_iou} want "
                "0 ≤ negative ≤ positive ≤ 1"
            )
        if self.octaves < 1 or not self.ratios or self.anchor_scale <= 0 or min(self.ratios) <= 0:
            raise RecipeError(
                f"--octaves {self.octaves}, --ratios {self.ratios}, --anchor-scale {self.anchor_scale}: each cell "
                "wants an anchor at least, and all sizes and ratios above 0"
            )


@dataclass
class Outputs:
    """What the head says of a batch: a list over levels of rows [batch, anchors, fields]."""

    classes: list[Tensor]
    deltas: list[Tensor]
    anchors: list[Tensor]
    """[anchors, 4] of each level, xyxy in pixels of the frame."""


class RetinaNet(Detector):
    """A pyramid and one head for all of its levels.

    Args:
        config: its options.
        num_classes: categories in the table; each is a yes or no of its own, there is no background class.
    """

    def __init__(self, config: RetinaNetConfig, num_classes: int) -> None:
        super().__init__(config, num_classes)
        self.config = config
        self.trunk = PyramidTower(create(config.backbone), config.layers, config.fpn)
        self.head = RetinaNetHead(config, num_classes)
        freeze_stages(self.trunk.backbone, config.freeze)

    @property
    def tower(self) -> nn.Module:
        """See `Detector.tower`."""
        return self.trunk.backbone

    def forward_head(self, images: Float[Tensor, "batch 3 height width"]) -> Outputs:
        """What the network says of prepared pictures."""
        config, maps = self.config, self.trunk(images)
        strides = level_strides(maps, self.trunk.strides, (images.shape[-2], images.shape[-1]), config.stride_rule)
        sizes = [octave_sizes(config.anchor_scale, s, config.octaves, config.whole_anchors) for s in self.trunk.strides]
        anchors = level_anchors(maps, strides, sizes, config.ratios, config.point_offset, config.whole_anchors)
        classes, deltas = self.head(maps)
        return Outputs(classes, deltas, anchors)

    def assign(
        self, anchors: Float[Tensor, "anchors 4"], batch: ObjectBatch
    ) -> tuple[Int64[Tensor, "batch anchors"], Float[Tensor, "batch anchors 4"]]:
        """The class that every anchor learns (-1 background, -2 nothing), and the box."""
        config = self.config
        labels, goals = [], []
        for number in range(len(batch)):
            boxes, classes = batch.trained(number)
            overlaps = iou_matrix(boxes, anchors)
            # An object that no anchor touches would otherwise be the best of all of them at 0.
            reached = overlaps.amax(1) > 0
            if not bool(reached.all()):
                boxes, classes, overlaps = boxes[reached], classes[reached], overlaps[reached]
            owner = match_by_iou(overlaps, config.positive_iou, config.negative_iou, config.low_quality)
            owner = sparing(owner, anchors, batch.boxes[number][batch.ignore[number]])
            has = owner.clamp(min=0)
            labels.append(torch.where(owner >= 0, classes[has], owner) if len(boxes) else owner)
            goals.append(boxes[has] if len(boxes) else anchors)
        return torch.stack(labels), torch.stack(goals)

    def loss(self, batch: ObjectBatch) -> dict[str, Tensor]:
        """Return the focal loss of all anchors and the box loss of the positives (sec. 4.1)."""
        config, out = self.config, self.forward_head(self.pixels(batch))
        anchors = torch.cat(out.anchors)
        logits, deltas = torch.cat(out.classes, 1).float(), torch.cat(out.deltas, 1).float()
        label, goal = self.assign(anchors, batch)
        counted, positive = label >= -1, label >= 0
        per_anchor = focal_loss(
            logits[counted],
            one_hot(label[counted], self.num_classes),
            config.alpha if config.alpha >= 0 else None,
            config.gamma,
        ).sum(1)
        theirs = anchors.expand(len(batch), -1, -1)[positive]
        boxes = box_loss(deltas[positive], theirs, goal[positive], config.box_loss, config.beta)
        parts = {
            "class": per_positive(per_anchor, counted, positive, config.normalizer),
            "box": per_positive(boxes, positive, positive, config.normalizer),
        }
        return {"loss": parts["class"] + parts["box"], **parts, "positives": positive.sum().float()}

    def predict(self, batch: ObjectBatch) -> list[Detections]:
        """See `Detector.predict`."""
        out = self.forward_head(self.pixels(batch))
        answers: list[Detections] = []
        for number in range(len(batch)):
            scores = [level[number].float().sigmoid() for level in out.classes]
            boxes = [decode_deltas(d[number].float(), a) for d, a in zip(out.deltas, out.anchors, strict=True)]
            answers.append(choose(scores, boxes, batch.sizes[number], self.options))
        return answers

    def dense(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> tuple[Float[Tensor, "batch anchors 4"], Float[Tensor, "batch anchors classes"]]:
        """All boxes in pixels of the frame and all scores of prepared pictures, before suppression; for export."""
        out = self.forward_head(images)
        boxes = [decode_deltas(d, a[None]) for d, a in zip(out.deltas, out.anchors, strict=True)]
        return torch.cat(boxes, 1), torch.cat(out.classes, 1).sigmoid()


class RetinaNetHead(nn.Module):
    """Two towers, one for classes and one for boxes, the same on every level (sec. 4, fig. 3).

    Args:
        config: of the method.
        num_classes: outputs of each anchor.
    """

    def __init__(self, config: RetinaNetConfig, num_classes: int) -> None:
        super().__init__()
        channels, each = config.fpn.channels, config.octaves * len(config.ratios)
        self.num_classes = num_classes
        self.class_tower = ConvTower(channels, config.tower_depth, config.head_norm, config.head_bias)
        self.box_tower = ConvTower(channels, config.tower_depth, config.head_norm, config.head_bias)
        self.class_logits = nn.Conv2d(channels, each * num_classes, 3, padding=1)
        self.box_deltas = nn.Conv2d(channels, each * 4, 3, padding=1)
        init_normal(self.class_logits, config.prior or None)
        init_normal(self.box_deltas)

    def forward(
        self, maps: Sequence[Float[Tensor, "batch channels _height _width"]]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Rows of class logits and of offsets (dx, dy, dw, dh) of every level."""
        classes = [rows(self.class_logits(self.class_tower(level)), self.num_classes) for level in maps]
        deltas = [rows(self.box_deltas(self.box_tower(level)), 4) for level in maps]
        return classes, deltas


def box_loss(
    deltas: Float[Tensor, "positives 4"],
    anchors: Float[Tensor, "positives 4"],
    boxes: Float[Tensor, "positives 4"],
    kind: BoxLoss,
    beta: float,
) -> Float[Tensor, " positives"]:
    """Loss of each positive anchor's box.

    Args:
        deltas: predicted offsets.
        anchors: of the positives, xyxy.
        boxes: the objects that they learn, xyxy.
        kind: of the offsets (summed over the four), or 1 − GIoU of the decoded box.
        beta: of the smooth L1 loss, x²/2β below it and |x| − β/2 above.
    """
    if kind == "giou":
        return 1 - paired_giou(decode_deltas(deltas, anchors), boxes)
    targets = encode_deltas(boxes, anchors)
    if kind == "l1":
        return (deltas - targets).abs().sum(1)
    return F.smooth_l1_loss(deltas, targets, reduction="none", beta=beta).sum(1)


def per_positive(
    losses: Float[Tensor, " counted"],
    counted: Bool[Tensor, "batch anchors"],
    positive: Bool[Tensor, "batch anchors"],
    normalizer: Literal["batch", "picture"],
) -> Float[Tensor, ""]:
    """The sum of losses by the number of positives, at least 1: of the batch, or of each picture, averaged.

    Args:
        losses: of the anchors that count, in order.
        counted: which those are.
        positive: which anchors learn an object.
        normalizer: "batch" (over all processes) or "picture".
    """
    if normalizer == "batch":
        return losses.sum() / mean_over_ranks(positive.sum(), losses)
    picture = counted.nonzero()[:, 0]
    sums = losses.new_zeros(len(counted)).index_add(0, picture, losses)
    return (sums / positive.sum(1).clamp(min=1)).mean()
