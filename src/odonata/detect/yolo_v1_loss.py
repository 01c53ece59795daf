"""The loss of YOLO's first version: squared errors, and one responsible box for each object.

A cell that holds an object's centre predicts its class. Of its boxes the one that overlaps the object most is
responsible: it learns the place and size, and its confidence learns the overlap. All other confidences learn 0. Where
no box overlaps the object, the one that is nearest by the root of squared differences is responsible.

Sources: Redmon et al. 2015 (1506.02640), eq. 3; pjreddie/darknet `src/detection_layer.c` (`forward_detection_layer`),
`src/data.c` (`fill_truth_region`).

Differences: of several objects in a cell the first counts; the original shuffles them before. Objects smaller than
0.005 of a side, which it drops, are kept. Its options `forced` and `random`, which no published cfg uses, are not read.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from odonata.detect.yolo_heads import DetectionHead, Frame, decode_detection, detection_parts
from odonata.detect.yolo_targets import Objects, cells_of, first_of, no_negatives, sums
from odonata.ops.boxes import cxcywh_to_xyxy, paired_iou


def yolo_v1_loss(
    raw: Float[Tensor, "batch outputs"], head: DetectionHead, objects: Sequence[Objects], frame: Frame
) -> dict[str, Tensor]:
    """Returns the parts `box`, `object` and `class`, summed over pictures; the gradient of their sum is −delta.

    Also `iou`, the summed overlap of responsible boxes, and `objects`, how many there are.

    Args:
        raw: what the network gives, float32 or float64.
        head: its settings.
        objects: of each picture.
        frame: height and width of the pictures in pixels.
    """
    found, _ = decode_detection(raw.detach(), head, frame)
    parts = detection_parts(raw, head)
    return sums(
        [_picture(parts[0][i], parts[1][i], parts[2][i], found[i], head, one, frame) for i, one in enumerate(objects)]
    )


def _picture(
    classes: Float[Tensor, "cells classes"],
    confidences: Float[Tensor, "cells boxes"],
    boxes: Float[Tensor, "cells boxes 4"],
    found: Float[Tensor, "predictions 4"],
    head: DetectionHead,
    objects: Objects,
    frame: Frame,
) -> dict[str, Tensor]:
    shares = objects.shares(frame, boxes)
    cells, inside = cells_of(shares, head.side, head.side)
    chosen = first_of(cells, head.side**2)
    cells, inside, sides, labels = cells[chosen], inside[chosen], shares[chosen, 2:], objects.labels[chosen]
    best, iou = responsible(boxes.detach()[cells], torch.cat([inside, sides], 1), head)
    lonely = Objects(objects.boxes[:0], objects.labels[:0], objects.ignored)
    weight = head.noobject_scale * (~no_negatives(found, lonely, 1.0)).to(boxes.dtype).reshape(confidences.shape)
    goal = torch.zeros_like(confidences)
    weight[cells, best] = head.object_scale
    goal[cells, best] = iou if head.rescore else 1.0
    wanted = torch.cat([inside, sides.sqrt() if head.sqrt else sides], 1)
    return {
        "box": head.coord_scale * _squares(boxes[cells, best], wanted).sum(),
        "object": (weight * _squares(confidences, goal)).sum(),
        "class": head.class_scale * _class_loss(classes[cells], labels, head.softmax),
        "iou": iou.sum(),
        "objects": iou.new_tensor(float(len(iou))),
    }


def responsible(
    boxes: Float[Tensor, "objects boxes 4"], wanted: Float[Tensor, "objects 4"], head: DetectionHead
) -> tuple[Int64[Tensor, " objects"], Float[Tensor, " objects"]]:
    """The responsible box of each object's cell, and its IoU with the object.

    Args:
        boxes: raw numbers of the boxes of the cell.
        wanted: centre in the cell from 0 to 1, and width and height as shares of the picture.
        head: settings.
    """
    sides = boxes[..., 2:].square() if head.sqrt else boxes[..., 2:]
    guess = torch.cat([boxes[..., :2] / head.side, sides], -1)
    goal = torch.cat([wanted[:, :2] / head.side, wanted[:, 2:]], -1)[:, None]
    overlaps = paired_iou(cxcywh_to_xyxy(guess), cxcywh_to_xyxy(goal))
    distance = (guess - goal).square().sum(-1).sqrt()
    best = torch.where(overlaps.amax(1) > 0, overlaps.argmax(1), distance.argmin(1))
    return best, overlaps.gather(1, best[:, None])[:, 0]


def _squares(guess: Tensor, goal: Tensor) -> Tensor:
    """Half the squared error: its gradient is the difference."""
    return (guess - goal).square() / 2


def _class_loss(classes: Float[Tensor, "objects classes"], labels: Int64[Tensor, " objects"], softmax: bool) -> Tensor:
    if softmax:
        return F.cross_entropy(classes, labels, reduction="sum")
    return _squares(classes, F.one_hot(labels, classes.shape[1]).to(classes.dtype)).sum()
