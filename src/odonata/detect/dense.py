"""Heads on every level of a pyramid, and the way from their maps to boxes: what one-stage detectors share.

A level's map [batch, per cell · fields, height, width] becomes rows in the order cell by cell, anchor by anchor, which
is the order of the grids in `odonata.ops.grids`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from odonata.data.detections import Detections
from odonata.detect.detector import DetectorOptions, best_of_level, clip_to, found, keep_best
from odonata.nn.norm import make_norm
from odonata.ops.grids import points

StrideRule = Literal["nominal", "picture"]
"""Pixels from one cell to the next: the level's own stride, or the padded picture's side divided by the map's, rounded
down (torchvision), which differs where the picture is no multiple of the coarsest stride."""


class ConvTower(nn.Sequential):
    """Convolutions that keep size and width, each normalised and rectified.

    Args:
        channels: of every map.
        depth: number of convolutions.
        norm: "group" (32 groups, or as many as there are channels) or "none", whose convolutions have biases as well.
        bias: whether convolutions before a norm have biases (torchvision and FCOS keep them).
    """

    def __init__(
        self, channels: int, depth: int, norm: Literal["group", "batch", "none"] = "group", bias: bool = True
    ) -> None:
        parts: list[nn.Module] = []
        for _ in range(depth):
            parts.append(nn.Conv2d(channels, channels, 3, padding=1, bias=bias or norm == "none"))
            if norm != "none":
                parts.append(make_norm(norm, channels))
            parts.append(nn.ReLU(inplace=True))  # a new map for each costs more than the rectifying
        super().__init__(*parts)
        for module in self:
            if isinstance(module, nn.Conv2d):
                init_normal(module)


def init_normal(conv: nn.Conv2d, prior: float | None = None, std: float = 0.01) -> None:
    """N(0, std²) weights and zero biases; with `prior`, biases such that every answer begins at that probability.

    Source: Lin et al. 2017 (1708.02002), sec. 4.1, eq. for b = −log((1 − π)/π).
    """
    nn.init.normal_(conv.weight, std=std)
    if conv.bias is not None:
        nn.init.constant_(conv.bias, 0.0 if prior is None else -math.log((1 - prior) / prior))


def rows(level: Float[Tensor, "batch maps height width"], fields: int) -> Float[Tensor, "batch cells fields"]:
    """A level's map as rows of so many fields, cell by cell, anchor by anchor."""
    batch, maps, height, width = level.shape
    split = level.reshape(batch, maps // fields, fields, height, width)
    return split.permute(0, 3, 4, 1, 2).reshape(batch, -1, fields)


def level_strides(
    maps: Sequence[Tensor], nominal: Sequence[int], frame: tuple[int, int], rule: StrideRule
) -> list[tuple[int, int]]:
    """Pixels (down, right) from one cell to the next on every level; see `StrideRule`."""
    if rule == "nominal":
        return [(stride, stride) for stride in nominal]
    return [(frame[0] // x.shape[-2], frame[1] // x.shape[-1]) for x in maps]


def level_points(
    maps: Sequence[Tensor], strides: Sequence[tuple[int, int]], offset: float
) -> list[Float[Tensor, "cells 2"]]:
    """The (x, y) of every cell of every level, in pixels.

    Args:
        maps: of the levels.
        strides: (down, right) of each.
        offset: share of a stride from a cell's corner to its point: 0.5 is its middle.
    """
    placed = zip(maps, strides, strict=True)
    return [points(x.shape[-2], x.shape[-1], stride, offset, device=x.device) for x, stride in placed]


def choose(
    scores: Sequence[Float[Tensor, "cells classes"]],
    boxes: Sequence[Float[Tensor, "cells 4"]],
    size: Sequence[int] | Tensor,
    options: DetectorOptions,
    gates: Sequence[Float[Tensor, "cells classes"]] | None = None,
) -> Detections:
    """The detections of one picture from the scores and boxes of its levels.

    Args:
        scores: of each level, from 0 to 1.
        boxes: of each level, in pixels of the frame; cut at the picture's edge here.
        size: (height, width) of the picture in the frame.
        options: thresholds and numbers.
        gates: what the score threshold is applied to, where it is not the score (FCOS: the class alone).
    """
    kept: list[tuple[Tensor, Tensor, Tensor]] = []
    for number, (score, box) in enumerate(zip(scores, boxes, strict=True)):
        if gates is not None:
            score = score * (gates[number] > options.score_threshold)
        threshold = 0.0 if gates is not None else options.score_threshold
        cells, labels, best = best_of_level(score.float(), threshold, options.pre_nms)
        kept.append((clip_to(box[cells].float(), size), best, labels))
    candidates, best, labels = (torch.cat(parts) for parts in zip(*kept, strict=True))
    chosen = keep_best(candidates, best, labels, options)
    return found(candidates[chosen], best[chosen], labels[chosen], size)
