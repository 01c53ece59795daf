"""EfficientNet: one small network, scaled in depth, width and resolution together.

Notable:
- B0 … B7 are a table of (width, depth, resolution, dropout), not powers of the coefficients 1.2, 1.1, 1.15 that the
  paper's search found; `odonata.backbones.compound` has that search.
- TensorFlow's "same" padding is asymmetric where a stride meets an even map, so it depends on the size of the input. It
  is computed from each input; transformers and EfficientNet-PyTorch fix it for the native size.
- Two conventions are in use and files do not tell them: `odonata.nn.efficientnet_sizes.CONVENTIONS`. Momentum is
  PyTorch's, the share of the new batch: TensorFlow's .99 is .01 here.
- Squeeze-and-excitation narrows to a quarter of the block's input channels, not of its expanded ones.
- The layers are the seven stages. The 1 × 1 convolution above them (`top`) belongs to `forward_features`, so the last
  tap is narrower than `num_features`.

Sources: Tan and Le 2019 (1905.11946), table 1, sec. 4; the authors' TensorFlow code for what the paper leaves open
(rounding, padding, drop connect, initialisation).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from odonata.backbones.interface import Backbone, Format, Tap, channels_last, map_in_format
from odonata.nn.efficientnet_sizes import (
    CONVENTIONS,
    EXPANSIONS,
    KERNELS,
    REPEATS,
    SIZES,
    STRIDES,
    WIDTHS,
    round_channels,
    round_repeats,
)
from odonata.nn.norm import make_norm
from odonata.nn.transformer import DropPath, wanted_layers

Padding = Literal["same", "symmetric"]


@dataclass(frozen=True)
class EfficientNetConfig:
    """What an EfficientNet is made of; see `VARIANTS` for the published ones.

    Raises:
        ValueError: the stages' fields are of different lengths, or a factor is not positive.
    """

    width: float = 1.0
    """Factor on all channels, which are then rounded to a multiple of `divisor`."""
    depth: float = 1.0
    """Factor on the blocks of each stage, rounded up."""
    resolution: int = 224
    """Side, in pixels, of the images that it is meant for; any other works as well."""
    dropout: float = 0.2
    """Dropout before the classifier."""
    drop_connect: float = 0.2
    """Probability of dropping a sample's branch in the last block; grows linearly with depth from 0."""
    widths: tuple[int, ...] = WIDTHS
    """Channels out of each stage, before `width`."""
    repeats: tuple[int, ...] = REPEATS
    """Blocks of each stage, before `depth`."""
    expansions: tuple[int, ...] = EXPANSIONS
    """Width inside a block relative to its input."""
    kernels: tuple[int, ...] = KERNELS
    """Sides of the depthwise kernels, odd."""
    strides: tuple[int, ...] = STRIDES
    """Stride of each stage's first block."""
    stem_width: int = 32
    """Channels of the stem, before `width`."""
    stem_stride: int = 2
    """Stride of the stem."""
    top_width: int = 1280
    """Channels of the last 1 × 1 convolution, before `width`."""
    squeeze: float = 0.25
    """Width inside squeeze-and-excitation relative to the block's input; 0 leaves it out."""
    divisor: int = 8
    """What channels are a multiple of."""
    padding: Padding = "same"
    """TensorFlow's, from the size of the input, or half a kernel on every side."""
    norm_eps: float = 1e-3
    """Epsilon of batch normalisation."""
    norm_momentum: float = 0.01
    """Its momentum, PyTorch's: the share of the new batch in the running statistics."""
    channels: int = 3
    """Channels of the image."""

    def __post_init__(self) -> None:
        fields = (self.widths, self.repeats, self.expansions, self.kernels, self.strides)
        if len({len(field) for field in fields}) != 1:
            raise ValueError("widths, repeats, expansions, kernels and strides need one number for each stage")
        if min(self.width, self.depth) <= 0:
            raise ValueError(f"width and depth must be positive, got {self.width} and {self.depth}")

    @property
    def stage_widths(self) -> tuple[int, ...]:
        """Channels out of each stage, after `width`."""
        return tuple(round_channels(width * self.width, self.divisor) for width in self.widths)

    @property
    def stage_repeats(self) -> tuple[int, ...]:
        """Blocks of each stage, after `depth`."""
        return tuple(round_repeats(count, self.depth) for count in self.repeats)


