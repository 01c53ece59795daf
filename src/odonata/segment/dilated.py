"""A tower that dilates instead of striding, under a head of two convolutions: PSPNet's shape, and torchvision's FCN.

Notable:
- With `bins` a pyramid pooling stands between tower and head. Without, it is what torchvision calls FCN, and PSPNet's
  own ablation (table 1).
- With `align_corners` the corners of map and picture coincide, which is exact for sides of 8k + 1 pixels. The authors'
  code refuses others; here they are padded to the next such size, right and below, and the answer is cut back.
- The auxiliary output stands on the last stage but one.

Sources: Zhao et al. 2016 (1612.01105), sec. 3.2, 3.3; hszhao/semseg `model/pspnet.py`; torchvision
`models/segmentation/fcn.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from odonata.backbones.create import create
from odonata.backbones.pyramid_pooling import PyramidPooling
from odonata.errors import RecipeError
from odonata.nn.norm import NormName, make_norm
from odonata.segment.segmenter import Network, padded_to


class ConvHead(nn.Module):
    """A 3 × 3 convolution, normalised and rectified, dropout, and scores of classes.

    Args:
        channels: of the map.
        width: between the two convolutions.
        classes: scores of each cell.
        dropout: its probability.
        whole_maps: drop maps (PSPNet) instead of single numbers (torchvision).
        norm: after the first convolution.
    """

    def __init__(
        self, channels: int, width: int, classes: int, dropout: float, whole_maps: bool, norm: NormName = "batch"
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.norm = make_norm(norm, width)
        self.dropout = nn.Dropout2d(dropout) if whole_maps else nn.Dropout(dropout)
        self.logits = nn.Conv2d(width, classes, 1)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes height width"]:
        """Scores of every cell."""
        return self.logits(self.dropout(F.relu(self.norm(self.conv(x)))))


class DilatedNetwork(Network):
    """Tower, pyramid pooling where there is one, and head.

    Args:
        backbone: name of the tower.
        classes: scores of each pixel.
        width: of the head; 0 for a quarter of the tower's last map, as both originals have it.
        auxiliary: whether there is an auxiliary output; its width is a quarter of its map.
        bins: along a side, of the pyramid pooling; none for no pooling.
        align_corners: how scores are enlarged.
        dropout, whole_maps: of the heads; see `ConvHead`.
        norm: of the heads and of the pooling.

    Raises:
        RecipeError: the tower has one layer only, or no maps.
    """

    def __init__(
        self,
        backbone: str,
        classes: int,
        *,
        width: int = 0,
        auxiliary: bool = True,
        bins: Sequence[int] = (),
        align_corners: bool = False,
        dropout: float = 0.1,
        whole_maps: bool = False,
        norm: NormName = "batch",
    ) -> None:
        super().__init__()
        self.backbone = create(backbone)
        if len(self.backbone.taps) < 2:
            raise RecipeError(f"--backbone {backbone} has one layer only; the head needs a tower with stages")
        helper, last = self.backbone.taps[-2:]
        self.align_corners, self.stride = align_corners, last.stride
        self.pooling = PyramidPooling(last.channels, bins, align_corners=align_corners, norm=norm) if bins else None
        channels = last.channels if self.pooling is None else self.pooling.out_channels
        self.head = ConvHead(channels, width or last.channels // 4, classes, dropout, whole_maps, norm)
        self.auxiliary: ConvHead | None = None
        if auxiliary:
            self.auxiliary = ConvHead(helper.channels, helper.channels // 4, classes, dropout, whole_maps, norm)

    def forward(self, images: Float[Tensor, "batch 3 height width"], auxiliary: bool = False) -> list[Tensor]:
        """Logits as large as the pictures; see `Network.forward`."""
        height, width = images.shape[-2:]
        framed = padded_to(images, self.stride, 1) if self.align_corners else images
        helper, last = self.backbone.features(framed, [-2, -1], "nchw")
        scores = [self.head(last if self.pooling is None else self.pooling(last))]
        if auxiliary and self.auxiliary is not None:
            scores.append(self.auxiliary(helper))
        size = (framed.shape[-2], framed.shape[-1])
        large = [F.interpolate(x, size, mode="bilinear", align_corners=self.align_corners) for x in scores]
        return [x[:, :, :height, :width] for x in large]
