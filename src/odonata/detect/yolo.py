"""YOLO, first to third version: one network looks at the picture once and says boxes, confidences and classes per cell.

The network is darknet's, made from a cfg: one of the designs by name, at any width, depth and size, or any cfg at
all. Its heads say which version it is, how their maps are read, and what is learned. Original `.weights` detect as they
are, learn further, and go back out.

- v1 (2015): a grid of cells, each with a class and a few free boxes; a connected layer sees the whole picture at once.
- v2 (2016): no connected layer; boxes are changes of anchors, which are found by k-means in the training set.
- v3 (2018): three scales, independent classes, logistic objectness. v3-spp: maxima in large windows before the first
  head.

References: Redmon, Divvala, Girshick and Farhadi, You Only Look Once, arXiv:1506.02640; Redmon and Farhadi, YOLO9000,
arXiv:1612.08242; Redmon and Farhadi, YOLOv3, arXiv:1804.02767; pjreddie/darknet and AlexeyAB/darknet.

Differences: the losses are divided by the number of pictures, as darknet divides its rate. Boxes are cut at the
picture's edge after suppression. Of a letterbox with an odd margin the offset of the embedded picture is used; the
original's decoding takes half a pixel more. What a crowd, or an object outside the range of a scale policy, covers
teaches nothing; the original knows neither. The defaults are small networks for laptops, trained from random weights by
AdamW; objectness begins at 0.01, where darknet's begins at 0.5 and its loss at hundreds a picture.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn

from odonata.backbones.darknet_cfgs import DESIGNS, yolo_cfg
from odonata.backbones.darknet_layers import Convolution
from odonata.backbones.darknet_network import DarknetNetwork
from odonata.data.detections import Detections
from odonata.data.framing import Framing
from odonata.data.object_batches import ObjectBatch
from odonata.data.objects import ObjectSource
from odonata.detect.anchors import framed_sizes, kmeans_anchors
from odonata.detect.detector import Detector, DetectorOptions, best_of_level, clip_to, found, keep_best
from odonata.detect.yolo_heads import DetectionHead, Frame, HeadSettings, RegionHead, decode, read_head
from odonata.detect.yolo_suppression import distance_nms
from odonata.detect.yolo_targets import Objects, sums
from odonata.detect.yolo_v1_loss import yolo_v1_loss
from odonata.detect.yolo_v2_loss import yolo_v2_loss
from odonata.detect.yolo_v3_loss import yolo_v3_loss
from odonata.errors import RecipeError
from odonata.nn.ranks import mean_over_ranks
from odonata.weights.darknet_cfg import DarknetCfg, parse_cfg, read_cfg
from odonata.weights.darknet_edit import heads_of, with_anchors, with_classes, with_size
from odonata.weights.yolo_darknet import framing_of


def frame_of(size: int, letterbox: bool = True) -> Framing:
    """Darknet's framing: values from 0 to 1, sampled from corner to corner; grey margins, or squashed to a square."""
    resize = "letterbox" if letterbox else "squash"
    zeros, ones = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    return Framing(resize, size, max_size=0, divisor=32, corners=True, fill=127.5, mean=zeros, std=ones)


