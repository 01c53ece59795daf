"""Faster R-CNN: a network proposes regions, and a second stage on the same features says what and where they are.

What the paper found: proposals cost next to nothing once they share the detector's own features. Feature pyramids then
gave each region a map of its size.

Two forms: `pyramid` (the default) pools regions with RoIAlign from a feature pyramid, and its head has layers of its
own. Without it there is one map: VGG16's conv5_3, or C4 of a ResNet, and what is left of the tower (fc6 and fc7, or the
last stage) is the head: the original, with RoIPool. `presets` name the published conventions.

Deliberate differences:
- Both stages learn together in one pass ("approximate joint training"); the paper's four alternating steps are left
  out.
- The original counts a box's side one pixel longer; here coordinates are plain, also in the preset `vgg16`.
- Crowds and objects out of a scale policy's range are neither positives nor negatives, in both stages.

Sources: Ren et al. 2015 (1506.01497); Lin et al. 2017 (1612.03144); He et al. 2017 (1703.06870) for RoIAlign;
torchvision `models/detection/faster_rcnn.py`, whose numbers it gives.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from odonata.backbones.create import create
from odonata.backbones.fpn import FPNConfig, PyramidTower
from odonata.backbones.interface import Backbone
from odonata.backbones.resnet import ResNet
from odonata.backbones.vgg import VGG
from odonata.data.detections import Detections
from odonata.data.framing import Framing
from odonata.data.object_batches import ObjectBatch
from odonata.detect.detector import Detector, DetectorOptions, freeze_stages
from odonata.detect.roi_head import Candidates, RoIHead, RoIOptions, Top, candidates_of, roi_loss, sample_regions
from odonata.detect.rpn import RPN, RPNOptions, Targets, propose, rpn_loss
from odonata.errors import RecipeError

_SIZES = (32.0, 64.0, 128.0, 256.0, 512.0)
_COCO_RPN = RPNOptions(
    anchor_sizes=_SIZES, stride_rule="picture", samples=256, pre_nms_train=2000, post_nms_train=2000, post_nms=1000
)
_COCO_ROI = RoIOptions(canonical_size=224.0, width=1024, background="first", box_outputs="all", samples=512)
_LATER_RPN = RPNOptions(
    anchor_sizes=_SIZES,
    anchor_rounded=False,
    samples=256,
    beta=0.0,
    pre_nms_train=2000,
    post_nms_train=1000,
    post_nms=1000,
    min_size=0.0,
)
_LATER_ROI = RoIOptions(canonical_size=224.0, width=1024, sampling_ratio=0, aligned=True, beta=0.0, samples=512)
_COCO: dict[str, Any] = {
    "backbone": "resnet50:norm=frozen_batch",
    "fpn": FPNConfig(256, "pool"),
    "framing": Framing(size=800, max_size=1333),
}
_CAFFE = Framing(size=800, max_size=1333, order="bgr", std=(1 / 255, 1 / 255, 1 / 255))


@dataclass(frozen=True)
class FasterRCNNConfig(DetectorOptions):
    """Faster R-CNN; see the presets for published conventions."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "torchvision-r50": {**_COCO, "rpn": _COCO_RPN, "roi": _COCO_ROI},
        "torchvision-r50-v2": {
            "backbone": "resnet50",
            "fpn": FPNConfig(256, "pool", "batch"),
            "framing": _COCO["framing"],
            "rpn": replace(_COCO_RPN, depth=2),
            "roi": replace(_COCO_ROI, convs=4, conv_norm="batch", fcs=1),
        },
        "detectron2-r50": {
            **_COCO,
            "backbone": "resnet50:norm=frozen_batch,stride_in=1x1",
            "framing": replace(_CAFFE, rounding="nearest", mean=(123.675 / 255, 116.28 / 255, 103.53 / 255)),
            "rpn": replace(_LATER_RPN, normalizer="fixed"),
            "roi": _LATER_ROI,
        },
        "mmdet-r50": {
            **_COCO,
            "framing": replace(_COCO["framing"], rounding="nearest"),
            "rpn": _LATER_RPN,
            "roi": _LATER_ROI,
        },
        "vgg16": {
            "backbone": "vgg16",
            "pyramid": False,
            "layers": (8,),
            "framing": replace(
                _CAFFE, size=600, max_size=1000, divisor=16, mean=(122.7717 / 255, 115.9465 / 255, 102.9801 / 255)
            ),
            "rpn": RPNOptions(
                anchor_sizes=(128.0, 256.0, 512.0),
                anchor_offset=0.5,
                inside_only=True,
                samples=256,
                pre_nms_train=12000,
                post_nms_train=2000,
                post_nms=300,
                min_size=16.0,
            ),
            "roi": RoIOptions(op="pool", head="tower", background="first", box_outputs="all", beta=1.0, samples=128),
            "pre_nms": 6000,
            "nms_threshold": 0.3,
        },
        "r50-c4": {
            "backbone": "resnet50:norm=frozen_batch",
            "pyramid": False,
            "layers": (2,),
            "framing": _COCO["framing"],
            "rpn": replace(_LATER_RPN, pre_nms_train=12000, post_nms_train=2000),
            "roi": replace(_LATER_ROI, head="tower", bins=14),
            "pre_nms": 6000,
        },
    }

    pyramid: bool = True
    """Whether regions are pooled from a feature pyramid, or from one map."""
    fpn: FPNConfig = field(default_factory=lambda: FPNConfig(64))
    """The pyramid; its further level, where it has one, is for proposals only."""
    layers: tuple[int, ...] = (0, 1, 2, 3)
    """Stages of the tower that the pyramid stands on, or the one that the single map is of."""
    rpn: RPNOptions = field(default_factory=RPNOptions)
    """The first stage."""
    roi: RoIOptions = field(default_factory=RoIOptions)
    """The second stage."""
    nms_threshold: float = 0.5
    """Overlap (IoU) above which the less sure of two boxes of a class is dropped."""