class EfficientNet(Backbone):
    """A network of mobile inverted bottlenecks; its layers are its stages.

    Args:
        config: what it is made of.
    """

    family = "efficientnet"

    def __init__(self, config: EfficientNetConfig) -> None:
        super().__init__()
        self.config = config
        channels = round_channels(config.stem_width * config.width, config.divisor)
        self.num_features = round_channels(config.top_width * config.width, config.divisor)
        self.stem = ConvNorm(config, config.channels, channels, 3, config.stem_stride)
        total, before = sum(config.stage_repeats), 0
        stages: list[Stage] = []
        for number, (out, repeats) in enumerate(zip(config.stage_widths, config.stage_repeats, strict=True)):
            rates = [config.drop_connect * (before + i) / total for i in range(repeats)]
            stages.append(Stage(config, number, channels, out, rates))
            channels, before = out, before + repeats
        self.stages = nn.ModuleList(stages)
        self.top = ConvNorm(config, channels, self.num_features, 1)
        self.dropout = nn.Dropout(config.dropout)
        self.head: nn.Module = nn.Identity()
        self._init_weights()

    @property
    def taps(self) -> tuple[Tap, ...]:
        """What each stage gives."""
        taps: list[Tap] = []
        stride = self.config.stem_stride
        for width, step in zip(self.config.stage_widths, self.config.strides, strict=True):
            stride *= step
            taps.append(Tap(width, stride))
        return tuple(taps)

    def forward_features(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch dim map_height map_width"]:
        """The map after the last stage and the 1 × 1 convolution above it."""
        return F.silu(self.top(self.features(images, [-1])[0]), inplace=True)

    def forward_head(
        self, features: Float[Tensor, "batch dim height width"], pre_logits: bool = False
    ) -> Float[Tensor, "batch out_dim"]:
        """The mean over the map; dropout and the classifier."""
        pooled = features.mean((2, 3))
        return pooled if pre_logits else self.head(self.dropout(pooled))

    def features(
        self, images: Float[Tensor, "batch channels height width"], layers: Sequence[int], format: Format = "native"
    ) -> list[Tensor]:
        """Maps after the named stages; see `Backbone.features`."""
        wanted = wanted_layers(layers, len(self.stages))
        x = F.silu(self.stem(channels_last(images)), inplace=True)
        maps: list[Tensor] = []
        for stage in self.stages[: max(wanted, default=-1) + 1]:
            x = stage(x)
            maps.append(x)
        return [map_in_format(maps[i], format) for i in wanted]

    @torch.no_grad()
    def _init_weights(self) -> None:
        """The authors': normal with variance 2 / fan out, where a depthwise kernel's fan out is its area."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
                nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


class SameConv2d(nn.Conv2d):
    """A convolution that pads as TensorFlow's "same": to ⌈size / stride⌉ cells, the odd pixel bottom and right."""

    def forward(self, input: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch out height2 width2"]:
        """Convolves."""
        x, (kh, kw), (sh, sw) = input, self.kernel_size, self.stride
        rows, columns = same_padding(x.shape[2], kh, sh), same_padding(x.shape[3], kw, sw)
        if rows % 2 or columns % 2:
            x = F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
            rows = columns = 0
        return F.conv2d(x, self.weight, self.bias, self.stride, (rows // 2, columns // 2), 1, self.groups)


def same_padding(size: int, kernel: int, stride: int) -> int:
    """Returns how many cells TensorFlow's "same" adds in all along one axis."""
    return max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)


class ConvNorm(nn.Module):
    """A convolution without bias and its normalisation."""

    def __init__(
        self, config: EfficientNetConfig, channels: int, out: int, kernel: int, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        # At stride 1 the two paddings agree, and the plain convolution is the faster one.
        kind = SameConv2d if config.padding == "same" and stride > 1 else nn.Conv2d
        self.conv = kind(channels, out, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.norm = make_norm("batch", out, config.norm_eps, config.norm_momentum)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch out height2 width2"]:
        """Convolves and normalises."""
        return self.norm(self.conv(x))


class SqueezeExcite(nn.Module):
    """Scales each channel by what all channels' means say (Hu et al. 2017, 1709.01507)."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, inner, 1)
        self.expand = nn.Conv2d(inner, channels, 1)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels height width"]:
        """Returns the scaled map."""
        scale = self.expand(F.silu(self.reduce(x.mean((2, 3), keepdim=True)), inplace=True))
        return x * scale.sigmoid()


class MBConv(nn.Module):
    """Expand, depthwise convolution, squeeze-and-excitation, project; a shortcut where the shape stays."""

    def __init__(
        self, config: EfficientNetConfig, channels: int, out: int, expansion: int, kernel: int, stride: int, drop: float
    ) -> None:
        super().__init__()
        inner = channels * expansion
        self.expand = ConvNorm(config, channels, inner, 1) if expansion != 1 else None
        self.depthwise = ConvNorm(config, inner, inner, kernel, stride, groups=inner)
        self.squeeze = SqueezeExcite(inner, max(1, int(channels * config.squeeze))) if config.squeeze else None
        self.project = ConvNorm(config, inner, out, 1)
        self.drop = DropPath(drop)
        self.adds = stride == 1 and channels == out

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch out height2 width2"]:
        """Returns the next map."""
        out = x if self.expand is None else F.silu(self.expand(x), inplace=True)
        out = F.silu(self.depthwise(out), inplace=True)
        if self.squeeze is not None:
            out = self.squeeze(out)
        out = self.project(out)
        return x + self.drop(out) if self.adds else out


class Stage(nn.Module):
    """Blocks of one width; only the first may stride."""

    def __init__(self, config: EfficientNetConfig, number: int, channels: int, out: int, rates: list[float]) -> None:
        super().__init__()
        self.checkpointing = False
        expansion, kernel, stride = config.expansions[number], config.kernels[number], config.strides[number]
        blocks = [MBConv(config, channels, out, expansion, kernel, stride, rates[0])]
        blocks += [MBConv(config, out, out, expansion, kernel, 1, rate) for rate in rates[1:]]
        self.layers = nn.ModuleList(blocks)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch out height2 width2"]:
        """Returns the map after the last block."""
        for layer in self.layers:
            recompute = self.checkpointing and self.training and torch.is_grad_enabled()
            x = checkpoint(layer, x, use_reentrant=False) if recompute else layer(x)  # pyright: ignore[reportAssignmentType]
        return x


def build(config: EfficientNetConfig) -> EfficientNet:
    """Returns a tower of this configuration."""
    return EfficientNet(config)


VARIANTS: dict[str, EfficientNetConfig] = {
    **{f"efficientnet-{size}": EfficientNetConfig(*row) for size, row in SIZES.items()},
    # For laptops and pictures of 32 to 64 pixels: half of B0's width and depth, and a stem that does not stride.
    "efficientnet-small": EfficientNetConfig(0.5, 0.5, 32, stem_stride=1),
}
"""The published towers by name, in the authors' conventions, and `efficientnet-small` for small pictures."""


def in_convention(config: EfficientNetConfig, convention: str) -> EfficientNetConfig:
    """Returns the configuration with another padding, epsilon and momentum: `tf` or `torch`; see `CONVENTIONS`."""
    return replace(config, **CONVENTIONS[convention])
