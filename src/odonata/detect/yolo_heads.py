"""What the three heads of YOLO say, and how their maps become boxes.

Notable:
- `[detection]` (first version) is one vector a picture: the classes of all cells, then the confidences of all boxes,
  then their four numbers; not cell by cell. Numbers are used as they are, and width and height are squared where
  `sqrt=1`.
- `[region]` (second): anchors in cells; x, y and the objectness pass through a sigmoid, the classes through a softmax.
- `[yolo]` (third): anchors in pixels of the picture; classes are independent. `scale_x_y` s stretches the sigmoid of x
  and y to s·σ − (s − 1)/2, so that centres on a cell's edge can be reached.
- The score of a class is objectness times probability.

Sources: Redmon et al. 2015 (1506.02640), sec. 2; Redmon and Farhadi 2016 (1612.08242), sec. 2; Redmon and Farhadi 2018
(1804.02767), sec. 2; pjreddie/darknet `src/{detection,region,yolo}_layer.c` (`get_…_detections`, `get_…_box`) and
`src/parser.c` (defaults); AlexeyAB/darknet `src/yolo_layer.c` (`scale_x_y`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from odonata.detect.dense import rows
from odonata.ops.boxes import cxcywh_to_xyxy
from odonata.ops.grids import points
from odonata.weights.darknet_cfg import Section

Frame = tuple[int, int]
"""Height and width of the pictures that the network is given, in pixels."""
_OTHER_NETWORKS: Mapping[str, Mapping[str, int]] = {
    "detection": {"coords": 4},
    "region": {"coords": 4, "background": 0},
    "yolo": {"new_coords": 0},
}
"""Options of a head → the only values with which it is what is known here."""


@dataclass(frozen=True)
class DetectionHead:
    """YOLO's first version."""

    side: int
    """Cells along each side."""
    boxes: int
    """Of each cell."""
    classes: int
    softmax: bool = False
    """Whether classes compete; else they are plain numbers that are fitted to 0 and 1."""
    sqrt: bool = True
    """Whether roots of width and height are predicted."""
    rescore: bool = True
    """Whether the confidence of a responsible box is to be its IoU with the object, and not 1."""
    object_scale: float = 1.0
    noobject_scale: float = 0.5
    class_scale: float = 1.0
    coord_scale: float = 5.0
    """Weights of the four parts of the loss."""


@dataclass(frozen=True)
class RegionHead:
    """YOLO's second version."""

    anchors: tuple[tuple[float, float], ...]
    """Width and height in cells."""
    classes: int
    softmax: bool = True
    """Whether classes compete."""
    rescore: bool = True
    """Whether the objectness is to be the IoU with the object, and not 1."""
    bias_match: bool = True
    """Whether an object goes to the anchor of its shape, and not to the prediction of its shape."""
    thresh: float = 0.6
    """IoU with an object above which a prediction is no negative."""
    object_scale: float = 5.0
    noobject_scale: float = 1.0
    class_scale: float = 1.0
    coord_scale: float = 1.0
    """Weights of the four parts of the loss."""


@dataclass(frozen=True)
class YoloHead:
    """YOLO's third version, one of its scales."""

    anchors: tuple[tuple[float, float], ...]
    """Width and height in pixels, of all scales."""
    mask: tuple[int, ...]
    """Which of them are this scale's."""
    classes: int
    ignore_thresh: float = 0.7
    """IoU with an object above which a prediction is no negative."""
    scale_x_y: float = 1.0
    """Stretch of the sigmoid of x and y."""

    @property
    def own(self) -> tuple[tuple[float, float], ...]:
        """This scale's anchors."""
        return tuple(self.anchors[i] for i in self.mask)


HeadSettings = DetectionHead | RegionHead | YoloHead
"""What one head's section says."""


def read_head(section: Section) -> HeadSettings:
    """Returns what a head's section says, with darknet's defaults.

    Raises:
        WeightsError: an option makes another head than is known here, or anchors are missing.
    """
    for name, wanted in _OTHER_NETWORKS[section.kind].items():
        default = 1 if (section.kind, name) == ("detection", "coords") else wanted
        if section.integer(name, default) != wanted:
            raise section.wrong(
                f"{name}={section.text(name, str(default))} makes another head; known is {wanted}", name
            )
    if "tree" in section.options or "map" in section.options:
        raise section.wrong("a tree or map of classes (YOLO9000) is not known here")
    classes = section.integer("classes", 1 if section.kind == "detection" else 20)
    if section.kind == "yolo":
        anchors = _anchors(section)
        mask = section.integers("mask") or tuple(range(len(anchors)))
        if not all(0 <= i < len(anchors) for i in mask):
            raise section.wrong(f"mask={section.text('mask', '')}: there are {len(anchors)} anchors", "mask")
        return YoloHead(anchors, mask, classes, section.number("ignore_thresh", 0.5), section.number("scale_x_y", 1.0))
    scales = {
        name: section.number(name, 1.0) for name in ("object_scale", "noobject_scale", "class_scale", "coord_scale")
    }
    softmax, rescore = bool(section.integer("softmax", 0)), bool(section.integer("rescore", 0))
    if section.kind == "region":
        match, thresh = bool(section.integer("bias_match", 0)), section.number("thresh", 0.5)
        return RegionHead(_anchors(section), classes, softmax, rescore, match, thresh, **scales)
    side, boxes = section.integer("side", 7), section.integer("num", 1)
    return DetectionHead(side, boxes, classes, softmax, bool(section.integer("sqrt", 0)), rescore, **scales)


