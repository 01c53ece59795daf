"""SSD: boxes of several sizes and shapes on maps of several strides, each with a class; no pyramid, no crops.

Fine maps answer for small objects and coarse ones for large. Every default box that overlaps an object by half learns
it; of the others only those learn that they are background which are hardest to tell, three for each positive.

Notable:
- The first map's numbers are larger than the others': it is divided by its length at each cell and scaled by a learned
  factor that begins at 20 (`l2_scale`).
- Class 0 is the background, in the weights and in the softmax; labels count from the category after it.
- A default box may be cut to the picture: not at all (the authors' Caffe code), its width and height to those of the
  picture (torchvision), or its middle as well (the widely used port ssd.pytorch).
- `box_steps`, the pixels from one default box to the next, hold at the framing's own size; in pictures of another they
  follow from the sizes of picture and map.
- 512 pixels: the last map is made by a 4 × 4 convolution with padding 1 (the authors' code). torchvision's class has a
  variant with other levels, for which no weights are about.

Reference: Liu, Anguelov, Erhan, Szegedy, Reed, Fu and Berg, SSD: Single Shot MultiBox Detector, arXiv:1512.02325;
weiliu89/caffe `examples/ssd/*.py`; torchvision `models/detection/ssd.py`; amdegroot/ssd.pytorch.

Differences: a positive is never drawn as a negative, which torchvision does where a picture has too few negatives.
Default boxes in a crowd, or on an object outside a scale policy's range, are no negatives. A picture without objects
teaches nothing, as in the original: it has no positives to count three negatives for. The defaults are a small network
for laptops with batch normalisation in the added layers, and coarser boxes than the paper's share of the picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from odonata.backbones.create import create
from odonata.backbones.interface import Backbone
from odonata.data.detections import Detections
from odonata.data.framing import Framing
from odonata.data.object_batches import ObjectBatch
from odonata.detect.default_boxes import ClipRule, boxes_a_cell, default_boxes
from odonata.detect.dense import rows
from odonata.detect.dense_anchors import sparing
from odonata.detect.detector import Detector, DetectorOptions, clip_to, found, freeze_stages, keep_best
from odonata.errors import RecipeError
from odonata.nn.norm import NormName, make_norm
from odonata.nn.ranks import mean_over_ranks
from odonata.ops.box_coding import decode_deltas, encode_deltas
from odonata.ops.boxes import iou_matrix
from odonata.ops.matching import BETWEEN, match_ssd
from odonata.ops.sampling import hard_negatives

CAFFE_MEAN = (0.48235, 0.45882, 0.40784)
"""123, 117 and 104 of 255, as torchvision writes them."""
CAFFE_STD = (1 / 255, 1 / 255, 1 / 255)

Extra = tuple[int, int, int, int, int]
"""Channels of the 1 × 1 convolution and of the one after it; that one's kernel, stride and padding."""

EXTRAS_300: tuple[Extra, ...] = (
    (256, 512, 3, 2, 1),
    (128, 256, 3, 2, 1),
    (128, 256, 3, 1, 0),
    (128, 256, 3, 1, 0),
)
_EXTRAS_512: tuple[Extra, ...] = (
    (256, 512, 3, 2, 1),
    (128, 256, 3, 2, 1),
    (128, 256, 3, 2, 1),
    (128, 256, 3, 2, 1),
    (128, 256, 4, 1, 1),
)
RATIOS_300 = ((2.0,), (2.0, 3.0), (2.0, 3.0), (2.0, 3.0), (2.0,), (2.0,))
STEPS_300 = (8, 16, 32, 64, 100, 300)
_VGG = {"backbone": "vgg16-ssd", "layers": (6, 11), "extra_norm": "none", "clip_boxes": "none"}
_AT_300 = {
    **_VGG,
    "extras": EXTRAS_300,
    "ratios": RATIOS_300,
    "box_steps": STEPS_300,
    "framing": Framing("squash", size=300, divisor=1, mean=CAFFE_MEAN, std=CAFFE_STD),
}
_AT_512 = {
    **_VGG,
    "extras": _EXTRAS_512,
    "box_steps": (8, 16, 32, 64, 128, 256, 512),
    "ratios": ((2.0,), *((2.0, 3.0),) * 4, (2.0,), (2.0,)),
    "framing": Framing("squash", size=512, divisor=1, mean=CAFFE_MEAN, std=CAFFE_STD),
}
SCALES_VOC_300 = (0.1, 0.2, 0.37, 0.54, 0.71, 0.88, 1.05)
SCALES_COCO_300 = (0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05)


