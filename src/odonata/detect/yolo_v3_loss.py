"""The loss of YOLO's third version: three scales, and every decision a logistic one.

An object goes to the one anchor, of all scales', whose shape is most like its own, and is learned at that scale only.
Its prediction learns x and y by cross-entropy (the gradient is t − σ without the sigmoid's slope), width and height by
squares, both weighted by 2 − w·h, objectness 1, and its class. All other predictions learn objectness 0, but those that
overlap an object by more than `ignore_thresh`. A second object of the same cell and anchor takes the box over and adds
its class to the first one's.

Sources: Redmon and Farhadi 2018 (1804.02767), sec. 2; pjreddie/darknet `src/yolo_layer.c` (`forward_yolo_layer`,
`delta_yolo_box`, `delta_yolo_class`).

Differences: there is no limit of 90 objects a picture. `truth_thresh` is 1 in everything published, with which it does
nothing, and is not read. What AlexeyAB's program added to the training of this head (`iou_loss`, `iou_thresh`,
normalisers, `objectness_smooth`, focal loss) is not here; weights that were trained so are read, and go on learning
with this loss.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from odonata.detect.dense import rows
from odonata.detect.yolo_heads import Frame, YoloHead, yolo_boxes
from odonata.detect.yolo_targets import Objects, cells_of, last_of, no_negatives, sums
from odonata.ops.boxes import paired_iou, shape_iou


def yolo_v3_loss(
    raw: Float[Tensor, "batch maps height width"], head: YoloHead, objects: Sequence[Objects], frame: Frame
) -> dict[str, Tensor]:
    """Returns the parts `box`, `object` and `class` of one scale, summed over pictures.

    The gradient of their sum is −delta. Also `iou`, the summed overlap of the predictions of objects, and `objects`,
    how many are learned at this scale.

    Args:
        raw: what the network gives at this scale, float32 or float64.
        head: its settings.
        objects: of each picture.
        frame: height and width of the pictures in pixels.
    """
    fields, size = rows(raw, 5 + head.classes), (raw.shape[-2], raw.shape[-1])
    with torch.no_grad():
        found = yolo_boxes(fields, head, size, frame)
    return sums([_picture(fields[i], found[i], head, one, size, frame) for i, one in enumerate(objects)])


def _picture(
    fields: Float[Tensor, "cells fields"],
    found: Float[Tensor, "cells 4"],
    head: YoloHead,
    objects: Objects,
    size: tuple[int, int],
    frame: Frame,
) -> dict[str, Tensor]:
    negative = ~no_negatives(found, objects, head.ignore_thresh)
    shares = objects.shares(frame, fields)
    sides = shares[:, 2:] * shares.new_tensor([frame[1], frame[0]])
    best = shape_iou(sides, sides.new_tensor(head.anchors)).argmax(1)
    matches = best[:, None] == torch.tensor(head.mask, device=best.device)
    here = matches.any(1)
    shares, sides, best, labels = shares[here], sides[here], best[here], objects.labels[here]
    cells, inside = cells_of(shares, *size)
    slots = cells * len(head.mask) + matches[here].to(torch.uint8).argmax(1)
    last = last_of(slots, len(fields))
    at = slots[last]

    anchors = fields.new_tensor(head.anchors)[best]
    weight = (2 - shares[:, 2] * shares[:, 3])[last, None]
    goal = (sides / anchors).log()[last]
    centre = _stretched_entropy(fields[at, :2], inside[last], head.scale_x_y)
    confidence_weight = negative.to(fields.dtype)
    confidence = torch.zeros_like(confidence_weight)
    confidence_weight[at], confidence[at] = 1.0, 1.0
    objectness = F.binary_cross_entropy_with_logits(fields[:, 4], confidence, reduction="none")
    classes = torch.zeros_like(fields[:, 5:])
    classes[slots, labels] = 1.0
    iou = paired_iou(found[slots], objects.boxes[here].to(found.dtype))
    return {
        "box": (weight * (centre + (fields[at, 2:4] - goal).square() / 2)).sum(),
        "object": (confidence_weight * objectness).sum(),
        "class": F.binary_cross_entropy_with_logits(fields[at, 5:], classes[at], reduction="sum"),
        "iou": iou.sum(),
        "objects": iou.new_tensor(float(len(iou))),
    }


def _stretched_entropy(
    logits: Float[Tensor, "objects 2"], goal: Float[Tensor, "objects 2"], scale: float
) -> Float[Tensor, "objects 2"]:
    """What has the gradient s·σ − (s − 1)/2 − t; the cross-entropy for s = 1."""
    return scale * F.softplus(logits) - (goal + (scale - 1) / 2) * logits
