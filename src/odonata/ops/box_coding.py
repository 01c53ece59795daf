"""Boxes as what networks predict: offsets from anchors, or distances from points.

Notable: everything broadcasts over leading axes, so that class-specific offsets [proposals, classes, 4] are decoded
with anchors [proposals, 1, 4]. Anchors and boxes are xyxy in one unit, whichever. The decoded boxes may reach out of
the picture: `clip_boxes` is a step of its own. Predictions in half precision are decoded in that of the anchors.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

Weights = tuple[float, float, float, float]

RPN_WEIGHTS: Weights = (1.0, 1.0, 1.0, 1.0)
"""Of the region proposals of Faster R-CNN, and of RetinaNet."""
BOX_HEAD_WEIGHTS: Weights = (10.0, 10.0, 5.0, 5.0)
"""Of Faster R-CNN's second stage; the same as SSD's variances 0.1, 0.1, 0.2, 0.2, which divide instead."""

LARGEST_LOG_SCALE = math.log(1000 / 16)
"""Sizes grow by no more than this exponent when decoded: an anchor of 16 pixels becomes at most 1000 wide."""

SMALLEST_SIDE = 1e-6
"""Sides below this count as this when encoded; a box without area would otherwise be at -inf."""


def encode_deltas(
    boxes: Float[Tensor, "*#batch 4"], anchors: Float[Tensor, "*#batch 4"], weights: Weights = RPN_WEIGHTS
) -> Float[Tensor, "*batch 4"]:
    """Returns what a network must predict at anchors for these boxes: (dx, dy, dw, dh).

    Offsets of centres in units of the anchor's size, and logarithms of the ratios of sizes, each times its weight.

    Args:
        boxes: the objects.
        anchors: one for each box.
        weights: of dx, dy, dw and dh.

    Source: Girshick et al. 2014, arXiv:1311.2524, appendix C; Ren et al. 2015, arXiv:1506.01497, eq. 2.
    """
    size, anchor_size = _sizes(boxes).clamp(min=SMALLEST_SIDE), _sizes(anchors).clamp(min=SMALLEST_SIDE)
    shift = (_centres(boxes) - _centres(anchors)) / anchor_size
    growth = (size / anchor_size).log()
    return torch.cat([shift, growth], -1) * shift.new_tensor(weights)


def decode_deltas(
    deltas: Float[Tensor, "*#batch 4"],
    anchors: Float[Tensor, "*#batch 4"],
    weights: Weights = RPN_WEIGHTS,
    largest_log_scale: float = LARGEST_LOG_SCALE,
) -> Float[Tensor, "*batch 4"]:
    """Returns the boxes that offsets mean at these anchors; the inverse of `encode_deltas`.

    Args:
        deltas: (dx, dy, dw, dh), as predicted.
        anchors: broadcast with them.
        weights: those that they were encoded with.
        largest_log_scale: limit of dw and dh after their weights, lest a wild prediction overflow.

    Source: as `encode_deltas`; the limit is Detectron's `BBOX_XFORM_CLIP`.
    """
    deltas = deltas.to(torch.promote_types(deltas.dtype, anchors.dtype)) / deltas.new_tensor(weights)
    size = _sizes(anchors)
    centre = deltas[..., :2] * size + _centres(anchors)
    half = 0.5 * deltas[..., 2:].clamp(max=largest_log_scale).exp() * size
    return torch.cat([centre - half, centre + half], -1)


def encode_distances(
    boxes: Float[Tensor, "*#batch 4"], points: Float[Tensor, "*#batch 2"]
) -> Float[Tensor, "*batch 4"]:
    """Returns the distances from points to the left, top, right and bottom sides of boxes.

    All four are positive where the point is inside; their smallest tells how far. A network with targets in units of
    the stride divides them by it.

    Args:
        boxes: one for each point, or broadcast: boxes [1, objects, 4] and points [points, 1, 2] give each with each.
        points: x and y.

    Source: Tian et al. 2019, arXiv:1904.01355, eq. 1.
    """
    return torch.cat([points - boxes[..., :2], boxes[..., 2:] - points], -1)


def decode_distances(
    distances: Float[Tensor, "*#batch 4"], points: Float[Tensor, "*#batch 2"]
) -> Float[Tensor, "*batch 4"]:
    """Returns the boxes that lie at these distances (left, top, right, bottom) around points."""
    return torch.cat([points - distances[..., :2], points + distances[..., 2:]], -1)


def _sizes(boxes: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 2"]:
    return boxes[..., 2:] - boxes[..., :2]


def _centres(boxes: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 2"]:
    return boxes[..., :2] + 0.5 * _sizes(boxes)