class SingleMap(nn.Module):
    """A tower of which one map is used; as a `PyramidTower` of one level, without the pyramid.

    Args:
        backbone: a tower whose layers give maps.
        layer: which of them.

    Raises:
        RecipeError: no such layer.
    """

    def __init__(self, backbone: Backbone, layer: int) -> None:
        super().__init__()
        if not -len(backbone.taps) <= layer < len(backbone.taps):
            raise RecipeError(f"--layers names {layer}, and the tower has {len(backbone.taps)} layers")
        self.backbone, self.layers = backbone, (layer % len(backbone.taps),)
        tap = backbone.taps[layer]
        self.channels, self.strides = tap.channels, (tap.stride,)

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> list[Tensor]:
        """Returns the map."""
        return self.backbone.features(images, self.layers, "nchw")


def make_trunk(config: FasterRCNNConfig) -> PyramidTower | SingleMap:
    """Returns the tower with its pyramid, or with its one map.

    Raises:
        RecipeError: the layers do not fit.
    """
    backbone = create(config.backbone)
    if not config.pyramid:
        if len(config.layers) != 1:
            raise RecipeError(f"--layers is {config.layers}; without a pyramid it names one layer")
        return SingleMap(backbone, config.layers[0])
    try:
        return PyramidTower(backbone, config.layers, config.fpn)
    except ValueError as error:
        raise RecipeError(f"--layers: {error}") from error


def make_stages(config: FasterRCNNConfig, trunk: PyramidTower | SingleMap, num_classes: int) -> tuple[RPN, RoIHead]:
    """Returns the networks that propose, and that tell the proposals apart.

    Raises:
        RecipeError: options that do not go together.
    """
    features = 0
    if config.roi.head == "tower":
        if config.pyramid:
            raise RecipeError("--roi.head tower is for a single map: take --no-pyramid, or --roi.head layers")
        check_rest(trunk.backbone, trunk.layers[0], config.roi)
        features = trunk.backbone.num_features
    pooled_from = trunk.strides[: len(trunk.layers)]
    rpn = RPN(trunk.channels, trunk.strides, config.rpn)
    return rpn, RoIHead(trunk.channels, pooled_from, num_classes, config.roi, features)


def check_rest(tower: Backbone, layer: int, options: RoIOptions) -> None:
    """Refuse a tower that has nothing left above a layer to be the head.

    Raises:
        RecipeError: says what there should be.
    """
    if isinstance(tower, ResNet) and layer < len(tower.stages) - 1:
        return
    if isinstance(tower, VGG) and tower.config.top == "dense" and options.bins == tower.config.fc6_kernel:
        return
    raise RecipeError(
        f"--roi.head tower: layer {layer} of this tower leaves nothing to be the head; it takes a stage of a ResNet "
        "but the last, or a VGG with its dense layers and --roi.bins 7"
    )