def _anchors(section: Section) -> tuple[tuple[float, float], ...]:
    numbers, count = section.numbers("anchors"), section.integer("num", 1)
    if len(numbers) < 2 * count:
        raise section.wrong(f"num={count} anchors want {2 * count} numbers; there are {len(numbers)}", "anchors")
    return tuple((numbers[2 * i], numbers[2 * i + 1]) for i in range(count))


def grid(height: int, width: int, boxes: int, like: Tensor) -> Float[Tensor, "cells 2"]:
    """Column and row of each prediction, cell by cell, box by box."""
    return points(height, width, 1, 0.0, like.device).to(like.dtype).repeat_interleave(boxes, 0)


def decode(raw: Tensor, head: HeadSettings, frame: Frame) -> tuple[Tensor, Tensor]:
    """Returns what one head found: boxes [batch, cells, 4], xyxy in pixels of the frame; scores for each class.

    Args:
        raw: what the layer before the head gives: a vector a picture (detection) or a map.
        head: its settings.
        frame: height and width of the pictures.
    """
    raw = raw.to(torch.promote_types(raw.dtype, torch.float32))
    if isinstance(head, DetectionHead):
        return decode_detection(raw, head, frame)
    if isinstance(head, RegionHead):
        return decode_region(raw, head, frame)
    return decode_yolo(raw, head, frame)


def detection_parts(
    raw: Float[Tensor, "batch outputs"], head: DetectionHead
) -> tuple[
    Float[Tensor, "batch cells classes"], Float[Tensor, "batch cells boxes"], Float[Tensor, "batch cells boxes 4"]
]:
    """Classes, confidences and boxes of the first version's vector, as they are."""
    cells = head.side**2
    sizes = [cells * head.classes, cells * head.boxes, cells * head.boxes * 4]
    classes, confidences, boxes = raw.split(sizes, 1)
    shape = (raw.shape[0], cells)
    return (
        classes.reshape(*shape, head.classes),
        confidences.reshape(*shape, head.boxes),
        boxes.reshape(*shape, head.boxes, 4),
    )


def decode_detection(
    raw: Float[Tensor, "batch outputs"], head: DetectionHead, frame: Frame
) -> tuple[Float[Tensor, "batch cells 4"], Float[Tensor, "batch cells classes"]]:
    """See `decode`."""
    classes, confidences, boxes = detection_parts(raw, head)
    if head.softmax:
        classes = classes.softmax(-1)
    centres = boxes[..., :2].flatten(1, 2) + grid(head.side, head.side, head.boxes, raw)
    sides = boxes[..., 2:].flatten(1, 2)
    sides = sides.square() if head.sqrt else sides
    scores = (confidences[..., None] * classes[:, :, None]).flatten(1, 2)
    centres = _times(centres, frame[1] / head.side, frame[0] / head.side)
    return cxcywh_to_xyxy(torch.cat([centres, _times(sides, frame[1], frame[0])], -1)), scores


def decode_region(
    raw: Float[Tensor, "batch maps height width"], head: RegionHead, frame: Frame
) -> tuple[Float[Tensor, "batch cells 4"], Float[Tensor, "batch cells classes"]]:
    """See `decode`."""
    fields = rows(raw, 5 + head.classes)
    classes = fields[..., 5:].softmax(-1) if head.softmax else fields[..., 5:].sigmoid()
    return region_boxes(fields, head, raw.shape[-2:], frame), fields[..., 4:5].sigmoid() * classes


def region_boxes(
    fields: Float[Tensor, "batch cells fields"], head: RegionHead, size: Sequence[int], frame: Frame
) -> Float[Tensor, "batch cells 4"]:
    """Boxes in pixels of the frame from raw rows of a map of (height, width)."""
    across, down = frame[1] / size[1], frame[0] / size[0]
    anchors = fields.new_tensor(head.anchors).repeat(size[0] * size[1], 1)
    centres = fields[..., :2].sigmoid() + grid(size[0], size[1], len(head.anchors), fields)
    sides = fields[..., 2:4].exp() * anchors
    return cxcywh_to_xyxy(torch.cat([_times(centres, across, down), _times(sides, across, down)], -1))


def decode_yolo(
    raw: Float[Tensor, "batch maps height width"], head: YoloHead, frame: Frame
) -> tuple[Float[Tensor, "batch cells 4"], Float[Tensor, "batch cells classes"]]:
    """See `decode`."""
    fields = rows(raw, 5 + head.classes)
    return yolo_boxes(fields, head, raw.shape[-2:], frame), fields[..., 4:5].sigmoid() * fields[..., 5:].sigmoid()


def yolo_boxes(
    fields: Float[Tensor, "batch cells fields"], head: YoloHead, size: Sequence[int], frame: Frame
) -> Float[Tensor, "batch cells 4"]:
    """Boxes in pixels of the frame from raw rows of a map of (height, width)."""
    anchors = fields.new_tensor(head.own).repeat(size[0] * size[1], 1)
    stretched = fields[..., :2].sigmoid() * head.scale_x_y - (head.scale_x_y - 1) / 2
    centres = stretched + grid(size[0], size[1], len(head.mask), fields)
    centres = _times(centres, frame[1] / size[1], frame[0] / size[0])
    return cxcywh_to_xyxy(torch.cat([centres, fields[..., 2:4].exp() * anchors], -1))


def _times(pairs: Float[Tensor, "batch cells 2"], across: float, down: float) -> Float[Tensor, "batch cells 2"]:
    """Pairs of x and y, each times its factor; without a tensor of the factors, which would fix a graph's sizes."""
    return torch.stack([pairs[..., 0] * across, pairs[..., 1] * down], -1)
