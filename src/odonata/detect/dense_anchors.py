"""Anchors of every level, and which of them teach nothing: what one-stage detectors with anchors share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from odonata.ops.grids import anchors, base_anchors
from odonata.ops.matching import BACKGROUND, BETWEEN, ignore_overlap

COVERED = 0.5
"""An anchor of which more than this share lies in a crowd is no negative."""
SHARED = 0.3
"""Nor is one whose IoU with an ignored object is above this (Singh and Davis 2018, 1711.08189, sec. 5.1)."""


def octave_sizes(scale: float, stride: int, octaves: int, whole: bool) -> list[float]:
    """Sides of a level's square anchors: scale · stride · 2^(k/octaves) for each k.

    Args:
        scale: side of the smallest in strides of its level.
        stride: of the level in pixels.
        octaves: sizes from one level's smallest to the next one's.
        whole: rounded down to whole pixels.

    Source: Lin et al. 2017 (1708.02002), sec. 4, "Anchors".
    """
    sizes = [scale * stride * 2 ** (k / octaves) for k in range(octaves)]
    return [float(int(size)) for size in sizes] if whole else sizes


def level_anchors(
    maps: Sequence[Tensor],
    strides: Sequence[tuple[int, int]],
    sizes: Sequence[Sequence[float]],
    ratios: Sequence[float],
    offset: float,
    rounded: bool,
) -> list[Float[Tensor, "anchors 4"]]:
    """The anchors of every level, xyxy in pixels of the frame, in the order of `dense.rows`.

    Args:
        maps: of the levels.
        strides: (down, right) of each.
        sizes: roots of the areas of each level's anchors.
        ratios: height by width.
        offset: share of a stride from a cell's corner to the anchors' middle.
        rounded: whether corners lie on whole pixels around the middle (torchvision).
    """
    return [
        anchors(x.shape[-2], x.shape[-1], stride, base_anchors(side, ratios, rounded, x.device), offset)
        for x, stride, side in zip(maps, strides, sizes, strict=True)
    ]


def sparing(
    owner: Int64[Tensor, " anchors"], boxes: Float[Tensor, "anchors 4"], ignored: Float[Tensor, "ignored 4"]
) -> Int64[Tensor, " anchors"]:
    """A matching in which anchors on ignored regions are no negatives: they learn nothing (-2).

    Args:
        owner: for every anchor the index of its object, -1 (background) or -2.
        boxes: the anchors, xyxy.
        ignored: crowds, and objects outside a scale policy's range, xyxy.
    """
    if not len(ignored):
        return owner
    return torch.where((owner == BACKGROUND) & on_ignored(boxes, ignored), BETWEEN, owner)


def on_ignored(boxes: Float[Tensor, "anchors 4"], ignored: Float[Tensor, "ignored 4"]) -> Bool[Tensor, " anchors"]:
    """Which anchors lie in an ignored region, or overlap an ignored object as one that is found would."""
    return ignore_overlap(boxes, ignored, COVERED) | ignore_overlap(boxes, ignored, SHARED, "iou")
