"""Feature pyramid: every level of a tower with the meaning of the deepest one.

Notable:
- The map above is enlarged to the exact size of the map below, so that pictures of any size fit.
- `top_down=False` leaves out the path from the top and nothing else: the same levels, the same parameters. It is the
  paper's own ablation (table 1d).
- RetinaNet's paper and first weights take P6 from C5, FCOS and torchvision's first RetinaNet from P5; `extra` says
  which. P7 comes from the rectified P6 in all of them.
- A convolution has a bias where no normalisation follows.

Sources: Lin et al. 2017 (1612.03144), sec. 3; Lin et al. 2017 (1708.02002), sec. 4 note 2 for P6 and P7; torchvision
`ops/feature_pyramid_network.py`, whose numbers it gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from odonata.backbones.interface import Backbone
from odonata.nn.norm import NormName, make_norm

Extra = Literal["none", "pool", "p6p7-c5", "p6p7-p5"]


@dataclass(frozen=True)
class FPNConfig:
    """What a feature pyramid is made of."""

    channels: int = 256
    """Width of every level."""
    extra: Extra = "none"
    """Levels above the tower's: none; the last one subsampled (Faster R-CNN); or two strided convolutions, on the
    tower's last map (`p6p7-c5`) or on the pyramid's (`p6p7-p5`)."""
    norm: Literal["none"] | NormName = "none"
    """Normalisation after each lateral and output convolution."""
    top_down: bool = True
    """Whether each level hears of the one above."""
    rectified_p6: bool = True
    """Whether P7 is made of the rectified P6; mmdet's RetinaNets make it of P6 as it is."""

    @property
    def extra_levels(self) -> int:
        """How many levels it adds above the tower's."""
        return {"none": 0, "pool": 1, "p6p7-c5": 2, "p6p7-p5": 2}[self.extra]


class FPN(nn.Module):
    """A feature pyramid on maps of a tower.

    Args:
        channels: of the tower's maps, finest first.
        config: what it is made of.
    """

    def __init__(self, channels: Sequence[int], config: FPNConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or FPNConfig()
        self.laterals = nn.ModuleList(_ConvNorm(c, config.channels, 1, config.norm) for c in channels)
        self.outputs = nn.ModuleList(_ConvNorm(config.channels, config.channels, 3, config.norm) for _ in channels)
        if config.extra_levels == 2:
            below = channels[-1] if config.extra == "p6p7-c5" else config.channels
            self.p6 = nn.Conv2d(below, config.channels, 3, 2, 1)
            self.p7 = nn.Conv2d(config.channels, config.channels, 3, 2, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(
        self, maps: Sequence[Float[Tensor, "batch _channels _height _width"]]
    ) -> list[Float[Tensor, "batch dim _height _width"]]:
        """Returns the levels, finest first: one for each map, then the extra ones.

        Args:
            maps: of the tower, finest first.

        Raises:
            ValueError: not as many maps as it was built for.
        """
        if len(maps) != len(self.laterals):
            raise ValueError(f"a pyramid for {len(self.laterals)} maps got {len(maps)}")
        merged = [lateral(x) for lateral, x in zip(self.laterals, maps, strict=True)]
        if self.config.top_down:
            for i in range(len(merged) - 2, -1, -1):
                above = F.interpolate(merged[i + 1], size=merged[i].shape[-2:], mode="nearest")
                merged[i] = above.add_(merged[i])  # in place: on a CPU, making a map costs more than adding to it
        levels = [output(x) for output, x in zip(self.outputs, merged, strict=True)]
        return levels + self._extra(maps[-1], levels[-1])

    def _extra(
        self, c5: Float[Tensor, "batch channels height width"], p5: Float[Tensor, "batch dim height width"]
    ) -> list[Tensor]:
        if self.config.extra == "none":
            return []
        if self.config.extra == "pool":
            return [p5[:, :, ::2, ::2]]
        p6 = self.p6(c5 if self.config.extra == "p6p7-c5" else p5)
        return [p6, self.p7(F.relu(p6) if self.config.rectified_p6 else p6)]


class _ConvNorm(nn.Module):
    """A convolution that keeps the size, and a normalisation."""

    def __init__(self, channels: int, out: int, kernel: int, norm: Literal["none"] | NormName) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, kernel, padding=kernel // 2, bias=norm == "none")
        self.norm = nn.Identity() if norm == "none" else make_norm(norm, out)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch out height width"]:
        """Returns the map."""
        return self.norm(self.conv(x))


class PyramidTower(nn.Module):
    """A tower and the feature pyramid on some of its layers.

    Args:
        backbone: a tower whose layers give maps.
        layers: which of them, finest first; negative numbers count back.
        fpn: what the pyramid is made of.

    Raises:
        ValueError: no layer, one that does not exist, or they are not in the order of their strides.

    >>> from odonata.backbones.create import create
    >>> tower = PyramidTower(create("resnet18"), [1, 2, 3], FPNConfig(extra="p6p7-p5"))
    >>> tower.strides
    (8, 16, 32, 64, 128)
    """

    def __init__(self, backbone: Backbone, layers: Sequence[int], fpn: FPNConfig | None = None) -> None:
        super().__init__()
        count = len(backbone.taps)
        if not layers or any(not -count <= layer < count for layer in layers):
            raise ValueError(f"layers {list(layers)} of a tower that has {count}")
        taps = [backbone.taps[layer] for layer in layers]
        steps = [tap.stride for tap in taps]
        if steps != sorted(steps):
            raise ValueError(f"layers {list(layers)} have the strides {steps}: name the finest first")
        self.backbone, self.layers = backbone, tuple(layers)
        self.fpn = FPN([tap.channels for tap in taps], fpn)
        self.channels = self.fpn.config.channels
        self.strides = (*steps, *(steps[-1] * 2 ** (i + 1) for i in range(self.fpn.config.extra_levels)))

    def forward(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> list[Float[Tensor, "batch dim _height _width"]]:
        """Returns the levels, finest first, as `strides` lists them."""
        return self.fpn(self.backbone.features(images, self.layers, "nchw"))

    def extra_repr(self) -> str:
        return f"layers={self.layers}, strides={self.strides}"
