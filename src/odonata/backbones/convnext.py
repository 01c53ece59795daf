"""ConvNeXt: a residual network with a transformer's habits, and its second version, which normalises responses.

Notable:
- A block is a 7 × 7 convolution per channel, a LayerNorm over channels and a two-layer MLP per cell. Maps lie in memory
  with their channels last, so that norms and MLPs, which want channels last, read them without a copy.
- Version 1 scales each branch by a learned factor that starts at 1e-6; version 2 has none and puts global response
  normalisation between the two layers of the MLP.
- The last map is not normed: the mean over it is. transformers' final norm has epsilon 1e-12 by default; that of all
  others is 1e-6.
- Pixels beyond the last whole patch, and cells beyond the last whole pair, are left out, as everywhere.

Sources: Liu et al. 2022 (2201.03545), sec. 2, figure 4, table 9; Woo et al. 2023 (2301.00808), sec. 3, algorithm 1,
appendix A.1 (sizes); the start values of facebookresearch/ConvNeXt `models/convnext.py` and ConvNeXt-V2
`models/convnextv2.py`.
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
from odonata.nn.transformer import DropPath, LayerScale, wanted_layers

NORM_EPS = 1e-6
"""Epsilon of every LayerNorm but the final one, and of the response normalisation, in all published weights."""


@dataclass(frozen=True)
class ConvNeXtConfig:
    """What a ConvNeXt is made of; see `VARIANTS` for the published ones."""

    depths: tuple[int, ...] = (3, 3, 9, 3)
    """Blocks of each stage."""
    widths: tuple[int, ...] = (96, 192, 384, 768)
    """Channels of each stage."""
    patch_size: int = 4
    """Pixels on a side of the stem's patches."""
    layer_scale: float | None = 1e-6
    """Start of the learned scale on each branch; None for none (version 2)."""
    response_norm: bool = False
    """Whether the MLPs normalise responses (version 2)."""
    drop_path: float = 0.0
    """Stochastic depth rate of the last block; grows linearly from 0 over all blocks. The paper has 0.1, 0.4, 0.5 and
    0.5 for T, S, B and L."""
    head_norm_eps: float = 1e-6
    """Epsilon of the final norm; transformers' default is 1e-12."""
    channels: int = 3
    """Channels of the image."""

    def __post_init__(self) -> None:
        if len(self.depths) != len(self.widths):
            raise ValueError(f"{len(self.depths)} depths for {len(self.widths)} widths")


