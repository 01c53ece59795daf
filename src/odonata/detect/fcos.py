"""FCOS: every point in an object says how far the object's four sides are. No anchors, no overlaps to tune.

A point of a level is trained on the smallest object that it stands in, if the object's size belongs to the level.
Points far from an object's middle give poor boxes; a further output, the centerness, learns to say so and lowers their
score.

Two recipes and three conventions are about, and their weights do not mix; each is a named preset:
- `v1` (the paper): any point inside a box, distances by exp, in pixels, −log IoU, centerness beside the class.
- `improved` (the authors' later code): points near the middle, distances rectified, in strides, GIoU weighted by the
  target centerness and divided by its sum, centerness beside the box.
- `torchvision`: as `improved`, but points at the corners of cells, no learned scales, nothing weighted by centerness,
  a threshold on the final score.
The final score is √(class · centerness) in both codes; the paper multiplies without the root. The order within a
picture is the same, thresholds are not.

Reference: Tian, Shen, Chen and He, FCOS: Fully Convolutional One-Stage Object Detection, arXiv:1904.01355, and the
journal version, arXiv:2006.09214; tianzhi0549/FCOS `fcos_core/modeling/rpn/fcos`; torchvision
`models/detection/fcos.py`.

Differences: at a distance that is exactly the border of two levels, both are trained, as in the original; torchvision
trains neither. The defaults are a small network for laptops with levels from stride 4; areas are plain, without the
original's + 1. What a crowd, or an object outside the range of a scale policy, covers teaches nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
from odonata.detect.dense import ConvTower, StrideRule, choose, init_normal, level_points, level_strides, rows
from odonata.detect.detector import Detector, DetectorOptions, freeze_stages
from odonata.detect.focal import focal_loss, one_hot
from odonata.nn.ranks import mean_over_ranks
from odonata.ops.box_coding import decode_distances
from odonata.ops.boxes import paired_giou
from odonata.ops.matching import centre_sampling, ignore_overlap

INFINITE = 1e8
_COCO = {
    "backbone": "resnet50:norm=frozen_batch",
    "fpn": FPNConfig(256, "p6p7-p5"),
    "layers": (1, 2, 3),
    "tower_depth": 4,
    "framing": Framing(size=800, max_size=1333),
}


@dataclass(frozen=True)
class FCOSConfig(DetectorOptions):
    """FCOS; see the presets for published conventions."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "v1": {"radius": 0.0, "distance": "exp", "unit": "pixels", "iou": "log-iou", "centerness_on": "class"},
        "improved": {},
        "improved-r50": {**_COCO},
        "v1-r50": {
            **_COCO,
            "radius": 0.0,
            "distance": "exp",
            "unit": "pixels",
            "iou": "log-iou",
            "centerness_on": "class",
        },
        "torchvision-r50": {
            **_COCO,
            "point_offset": 0.0,
            "stride_rule": "picture",
            "scales": False,
            "weight_by_centerness": False,
            "threshold_on": "score",
            "score_threshold": 0.2,
        },
    }

    fpn: FPNConfig = field(default_factory=lambda: FPNConfig(64))
    """The pyramid."""
    layers: tuple[int, ...] = (0, 1, 2, 3)
    """Stages of the tower that it stands on."""
    tower_depth: int = 2
    """Convolutions before each output."""
    first_range: float = 0.0
    """Largest distance to a side that the finest level is for, doubled from level to level (0 = 8 times its stride)."""
    radius: float = 1.5
    """A point is trained within so many strides of an object's middle (0 = anywhere in the object)."""
    point_offset: float = 0.5
    """Share of a stride from a cell's corner to its point."""
    stride_rule: StrideRule = "nominal"
    """Whether strides are the levels' own, or follow from the sizes of picture and map (torchvision)."""
    distance: Literal["relu", "exp"] = "relu"
    """What makes distances positive."""
    unit: Literal["strides", "pixels"] = "strides"
    """What distances are measured in."""
    scales: bool = True
    """Whether each level has a learned factor on its distances."""
    iou: Literal["giou", "log-iou"] = "giou"
    """Loss of a box: 1 − GIoU, or −log IoU."""
    centerness_on: Literal["box", "class"] = "box"
    """Which tower says the centerness."""
    weight_by_centerness: bool = True
    """Whether a box's loss counts by its target centerness."""
    threshold_on: Literal["class", "score"] = "class"
    """What the score threshold is applied to."""
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
    distances: list[Tensor]
    """In pixels, not negative."""
    centerness: list[Tensor]
    points: list[Tensor]
    strides: list[int]