@dataclass(frozen=True)
class SSDConfig(DetectorOptions):
    """SSD; see the presets for the paper's networks."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "ssd300-voc": {**_AT_300, "scales": SCALES_VOC_300},
        "ssd300-coco": {**_AT_300, "scales": SCALES_COCO_300},
        "ssd512-voc": {**_AT_512, "scales": (0.07, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9, 1.05)},
        "ssd512-coco": {**_AT_512, "scales": (0.04, 0.1, 0.26, 0.42, 0.58, 0.74, 0.9, 1.06)},
        "torchvision-300": {
            **_AT_300,
            "scales": SCALES_COCO_300,
            "clip_boxes": "sizes",
        },
    }

    backbone: str = "vgg-small"
    """Tower by name (`odonata show backbones`), with options."""
    framing: Framing = field(default_factory=lambda: Framing("squash", size=256))
    """What pictures are scaled to."""
    score_threshold: float = 0.01
    """Least score of a detection, 0 to 1."""
    nms_threshold: float = 0.45
    """Overlap (IoU) above which the less sure of two boxes of a class is dropped."""
    pre_nms: int = 400
    """Candidates kept of each class before that."""
    max_detections: int = 200
    """Detections kept of a picture."""
    layers: tuple[int, ...] = (6, 8)
    """Layers of the tower that have default boxes: of a VGG, 6 is the last convolution of the fourth stack."""
    extras: tuple[Extra, ...] = ((48, 96, 3, 2, 1), (48, 96, 3, 2, 1))
    """Levels above the tower's: channels of a 1 × 1 convolution and of the next, whose kernel, stride and padding."""
    extra_norm: Literal["none"] | NormName = "batch"
    """Normalisation after each of these convolutions; the paper has none."""
    l2_scale: float = 20.0
    """Where the learned scale of the first map's length begins (0 = its length stays)."""
    scales: tuple[float, ...] = (0.07, 0.15, 0.28, 0.42, 0.6)
    """Side of each level's default boxes as a share of the picture's, and one more for the last level's larger box."""
    ratios: tuple[tuple[float, ...], ...] = ((2.0,), (2.0,), (2.0,), (2.0,))
    """Of each level, aspect ratios besides 1; each counts both ways."""
    box_steps: tuple[int, ...] = ()
    """Pixels from one default box of a level to the next (empty: picture by map)."""
    clip_boxes: ClipRule = "none"
    """What of a default box is cut to the picture."""
    variances: tuple[float, float] = (0.1, 0.2)
    """What offsets of middles, and of logarithms of sizes, are divided by."""
    positive_iou: float = 0.5
    """From this overlap on a default box learns an object."""
    negatives: float = 3.0
    """Hard negatives for each positive."""
    box_weight: float = 1.0
    """Weight of the box loss (α of eq. 1)."""


@dataclass
class Outputs:
    """What the network says of a batch, all levels one after the other."""

    logits: Float[Tensor, "batch anchors classes_and_background"]
    deltas: Float[Tensor, "batch anchors 4"]
    anchors: Float[Tensor, "anchors 4"]
    """xyxy in pixels of the frame."""