@dataclass(frozen=True)
class YOLOConfig(DetectorOptions):
    """What all versions share."""

    backbone: str = ""
    """Not used: the network is named by --design or --cfg."""
    freeze: int = 0
    """Layers of the cfg, from the first on, that do not learn."""
    design: str = "yolov3-small"
    """Network by name; its anchors and size are those of --anchors and --framing.size."""
    cfg: str = ""
    """A darknet cfg instead: a file, or its text. It is given the number of classes and the anchors of the data."""
    width_multiple: float = 0.0
    """Factor on the design's filters (0 = the design's own)."""
    depth_multiple: float = 0.0
    """Factor on the design's repetitions (0 = the design's own)."""
    anchors: str = ""
    """`kmeans` of the training set's objects; `published`; or widths and heights in turn with commas: in cells in the
    second version, in pixels in the third. Empty: k-means for a design, its own for a cfg."""
    prior: float = 0.01
    """Objectness that every prediction begins with in the second and third version (0 = darknet's 0.5)."""
    prior_pictures: int = 12_800
    """Second version: pictures during which predictions also learn to be their anchors."""
    version: tuple[int, int, int] = (0, 2, 0)
    """Of the format of `.weights` that the network came from and is written in."""
    framing: Framing = field(default_factory=lambda: frame_of(192))
    """What pictures are scaled to."""
    nms_threshold: float = 0.45
    """Overlap (IoU) above which the less sure of two boxes of a class is dropped."""
    nms_power: float = 0.0
    """Power of the distance between centres that is taken off the IoU in suppression (0 = none; AlexeyAB's `greedynms`
    has 0.6)."""
    pre_nms: int = 3000
    """Candidates kept before that."""

    kind: ClassVar[str] = "yolo"
    """Heads that the network must have."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.prior < 1:
            raise RecipeError(f"--prior is {self.prior}; it lies in [0, 1)")
        if self.backbone:
            raise RecipeError(f"--backbone {self.backbone}: YOLO's network is named by --design or --cfg")
        if self.anchors not in ("", "kmeans", "published"):
            anchor_numbers(self.anchors)

    def fitted(self, train: ObjectSource) -> DetectorOptions:
        """These options with the network's whole cfg: the set's classes, and anchors from its objects.

        Raises:
            OdonataError: the cfg cannot be read or changed so, or the objects do not suffice for anchors.
        """
        config = _with_cfg_read(self)
        classes = len(train.categories)
        cfg = network_cfg(config, classes)
        wanted = config.anchors == "kmeans" or (config.anchors == "" and not config.cfg)
        if wanted and self.kind != "detection":
            config = replace(config, anchors=_clustered(config, cfg, train))
            cfg = network_cfg(config, classes)
        elif config.anchors == "kmeans":
            raise RecipeError("--anchors kmeans: YOLO's first version has no anchors")
        return replace(config, cfg=cfg.text, anchors="" if config.anchors == "published" else config.anchors)


@dataclass(frozen=True)
class YOLOv1Config(YOLOConfig):
    """YOLO's first version; see the presets for published sizes."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "v1": {"design": "yolov1", "framing": frame_of(448, letterbox=False)},
        "tiny": {"design": "yolov1-tiny", "framing": frame_of(448, letterbox=False)},
    }
    kind: ClassVar[str] = "detection"

    design: str = "yolov1-small"
    """Network by name; its size is that of --framing.size, a multiple of 64."""
    framing: Framing = field(default_factory=lambda: frame_of(256, letterbox=False))
    """What pictures are scaled to."""


@dataclass(frozen=True)
class YOLOv2Config(YOLOConfig):
    """YOLO's second version; see the presets for published sizes."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "v2": {"design": "yolov2", "framing": frame_of(416)},
        "v2-608": {"design": "yolov2", "framing": frame_of(608)},
        "tiny": {"design": "yolov2-tiny", "framing": frame_of(416)},
    }
    kind: ClassVar[str] = "region"

    design: str = "yolov2-small"
    """Network by name; its anchors and size are those of --anchors and --framing.size."""


@dataclass(frozen=True)
class YOLOv3Config(YOLOConfig):
    """YOLO's third version; see the presets for published sizes."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "v3": {"design": "yolov3", "framing": frame_of(416)},
        "v3-608": {"design": "yolov3", "framing": frame_of(608)},
        "tiny": {"design": "yolov3-tiny", "framing": frame_of(416)},
    }


