"""Pyramid pooling: each cell of a map beside means over the whole map and over parts of it.

Notable:
- The input comes first, then the bins as given, each as wide as the input's width divided by their number.
- PSPNet enlarges with aligned corners and wants pictures of 8k + 1 pixels; later code bases do neither. `align_corners`
  says which.
- Batch normalisation of a 1 × 1 bin needs two pictures or more while training, as in every implementation.

Sources: Zhao et al. 2017 (1612.01105), sec. 3.2; semseg `model/pspnet.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from odonata.nn.norm import NormName, make_norm


class PyramidPooling(nn.Module):
    """PSPNet's pyramid pooling module.

    Args:
        channels: of the map.
        bins: along a side, one pooling for each.
        width: channels of each pooling; None divides `channels` by the number of bins.
        align_corners: how the bins are enlarged; PSPNet's own way is True.
        norm: after each 1 × 1 convolution.

    Raises:
        ValueError: no bins, or fewer channels than bins.
    """

    def __init__(
        self,
        channels: int,
        bins: Sequence[int] = (1, 2, 3, 6),
        width: int | None = None,
        align_corners: bool = True,
        norm: NormName = "batch",
    ) -> None:
        super().__init__()
        if not bins or (width is None and channels < len(bins)):
            raise ValueError(f"{channels} channels do not divide among the bins {list(bins)}")
        width = width or channels // len(bins)
        self.bins, self.align_corners = tuple(bins), align_corners
        self.out_channels = channels + width * len(bins)
        self.convs = nn.ModuleList(nn.Conv2d(channels, width, 1, bias=False) for _ in bins)
        self.norms = nn.ModuleList(make_norm(norm, width) for _ in bins)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch out height width"]:
        """Returns the map and its poolings, concatenated along the channels: `out_channels` of them."""
        parts = [x]
        for bins, conv, norm in zip(self.bins, self.convs, self.norms, strict=True):
            pooled = F.relu(norm(conv(F.adaptive_avg_pool2d(x, bins))))
            parts.append(F.interpolate(pooled, x.shape[-2:], mode="bilinear", align_corners=self.align_corners))
        return torch.cat(parts, 1)

    def extra_repr(self) -> str:
        return f"bins={self.bins}, align_corners={self.align_corners}"
