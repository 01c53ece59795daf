"""SqueezeNet: AlexNet's accuracy with fifty times fewer parameters, from modules that squeeze before they expand.

Notable:
- Pooling rounds the size of the map up (Caffe's ceil mode), and the first convolution of 1.0 does not pad. At 227
  pixels, which the authors' weights want, every window fits and nothing is rounded; at 224 it is.
- The classifier is a 1 × 1 convolution on every cell, a ReLU, and then the mean over cells. `head` holds that
  convolution as a Linear on cells, so logits are not a linear function of the pooled features.
- The layers are the groups of fire modules between two poolings, each tapped before its pooling.
- 1.1 pools earlier and costs 2.4 times less; its accuracy is the same.

Sources: Iandola et al. 2016 (1602.07360), table 1; the authors' Caffe `SqueezeNet_v1.0` and `v1.1` for padding and
rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from odonata.backbones.interface import Backbone, Format, Tap, map_in_format
from odonata.nn.transformer import wanted_layers


@dataclass(frozen=True)
class SqueezeNetConfig:
    """What a SqueezeNet is made of; see `VARIANTS` for the published ones.

    Raises:
        ValueError: the fire modules' fields are of different lengths, or their number is not that of `depths`.
    """

    depths: tuple[int, ...] = (3, 4, 1)
    """Fire modules of each stage; a pooling stands before each stage."""
    squeeze: tuple[int, ...] = (16, 16, 32, 32, 48, 48, 64, 64)
    """Width of each fire module's 1 × 1 that squeezes."""
    expand: tuple[int, ...] = (64, 64, 128, 128, 192, 192, 256, 256)
    """Width of each of the two convolutions that expand; a module gives twice as many channels."""
    stem_width: int = 96
    """Channels of the first convolution."""
    stem_kernel: int = 7
    """Side of its kernel; its stride is 2."""
    dropout: float = 0.5
    """Dropout before the classifier."""
    channels: int = 3
    """Channels of the image."""

    def __post_init__(self) -> None:
        if not len(self.squeeze) == len(self.expand) == sum(self.depths):
            raise ValueError(f"squeeze and expand need {sum(self.depths)} numbers each, one for each module of depths")


class SqueezeNet(Backbone):
    """A network of fire modules.

    Args:
        config: what it is made of.
    """

    family = "squeezenet"

    def __init__(self, config: SqueezeNetConfig) -> None:
        super().__init__()
        self.config = config
        self.num_features = 2 * config.expand[-1]
        self.stem = nn.Conv2d(config.channels, config.stem_width, config.stem_kernel, 2)
        stages: list[Stage] = []
        channels, at = config.stem_width, 0
        for depth in config.depths:
            widths = list(zip(config.squeeze, config.expand, strict=True))[at : at + depth]
            stages.append(Stage(channels, widths))
            channels, at = 2 * widths[-1][1], at + depth
        self.stages = nn.ModuleList(stages)
        self.dropout = nn.Dropout(config.dropout)
        self.head: nn.Module = nn.Identity()
        self._init_weights()

    @property
    def taps(self) -> tuple[Tap, ...]:
        """What each stage gives."""
        ends = [sum(self.config.depths[: i + 1]) - 1 for i in range(len(self.config.depths))]
        return tuple(Tap(2 * self.config.expand[end], 4 * 2**i) for i, end in enumerate(ends))

    def forward_features(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch dim map_height map_width"]:
        """The map after the last fire module."""
        return self.features(images, [-1])[0]

    def forward_head(
        self, features: Float[Tensor, "batch dim height width"], pre_logits: bool = False
    ) -> Float[Tensor, "batch out_dim"]:
        """The mean over the map; or the classifier on every cell, a ReLU, and the mean."""
        if pre_logits:
            return features.mean((2, 3))
        cells = self.dropout(features).flatten(2).transpose(1, 2)
        return F.relu(self.head(cells)).mean(1)

    def features(
        self, images: Float[Tensor, "batch channels height width"], layers: Sequence[int], format: Format = "native"
    ) -> list[Tensor]:
        """Maps after the named stages; see `Backbone.features`."""
        wanted = wanted_layers(layers, len(self.stages))
        x = F.relu(self.stem(images), inplace=True)
        maps: list[Tensor] = []
        for stage in self.stages[: max(wanted, default=-1) + 1]:
            x = stage(x)
            maps.append(x)
        return [map_in_format(maps[i], format) for i in wanted]

    @torch.no_grad()
    def _init_weights(self) -> None:
        """He et al.'s uniform initialisation with zero biases."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight)
                nn.init.zeros_(module.bias)  # pyright: ignore[reportArgumentType]


class Stage(nn.Module):
    """A pooling and fire modules."""

    def __init__(self, channels: int, widths: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self.checkpointing = False
        self.pool = nn.MaxPool2d(3, 2, ceil_mode=True)
        before = [channels, *(2 * expand for _, expand in widths)]
        self.layers = nn.ModuleList(Fire(c, s, e) for c, (s, e) in zip(before, widths, strict=False))

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch out height2 width2"]:
        """Returns the map after the last module."""
        x = self.pool(x)
        for layer in self.layers:
            recompute = self.checkpointing and self.training and torch.is_grad_enabled()
            x = checkpoint(layer, x, use_reentrant=False) if recompute else layer(x)  # pyright: ignore[reportAssignmentType]
        return x


class Fire(nn.Module):
    """A 1 × 1 that squeezes; a 1 × 1 and a 3 × 3 that expand, side by side (sec. 3.2)."""

    def __init__(self, channels: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, squeeze, 1)
        self.expand1x1 = nn.Conv2d(squeeze, expand, 1)
        self.expand3x3 = nn.Conv2d(squeeze, expand, 3, padding=1)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch out height width"]:
        """Returns the next map."""
        x = F.relu(self.squeeze(x), inplace=True)
        return F.relu(torch.cat([self.expand1x1(x), self.expand3x3(x)], 1), inplace=True)


def build(config: SqueezeNetConfig) -> SqueezeNet:
    """Returns a tower of this configuration."""
    return SqueezeNet(config)


VARIANTS: dict[str, SqueezeNetConfig] = {
    "squeezenet1_0": SqueezeNetConfig(),
    "squeezenet1_1": SqueezeNetConfig((2, 2, 4), stem_width=64, stem_kernel=3),
}
"""The authors' two versions."""
