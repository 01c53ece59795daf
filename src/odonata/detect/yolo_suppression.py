"""Suppression by IoU less a power of the distance between centres, as AlexeyAB's darknet has it.

Boxes around different centres may be different objects in spite of their overlap; their distance, as a share of the
diagonal of what encloses both, is taken off. With power 1 it is the DIoU of Zheng et al.

Sources: Zheng et al. 2020 (1911.08287), sec. 3.4; AlexeyAB/darknet `src/box.c` (`diounms_sort`: `greedynms` has the
power 0.6 whatever the cfg says, `diounms` the one of `beta_nms`).
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from odonata.ops.boxes import paired_iou


def distance_nms(
    boxes: Float[Tensor, "candidates 4"],
    scores: Float[Tensor, " candidates"],
    labels: Int64[Tensor, " candidates"],
    threshold: float,
    power: float,
) -> Int64[Tensor, " kept"]:
    """Indices of the candidates that survive suppression within each class, the surest first.

    Args:
        boxes: xyxy.
        scores: what is sure goes first; ties in the order given.
        labels: boxes of different classes do not suppress each other.
        threshold: IoU less the distance above which the less sure of two boxes is dropped.
        power: of the squared distance of the centres over the squared diagonal of the enclosing box.
    """
    order = scores.argsort(descending=True, stable=True)
    alive = torch.ones(len(order), dtype=torch.bool, device=order.device)
    kept: list[int] = []
    sorted_boxes, sorted_labels = boxes[order], labels[order]
    for place, candidate in enumerate(order.tolist()):
        if not alive[place]:
            continue
        kept.append(candidate)
        rest = slice(place + 1, None)
        near = _overlap(sorted_boxes[place], sorted_boxes[rest], power) > threshold
        alive[rest] &= ~(near & (sorted_labels[rest] == sorted_labels[place]))
    return torch.tensor(kept, dtype=torch.int64, device=boxes.device)


def _overlap(box: Float[Tensor, "4"], others: Float[Tensor, "others 4"], power: float) -> Float[Tensor, " others"]:
    low, high = torch.minimum(box[:2], others[:, :2]), torch.maximum(box[2:], others[:, 2:])
    diagonal = (high - low).square().sum(1)
    between = ((box[:2] + box[2:] - others[:, :2] - others[:, 2:]) / 2).square().sum(1)
    share = torch.where(diagonal > 0, between / diagonal.clamp(min=1e-12), 0.0)
    return paired_iou(box.expand_as(others), others) - share**power
