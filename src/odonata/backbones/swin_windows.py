"""How the Swin Transformer cuts a map into windows, shifts them, and hides what a shift brings together.

Sources: Liu et al. 2021 (2103.14030), sec. 3.2, figures 2 and 4; microsoft/Swin-Transformer
`models/swin_transformer.py`; the conventions of transformers 5.23, torchvision 0.28 and timm 1.0.31.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

Convention = Literal["official", "torchvision", "timm"]
"""What happens to a map of an odd size.

- `official`: a window is no larger than the map's shorter side, and none shifts where that side holds one window;
  padded, then shifted. transformers does so, too, where the shorter side is not below the window.
- `torchvision`: a window keeps its size, and each axis decides whether it shifts; padded, then shifted.
- `timm`: each axis decides for the window and the shift; shifted, then padded. timm decides when it builds the network,
  for the size named then (`img_size`).
"""


class Grid(NamedTuple):
    """How a map is cut into windows; each entry is rows, columns."""

    padded: tuple[int, int]
    """The map, padded to whole windows."""
    window: tuple[int, int]
    """Cells of a window."""
    shift: tuple[int, int]
    """By how many cells every second block shifts its windows."""
    pads_first: bool
    """Whether padding comes before the shift."""


def grid_of(height: int, width: int, window: int, convention: Convention = "official") -> Grid:
    """Returns how a map is cut into windows.

    Args:
        height, width: of the map.
        window: side of a window.
        convention: see `Convention`.
    """
    sizes, whole = (height, width), (window, window)
    if convention == "official":
        side = min(height, width, window)
        used, decisive = (side, side), (min(sizes), min(sizes))
    else:
        used = whole if convention == "torchvision" else (min(height, window), min(width, window))
        decisive = sizes
    shift = (window // 2 if decisive[0] > window else 0, window // 2 if decisive[1] > window else 0)
    padded = (height + -height % used[0], width + -width % used[1])
    return Grid(padded, used, shift, convention != "timm")


def into_windows(x: Float[Tensor, "batch height width dim"], grid: Grid) -> Float[Tensor, "batch windows tokens dim"]:
    """Returns the windows of a map, padded with zeros and rolled as the grid says, row by row."""
    pad = (0, 0, 0, grid.padded[1] - x.shape[2], 0, grid.padded[0] - x.shape[1])
    back = (-grid.shift[0], -grid.shift[1])
    if grid.pads_first:
        x = _rolled(F.pad(x, pad) if any(pad) else x, back)
    else:
        x = _rolled(x, back)
        x = F.pad(x, pad) if any(pad) else x
    x = x.unflatten(2, (-1, grid.window[1])).unflatten(1, (-1, grid.window[0]))
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def from_windows(
    windows: Float[Tensor, "batch windows tokens dim"], grid: Grid, height: int, width: int
) -> Float[Tensor, "batch height width dim"]:
    """Returns the map of these windows: what `into_windows` does, undone."""
    x = windows.unflatten(2, grid.window).unflatten(1, (-1, grid.padded[1] // grid.window[1]))
    x = x.transpose(2, 3).flatten(3, 4).flatten(1, 2)
    if grid.pads_first:
        return _rolled(x, grid.shift)[:, :height, :width]
    return _rolled(x[:, :height, :width], grid.shift)


def _rolled(x: Float[Tensor, "batch height width dim"], by: tuple[int, int]) -> Float[Tensor, "batch height width dim"]:
    return x.roll(by, (1, 2)) if any(by) else x


def shifted_mask(grid: Grid, device: torch.device | None = None) -> Bool[Tensor, "windows tokens tokens"]:
    """Returns where the cells of shifted windows may see each other: where they were neighbours before the shift.

    Args:
        grid: the map's windows.
        device: where to put the mask.
    """
    regions: list[Tensor] = []
    for size, window, shift in zip(grid.padded, grid.window, grid.shift, strict=True):
        cells = torch.arange(size, device=device)
        regions.append((cells >= size - window).float() + (cells >= size - shift).float())
    plain = grid._replace(shift=(0, 0))
    region = into_windows((3 * regions[0][:, None] + regions[1])[None, :, :, None], plain)[0, :, :, 0]
    return region[:, :, None] == region[:, None, :]
