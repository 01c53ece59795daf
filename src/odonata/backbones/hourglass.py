"""Stacked hourglasses: down to a few cells and up again, twice, at a quarter of the picture's size.

Notable:
- It is CornerNet's form, which CenterNet uses as well: no pooling, the first block of a way down has the stride; the
  way up is an enlargement by nearest neighbours.
- A layer is one hourglass with its 3 × 3 output convolution. Heads stand on every one of them while training, and on
  the last one at test.
- The way up ends at the exact size of the map that it is added to, so that pictures of any size fit. Multiples of 128
  pixels, to which CornerNet pads, give the same numbers as its enlargement by two.
- Weights start as PyTorch starts them (sec. 4.1 of CornerNet).
- Names follow CornerNet's: `kps.K` is `stages.K.hourglass`, in it `up1` is `beside`, `low1` `down`, `low2` `inner` and
  `low3` `up`; `cnvs` is `output`, `inters_`, `cnvs_` and `inters` are `merges.K.skip`, `.output` and `.block`.

Sources: Newell et al. 2016 (1603.06937), sec. 3; Law and Deng 2018 (1808.01244), sec. 3.5; CornerNet
`models/py_utils/kp.py`, `models/CornerNet.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from odonata.backbones.interface import Backbone, Format, Tap, channels_last, map_in_format
from odonata.backbones.resnet import BasicBlock, ResNetConfig
from odonata.nn.norm import NormName, make_norm
from odonata.nn.transformer import wanted_layers


@dataclass(frozen=True)
class HourglassConfig:
    """What a tower of hourglasses is made of; see `VARIANTS`.

    Raises:
        ValueError: `widths` and `depths` differ in length, or there is nothing to go down to.
    """

    widths: tuple[int, ...] = (256, 256, 384, 384, 384, 512)
    """Width at each size of map, the largest first."""
    depths: tuple[int, ...] = (2, 2, 2, 2, 2, 4)
    """Residual blocks at each size: beside, down and up."""
    stacks: int = 2
    """Hourglasses, one on the other."""
    stem_width: int = 128
    """Channels of the first convolution."""
    out_width: int = 256
    """Channels of the map that each hourglass gives."""
    norm: NormName = "batch"
    """Normalisation."""
    channels: int = 3
    """Channels of the image."""

    def __post_init__(self) -> None:
        if len(self.widths) != len(self.depths) or len(self.widths) < 2:
            raise ValueError(f"{len(self.widths)} widths for {len(self.depths)} depths; want as many, two at least")
        if self.stacks < 1:
            raise ValueError(f"stacks is {self.stacks}; want one at least")


class Hourglasses(Backbone):
    """A tower of hourglasses; its layers are the hourglasses.

    Args:
        config: what it is made of.
    """

    family = "hourglass"

    def __init__(self, config: HourglassConfig) -> None:
        super().__init__()
        self.config = config
        self.num_features = config.out_width
        self.stem = Stem(config)
        self.stages = nn.ModuleList(Stage(config) for _ in range(config.stacks))
        self.merges = nn.ModuleList(Merge(config) for _ in range(config.stacks - 1))
        self.head: nn.Module = nn.Identity()

    @property
    def taps(self) -> tuple[Tap, ...]:
        """What each hourglass gives."""
        return (Tap(self.config.out_width, 4),) * self.config.stacks

    def forward_features(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch dim map_height map_width"]:
        """The map of the last hourglass."""
        return self.features(images, [-1])[0]

    def forward_head(
        self, features: Float[Tensor, "batch dim height width"], pre_logits: bool = False
    ) -> Float[Tensor, "batch out_dim"]:
        """The mean over the map, and the classifier."""
        pooled = features.mean((2, 3))
        return pooled if pre_logits else self.head(pooled)

    def features(
        self, images: Float[Tensor, "batch channels height width"], layers: Sequence[int], format: Format = "native"
    ) -> list[Tensor]:
        """Maps of the named hourglasses; see `Backbone.features`."""
        wanted = wanted_layers(layers, len(self.stages))
        x = self.stem(channels_last(images))
        maps: list[Tensor] = []
        for number, stage in enumerate(self.stages[: max(wanted, default=-1) + 1]):
            if number:
                x = self.merges[number - 1](x, maps[-1])
            maps.append(stage(x))
        return [map_in_format(maps[i], format) for i in wanted]


class Stem(nn.Module):
    """A 7 × 7 and a residual block, both with stride 2."""

    def __init__(self, config: HourglassConfig) -> None:
        super().__init__()
        self.conv = ConvNorm(config, config.channels, config.stem_width, 7, 2)
        self.block = _block(config, config.stem_width, config.widths[0], 2)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch out height4 width4"]:
        """Returns the first map."""
        return self.block(F.relu(self.conv(x)))


class Stage(nn.Module):
    """An hourglass and its output convolution."""

    def __init__(self, config: HourglassConfig) -> None:
        super().__init__()
        self.hourglass = Hourglass(config, config.widths, config.depths)
        self.output = ConvNorm(config, config.widths[0], config.out_width, 3, 1)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch out height width"]:
        """Returns the map that heads stand on."""
        return F.relu(self.output(self.hourglass(x)))


class Hourglass(nn.Module):
    """A map beside what the smaller hourglass inside makes of it.

    Args:
        config: of the tower.
        widths: from this size of map on down.
        depths: likewise.
    """

    def __init__(self, config: HourglassConfig, widths: Sequence[int], depths: Sequence[int]) -> None:
        super().__init__()
        here, below = widths[:2]
        self.beside = Blocks(config, [here] * (depths[0] + 1))
        self.down = Blocks(config, [here] + [below] * depths[0], stride=2)
        if len(widths) > 2:
            self.inner = Hourglass(config, widths[1:], depths[1:])
        else:
            self.inner = Blocks(config, [below] * (depths[1] + 1))
        self.up = Blocks(config, [below] * depths[0] + [here])

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels height width"]:
        """Returns a map of the same size and width."""
        beside = self.beside(x)
        below = self.up(self.inner(self.down(x)))
        return beside + F.interpolate(below, size=beside.shape[-2:], mode="nearest")


class Blocks(nn.Module):
    """Residual blocks in a row.

    Args:
        config: of the tower.
        widths: of the map before the first block and after each one.
        stride: of the first block.
    """

    def __init__(self, config: HourglassConfig, widths: Sequence[int], stride: int = 1) -> None:
        super().__init__()
        self.checkpointing = False
        self.layers = nn.ModuleList(
            _block(config, a, b, stride if i == 0 else 1) for i, (a, b) in enumerate(pairwise(widths))
        )

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch out height2 width2"]:
        """Returns the map after the last block."""
        for layer in self.layers:
            recompute = self.checkpointing and self.training and torch.is_grad_enabled()
            x = checkpoint(layer, x, use_reentrant=False) if recompute else layer(x)  # pyright: ignore[reportAssignmentType]
        return x


class Merge(nn.Module):
    """What the next hourglass starts from: the start of the last one and what that one gave."""

    def __init__(self, config: HourglassConfig) -> None:
        super().__init__()
        self.skip = ConvNorm(config, config.widths[0], config.widths[0], 1, 1)
        self.output = ConvNorm(config, config.out_width, config.widths[0], 1, 1)
        self.block = _block(config, config.widths[0], config.widths[0], 1)

    def forward(
        self, start: Float[Tensor, "batch channels height width"], given: Float[Tensor, "batch out height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Returns the start of the next hourglass."""
        return self.block(F.relu(self.skip(start) + self.output(given)))


class ConvNorm(nn.Module):
    """A convolution and a normalisation."""

    def __init__(self, config: HourglassConfig, channels: int, out: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, kernel, stride, kernel // 2, bias=False)
        self.norm = make_norm(config.norm, out)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch out height2 width2"]:
        """Returns the map."""
        return self.norm(self.conv(x))


def _block(config: HourglassConfig, channels: int, out: int, stride: int) -> BasicBlock:
    return BasicBlock(ResNetConfig("basic", norm=config.norm), channels, out, stride, 1)


def build(config: HourglassConfig) -> Hourglasses:
    """Returns a tower of this configuration."""
    return Hourglasses(config)


VARIANTS: dict[str, HourglassConfig] = {
    "hourglass104": HourglassConfig(),
    "hourglass-small": HourglassConfig((32, 32, 48, 64), (1, 1, 1, 1), stem_width=16, out_width=32),
}
"""CornerNet's tower of 104 layers, and one for laptops."""
