"""Spatial pyramid pooling: of SPPNet to a vector of fixed length, and of YOLOv3-SPP at every cell.

Notable:
- `SpatialPyramidPooling` pools adaptively. The paper's windows (size ⌈a/n⌉, stride ⌊a/n⌋, sec. 2.3) do not always make
  n bins: of the sizes 6 … 39 with the paper's n of 1, 2, 3 and 6, ten pairs get more, such as 7 bins for (8, 6), so
  that the vector's length would depend on the image. `paper_windows` has the formula.
- `SPPF` chains three poolings of one size. A maximum of maxima is the maximum of the union, so it gives the same bits
  as `SPP` at a fraction of the comparisons.

Sources: He et al. 2014 (1406.4729), sec. 2; Redmon's darknet `yolov3-spp.cfg`; SPPF as in Ultralytics' YOLOv5.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class SpatialPyramidPooling(nn.Module):
    """Maxima over n × n bins of the whole map for several n, as one vector of a length that no image size changes.

    Args:
        levels: bins along a side, one pooling for each.
    """

    def __init__(self, levels: Sequence[int] = (1, 2, 3, 6)) -> None:
        super().__init__()
        self.levels = tuple(levels)

    @property
    def bins(self) -> int:
        """Bins of all levels: the vector is so many times as long as the map has channels."""
        return sum(n * n for n in self.levels)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch features"]:
        """Returns the bins, level by level; within a level channel by channel, then row by row."""
        return torch.cat([F.adaptive_max_pool2d(x, n).flatten(1) for n in self.levels], 1)

    def extra_repr(self) -> str:
        return f"levels={self.levels}"


def paper_windows(size: int, bins: int) -> tuple[int, int, int]:
    """Returns the window, the stride and the bins along one side that the paper's formula makes.

    Args:
        size: cells along the side, at least `bins`.
        bins: how many are meant. The formula may make more.

    Source: He et al. 2014, sec. 2.3.
    """
    window, stride = math.ceil(size / bins), size // bins
    return window, stride, (size - window) // stride + 1


class SPP(nn.Module):
    """The map beside its maxima over squares around each cell: stride 1, the size stays.

    Args:
        sizes: sides of the squares in cells, odd.
        input_last: darknet's order, the largest square first and the map last. Otherwise the map comes first, then the
            squares as given.
    """

    def __init__(self, sizes: Sequence[int] = (5, 9, 13), input_last: bool = False) -> None:
        super().__init__()
        self.sizes, self.input_last = tuple(sizes), input_last

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch out height width"]:
        """Returns the map and the poolings, concatenated along the channels."""
        parts = [x, *(F.max_pool2d(x, size, 1, size // 2) for size in self.sizes)]
        return torch.cat(parts[::-1] if self.input_last else parts, 1)

    def extra_repr(self) -> str:
        return f"sizes={self.sizes}, input_last={self.input_last}"


class SPPF(nn.Module):
    """What `SPP` with squares of k, 2k - 1 and 3k - 2 cells gives, by three poolings of k in a row.

    Args:
        size: k, odd; 5 for `SPP`'s 5, 9 and 13.
        input_last: darknet's order; see `SPP`.
    """

    def __init__(self, size: int = 5, input_last: bool = False) -> None:
        super().__init__()
        self.size, self.input_last = size, input_last

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch out height width"]:
        """Returns the map and the poolings, concatenated along the channels."""
        parts = [x]
        for _ in range(3):
            parts.append(F.max_pool2d(parts[-1], self.size, 1, self.size // 2))
        return torch.cat(parts[::-1] if self.input_last else parts, 1)

    def extra_repr(self) -> str:
        return f"size={self.size}, input_last={self.input_last}"
