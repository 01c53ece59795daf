"""Points and anchors on the cells of feature maps, row by row, and on each cell anchor by anchor.

Sources: Ren et al. 2015 (1506.01497), sec. 3.1.1; Lin et al. 2017 (1708.02002), sec. 4; torchvision
`models/detection/anchor_utils.py`, whose rounding of the base anchors is kept.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def points(
    height: int, width: int, stride: int | tuple[int, int], offset: float = 0.5, device: torch.device | None = None
) -> Float[Tensor, "cells 2"]:
    """Return the (x, y) of each cell's point in pixels.

    Args:
        height, width: cells of the map.
        stride: pixels from one cell to the next, or (down, right).
        offset: share of a stride from a cell's corner to its point; 0.5 is its middle, 0 its corner.
        device: where to.
    """
    down, right = (stride, stride) if isinstance(stride, int) else stride
    y = (torch.arange(height, device=device, dtype=torch.float32) + offset) * down
    x = (torch.arange(width, device=device, dtype=torch.float32) + offset) * right
    # Sums in place of repeats: they stay right where the sides are symbols (export).
    return torch.stack([x[None, :] + 0 * y[:, None], 0 * x[None, :] + y[:, None]], -1).flatten(0, 1)


def base_anchors(
    sizes: Sequence[float], ratios: Sequence[float], rounded: bool = True, device: torch.device | None = None
) -> Float[Tensor, "anchors 4"]:
    """Return boxes around the origin, sizes within ratios: (ratio 1, size 1), (ratio 1, size 2), ….

    Args:
        sizes: roots of the areas in pixels.
        ratios: height by width.
        rounded: whether corners are rounded to whole pixels (torchvision).
        device: where to.
    """
    ratio = torch.tensor(ratios, dtype=torch.float32, device=device)
    size = torch.tensor(sizes, dtype=torch.float32, device=device)
    tall = ratio.sqrt()
    widths = ((1 / tall)[:, None] * size[None]).flatten()
    heights = (tall[:, None] * size[None]).flatten()
    boxes = torch.stack([-widths, -heights, widths, heights], 1) / 2
    return boxes.round() if rounded else boxes


def anchors(
    height: int, width: int, stride: int | tuple[int, int], base: Float[Tensor, "anchors 4"], offset: float = 0.0
) -> Float[Tensor, "cells_anchors 4"]:
    """Return the anchors of a map, xyxy in pixels: `base` moved to each cell's point; see `points`."""
    centres = points(height, width, stride, offset, base.device)
    return (centres.repeat(1, 2)[:, None] + base[None]).reshape(-1, 4)


def retinanet_sizes(smallest: float, levels: int, octaves: int = 3) -> list[tuple[int, ...]]:
    """Return the anchor sizes of each level: `smallest` · 2^(level + k/octaves), rounded down (Lin et al. 2017)."""
    return [tuple(int(smallest * 2**level * 2 ** (k / octaves)) for k in range(octaves)) for level in range(levels)]