def rest_of(tower: Backbone, layer: int, pooled: Float[Tensor, "n channels bins bins"]) -> Float[Tensor, "n dim"]:
    """Returns what the layers above a map make of regions of it: a ResNet's stages and mean, or VGG's fc6 and fc7."""
    if isinstance(tower, ResNet):
        for stage in tower.stages[layer + 1 :]:
            pooled = stage(pooled)
    return tower.forward_head(pooled, pre_logits=True)


@dataclass
class Seen:
    """What the trunk saw of a batch, for the two stages."""

    maps: Sequence[Tensor]
    frame: tuple[int, int]
    """(height, width) of the padded pictures."""
    sizes: Int64[Tensor, "batch 2"]
    """(height, width) of each picture within the frame."""
    top: Top | None
    """The rest of the tower, where that is the head."""


def two_stage_loss(rpn: RPN, head: RoIHead, seen: Seen, targets: Sequence[Targets]) -> dict[str, Tensor]:
    """Return the losses of both stages and their sum under `"loss"` (eq. 1, and eq. 1 of Fast R-CNN)."""
    options = rpn.options
    out = rpn(seen.maps, seen.frame)
    first = rpn_loss(out, targets, seen.sizes, options)
    proposals = propose(out, seen.sizes, options, options.pre_nms_train, options.post_nms_train)
    samples = [sample_regions(p, target, head.options) for p, target in zip(proposals, targets, strict=True)]
    logits, deltas = head(seen.maps, [sample.boxes for sample in samples], seen.top)
    parts = {**first, **roi_loss(head, logits, deltas, samples)}
    return {"loss": torch.stack(list(parts.values())).sum(), **parts}


def two_stage_candidates(rpn: RPN, head: RoIHead, seen: Seen, options: DetectorOptions) -> list[Candidates]:
    """Return what both stages say of each picture, before suppression."""
    proposals = propose(rpn(seen.maps, seen.frame), seen.sizes, rpn.options, options.pre_nms, rpn.options.post_nms)
    logits, deltas = head(seen.maps, proposals, seen.top)
    counts = [len(region) for region in proposals]
    parts = zip(logits.split(counts), deltas.split(counts), proposals, seen.sizes, strict=True)
    return [candidates_of(head, *part, options.score_threshold) for part in parts]


class FasterRCNN(Detector):
    """A trunk, and two stages on its maps.

    Args:
        config: its options.
        num_classes: categories in the table, without the background.

    Raises:
        RecipeError: options that do not go together.
    """

    def __init__(self, config: FasterRCNNConfig, num_classes: int) -> None:
        super().__init__(config, num_classes)
        self.config = config
        self.trunk = make_trunk(config)
        self.rpn, self.roi_head = make_stages(config, self.trunk, num_classes)
        freeze_stages(self.trunk.backbone, config.freeze)

    @property
    def tower(self) -> nn.Module:
        """See `Detector.tower`."""
        return self.trunk.backbone

    def see(self, batch: ObjectBatch) -> Seen:
        """The maps of a batch."""
        images, trunk = self.pixels(batch), self.trunk
        top = None
        if self.config.roi.head == "tower":
            top = functools.partial(rest_of, trunk.backbone, trunk.layers[0])
        return Seen(trunk(images), (images.shape[-2], images.shape[-1]), batch.sizes, top)

    def loss(self, batch: ObjectBatch) -> dict[str, Tensor]:
        """Return the losses of the objectness, the proposals, the classes and the boxes."""
        targets = [targets_of(batch, number, self.options) for number in range(len(batch))]
        return two_stage_loss(self.rpn, self.roi_head, self.see(batch), targets)

    def predict(self, batch: ObjectBatch) -> list[Detections]:
        """See `Detector.predict`."""
        found = two_stage_candidates(self.rpn, self.roi_head, self.see(batch), self.options)
        return [part.detections(size, self.options) for part, size in zip(found, batch.sizes, strict=True)]


def targets_of(batch: ObjectBatch, number: int, options: DetectorOptions) -> Targets:
    """What a picture of a batch teaches; ignored objects are SNIP's invalid ones under that policy, else crowds."""
    boxes, labels = batch.trained(number)
    ignored = batch.boxes[number][batch.ignore[number]]
    snip = options.scale_policy == "snip"
    none = ignored[:0]
    scale = float(batch.scales[number])
    return Targets(boxes, labels, none if snip else ignored, ignored if snip else none, scale=scale)
