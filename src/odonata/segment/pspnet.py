"""PSPNet: every cell is judged beside means over the whole picture and over its parts, so that the scene has a say.

The tower dilates its last two stages instead of striding; its map and four poolings of it (1, 2, 3 and 6 bins a side)
are joined; two convolutions follow. A second output on the stage before helps in training, with weight 0.4.

Reference: Zhao, Shi, Qi, Wang and Jia, Pyramid Scene Parsing Network, arXiv:1612.01105; the authors' PyTorch code
hszhao/semseg (`model/pspnet.py`, `tool/train.py`, `tool/test.py`), whose conventions the preset `semseg-r50` has: a
deep stem, dilation in every 3 × 3 of the dilated stages, aligned corners, crops of 8k + 1 pixels, heads at ten times
the rate, a rate that falls by (1 − t)^0.9, windows and the mirrored picture in prediction.

Differences: pictures of any size are taken, padded to 8k + 1 (`odonata.segment.dilated`). Small pictures are padded
right and below, the original's on all sides. The authors also blur at random, and let norms and biases decay. Batch
statistics are each rank's own: use eight pictures a rank or more, or --norm group. The auxiliary head stays in the
weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from odonata.data.framing import Framing
from odonata.errors import RecipeError
from odonata.nn.norm import NormName
from odonata.segment.dilated import DilatedNetwork
from odonata.segment.segmenter import Segmenter, SegmenterOptions

_TOWER = "stem=deep,stem_width=128,output_stride=8,dilate_first=true"


def _semseg(depth: int, base: int, crop: int) -> dict[str, Any]:
    """The authors' settings: longest side and crops in pixels."""
    return {
        "backbone": f"resnet{depth}:{_TOWER}",
        "head_width": 512,
        "framing": Framing(size=base, max_size=base, divisor=1),
        "scale": (0.5, 2.0),
        "rotate": 10.0,
        "crop": crop,
        "window": crop,
        "flip": True,
        "head_lr": 10.0,
    }


@dataclass(frozen=True)
class PSPNetConfig(SegmenterOptions):
    """PSPNet; the presets are the authors' for VOC and ADE20K (473 pixels) and Cityscapes (713).

    Raises:
        RecipeError: no bins, or a crop or window that aligned corners do not fit.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "semseg-r50": _semseg(50, 512, 473),
        "semseg-r101": _semseg(101, 512, 473),
        "cityscapes-r50": _semseg(50, 2048, 713),
        "cityscapes-r101": _semseg(101, 2048, 713),
    }

    backbone: str = "resnet10-small:stem=deep,stem_width=32,output_stride=8,dilate_first=true"
    """Tower by name (`odonata show backbones`), with options: a residual network of output_stride 8."""
    bins: tuple[int, ...] = (1, 2, 3, 6)
    """Cells along a side of each pooling; empty: no pooling (the paper's ablation)."""
    align_corners: bool = True
    """Whether corners of map and picture coincide when scores are enlarged; mmseg's do not."""
    head_width: int = 64
    """Channels of the head (0 = a quarter of the tower's last map: 512 for ResNet-50)."""
    dropout: float = 0.1
    """Share of the head's maps that are dropped in training."""
    norm: NormName = "batch"
    """Normalisation of head and pooling."""
    aux_weight: float = 0.4
    """What the loss of the auxiliary output counts (0 = there is none)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(count < 1 for count in self.bins):
            raise RecipeError(f"--bins is {self.bins}; each is 1 or more")
        for name in ("crop", "window"):
            side = getattr(self, name)
            if self.align_corners and side % 8 != 1 and side:
                near = side // 8 * 8 + 1
                raise RecipeError(f"--{name} is {side}; with aligned corners it is 8k + 1: {near} or {near + 8}")


class PSPNet(Segmenter):
    """PSPNet with its objective.

    Args:
        config: its options.
        num_classes: classes in the table.
    """

    def __init__(self, config: PSPNetConfig, num_classes: int) -> None:
        super().__init__(config, num_classes)
        self.aux_weight = config.aux_weight
        self.network = DilatedNetwork(
            config.backbone,
            num_classes,
            width=config.head_width,
            auxiliary=config.aux_weight > 0,
            bins=config.bins,
            align_corners=config.align_corners,
            dropout=config.dropout,
            whole_maps=True,
            norm=config.norm,
        )
