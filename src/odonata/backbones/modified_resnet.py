"""CLIP's ResNet towers.

Three convolutions and an average pool as stem, an average pool before every strided convolution against aliasing, and
attention pooling in place of the mean. Part and parameter names are openai/CLIP's, but for those of the pooling.

Source: Radford et al. 2021, sec. 2.4; openai/CLIP `model.py`, `ModifiedResNet`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from odonata.backbones.interface import Backbone, Format, Tap, map_in_format
from odonata.nn.pooling import AttentionPool2d
from odonata.nn.positions import PositionConvention
from odonata.nn.transformer import wanted_layers


@dataclass(frozen=True)
class ModifiedResNetConfig:
    """What CLIP's ResNet is made of; see `VARIANTS` for the published sizes."""

    image_size: int = 224
    """Side of the square image, in pixels, that the pooling is made for; a multiple of 32."""
    layers: tuple[int, int, int, int] = (3, 4, 6, 3)
    """Blocks in each of the four stages."""
    width: int = 64
    """Channels of the stem; the last map has 32 times as many."""
    num_heads: int = 32
    """Heads of the attention pooling: width / 2 in the published models."""
    embed_dim: int = 1024
    """Width of the pooled output: the attention pooling ends in the projection to the joint space."""
    position_convention: PositionConvention = "open_clip"
    """How the pooling's positions are resized for images of another size."""

    def __post_init__(self) -> None:
        if self.image_size % 32:
            raise ValueError(f"image_size {self.image_size} is not a multiple of 32")
        if 32 * self.width % self.num_heads:
            raise ValueError(f"{32 * self.width} channels do not divide into {self.num_heads} heads")


class Bottleneck(nn.Module):
    """A residual block of 1x1, 3x3 and 1x1 convolutions, its stride done by average pooling.

    Args:
        channels_in: channels that come in.
        channels: channels of the 3x3 convolution; four times as many go out.
        stride: 1 or 2.
    """

    def __init__(self, channels_in: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, 4 * channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * channels)
        self.pool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.downsample = (
            nn.Sequential(nn.Conv2d(channels_in, 4 * channels, 1, bias=False), nn.BatchNorm2d(4 * channels))
            if stride > 1 or channels_in != 4 * channels
            else None
        )

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch out height2 width2"]:
        """Returns the next map."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(self.pool(out)))
        shortcut = x if self.downsample is None else self.downsample(self.pool(x))
        return F.relu(out + shortcut)


class ModifiedResNet(Backbone):
    """CLIP's ResNet.

    Args:
        config: what it is made of.
    """

    family = "modified_resnet"

    def __init__(self, config: ModifiedResNetConfig) -> None:
        super().__init__()
        self.config = config
        self.num_features = config.embed_dim
        width = config.width
        self.conv1 = nn.Conv2d(3, width // 2, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width // 2)
        self.conv2 = nn.Conv2d(width // 2, width // 2, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width // 2)
        self.conv3 = nn.Conv2d(width // 2, width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.layer1 = _stage(width, width, config.layers[0], 1)
        self.layer2 = _stage(4 * width, 2 * width, config.layers[1], 2)
        self.layer3 = _stage(8 * width, 4 * width, config.layers[2], 2)
        self.layer4 = _stage(16 * width, 8 * width, config.layers[3], 2)
        self.attnpool = AttentionPool2d(
            config.image_size // 32, 32 * width, config.num_heads, config.embed_dim, config.position_convention
        )
        self.head: nn.Module = nn.Identity()
        self._init_weights()

    def forward_features(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch dim height32 width32"]:
        """The last map, at 1/32 of the image's size."""
        return self.features(images, [-1])[0]

    def forward_head(
        self, features: Float[Tensor, "batch dim height width"], pre_logits: bool = False
    ) -> Float[Tensor, "batch out_dim"]:
        """Pools the map of `forward_features`; `pre_logits` leaves the classifier out."""
        pooled = self.attnpool(features)
        return pooled if pre_logits else self.head(pooled)

    def features(
        self, images: Float[Tensor, "batch 3 height width"], layers: Sequence[int], format: Format = "native"
    ) -> list[Tensor]:
        """Maps after the named stages, 0..3 at 1/4, 1/8, 1/16 and 1/32 of the size; negative numbers count back."""
        wanted = wanted_layers(layers, 4)
        x = images
        for conv, norm in ((self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)):
            x = F.relu(norm(conv(x)))
        x = F.avg_pool2d(x, 2)
        maps: list[Tensor] = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4)[: max(wanted) + 1]:
            x = stage(x)
            maps.append(x)
        return [map_in_format(maps[i], format) for i in wanted]

    @property
    def taps(self) -> tuple[Tap, ...]:
        """What each stage gives."""
        return tuple(Tap(4 * self.config.width * 2**i, 4 * 2**i) for i in range(4))

    @torch.no_grad()
    def _init_weights(self) -> None:
        """openai/CLIP `initialize_parameters`: pooling N(0, 1/dim), the last norm of each block starts at zero."""
        std = self.attnpool.q.in_features**-0.5
        for linear in (self.attnpool.q, self.attnpool.k, self.attnpool.v, self.attnpool.proj):
            nn.init.normal_(linear.weight, std=std)
        for part in self.modules():
            if isinstance(part, Bottleneck):
                nn.init.zeros_(part.bn3.weight)


def _stage(channels_in: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
    rest = (Bottleneck(4 * channels, channels) for _ in range(blocks - 1))
    return nn.Sequential(Bottleneck(channels_in, channels, stride), *rest)


VARIANTS: dict[str, ModifiedResNetConfig] = {
    "RN50": ModifiedResNetConfig(),
    "RN101": ModifiedResNetConfig(layers=(3, 4, 23, 3), embed_dim=512),
    "RN50x4": ModifiedResNetConfig(image_size=288, layers=(4, 6, 10, 6), width=80, num_heads=40, embed_dim=640),
    "RN50x16": ModifiedResNetConfig(image_size=384, layers=(6, 8, 18, 8), width=96, num_heads=48, embed_dim=768),
    "RN50x64": ModifiedResNetConfig(image_size=448, layers=(3, 15, 36, 10), width=128, num_heads=64, embed_dim=1024),
}
"""The published towers: Radford et al. 2021, table 19; image sizes from openai/CLIP."""


def build(config: ModifiedResNetConfig) -> ModifiedResNet:
    """Returns a tower of this configuration."""
    return ModifiedResNet(config)
