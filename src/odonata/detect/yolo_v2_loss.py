"""The loss of YOLO's second version: anchors, squared errors through sigmoids, and classes that compete.

An object goes to the anchor of its cell whose shape is most like its own. That prediction learns the box, weighted by
2 − w·h so that small objects count up to twice, the class, and its IoU as objectness. All other predictions learn
objectness 0, but those that overlap an object by more than `thresh`. While the network has seen fewer than 12,800
pictures, all predictions also learn, faintly, to be their anchors in the middle of their cells.

Sources: Redmon and Farhadi 2016 (1612.08242), sec. 2; pjreddie/darknet `src/region_layer.c` (`forward_region_layer`,
`delta_region_box`, `delta_region_class`, `backward_region_layer_gpu`).

Differences: there is no limit of 30 objects a picture. The delta of x, y and objectness is carried through the sigmoid,
as the original's GPU code does; its CPU code has no backward pass.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from odonata.detect.dense import rows
from odonata.detect.yolo_heads import Frame, RegionHead, region_boxes
from odonata.detect.yolo_targets import Objects, cells_of, last_of, no_negatives, sums
from odonata.ops.boxes import paired_iou, shape_iou

PRIOR_WEIGHT = 0.01
"""How much predictions learn to be their anchors in the beginning."""


def yolo_v2_loss(
    raw: Float[Tensor, "batch maps height width"],
    head: RegionHead,
    objects: Sequence[Objects],
    frame: Frame,
    prior: bool = False,
) -> dict[str, Tensor]:
    """Returns the parts `box`, `object` and `class`, summed over pictures; the gradient of their sum is −delta.

    Also `iou`, the summed overlap of the predictions of objects, and `objects`, how many there are.

    Args:
        raw: what the network gives, float32 or float64.
        head: its settings.
        objects: of each picture.
        frame: height and width of the pictures in pixels.
        prior: whether predictions learn to be their anchors.
    """
    fields, size = rows(raw, 5 + head.classes), (raw.shape[-2], raw.shape[-1])
    with torch.no_grad():
        found = region_boxes(fields, head, size, frame)
    return sums([_picture(fields[i], found[i], head, one, size, frame, prior) for i, one in enumerate(objects)])


def _picture(
    fields: Float[Tensor, "cells fields"],
    found: Float[Tensor, "cells 4"],
    head: RegionHead,
    objects: Objects,
    size: tuple[int, int],
    frame: Frame,
    prior: bool,
) -> dict[str, Tensor]:
    shares = objects.shares(frame, fields)
    cells, inside = cells_of(shares, *size)
    count = len(head.anchors)
    anchors = fields.new_tensor(head.anchors)
    sides = shares[:, 2:] * shares.new_tensor([size[1], size[0]])
    best = _best_shapes(sides, cells, found, head, size, frame)
    slots = cells * count + best
    iou = paired_iou(found[slots], objects.boxes.to(found.dtype))
    last = last_of(slots, len(fields))
    at = slots[last]

    weight = fields.new_full((len(fields), 1), PRIOR_WEIGHT if prior else 0.0)
    goal = fields.new_tensor([0.5, 0.5, 0.0, 0.0]).repeat(len(fields), 1)
    weight[at] = (head.coord_scale * (2 - shares[:, 2] * shares[:, 3]))[last, None]
    goal[at] = torch.cat([inside, (sides / anchors[best]).log()], 1)[last]
    guess = torch.cat([fields[:, :2].sigmoid(), fields[:, 2:4]], 1)

    confidence_weight = head.noobject_scale * (~no_negatives(found, objects, head.thresh)).to(fields.dtype)
    confidence = torch.zeros_like(confidence_weight)
    confidence_weight[at] = head.object_scale
    confidence[at] = iou[last] if head.rescore else 1.0
    return {
        "box": (weight * (guess - goal).square() / 2).sum(),
        "object": (confidence_weight * (fields[:, 4].sigmoid() - confidence).square() / 2).sum(),
        "class": head.class_scale * _class_loss(fields[:, 5:], slots, last, objects.labels, head.softmax),
        "iou": iou.sum(),
        "objects": iou.new_tensor(float(len(iou))),
    }


@torch.no_grad()
def _best_shapes(
    sides: Float[Tensor, "objects 2"],
    cells: Int64[Tensor, " objects"],
    found: Float[Tensor, "predictions 4"],
    head: RegionHead,
    size: tuple[int, int],
    frame: Frame,
) -> Int64[Tensor, " objects"]:
    """The anchor of each object: the one of its shape, or that whose prediction has its shape (`bias_match=0`)."""
    if head.bias_match:
        return shape_iou(sides, sides.new_tensor(head.anchors)).argmax(1)
    predicted = (found[:, 2:] - found[:, :2]).reshape(-1, len(head.anchors), 2)[cells]
    predicted = predicted * sides.new_tensor([size[1] / frame[1], size[0] / frame[0]])
    overlaps = [shape_iou(one[None], several)[0] for one, several in zip(sides, predicted, strict=True)]
    return torch.stack(overlaps).argmax(1) if overlaps else cells


def _class_loss(
    logits: Float[Tensor, "cells classes"],
    slots: Int64[Tensor, " objects"],
    last: Tensor,
    labels: Int64[Tensor, " objects"],
    softmax: bool,
) -> Tensor:
    """Of several objects in a slot the last one's class counts where classes compete, and all where they do not."""
    if softmax:
        return F.cross_entropy(logits[slots[last]], labels[last], reduction="sum")
    goal = torch.zeros_like(logits)
    goal[slots, labels] = 1.0
    at = slots[last]
    return F.binary_cross_entropy_with_logits(logits[at], goal[at], reduction="sum")
