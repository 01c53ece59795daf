"""SSD's default boxes: on each cell a square, a larger square, and two boxes for each further aspect ratio.

Sizes are shares of the picture's sides: in a picture that is no square, a box of ratio 1 is none.

Source: Liu et al. 2016 (1512.02325), sec. 2.2, "Choosing scales and aspect ratios for default boxes".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

ClipRule = Literal["none", "sizes", "all"]
"""What is cut to the picture: nothing; width and height (torchvision); the middle as well (ssd.pytorch)."""


def boxes_a_cell(ratios: Sequence[float]) -> int:
    """How many default boxes a cell of a level with these further ratios has."""
    return 2 + 2 * len(ratios)


def box_sizes(scale: float, next_scale: float, ratios: Sequence[float]) -> list[tuple[float, float]]:
    """Widths and heights of a level's default boxes as shares of the picture's: (s, s), (s', s'), then for each ratio a
    (s√a, s/√a) and (s/√a, s√a), with s' = √(s · s of the next level).
    """
    larger = (scale * next_scale) ** 0.5
    sizes = [(scale, scale), (larger, larger)]
    for ratio in ratios:
        root = ratio**0.5
        sizes += [(scale * root, scale / root), (scale / root, scale * root)]
    return sizes


def default_boxes(
    maps: Sequence[tuple[int, int]],
    frame: tuple[int, int],
    scales: Sequence[float],
    ratios: Sequence[Sequence[float]],
    steps: Sequence[int] = (),
    clip: ClipRule = "none",
    device: torch.device | None = None,
) -> list[Float[Tensor, "anchors 4"]]:
    """The default boxes of every level, xyxy in pixels, cell by cell, in the order of `box_sizes`.

    Args:
        maps: (height, width) of each level in cells.
        frame: (height, width) of the picture in pixels.
        scales: of each level, and one more.
        ratios: of each level, besides 1.
        steps: pixels from cell to cell of each level; empty: the picture's side by the map's.
        clip: what is cut to the picture.
        device: where to.
    """
    found: list[Tensor] = []
    for level, (height, width) in enumerate(maps):
        down, right = (frame[0] / steps[level], frame[1] / steps[level]) if steps else (height, width)
        y = ((torch.arange(height, device=device) + 0.5) / down)[:, None, None]
        x = ((torch.arange(width, device=device) + 0.5) / right)[None, :, None]
        size = torch.tensor(box_sizes(scales[level], scales[level + 1], ratios[level]), device=device)
        if clip != "none":
            size = size.clamp(0, 1)
        if clip == "all":
            x, y = x.clamp(0, 1), y.clamp(0, 1)
        # Sums broadcast by themselves; repeating to a size that is left open breaks in exported graphs.
        half_width, half_height, everywhere = 0.5 * size[:, 0], 0.5 * size[:, 1], 0 * (x + y)
        low_x, high_x = (x - half_width + everywhere) * frame[1], (x + half_width + everywhere) * frame[1]
        low_y, high_y = (y - half_height + everywhere) * frame[0], (y + half_height + everywhere) * frame[0]
        found.append(torch.stack([low_x, low_y, high_x, high_y], -1).reshape(-1, 4))
    return found
