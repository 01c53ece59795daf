"""VGG: stacks of 3 × 3 convolutions; with its dense layers as convolutions the tower of FCN and SSD.

Notable:
- The layers are the last map of each stack, after its ReLU, and the map after each pooling, in turn; then `fc6` and
  `fc7` where they are convolutions. `layer` finds them by the names that papers use: `conv4_3`, `pool3`, `fc7`.
- As a classifier it has dense layers on 7 × 7 cells, to which the last map is averaged at any other size (torchvision).
- FCN slides the same layers over the map: a 7 × 7 convolution without padding. For that the picture is padded by 100
  pixels, and all poolings round up as Caffe's do.
- SSD keeps the size at the fifth pooling (3 × 3, stride 1), thins `fc6` out to a 3 × 3 with dilation 6 and halves
  nothing after that. Only its third pooling rounds up in torchvision, all of them do in Caffe: at 300 and 512 pixels
  that is the same. `vgg16-ssd` has torchvision's.
- `convolutional_state` turns a classifier's weights into those of either; the thinning is DeepLab's.
- Dropout stands after `fc6` and `fc7`, on single numbers as in Caffe; SSD has none.

Sources: Simonyan and Zisserman 2014 (1409.1556), table 1; Long et al. 2015 (1411.4038), sec. 3.1 and Caffe's
`voc-fcn32s/train.prototxt`; Liu et al. 2016 (1512.02325), sec. 3; torchvision `models/vgg.py` and
`models/detection/ssd.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
class VGGConfig:
    """What a VGG is made of; see `VARIANTS`.

    Raises:
        ValueError: `depths` and `widths` are not of one length, or a pooling is named that is not there.
    """

    depths: tuple[int, ...] = (2, 2, 3, 3, 3)
    """Convolutions of each stack; a pooling stands after each."""
    widths: tuple[int, ...] = (64, 128, 256, 512, 512)
    """Their channels."""
    norm: Literal["none"] | NormName = "none"
    """Normalisation after each of them."""
    top: Literal["dense", "convolutions", "none"] = "dense"
    """What `fc6` and `fc7` are: parts of the classifier, further layers, or absent."""
    fc_width: int = 4096
    """Their width."""
    fc6_kernel: int = 7
    """Cells along a side that `fc6` reads."""
    fc6_dilation: int = 1
    """Its dilation as a convolution."""
    fc6_pads: bool = False
    """Whether it keeps the size of the map."""
    dropout: float = 0.5
    """Dropout after `fc6` and `fc7`."""
    first_padding: int = 1
    """Padding of the first convolution in pixels."""
    ceil_pools: tuple[int, ...] = ()
    """Poolings that round the size of the map up, counted from 1."""
    last_pool: Literal["2x2", "3x3"] = "2x2"
    """The last pooling: halves the map, or keeps its size."""
    channels: int = 3
    """Channels of the image."""

    def __post_init__(self) -> None:
        if len(self.depths) != len(self.widths):
            raise ValueError(f"{len(self.depths)} depths for {len(self.widths)} widths")
        if wrong := [number for number in self.ceil_pools if not 1 <= number <= len(self.depths)]:
            raise ValueError(f"ceil_pools names pooling {wrong[0]}; there are 1 to {len(self.depths)}")


class VGG(Backbone):
    """A VGG; its layers are named in `names`.

    Args:
        config: what it is made of.
    """

    family = "vgg"

    def __init__(self, config: VGGConfig) -> None:
        super().__init__()
        self.config = config
        before = [config.channels, *config.widths]
        paddings = [config.first_padding] + [1] * (len(config.depths) - 1)
        self.stages = nn.ModuleList(
            Stage(config, a, b, depth, padding)
            for a, b, depth, padding in zip(before, config.widths, config.depths, paddings, strict=False)
        )
        count = len(config.depths)
        pools = [nn.MaxPool2d(2, 2, ceil_mode=i + 1 in config.ceil_pools) for i in range(count)]
        self.pools = nn.ModuleList([*pools[:-1], nn.MaxPool2d(3, 1, 1)] if config.last_pool == "3x3" else pools)
        self.num_features = config.widths[-1] if config.top == "none" else config.fc_width
        if config.top == "dense":
            self.fc6: nn.Module = nn.Linear(config.widths[-1] * config.fc6_kernel**2, config.fc_width)
            self.fc7: nn.Module = nn.Linear(config.fc_width, config.fc_width)
        elif config.top == "convolutions":
            kernel, dilation = config.fc6_kernel, config.fc6_dilation
            padding = dilation * (kernel // 2) if config.fc6_pads else 0
            self.fc6 = nn.Conv2d(config.widths[-1], config.fc_width, kernel, 1, padding, dilation)
            self.fc7 = nn.Conv2d(config.fc_width, config.fc_width, 1)
        self.dropout = nn.Dropout(config.dropout)
        self.head: nn.Module = nn.Identity()
        self._init_weights()

    @property
    def names(self) -> tuple[str, ...]:
        """The layers' names in papers, in order."""
        pairs = [(f"conv{i}_{depth}", f"pool{i}") for i, depth in enumerate(self.config.depths, 1)]
        tops = ("fc6", "fc7") if self.config.top == "convolutions" else ()
        return (*(name for both in pairs for name in both), *tops)

    def layer(self, name: str) -> int:
        """Returns the number of a layer, as `features` takes it.

        Raises:
            ValueError: no such layer; names those that there are.
        """
        if name not in self.names:
            raise ValueError(f"no layer {name!r}; there are {', '.join(self.names)}")
        return self.names.index(name)

    @property
    def taps(self) -> tuple[Tap, ...]:
        """What each layer gives."""
        taps: list[Tap] = []
        stride = 1
        for number, width in enumerate(self.config.widths, 1):
            taps.append(Tap(width, stride))
            keeps = number == len(self.config.widths) and self.config.last_pool == "3x3"
            stride = stride if keeps else 2 * stride
            taps.append(Tap(width, stride))
        tops = 2 if self.config.top == "convolutions" else 0
        return (*taps, *[Tap(self.config.fc_width, stride)] * tops)

    def forward_features(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch dim map_height map_width"]:
        """The map after the last layer."""
        return self.features(images, [-1])[0]

    def forward_head(
        self, features: Float[Tensor, "batch dim height width"], pre_logits: bool = False
    ) -> Float[Tensor, "batch out_dim"]:
        """The dense layers where it has them, else the mean over the map; and the classifier."""
        if self.config.top == "dense":
            x = F.adaptive_avg_pool2d(features, self.config.fc6_kernel).flatten(1)
            pooled = self._fc(self.fc7, self._fc(self.fc6, x))
        else:
            pooled = features.mean((2, 3))
        return pooled if pre_logits else self.head(pooled)

    def features(
        self, images: Float[Tensor, "batch channels height width"], layers: Sequence[int], format: Format = "native"
    ) -> list[Tensor]:
        """Maps after the named layers; see `Backbone.features` and `layer`."""
        wanted = wanted_layers(layers, len(self.names))
        x, last = channels_last(images), max(wanted, default=-1)
        maps: list[Tensor] = []
        for stage, pool in zip(self.stages, self.pools, strict=True):
            for part in (stage, pool):
                if len(maps) <= last:
                    x = part(x)
                    maps.append(x)
        for name in self.names[len(maps) : last + 1]:
            x = self._fc(self.fc6 if name == "fc6" else self.fc7, x)
            maps.append(x)
        return [map_in_format(maps[i], format) for i in wanted]

    def _fc(self, layer: nn.Module, x: Tensor) -> Tensor:
        return self.dropout(F.relu(layer(x)))

    @torch.no_grad()
    def _init_weights(self) -> None:
        """He et al.'s initialisation for the convolutions, fan-out, and N(0, 0.01²) for the dense layers."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)  # pyright: ignore[reportArgumentType]
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)


class Stage(nn.Module):
    """Convolutions of one width."""

    def __init__(self, config: VGGConfig, channels: int, width: int, depth: int, padding: int) -> None:
        super().__init__()
        self.checkpointing = False
        self.layers = nn.ModuleList(
            Layer(config, width if i else channels, width, 1 if i else padding) for i in range(depth)
        )

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch out height2 width2"]:
        """Returns the map after the last convolution."""
        for layer in self.layers:
            recompute = self.checkpointing and self.training and torch.is_grad_enabled()
            x = checkpoint(layer, x, use_reentrant=False) if recompute else layer(x)  # pyright: ignore[reportAssignmentType]
        return x


class Layer(nn.Module):
    """A 3 × 3 convolution, a normalisation where there is one, and a ReLU."""

    def __init__(self, config: VGGConfig, channels: int, width: int, padding: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, padding=padding)
        self.norm = nn.Identity() if config.norm == "none" else make_norm(config.norm, width)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch out height2 width2"]:
        """Returns the next map."""
        return F.relu(self.norm(self.conv(x)), inplace=True)


def convolutional_state(state: Mapping[str, Tensor], dense: VGGConfig, config: VGGConfig) -> dict[str, Tensor]:
    """Returns a classifier's weights for a tower whose `fc6` and `fc7` are convolutions, without its `head`.

    Where the tower's are smaller, every so manieth unit and cell is taken, the first one among them.

    Args:
        state: of a `VGG` with dense layers.
        dense: its configuration.
        config: of the other; the same but for `top` and what follows it.

    Raises:
        ValueError: its `fc6` or `fc7` is larger than the classifier's.
    """
    if config.fc_width > dense.fc_width or config.fc6_kernel > dense.fc6_kernel:
        raise ValueError(
            f"fc6 of {config.fc_width} units on {config.fc6_kernel} cells a side cannot be taken "
            f"from one of {dense.fc_width} units on {dense.fc6_kernel}"
        )
    units = dense.fc_width // config.fc_width
    cells = (dense.fc6_kernel - 1) // max(1, config.fc6_kernel - 1)
    made = {name: value for name, value in state.items() if not name.startswith(("fc", "head"))}
    side = dense.fc6_kernel
    fc6 = state["fc6.weight"].reshape(dense.fc_width, -1, side, side)
    made["fc6.weight"] = _every(_every(_every(fc6, 0, units, config.fc_width), 2, cells, config.fc6_kernel),
                                3, cells, config.fc6_kernel)  # fmt: skip
    fc7 = _every(_every(state["fc7.weight"], 0, units, config.fc_width), 1, units, config.fc_width)
    made["fc7.weight"] = fc7[:, :, None, None]
    made |= {f"{name}.bias": _every(state[f"{name}.bias"], 0, units, config.fc_width) for name in ("fc6", "fc7")}
    return {name: value.contiguous() for name, value in made.items()}


def _every(tensor: Tensor, dim: int, step: int, count: int) -> Tensor:
    return tensor.index_select(dim, torch.arange(count, device=tensor.device) * step)


def build(config: VGGConfig) -> VGG:
    """Returns a tower of this configuration."""
    return VGG(config)


_DEPTHS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}

VARIANTS: dict[str, VGGConfig] = {
    **{f"vgg{number}": VGGConfig(depths) for number, depths in _DEPTHS.items()},
    **{f"vgg{number}_bn": VGGConfig(depths, norm="batch") for number, depths in _DEPTHS.items()},
    "vgg16-fcn": VGGConfig(top="convolutions", first_padding=100, ceil_pools=(1, 2, 3, 4, 5)),
    "vgg16-ssd": VGGConfig(
        top="convolutions",
        fc_width=1024,
        fc6_kernel=3,
        fc6_dilation=6,
        fc6_pads=True,
        dropout=0.0,
        ceil_pools=(3,),
        last_pool="3x3",
    ),
    # For laptops.
    "vgg-small": VGGConfig((1, 1, 2, 2, 2), (16, 32, 64, 96, 96), norm="batch", top="none"),
}
"""The paper's configurations A, B, D and E, what FCN and SSD make of D, and a small one."""