class FCOS(Detector):
    """A pyramid and one head for all of its levels.

    Args:
        config: its options.
        num_classes: categories in the table.
    """

    def __init__(self, config: FCOSConfig, num_classes: int) -> None:
        super().__init__(config, num_classes)
        self.config = config
        self.trunk = PyramidTower(create(config.backbone), config.layers, config.fpn)
        self.head = FCOSHead(config, num_classes, len(self.trunk.strides))
        freeze_stages(self.trunk.backbone, config.freeze)

    @property
    def tower(self) -> nn.Module:
        """See `Detector.tower`."""
        return self.trunk.backbone

    def forward_head(self, images: Float[Tensor, "batch 3 height width"]) -> Outputs:
        """What the network says of prepared pictures."""
        config, maps = self.config, self.trunk(images)
        strides = level_strides(maps, self.trunk.strides, (images.shape[-2], images.shape[-1]), config.stride_rule)
        classes, distances, centerness = self.head(maps, self.trunk.strides if config.unit == "strides" else None)
        points = level_points(maps, strides, config.point_offset)
        return Outputs(classes, distances, centerness, points, list(self.trunk.strides))

    def ranges(self) -> list[tuple[float, float]]:
        """Least and largest distance to a side that each level is for, in pixels (sec. 3.2)."""
        first = self.config.first_range or 8 * self.trunk.strides[0]
        count = len(self.trunk.strides)
        edges = [-1.0, *(first * 2**i for i in range(count - 1)), INFINITE]
        return list(itertools.pairwise(edges))

    def loss(self, batch: ObjectBatch) -> dict[str, Tensor]:
        """Return the focal loss of the classes, the loss of the boxes, and that of the centerness (eq. 2)."""
        config, out = self.config, self.forward_head(self.pixels(batch))
        points = torch.cat(out.points)
        counts = [len(p) for p in out.points]
        strides = _spread(out.strides, counts, points)
        ranges = torch.cat([points.new_tensor([r]).expand(n, 2) for r, n in zip(self.ranges(), counts, strict=True)])
        logits, distances = torch.cat(out.classes, 1).float(), torch.cat(out.distances, 1).float()
        centerness = torch.cat(out.centerness, 1).float()[..., 0]
        labels, targets = [], []
        for number in range(len(batch)):
            boxes, classes = batch.trained(number)
            owner, sides = centre_sampling(points, strides, ranges, boxes, config.radius or None)
            label = torch.where(owner >= 0, classes[owner.clamp(min=0)], -1) if len(classes) else owner
            ignored = batch.boxes[number][batch.ignore[number]]
            here = torch.cat([points, points], 1) + points.new_tensor([-0.5, -0.5, 0.5, 0.5])
            label = torch.where((label < 0) & ignore_overlap(here, ignored, 0.5), -2, label)
            labels.append(label)
            targets.append(sides)
        label, target = torch.stack(labels), torch.stack(targets)
        counted, positive = label >= -1, label >= 0
        per_point = focal_loss(
            logits[counted],
            one_hot(label[counted], self.num_classes),
            config.alpha if config.alpha >= 0 else None,
            config.gamma,
        )
        positives = mean_over_ranks(positive.sum(), logits)
        goal = centerness_of(target[positive])
        boxes = box_loss(distances[positive], target[positive], config.iou)
        weight, total = goal, mean_over_ranks(goal.sum(), goal, 1e-6)
        if not config.weight_by_centerness:
            weight, total = torch.ones_like(goal), positives
        parts = {
            "class": per_point.sum() / positives,
            "box": (boxes * weight).sum() / total,
            "centerness": F.binary_cross_entropy_with_logits(centerness[positive], goal, reduction="sum") / positives,
        }
        return {"loss": sum(parts.values(), torch.zeros_like(positives)), **parts, "positives": positives}

    def predict(self, batch: ObjectBatch) -> list[Detections]:
        """See `Detector.predict`."""
        out = self.forward_head(self.pixels(batch))
        config, answers = self.config, list[Detections]()
        for number in range(len(batch)):
            gates = [level[number].float().sigmoid() for level in out.classes]
            centres = [level[number].float().sigmoid() for level in out.centerness]
            scores = [(gate * centre).sqrt() for gate, centre in zip(gates, centres, strict=True)]
            boxes = [decode_distances(d[number].float(), p) for p, d in zip(out.points, out.distances, strict=True)]
            size = batch.sizes[number]
            gated = gates if config.threshold_on == "class" else None
            answers.append(choose(scores, boxes, size, self.options, gated))
        return answers

    def dense(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> tuple[Float[Tensor, "batch cells 4"], Float[Tensor, "batch cells classes"]]:
        """All boxes in pixels of the frame and all scores of prepared pictures, before suppression; for export.

        Scores that the threshold on the class rules out are 0.
        """
        out = self.forward_head(images)
        boxes = [decode_distances(d, p[None]) for p, d in zip(out.points, out.distances, strict=True)]
        gates, centres = torch.cat(out.classes, 1).sigmoid(), torch.cat(out.centerness, 1).sigmoid()
        scores = (gates * centres).sqrt()
        if self.config.threshold_on == "class":
            scores = scores * (gates > self.options.score_threshold)
        return torch.cat(boxes, 1), scores

    @property
    def dense_threshold(self) -> float:
        """See `Detector.dense_threshold`."""
        return 0.0 if self.config.threshold_on == "class" else self.options.score_threshold


class FCOSHead(nn.Module):
    """Two towers, one for classes and one for boxes, the same on every level.

    Args:
        config: of the method.
        num_classes: outputs of the class branch.
        levels: of the pyramid.
    """

    def __init__(self, config: FCOSConfig, num_classes: int, levels: int) -> None:
        super().__init__()
        channels = config.fpn.channels
        self.config = config
        self.class_tower = ConvTower(channels, config.tower_depth)
        self.box_tower = ConvTower(channels, config.tower_depth)
        self.class_logits = nn.Conv2d(channels, num_classes, 3, padding=1)
        self.box_distances = nn.Conv2d(channels, 4, 3, padding=1)
        self.centerness = nn.Conv2d(channels, 1, 3, padding=1)
        if config.scales:
            self.scales = nn.Parameter(torch.ones(levels))
        init_normal(self.class_logits, config.prior or None)
        init_normal(self.box_distances)
        init_normal(self.centerness)

    def forward(
        self, maps: Sequence[Float[Tensor, "batch channels _height _width"]], strides: Sequence[int] | None
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Rows of class logits, distances in pixels and centerness logits of every level.

        Args:
            maps: of the levels.
            strides: what distances are multiplied by; None: they are in pixels.
        """
        classes, distances, centerness = [], [], []
        for number, level in enumerate(maps):
            class_map, box_map = self.class_tower(level), self.box_tower(level)
            raw = self.box_distances(box_map)
            if self.config.scales:
                raw = raw * self.scales[number]
            positive = raw.exp() if self.config.distance == "exp" else raw.relu()
            classes.append(rows(self.class_logits(class_map), self.class_logits.out_channels))
            distances.append(rows(positive * (strides[number] if strides else 1), 4))
            source = box_map if self.config.centerness_on == "box" else class_map
            centerness.append(rows(self.centerness(source), 1))
        return classes, distances, centerness


def centerness_of(sides: Float[Tensor, "points 4"]) -> Float[Tensor, " points"]:
    """√(min(l, r)/max(l, r) · min(t, b)/max(t, b)): 1 in the middle of a box, 0 at its edge (eq. 3)."""
    across, down = sides[:, [0, 2]], sides[:, [1, 3]]
    ratio = (across.amin(1) / across.amax(1)) * (down.amin(1) / down.amax(1))
    return ratio.clamp(min=0).sqrt()


def box_loss(
    distances: Float[Tensor, "points 4"], targets: Float[Tensor, "points 4"], kind: Literal["giou", "log-iou"]
) -> Float[Tensor, " points"]:
    """Loss of each point's box around the point.

    Args:
        distances, targets: to the left, top, right and bottom sides.
        kind: 1 − GIoU, or −log IoU (UnitBox, with the original's 1 added to areas in square pixels).
    """
    origin = distances.new_zeros(len(distances), 2)
    guess, goal = decode_distances(distances, origin), decode_distances(targets, origin)
    if kind == "giou":
        return 1 - paired_giou(guess, goal)
    shared = torch.minimum(distances, targets)
    overlap = (shared[:, 0] + shared[:, 2]) * (shared[:, 1] + shared[:, 3])
    area = (distances[:, 0] + distances[:, 2]) * (distances[:, 1] + distances[:, 3])
    wanted = (targets[:, 0] + targets[:, 2]) * (targets[:, 1] + targets[:, 3])
    return -((overlap + 1) / (area + wanted - overlap + 1)).log()


def _spread(values: Sequence[float], counts: Sequence[int], like: Tensor) -> Tensor:
    """Each level's value once a cell."""
    return torch.cat([like.new_full((n,), float(v)) for v, n in zip(values, counts, strict=True)])
