"""Darknet-19 and Darknet-53: the trunks of YOLO's second and third version.

Notable:
- Their layers are the stages of one resolution: strides 2, 4, 8, 16 and 32. A stage of Darknet-19 begins with a
  pooling, one of Darknet-53 with a strided convolution.
- Darknet-19 has no residuals; its stages go wide, narrow, wide. A block of Darknet-53 is narrow, wide, and adds what
  came in.
- Darknet-19 classifies each cell and takes the mean, Darknet-53 takes the mean and classifies. A linear map lets itself
  be exchanged with a mean, so `head` is a Linear on pooled features in both.
- The blocks are those of `odonata.backbones.darknet_layers`: a trunk computes what the cfg of the same name computes.

Sources: Redmon and Farhadi 2016 (1612.08242), table 6; Redmon and Farhadi 2018 (1804.02767), table 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from odonata.backbones.darknet_layers import Convolution, init_darknet
from odonata.backbones.interface import Backbone, Format, Tap, channels_last, map_in_format
from odonata.nn.transformer import wanted_layers


@dataclass(frozen=True)
class DarknetConfig:
    """What a trunk is made of; see `VARIANTS` for the published ones.

    Raises:
        ValueError: widths and depths are of different lengths, or a width of a block is odd.
    """

    block: Literal["plain", "residual"] = "residual"
    """Convolutions one after another with poolings between (19), or residual blocks with strided convolutions (53)."""
    depths: tuple[int, ...] = (1, 2, 8, 8, 4)
    """Blocks of each stage, after the convolution that it begins with: one narrow and one wide convolution each."""
    widths: tuple[int, ...] = (64, 128, 256, 512, 1024)
    """Channels that each stage gives; its narrow convolutions have half."""
    stem_width: int = 32
    """Channels of the first convolution, which has stride 1."""
    norm_eps: float = 1e-5
    """Epsilon of the normalisation; see `odonata.backbones.darknet_layers`."""
    channels: int = 3
    """Channels of the image."""

    def __post_init__(self) -> None:
        if len(self.depths) != len(self.widths):
            raise ValueError(f"{len(self.depths)} depths for {len(self.widths)} widths")
        if any(width % 2 for width in self.widths):
            raise ValueError(f"widths {self.widths} have to be even: narrow convolutions have half")


class Darknet(Backbone):
    """A trunk; its layers are its stages.

    Args:
        config: what it is made of.
    """

    family = "darknet"

    def __init__(self, config: DarknetConfig) -> None:
        super().__init__()
        self.config = config
        self.num_features = config.widths[-1]
        self.stem = Convolution(config.channels, config.stem_width, 3, eps=config.norm_eps)
        before = (config.stem_width, *config.widths)
        stages = zip(before, config.widths, config.depths, strict=False)
        self.stages = nn.ModuleList(Stage(config, channels, width, depth) for channels, width, depth in stages)
        self.head: nn.Module = nn.Identity()
        init_darknet(self)

    @property
    def taps(self) -> tuple[Tap, ...]:
        """What each stage gives."""
        return tuple(Tap(width, 2 ** (i + 1)) for i, width in enumerate(self.config.widths))

    def forward_features(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch dim map_height map_width"]:
        """The map after the last stage."""
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
        """Maps after the named stages; see `Backbone.features`."""
        wanted = wanted_layers(layers, len(self.stages))
        x = self.stem(channels_last(images))
        maps: list[Tensor] = []
        for stage in self.stages[: max(wanted, default=-1) + 1]:
            x = stage(x)
            maps.append(x)
        return [map_in_format(maps[i], format) for i in wanted]


class Stage(nn.Module):
    """Half the resolution, a convolution, and blocks."""

    def __init__(self, config: DarknetConfig, channels: int, width: int, depth: int) -> None:
        super().__init__()
        self.checkpointing = False
        residual = config.block == "residual"
        self.pool = nn.Identity() if residual else nn.MaxPool2d(2, 2, ceil_mode=True)
        self.widen = Convolution(channels, width, 3, 2 if residual else 1, eps=config.norm_eps)
        self.layers = nn.ModuleList(Block(width, residual, config.norm_eps) for _ in range(depth))

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch out height2 width2"]:
        """Returns the map after the last block."""
        x = self.widen(self.pool(x))
        for layer in self.layers:
            recompute = self.checkpointing and self.training and torch.is_grad_enabled()
            x = checkpoint(layer, x, use_reentrant=False) if recompute else layer(x)  # pyright: ignore[reportAssignmentType]
        return x


class Block(nn.Module):
    """1 × 1 to half the width and 3 × 3 back, with or without what came in."""

    def __init__(self, width: int, residual: bool, eps: float) -> None:
        super().__init__()
        self.residual = residual
        self.narrow = Convolution(width, width // 2, 1, eps=eps)
        self.wide = Convolution(width // 2, width, 3, eps=eps)

    def forward(self, x: Float[Tensor, "batch dim height width"]) -> Float[Tensor, "batch dim height width"]:
        """Returns the next map."""
        out = self.wide(self.narrow(x))
        return x + out if self.residual else out


def build(config: DarknetConfig) -> Darknet:
    """Returns a trunk of this configuration."""
    return Darknet(config)


VARIANTS: dict[str, DarknetConfig] = {
    "darknet19": DarknetConfig("plain", (0, 1, 1, 2, 2)),
    "darknet53": DarknetConfig(),
    # For laptops: a quarter of Darknet-53's width, and few blocks.
    "darknet-small": DarknetConfig(depths=(1, 1, 2, 2, 1), widths=(16, 32, 64, 128, 256), stem_width=8),
}
"""The published trunks by name, and `darknet-small`."""