@dataclass(frozen=True)
class YOLOv3SPPConfig(YOLOConfig):
    """YOLO's third version with spatial pyramid pooling; see the presets for published sizes."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "v3-spp": {"design": "yolov3-spp", "framing": frame_of(608)},
    }

    design: str = "yolov3-spp-small"
    """Network by name; its anchors and size are those of --anchors and --framing.size."""


class YOLO(Detector):
    """A network of darknet's and what its heads say.

    Args:
        config: its options.
        num_classes: categories in the table.

    Raises:
        WeightsError: the cfg is wrong.
        RecipeError: the network's heads are another version's.
    """

    seen: Tensor

    def __init__(self, config: YOLOConfig, num_classes: int) -> None:
        super().__init__(config, num_classes)
        config = _with_cfg_read(config)
        self.config = config
        self.network = DarknetNetwork(network_cfg(config, num_classes))
        self.heads: tuple[HeadSettings, ...] = tuple(read_head(head.section) for head in self.network.heads)
        kinds = sorted({head.kind for head in self.network.heads})
        if kinds != [config.kind]:
            raise RecipeError(f"the network has {kinds or 'no'} heads; this version of YOLO wants [{config.kind}]")
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        if config.prior:
            self._begin_at(config.prior)
        if config.freeze > len(self.network.layers):
            raise RecipeError(f"--freeze is {config.freeze}, and the network has {len(self.network.layers)} layers")
        for layer in self.network.layers[: config.freeze]:
            layer.requires_grad_(False)

    @property
    def tower(self) -> nn.Module:
        """See `Detector.tower`; the heads are layers of the same network."""
        return self.network

    def loss(self, batch: ObjectBatch) -> dict[str, Tensor]:
        """Return the losses of boxes, objectness and classes, each per picture, and the mean overlap of objects.

        In training the pictures are counted in `seen`, those of all ranks.
        """
        images = self.pixels(batch)
        frame = (images.shape[-2], images.shape[-1])
        if self.training:
            ranks = dist.get_world_size() if dist.is_initialized() else 1
            self.seen += len(batch) * ranks
        objects = [
            Objects(*batch.trained(number), batch.boxes[number][batch.ignore[number]]) for number in range(len(batch))
        ]
        heads = zip(self.network(images), self.heads, strict=True)
        parts = sums([self._head_loss(raw.float(), head, objects, frame) for raw, head in heads])
        pictures = mean_over_ranks(len(batch), images)
        losses = {name: parts[name] / pictures for name in ("box", "object", "class")}
        iou = parts["iou"] / parts["objects"].clamp(min=1)
        return {"loss": losses["box"] + losses["object"] + losses["class"], **losses, "iou": iou.detach()}

    def _head_loss(
        self, raw: Tensor, head: HeadSettings, objects: Sequence[Objects], frame: Frame
    ) -> dict[str, Tensor]:
        if isinstance(head, DetectionHead):
            return yolo_v1_loss(raw, head, objects, frame)
        if isinstance(head, RegionHead):
            return yolo_v2_loss(raw, head, objects, frame, prior=int(self.seen) < self.config.prior_pictures)
        return yolo_v3_loss(raw, head, objects, frame)

    def predict(self, batch: ObjectBatch) -> list[Detections]:
        """See `Detector.predict`. Suppression sees whole boxes, as in the original."""
        boxes, scores = self.dense(self.pixels(batch))
        answers: list[Detections] = []
        for number in range(len(batch)):
            threshold, most = self.options.score_threshold, self.options.pre_nms
            cells, labels, best = best_of_level(scores[number].float(), threshold, most)
            candidates = boxes[number][cells].float()
            chosen = self._suppress(candidates, best, labels)
            size = batch.sizes[number]
            # The first version's scores are products of free numbers.
            answers.append(found(clip_to(candidates[chosen], size), best[chosen].clamp(max=1), labels[chosen], size))
        return answers

    @torch.no_grad()
    def _begin_at(self, prior: float) -> None:
        """Give the layers before the heads biases by which objectness begins at a probability."""
        for place, head in zip(self.network.heads, self.heads, strict=True):
            before = self.network.layers[place.section.index - 1]
            if isinstance(head, DetectionHead) or not isinstance(before, Convolution) or before.conv.bias is None:
                continue
            before.conv.bias.view(-1, 5 + head.classes)[:, 4] = -math.log((1 - prior) / prior)

    def _suppress(self, boxes: Tensor, scores: Tensor, labels: Tensor) -> Tensor:
        if not self.config.nms_power:
            return keep_best(boxes, scores, labels, self.options)
        kept = distance_nms(boxes, scores, labels, self.options.nms_threshold, self.config.nms_power)
        return kept[: self.options.max_detections]

    def dense(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> tuple[Float[Tensor, "batch cells 4"], Float[Tensor, "batch cells classes"]]:
        """All boxes in pixels of the frame and all scores of prepared pictures, before suppression; for export."""
        frame = (images.shape[-2], images.shape[-1])
        parts = [decode(raw, head, frame) for raw, head in zip(self.network(images), self.heads, strict=True)]
        return torch.cat([boxes for boxes, _ in parts], 1), torch.cat([scores for _, scores in parts], 1)


def network_cfg(config: YOLOConfig, classes: int) -> DarknetCfg:
    """Returns the cfg of a configuration's network for so many classes.

    Raises:
        OdonataError: there is no such design, or the cfg cannot be changed so.
    """
    numbers = anchor_numbers(config.anchors) if config.anchors not in ("", "kmeans", "published") else None
    size = config.framing.size
    if not config.cfg:
        if config.kind == "detection" and config.anchors:
            raise RecipeError(f"--anchors {config.anchors}: YOLO's first version has no anchors")
        width, depth = config.width_multiple or None, config.depth_multiple or None
        text = yolo_cfg(config.design, classes, numbers, size, width_multiple=width, depth_multiple=depth)
        return parse_cfg(text, config.design)
    cfg = parse_cfg(config.cfg)
    if any(head.integer("classes", 0) != classes for head in heads_of(cfg)):
        cfg = with_classes(cfg, classes)
    if numbers is not None and any(head.numbers("anchors") != tuple(numbers) for head in heads_of(cfg)):
        cfg = with_anchors(cfg, numbers)
    elif config.anchors == "published":
        raise RecipeError("--anchors published: a --cfg has its own; leave --anchors out")
    # A layer that is bound to a size keeps it; the network itself says so when it is given another.
    bound = any(section.kind in ("connected", "local") for section in cfg.layers)
    sides = (cfg.net.integer("height", 0), cfg.net.integer("width", 0))
    return cfg if bound or sides == (size, size) else with_size(cfg, size)


def anchor_numbers(text: str) -> list[float]:
    """Returns widths and heights in turn.

    Raises:
        RecipeError: they are no numbers above 0, or there is an odd number of them.
    """
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or len(numbers) % 2 or min(numbers) <= 0:
        raise RecipeError(f"--anchors {text!r} is none of kmeans and published, and no widths and heights with commas")
    return numbers


def _with_cfg_read(config: YOLOConfig) -> YOLOConfig:
    """The options with the text of a cfg that was named by its file, and the framing that it asks for."""
    if not config.cfg or "\n" in config.cfg:
        return config
    cfg = read_cfg(Path(config.cfg))
    framing = config.framing
    if framing == type(config)().framing:
        plain = framing_of(cfg)
        framing = frame_of(plain["size"], plain["resize"] == "letterbox")
    return replace(config, cfg=cfg.text, framing=framing)


def _clustered(config: YOLOConfig, cfg: DarknetCfg, train: ObjectSource) -> str:
    """Anchors of the set's objects, as many as the network has, in its unit."""
    head = heads_of(cfg)[-1]
    count = head.integer("num", 1)
    if head.kind == "region":
        unit = DESIGNS[config.design].coarsest if not config.cfg else DarknetNetwork(cfg).heads[-1].stride
    else:
        unit = 1
    anchors = kmeans_anchors(framed_sizes(train, config.framing), count) / unit
    return ",".join(f"{number:.4g}" for number in anchors.flatten().tolist())