class ConvNeXt(Backbone):
    """A ConvNeXt; its layers are its stages.

    Args:
        config: what it is made of.
    """

    family = "convnext"

    def __init__(self, config: ConvNeXtConfig) -> None:
        super().__init__()
        self.config = config
        self.num_features = config.widths[-1]
        self.stem = nn.ModuleDict(
            {
                "conv": nn.Conv2d(config.channels, config.widths[0], config.patch_size, config.patch_size),
                "norm": nn.LayerNorm(config.widths[0], eps=NORM_EPS),
            }
        )
        last = max(sum(config.depths) - 1, 1)
        rates = iter([config.drop_path * i / last for i in range(sum(config.depths))])
        self.stages = nn.ModuleList(
            Stage(config, number, [next(rates) for _ in range(depth)]) for number, depth in enumerate(config.depths)
        )
        self.norm = nn.LayerNorm(self.num_features, eps=config.head_norm_eps)
        self.head: nn.Module = nn.Identity()
        self._init_weights()

    @property
    def taps(self) -> tuple[Tap, ...]:
        """What each stage gives."""
        return tuple(Tap(width, self.config.patch_size * 2**i) for i, width in enumerate(self.config.widths))

    def forward_features(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch dim map_height map_width"]:
        """The map after the last stage, not normed."""
        return self.features(images, [-1])[0]

    def forward_head(
        self, features: Float[Tensor, "batch dim height width"], pre_logits: bool = False
    ) -> Float[Tensor, "batch out_dim"]:
        """The mean over the map, normed, and the classifier."""
        pooled = self.norm(features.mean((2, 3)))
        return pooled if pre_logits else self.head(pooled)

    def features(
        self, images: Float[Tensor, "batch channels height width"], layers: Sequence[int], format: Format = "native"
    ) -> list[Tensor]:
        """Maps after the named stages; see `Backbone.features`.

        Raises:
            ValueError: a stage does not exist, or the images have other channels or are too small for the last stage.
        """
        wanted = wanted_layers(layers, len(self.stages))
        smallest = self.taps[max(wanted, default=0)].stride
        if images.ndim != 4 or images.shape[1] != self.config.channels or min(images.shape[2:]) < smallest:
            raise ValueError(
                f"images of shape {tuple(images.shape)}: want [batch, {self.config.channels}, height, width] "
                f"of at least {smallest} pixels a side"
            )
        x = self.stem["conv"](images.contiguous(memory_format=torch.channels_last))
        x = channel_norm(x, self.stem["norm"])
        maps: list[Tensor] = []
        for stage in self.stages[: max(wanted, default=-1) + 1]:
            x = stage(x)
            maps.append(x)
        return [map_in_format(maps[i], format) for i in wanted]

    @torch.no_grad()
    def _init_weights(self) -> None:
        """The original's: truncated normal of 0.02 for convolutions and Linears, biases zero."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


class Stage(nn.Module):
    """A halving, where there is a stage before it, and blocks of one width."""

    def __init__(self, config: ConvNeXtConfig, number: int, rates: list[float]) -> None:
        super().__init__()
        width, self.checkpointing = config.widths[number], False
        self.downsample = Downsample(config.widths[number - 1], width) if number else nn.Identity()
        self.layers = nn.ModuleList(Block(width, rate, config.layer_scale, config.response_norm) for rate in rates)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch out height2 width2"]:
        """Returns the map after the last block."""
        x = self.downsample(x)
        for layer in self.layers:
            recompute = self.checkpointing and self.training and torch.is_grad_enabled()
            x = checkpoint(layer, x, use_reentrant=False) if recompute else layer(x)  # pyright: ignore[reportAssignmentType]
        return x


class Downsample(nn.Module):
    """A norm and a 2 × 2 convolution with stride 2 (2201.03545, sec. 2.6)."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=NORM_EPS)
        self.conv = nn.Conv2d(channels, out, 2, 2)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch out height2 width2"]:
        """Returns the map of half the size."""
        return self.conv(channel_norm(x, self.norm))


class Block(nn.Module):
    """Convolution per channel, norm, MLP per cell (2201.03545, figure 4; 2301.00808, figure 5)."""

    def __init__(self, width: int, rate: float, layer_scale: float | None, response_norm: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.fc1 = nn.Linear(width, 4 * width)
        self.response_norm = ResponseNorm(4 * width) if response_norm else nn.Identity()
        self.fc2 = nn.Linear(4 * width, width)
        self.scale = nn.Identity() if layer_scale is None else LayerScale(width, layer_scale)
        self.drop_path = DropPath(rate)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels height width"]:
        """Returns the next map."""
        y = self.norm(self.conv(x).permute(0, 2, 3, 1))
        y = self.fc2(self.response_norm(F.gelu(self.fc1(y))))
        return x + self.drop_path(self.scale(y)).permute(0, 3, 1, 2)


class ResponseNorm(nn.Module):
    """Global response normalisation: channels compete by their norm over the map (2301.00808, algorithm 1).

    Args:
        dim: channels.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Float[Tensor, "batch height width dim"]) -> Float[Tensor, "batch height width dim"]:
        """Returns `x` plus its calibrated self; at the start, `x`."""
        response = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)
        share = response / (response.mean(-1, keepdim=True) + NORM_EPS)
        return x + torch.addcmul(self.bias, self.weight, x * share)


def channel_norm(x: Float[Tensor, "batch channels height width"], norm: nn.Module) -> Tensor:
    """Returns a map, its channels normed cell by cell."""
    return norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def build(config: ConvNeXtConfig) -> ConvNeXt:
    """Returns a tower of this configuration."""
    return ConvNeXt(config)


def _v1(third: int, width: int) -> ConvNeXtConfig:
    return ConvNeXtConfig((3, 3, third, 3), (width, 2 * width, 4 * width, 8 * width))


def _v2(depths: tuple[int, int, int, int], width: int) -> ConvNeXtConfig:
    widths = (width, 2 * width, 4 * width, 8 * width)
    return ConvNeXtConfig(depths, widths, layer_scale=None, response_norm=True)


VARIANTS: dict[str, ConvNeXtConfig] = {
    "convnext-t": _v1(9, 96),
    "convnext-s": _v1(27, 96),
    "convnext-b": _v1(27, 128),
    "convnext-l": _v1(27, 192),
    "convnext-xl": _v1(27, 256),
    "convnextv2-atto": _v2((2, 2, 6, 2), 40),
    "convnextv2-femto": _v2((2, 2, 6, 2), 48),
    "convnextv2-pico": _v2((2, 2, 6, 2), 64),
    "convnextv2-nano": _v2((2, 2, 8, 2), 80),
    "convnextv2-t": _v2((3, 3, 9, 3), 96),
    "convnextv2-b": _v2((3, 3, 27, 3), 128),
    "convnextv2-l": _v2((3, 3, 27, 3), 192),
    "convnextv2-h": _v2((3, 3, 27, 3), 352),
    # For laptops: maps of 16, 8 and 4 cells of a picture of 32 pixels.
    "convnext-tiny32": ConvNeXtConfig((2, 2, 4), (40, 80, 160), patch_size=2),
}
"""The published towers by name, and `convnext-tiny32` for small pictures on a laptop."""
