"""What YOLO's three losses share: objects as darknet sees them, and which predictions are no negatives.

Darknet's layers write a `delta` for every number that they are given: what a step of gradient descent adds, but for the
rate. The losses here are functions whose gradient is −delta, so that they can be minimised by anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from odonata.detect.yolo_heads import Frame
from odonata.ops.boxes import iou_matrix, xyxy_to_cxcywh
from odonata.ops.matching import ignore_overlap

IGNORED_SHARE = 0.5
"""A prediction of which more lies on an ignored region is no negative."""


@dataclass(frozen=True)
class Objects:
    """The objects of one picture."""

    boxes: Float[Tensor, "objects 4"]
    """xyxy in pixels of the frame."""
    labels: Int64[Tensor, " objects"]
    ignored: Float[Tensor, "ignored 4"]
    """Regions that are neither to be found nor to be punished, xyxy in pixels of the frame."""

    def shares(self, frame: Frame, like: Tensor) -> Float[Tensor, "objects 4"]:
        """Centre, width and height as shares of the frame."""
        return xyxy_to_cxcywh(self.boxes.to(like.dtype)) / like.new_tensor([frame[1], frame[0]]).repeat(2)


def cells_of(
    shares: Float[Tensor, "objects 4"], height: int, width: int
) -> tuple[Int64[Tensor, " objects"], Float[Tensor, "objects 2"]]:
    """The cell of each object's centre, row by row, and where in it the centre lies (x and y from 0 to 1)."""
    place = shares[:, :2] * shares.new_tensor([width, height])
    limit = torch.tensor([width - 1, height - 1], device=shares.device)
    cell = torch.minimum(place.long().clamp(min=0), limit)
    return cell[:, 1] * width + cell[:, 0], place - cell


def last_of(slots: Int64[Tensor, " objects"], count: int) -> Bool[Tensor, " objects"]:
    """Which objects are the last in their slot: darknet writes one after another, and the last one stays."""
    order = torch.arange(len(slots), device=slots.device)
    winners = torch.full((count,), -1, device=slots.device).scatter_reduce_(0, slots, order, "amax")
    return winners[slots] == order


def first_of(slots: Int64[Tensor, " objects"], count: int) -> Bool[Tensor, " objects"]:
    """Which objects are the first in their slot."""
    return last_of(slots.flip(0), count).flip(0)


@torch.no_grad()
def no_negatives(boxes: Float[Tensor, "cells 4"], objects: Objects, threshold: float) -> Bool[Tensor, " cells"]:
    """Which predictions overlap an object, or lie on an ignored region, too much to be told that there is nothing.

    Args:
        boxes: predicted, xyxy in pixels of the frame.
        objects: of the picture.
        threshold: IoU above which a prediction counts as near an object.
    """
    near = ignore_overlap(boxes, objects.ignored.to(boxes.dtype), IGNORED_SHARE)
    there = torch.cat([objects.boxes, objects.ignored]).to(boxes.dtype)
    if len(there):
        near |= iou_matrix(boxes, there).amax(1) > threshold
    return near


def sums(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The sum of several pictures' or heads' parts."""
    return {name: torch.stack([part[name] for part in parts]).sum() for name in parts[0]}