class SSD(Detector):
    """A tower with further levels, and outputs of each level.

    Args:
        config: its options.
        num_classes: categories in the table, without the background.

    Raises:
        RecipeError: scales, ratios and steps are not of as many levels as there are.
    """

    def __init__(self, config: SSDConfig, num_classes: int) -> None:
        super().__init__(config, num_classes)
        self.config = config
        self.trunk = SSDTrunk(config)
        self.head = SSDHead(self.trunk.channels, [boxes_a_cell(r) for r in config.ratios], num_classes + 1)
        freeze_stages(self.trunk.backbone, config.freeze)

    @property
    def tower(self) -> nn.Module:
        """See `Detector.tower`."""
        return self.trunk.backbone

    @property
    def weights(self) -> tuple[float, float, float, float]:
        """What offsets are multiplied by: the variances turned over."""
        middle, size = self.config.variances
        return 1 / middle, 1 / middle, 1 / size, 1 / size

    def forward_head(self, images: Float[Tensor, "batch 3 height width"]) -> Outputs:
        """What the network says of prepared pictures."""
        config, maps = self.config, self.trunk(images)
        frame, own = (images.shape[-2], images.shape[-1]), config.framing.size
        logits, deltas = self.head(maps)
        boxes = default_boxes(
            [(x.shape[-2], x.shape[-1]) for x in maps],
            frame,
            config.scales,
            config.ratios,
            config.box_steps if config.box_steps and frame == (own, own) else (),
            config.clip_boxes,
            images.device,
        )
        return Outputs(logits, deltas, torch.cat(boxes))

    def assign(
        self, anchors: Float[Tensor, "anchors 4"], batch: ObjectBatch
    ) -> tuple[Int64[Tensor, "batch anchors"], Float[Tensor, "batch anchors 4"]]:
        """The class that every default box learns (0 background, -2 nothing), and the object's box."""
        labels, goals = [], []
        for number in range(len(batch)):
            boxes, classes = batch.trained(number)
            owner = match_ssd(iou_matrix(boxes, anchors), self.config.positive_iou)
            owner = sparing(owner, anchors, batch.boxes[number][batch.ignore[number]])
            has = owner.clamp(min=0)
            background = torch.where(owner == BETWEEN, owner, 0)
            labels.append(torch.where(owner >= 0, classes[has] + 1, background) if len(boxes) else background)
            goals.append(boxes[has] if len(boxes) else anchors)
        return torch.stack(labels), torch.stack(goals)

    def loss(self, batch: ObjectBatch) -> dict[str, Tensor]:
        """Return the softmax loss of positives and hard negatives, and the smooth L1 loss of boxes (eqs. 1 to 3)."""
        return self.losses(self.forward_head(self.pixels(batch)), batch)

    def losses(self, out: Outputs, batch: ObjectBatch) -> dict[str, Tensor]:
        """The same for what the network said."""
        config, logits, deltas = self.config, out.logits.float(), out.deltas.float()
        label, goal = self.assign(out.anchors, batch)
        positive = label > 0
        entropy = F.cross_entropy(logits.flatten(0, 1), label.clamp(min=0).flatten(), reduction="none").view_as(label)
        hard = hard_negatives(entropy, positive, config.negatives, label == BETWEEN)
        theirs = out.anchors.expand(len(batch), -1, -1)[positive]
        targets = encode_deltas(goal[positive], theirs, self.weights)
        total = mean_over_ranks(positive.sum(), logits)
        parts = {
            "class": entropy[positive | hard].sum() / total,
            "box": F.smooth_l1_loss(deltas[positive], targets, reduction="sum") / total,
        }
        return {"loss": parts["class"] + config.box_weight * parts["box"], **parts, "positives": positive.sum().float()}

    def predict(self, batch: ObjectBatch) -> list[Detections]:
        """See `Detector.predict`."""
        return self.answers(self.forward_head(self.pixels(batch)), batch)

    def answers(self, out: Outputs, batch: ObjectBatch) -> list[Detections]:
        """The same for what the network said."""
        answers: list[Detections] = []
        for number in range(len(batch)):
            scores = out.logits[number].float().softmax(-1)[:, 1:]
            size = batch.sizes[number]
            boxes = clip_to(decode_deltas(out.deltas[number].float(), out.anchors, self.weights), size)
            best, chosen = scores.topk(min(self.options.pre_nms, len(scores)), dim=0)
            labels = torch.arange(self.num_classes, device=best.device).expand_as(best)
            sure = best > self.options.score_threshold
            best, chosen, labels = best[sure], chosen[sure], labels[sure]
            kept = keep_best(boxes[chosen], best, labels, self.options)
            answers.append(found(boxes[chosen[kept]], best[kept], labels[kept], size))
        return answers

    def dense(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> tuple[Float[Tensor, "batch anchors 4"], Float[Tensor, "batch anchors classes"]]:
        """All boxes in pixels of the frame and all scores of prepared pictures, before suppression; for export."""
        out = self.forward_head(images)
        return decode_deltas(out.deltas, out.anchors[None], self.weights), out.logits.softmax(-1)[..., 1:]


class SSDTrunk(nn.Module):
    """A tower, the scaled length of its first map, and further levels above its last (fig. 2).

    Args:
        config: of the method.

    Raises:
        RecipeError: scales, ratios and steps are not of as many levels as there are.
    """

    def __init__(self, config: SSDConfig) -> None:
        super().__init__()
        self.backbone: Backbone = create(config.backbone)
        count = len(self.backbone.taps)
        if not config.layers or any(not -count <= layer < count for layer in config.layers):
            raise RecipeError(f"--layers {config.layers}: {config.backbone} has the layers 0 to {count - 1}")
        self.layers = config.layers
        self.channels = [self.backbone.taps[layer].channels for layer in config.layers]
        if config.l2_scale:
            self.length = nn.Parameter(torch.full((self.channels[0],), float(config.l2_scale)))
        else:
            self.length = None
        self.extras = nn.ModuleList()
        for extra in config.extras:
            self.extras.append(ExtraLevel(self.channels[-1], extra, config.extra_norm))
            self.channels.append(extra[1])
        levels = len(self.channels)
        if len(config.scales) != levels + 1 or len(config.ratios) != levels or len(config.box_steps) not in (0, levels):
            raise RecipeError(
                f"{levels} levels ({len(config.layers)} of the tower, {len(config.extras)} more) want {levels + 1} "
                f"--scales, {levels} --ratios and {levels} or no --box-steps; there are {len(config.scales)}, "
                f"{len(config.ratios)} and {len(config.box_steps)}"
            )

    def forward(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> list[Float[Tensor, "batch _channels _height _width"]]:
        """The maps of all levels, finest first."""
        maps = self.backbone.features(images, self.layers, "nchw")
        x = maps[-1]
        if self.length is not None:
            maps = [F.normalize(maps[0].float()).to(maps[0].dtype) * self.length[:, None, None], *maps[1:]]
        for level in self.extras:
            x = level(x)
            maps.append(x)
        return maps


class ExtraLevel(nn.Module):
    """A 1 × 1 convolution and a wider one that makes the map smaller, each rectified.

    Args:
        channels: of the map before.
        extra: what it is made of.
        norm: after each convolution.
    """

    def __init__(self, channels: int, extra: Extra, norm: Literal["none"] | NormName) -> None:
        super().__init__()
        middle, out, kernel, stride, padding = extra
        self.reduce = nn.Conv2d(channels, middle, 1)
        self.conv = nn.Conv2d(middle, out, kernel, stride, padding)
        self.norms = nn.ModuleList(nn.Identity() if norm == "none" else make_norm(norm, c) for c in (middle, out))
        self.least = kernel - 2 * padding
        for conv in (self.reduce, self.conv):
            xavier(conv)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch out height2 width2"]:
        """Returns the next level's map.

        Raises:
            RecipeError: the map is smaller than the convolution; the framing is too small for so many levels.
        """
        if min(x.shape[-2:]) < self.least:
            raise RecipeError(
                f"a map of {x.shape[-2]} × {x.shape[-1]} cells has no level of SSD above it; take a larger "
                "--framing.size, or fewer --extras"
            )
        reduced = self.norms[0](self.reduce(x)).relu()
        return self.norms[1](self.conv(reduced)).relu()


class SSDHead(nn.Module):
    """A 3 × 3 convolution for classes and one for boxes on each level (sec. 2.1).

    Args:
        channels: of each level.
        each: default boxes a cell of each level.
        outputs: classes, the background among them.
    """

    def __init__(self, channels: Sequence[int], each: Sequence[int], outputs: int) -> None:
        super().__init__()
        self.outputs = outputs
        self.class_logits = nn.ModuleList(
            xavier(nn.Conv2d(c, n * outputs, 3, padding=1)) for c, n in zip(channels, each, strict=True)
        )
        self.box_deltas = nn.ModuleList(
            xavier(nn.Conv2d(c, n * 4, 3, padding=1)) for c, n in zip(channels, each, strict=True)
        )

    def forward(
        self, maps: Sequence[Float[Tensor, "batch _channels _height _width"]]
    ) -> tuple[Float[Tensor, "batch anchors outputs"], Float[Tensor, "batch anchors 4"]]:
        """Class logits and offsets (dx, dy, dw, dh) of all default boxes, level by level."""
        logits = [rows(conv(level), self.outputs) for conv, level in zip(self.class_logits, maps, strict=True)]
        deltas = [rows(conv(level), 4) for conv, level in zip(self.box_deltas, maps, strict=True)]
        return torch.cat(logits, 1), torch.cat(deltas, 1)


def xavier(conv: nn.Conv2d) -> nn.Conv2d:
    """The convolution with Glorot's uniform weights and no bias, as the paper initialises what it adds (sec. 3)."""
    nn.init.xavier_uniform_(conv.weight)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv
