"""Residual networks in the forms that the field uses.

Notable:
- v1.5 (torchvision, timm, transformers) strides in the 3 × 3 of a bottleneck, v1 (Caffe's and old detectors' weights)
  in its first 1 × 1.
- CIFAR's form has a 3 × 3 stem, no pooling and three stages; its shortcut is free of weights (the paper's option A) in
  `resnet20` … `resnet110`, and a convolution in `resnet8x4` and `resnet32x4`, which distillation papers use.
- A deep stem (three 3 × 3), dilation instead of stride, frozen and group norms serve segmentation and detection.
  PSPNet's tower is `resnet50` with `stem="deep", stem_width=128, output_stride=8, dilate_first=True`; DETR's DC5 has
  `output_stride=16`; detection files of torchvision want `norm="frozen_batch"`, their oldest with `norm_eps=0`.
- The last activation of a block is a module of its own, so that what enters it can be tapped.

Sources: He et al. 2015 (1512.03385), sec. 3.3, 4.2; torchvision `models/resnet.py` (v1.5, dilation); Zhao et al. 2017
(1612.01105), semseg `model/pspnet.py` (deep stem, the other dilation); Tian et al. 2019, RepDistiller
`models/resnet.py` (x4).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from odonata.backbones.interface import Backbone, Format, Tap, channels_last, map_in_format
from odonata.nn.norm import NormName, make_norm
from odonata.nn.transformer import wanted_layers


@dataclass(frozen=True)
class ResNetConfig:
    """What a residual network is made of; see `VARIANTS` for the published ones."""

    block: Literal["basic", "bottleneck"] = "bottleneck"
    """Two 3 × 3, or 1 × 1, 3 × 3 and 1 × 1 with four times the width out."""
    depths: tuple[int, ...] = (3, 4, 6, 3)
    """Blocks of each stage."""
    widths: tuple[int, ...] = (64, 128, 256, 512)
    """Width of each stage, before a bottleneck's expansion."""
    stem: Literal["imagenet", "cifar", "deep"] = "imagenet"
    """7 × 7 with stride 2; 3 × 3 with stride 1 and no pooling; or three 3 × 3, the first with stride 2, of which only
    the third has the full width."""
    stem_width: int = 64
    """Channels that the stem gives."""
    stride_in: Literal["3x3", "1x1"] = "3x3"
    """Which convolution of a bottleneck has the stride: v1.5 or v1."""
    shortcut: Literal["conv", "pad"] = "conv"
    """Where the shape changes: a 1 × 1 convolution, or subsampling padded with zero channels."""
    groups: int = 1
    """Groups of a bottleneck's 3 × 3 (ResNeXt)."""
    width_per_group: int = 64
    """Width of a bottleneck's 3 × 3 relative to 64 (Wide ResNet, ResNeXt)."""
    output_stride: Literal[8, 16, 32] = 32
    """Pixels a cell of the last map; below 32 the last stages dilate instead of striding."""
    dilate_first: bool = False
    """Whether the first block of a dilated stage has the new dilation (PSPNet) or that of the stage before it, as
    torchvision and DETR have it."""
    norm: NormName = "batch"
    """Normalisation; of `frozen_batch` nothing is trained and no statistics move."""
    norm_eps: float = 1e-5
    """Its epsilon."""
    zero_init_last: bool = False
    """Whether each block's last normalisation starts at zero (Goyal et al. 2017, sec. 5.1)."""
    channels: int = 3
    """Channels of the image."""

    def __post_init__(self) -> None:
        if len(self.depths) != len(self.widths):
            raise ValueError(f"{len(self.depths)} depths for {len(self.widths)} widths")
        if self.block == "basic" and (self.groups != 1 or self.width_per_group != 64):
            raise ValueError("groups and width_per_group are for bottlenecks")
        if self.shortcut == "pad" and self.block != "basic":
            raise ValueError("shortcut 'pad' goes with block 'basic'")
        if self.stem == "cifar" and self.output_stride != 32:
            raise ValueError("output_stride is for ImageNet's stems")

    @property
    def expansion(self) -> int:
        """Channels out of a block relative to its stage's width."""
        return 4 if self.block == "bottleneck" else 1


class ResNet(Backbone):
    """A residual network; its layers are its stages.

    Args:
        config: what it is made of.
    """

    family = "resnet"

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        self.config = config
        self.num_features = config.widths[-1] * config.expansion
        self.stem = Stem(config)
        stages: list[Stage] = []
        channels, dilation, stride = config.stem_width, 1, self.stem.stride
        for number, (depth, width) in enumerate(zip(config.depths, config.widths, strict=True)):
            step, before = (1 if number == 0 else 2), dilation
            if step == 2 and config.stem != "cifar" and stride * 2 > config.output_stride:
                step, dilation = 1, dilation * 2
            first = dilation if config.dilate_first else before
            stages.append(Stage(config, channels, width, depth, step, first, dilation))
            channels, stride = width * config.expansion, stride * step
        self.stages = nn.ModuleList(stages)
        self.head: nn.Module = nn.Identity()
        self._init_weights()

    @property
    def taps(self) -> tuple[Tap, ...]:
        """What each stage gives."""
        taps: list[Tap] = []
        stride = self.stem.stride
        for stage, width in zip(self.stages, self.config.widths, strict=True):
            stride *= stage.stride  # pyright: ignore[reportOperatorIssue]
            taps.append(Tap(width * self.config.expansion, int(stride)))
        return tuple(taps)

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

    @torch.no_grad()
    def _init_weights(self) -> None:
        """He et al.'s initialisation for the convolutions, fan-out, as torchvision's."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if self.config.zero_init_last:
            for module in self.modules():
                if isinstance(module, BasicBlock | Bottleneck):
                    last = module.norm2 if isinstance(module, BasicBlock) else module.norm3
                    nn.init.zeros_(last.weight)  # pyright: ignore[reportArgumentType]


class Stem(nn.Module):
    """What stands before the stages."""

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        width, half = config.stem_width, config.stem_width // 2
        self.stride = 1 if config.stem == "cifar" else 4
        if config.stem == "deep":
            steps = ((config.channels, half, 2), (half, half, 1), (half, width, 1))
            self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, s, 1, bias=False) for a, b, s in steps)
            self.norms = nn.ModuleList(make_norm(config.norm, b, config.norm_eps) for _, b, _ in steps)
        else:
            size, stride = (3, 1) if config.stem == "cifar" else (7, 2)
            self.convs = nn.ModuleList([nn.Conv2d(config.channels, width, size, stride, size // 2, bias=False)])
            self.norms = nn.ModuleList([make_norm(config.norm, width, config.norm_eps)])
        self.pool = nn.Identity() if config.stem == "cifar" else nn.MaxPool2d(3, 2, 1)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch out height2 width2"]:
        """Returns the first map."""
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.relu(norm(conv(x)), inplace=True)
        return self.pool(x)


class Stage(nn.Module):
    """Blocks of one width; only the first may stride."""

    def __init__(
        self, config: ResNetConfig, channels: int, width: int, depth: int, stride: int, first: int, dilation: int
    ) -> None:
        super().__init__()
        self.stride, self.checkpointing = stride, False
        kind = BasicBlock if config.block == "basic" else Bottleneck
        blocks = [kind(config, channels, width, stride, first)]
        blocks += [kind(config, width * config.expansion, width, 1, dilation) for _ in range(depth - 1)]
        self.layers = nn.ModuleList(blocks)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch out height2 width2"]:
        """Returns the map after the last block."""
        for layer in self.layers:
            recompute = self.checkpointing and self.training and torch.is_grad_enabled()
            x = checkpoint(layer, x, use_reentrant=False) if recompute else layer(x)  # pyright: ignore[reportAssignmentType]
        return x


class Shortcut(nn.Module):
    """The identity's place where the shape changes."""

    def __init__(self, config: ResNetConfig, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.stride, self.extra = stride, out - channels
        self.pads = config.shortcut == "pad"
        if not self.pads:
            self.conv = nn.Conv2d(channels, out, 1, stride, bias=False)
            self.norm = make_norm(config.norm, out, config.norm_eps)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch out height2 width2"]:
        """Returns what is added to the branch."""
        if not self.pads:
            return self.norm(self.conv(x))
        front = self.extra // 2
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, front, self.extra - front))


class BasicBlock(nn.Module):
    """Two 3 × 3 convolutions."""

    def __init__(self, config: ResNetConfig, channels: int, width: int, stride: int, dilation: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, dilation, dilation, bias=False)
        self.norm1 = make_norm(config.norm, width, config.norm_eps)
        self.conv2 = nn.Conv2d(width, width, 3, 1, dilation, dilation, bias=False)
        self.norm2 = make_norm(config.norm, width, config.norm_eps)
        changes = stride > 1 or channels != width
        self.shortcut = Shortcut(config, channels, width, stride) if changes else nn.Identity()
        self.act = nn.ReLU()  # not in place: what enters it is tapped by distillation

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch out height2 width2"]:
        """Returns the next map."""
        out = F.relu(self.norm1(self.conv1(x)), inplace=True)
        return self.act(self.norm2(self.conv2(out)).add_(self.shortcut(x)))  # in place: no further map is made


class Bottleneck(nn.Module):
    """1 × 1 down, 3 × 3, 1 × 1 up."""

    def __init__(self, config: ResNetConfig, channels: int, width: int, stride: int, dilation: int) -> None:
        super().__init__()
        inner = width * config.width_per_group // 64 * config.groups
        first, second = (stride, 1) if config.stride_in == "1x1" else (1, stride)
        out = 4 * width
        self.conv1 = nn.Conv2d(channels, inner, 1, first, bias=False)
        self.norm1 = make_norm(config.norm, inner, config.norm_eps)
        self.conv2 = nn.Conv2d(inner, inner, 3, second, dilation, dilation, config.groups, bias=False)
        self.norm2 = make_norm(config.norm, inner, config.norm_eps)
        self.conv3 = nn.Conv2d(inner, out, 1, bias=False)
        self.norm3 = make_norm(config.norm, out, config.norm_eps)
        changes = stride > 1 or channels != out
        self.shortcut = Shortcut(config, channels, out, stride) if changes else nn.Identity()
        self.act = nn.ReLU()  # not in place: what enters it is tapped by distillation

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch out height2 width2"]:
        """Returns the next map."""
        out = F.relu(self.norm1(self.conv1(x)), inplace=True)
        out = F.relu(self.norm2(self.conv2(out)), inplace=True)
        return self.act(self.norm3(self.conv3(out)).add_(self.shortcut(x)))  # in place: no further map is made


def build(config: ResNetConfig) -> ResNet:
    """Returns a tower of this configuration."""
    return ResNet(config)


def _imagenet(block: Literal["basic", "bottleneck"], *depths: int) -> ResNetConfig:
    return ResNetConfig(block=block, depths=depths)


def _cifar(depth: int) -> ResNetConfig:
    """He et al. 2015, sec. 4.2: 6n + 2 layers of widths 16, 32, 64."""
    n = (depth - 2) // 6
    return ResNetConfig("basic", (n, n, n), (16, 32, 64), stem="cifar", stem_width=16, shortcut="pad")


def _times4(depth: int) -> ResNetConfig:
    n = (depth - 2) // 6
    return ResNetConfig("basic", (n, n, n), (64, 128, 256), stem="cifar", stem_width=32)


def _narrow(block: Literal["basic", "bottleneck"], norm: NormName = "batch") -> ResNetConfig:
    return ResNetConfig(block, (1, 1, 1, 1), (16, 32, 64, 128), stem_width=16, norm=norm)


VARIANTS: dict[str, ResNetConfig] = {
    "resnet18": _imagenet("basic", 2, 2, 2, 2),
    "resnet34": _imagenet("basic", 3, 4, 6, 3),
    "resnet50": _imagenet("bottleneck", 3, 4, 6, 3),
    "resnet101": _imagenet("bottleneck", 3, 4, 23, 3),
    "resnet152": _imagenet("bottleneck", 3, 8, 36, 3),
    **{f"resnet{depth}": _cifar(depth) for depth in (8, 14, 20, 32, 44, 56, 110)},
    **{f"resnet{depth}x4": _times4(depth) for depth in (8, 32)},
    # SwAV's and SimCLR's wide form: every width doubled.
    "resnet50x2": ResNetConfig(widths=(128, 256, 512, 1024), stem_width=128),
    # For laptops: a quarter of ResNet-18's width on CIFAR's stem.
    "resnet18-small": ResNetConfig("basic", (2, 2, 2, 2), (16, 32, 64, 128), stem="cifar", stem_width=16),
    # For detectors and segmenters on laptops: the same widths at strides 4 to 32, one block a stage.
    "resnet10-small": _narrow("basic"),
    "resnet10-small-gn": _narrow("basic", norm="group"),
    "resnet14-small": _narrow("bottleneck"),
}
"""The published towers by name, and small ones for laptops: `resnet18-small` for small pictures, others for scenes."""
