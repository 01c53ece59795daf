"""What darknet's networks are made of: each kind of section as a module.

Notable:
- Darknet's GPU code normalises by √(σ² + 1e-5), its CPU code by √σ² + 1e-6. The first is what networks were trained
  with and the default; the second is there to compare with the CPU program. Running averages take 1 % of a new batch.
  In training the original's own kernels divide by the unbiased variance, cuDNN's and ours by the biased.
- A pooling's padding is the sum of both sides, the odd cell of it right and below.
- `reorg` reads its input as a map of fewer channels and more cells, moves cells to channels there, and reads what comes
  out as the map that it was meant to give. The order of channels that follows is no other library's.
- A dropout of darknet's also changes what a route reads from the layer before it. Here it does not.

Sources: pjreddie/darknet `src/{batchnorm,maxpool,local,shortcut,upsample}_layer.c`, `src/blas.c` (`reorg_cpu`,
`normalize_cpu`, `shortcut_cpu`), `src/activations.h`; AlexeyAB/darknet `src/activations.c` (swish, mish, hard_mish).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from odonata.weights.darknet_options import (
    AvgPool,
    Connected,
    Convolutional,
    Dropout,
    Local,
    MaxPool,
    Reorg,
    Route,
    Settings,
    Shortcut,
    Upsample,
)
from odonata.weights.darknet_plan import Layer

Numerics = Literal["gpu", "cpu"]
"""Which of darknet's two normalisations."""

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda x: x,
    "leaky": lambda x: F.leaky_relu(x, 0.1, inplace=True),
    "revleaky": lambda x: F.leaky_relu(x, 0.1, inplace=True),
    "relie": lambda x: F.leaky_relu(x, 0.01, inplace=True),
    "relu": lambda x: F.relu(x, inplace=True),
    "relu6": lambda x: F.relu6(x, inplace=True),
    "logistic": torch.sigmoid,
    "loggy": lambda x: 2 * torch.sigmoid(x) - 1,
    "tanh": torch.tanh,
    "elu": F.elu,
    "selu": F.selu,
    "gelu": lambda x: F.gelu(x, approximate="tanh"),
    "swish": F.silu,
    "mish": F.mish,
    "hard_mish": lambda x: torch.where(x > 0, x, torch.where(x > -2, x * x / 2 + x, 0)),
    "ramp": lambda x: F.relu(x) + 0.1 * x,
    "hardtan": F.hardtanh,
}
"""Those that work in place come after a convolution, a norm or a sum, none of which needs its result again."""


class Activation(nn.Module):
    """An activation by darknet's name.

    Args:
        name: one of `odonata.weights.darknet_options.ACTIVATIONS`.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self._function = _ACTIVATIONS[name]

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Applies it element by element; x may be changed."""
        return self._function(x)

    def extra_repr(self) -> str:
        return self.name


class DarknetNorm(nn.BatchNorm2d):
    """Batch normalisation as darknet has it.

    Args:
        channels: of the map.
        numerics: `cpu` adds 1e-6 to the deviation in evaluation, `gpu` 1e-5 to the variance.
        eps: the latter, where it is another.
    """

    def __init__(self, channels: int, numerics: Numerics = "gpu", eps: float = 1e-5) -> None:
        super().__init__(channels, eps=eps, momentum=0.01)
        self.numerics = numerics

    def forward(self, input: Float[Tensor, "batch dim height width"]) -> Float[Tensor, "batch dim height width"]:
        """Returns the normalised map."""
        if self.training or self.numerics == "gpu":
            return super().forward(input)
        assert self.running_mean is not None and self.running_var is not None
        scale = self.weight / (self.running_var.sqrt() + 1e-6)
        shift = self.bias - self.running_mean * scale
        return input * scale[:, None, None] + shift[:, None, None]


class Convolution(nn.Module):
    """A convolution, its normalisation or bias, and its activation; towers are built of it as well.

    Args:
        channels: of what comes in.
        filters: channels of what goes out.
        size, stride, padding, dilation, groups: of the convolution.
        activation: darknet's name for it.
        normalized: a normalisation instead of a bias.
        numerics, eps: see `DarknetNorm`.
    """

    def __init__(
        self,
        channels: int,
        filters: int,
        size: int,
        stride: int = 1,
        padding: int | None = None,
        dilation: int = 1,
        groups: int = 1,
        activation: str = "leaky",
        normalized: bool = True,
        numerics: Numerics = "gpu",
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        pad = dilation * (size // 2 if padding is None else padding)
        self.conv = nn.Conv2d(channels, filters, size, stride, pad, dilation, groups, bias=not normalized)
        self.norm = DarknetNorm(filters, numerics, eps) if normalized else nn.Identity()
        self.activation = Activation(activation)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch filters height2 width2"]:
        """Returns the next map."""
        return self.activation(self.norm(self.conv(x)))


class Linear(nn.Module):
    """A linear map of a whole feature map, channel by channel and row by row."""

    def __init__(self, inputs: int, kind: Connected, numerics: Numerics) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, kind.output, bias=not kind.normalized)
        self.norm = DarknetNorm(kind.output, numerics) if kind.normalized else nn.Identity()
        self.activation = Activation(kind.activation)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch output 1 1"]:
        """Returns what it gives, as a map of one cell."""
        return self.activation(self.norm(self.linear(x.flatten(1))[..., None, None]))


class LocalConvolution(nn.Module):
    """A convolution with weights of its own at each place."""

    def __init__(self, channels: int, shape: tuple[int, int, int], kind: Local) -> None:
        super().__init__()
        self.kind = kind
        filters, height, width = shape
        self.weight = nn.Parameter(torch.empty(height * width, filters, channels * kind.size**2))
        self.bias = nn.Parameter(torch.zeros(shape))
        self.activation = Activation(kind.activation)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Uniform, with darknet's bound."""
        bound = math.sqrt(2 / self.weight.shape[-1])
        nn.init.uniform_(self.weight, -bound, bound)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch filters height2 width2"]:
        """Returns the next map."""
        patches = F.unfold(x, self.kind.size, 1, self.kind.padding, self.kind.stride)
        out = torch.einsum("pfk,bkp->bfp", self.weight, patches)
        return self.activation(out.unflatten(2, self.bias.shape[1:]) + self.bias)


class Pool(nn.Module):
    """The maximum in a window."""

    def __init__(self, kind: MaxPool) -> None:
        super().__init__()
        self.kind = kind

    def forward(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height2 width2"]:
        """Returns the next map."""
        size, stride, padding = self.kind.size, self.kind.stride, self.kind.padding
        if (size, stride, padding) == (2, 2, 1):  # the usual one: half the size, rounded up
            return F.max_pool2d(x, 2, 2, ceil_mode=True)
        if padding % 2 == 0 and padding <= size:
            return F.max_pool2d(x, size, stride, padding // 2)
        left, right = padding // 2, padding - padding // 2
        return F.max_pool2d(F.pad(x, (left, right, left, right), value=-math.inf), size, stride)

    def extra_repr(self) -> str:
        return f"{self.kind.size}, stride={self.kind.stride}, padding={self.kind.padding}"


class MeanPool(nn.Module):
    """The mean over a map."""

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels 1 1"]:
        """Returns a map of one cell."""
        return x.mean((2, 3), keepdim=True)


class Repeat(nn.Module):
    """Each cell repeated."""

    def __init__(self, kind: Upsample) -> None:
        super().__init__()
        self.kind = kind

    def forward(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height2 width2"]:
        """Returns the finer map."""
        x = F.interpolate(x, scale_factor=float(self.kind.stride), mode="nearest")
        return x if self.kind.scale == 1 else self.kind.scale * x


class Reorganise(nn.Module):
    """Cells into channels or back, in darknet's order."""

    def __init__(self, kind: Reorg) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch dim height2 width2"]:
        """Returns the other form of the map."""
        batch, channels, height, width = x.shape
        stride, groups = self.kind.stride, channels // self.kind.stride**2
        if self.kind.reverse:
            cells = x.reshape(batch, stride, stride, groups, height, width).permute(0, 3, 4, 1, 5, 2)
            return cells.reshape(batch, groups, height * stride, width * stride)
        # `groups` channels of `stride` times the sides have as many numbers as the input: that is how it is read.
        cells = x.reshape(batch, groups, height, stride, width, stride).permute(0, 3, 5, 1, 2, 4)
        return cells.reshape(batch, channels * stride**2, height // stride, width // stride)


class Join(nn.Module):
    """Maps side by side, each as a whole or one group of its channels."""

    def __init__(self, kind: Route) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, *maps: Float[Tensor, "batch _ height width"]) -> Float[Tensor, "batch channels height width"]:
        """Returns one map."""
        if self.kind.groups > 1:
            maps = tuple(x.chunk(self.kind.groups, 1)[self.kind.group_id] for x in maps)
        return maps[0] if len(maps) == 1 else torch.cat(maps, 1)


class Add(nn.Module):
    """A sum of maps. Channels that only the first has stay as they are.

    Channels that only another has are left out, and so are the cells of a finer one that lie between.
    """

    def __init__(self, kind: Shortcut) -> None:
        super().__init__()
        self.kind = kind
        self.activation = Activation(kind.activation)

    def forward(
        self, x: Float[Tensor, "batch channels height width"], *others: Float[Tensor, "batch _ _ _"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Returns the sum in the channels and cells of x."""
        alpha, beta = self.kind.alpha, self.kind.beta
        for other in others:
            shared = min(x.shape[1], other.shape[1])
            step = other.shape[-1] // x.shape[-1]
            first = x[:, :shared]
            second = other[:, :shared, ::step, ::step][..., : x.shape[-2], : x.shape[-1]]
            added = first + second if alpha == beta == 1 else alpha * first + beta * second
            x = added if shared == x.shape[1] else torch.cat([added, x[:, shared:]], 1)
        return self.activation(x)


def build_layer(layer: Layer, numerics: Numerics = "gpu") -> nn.Module:
    """Returns the module of one layer, initialised as darknet does: normally for convolutions, uniformly for others."""
    kind: Settings = layer.settings
    channels, height, width = layer.before
    if isinstance(kind, Convolutional):
        return _initialised(
            Convolution(
                channels,
                kind.filters,
                kind.size,
                kind.stride,
                kind.padding,
                kind.dilation,
                kind.groups,
                kind.activation,
                kind.normalized,
                numerics,
            )
        )
    if isinstance(kind, Connected):
        return _initialised(Linear(channels * height * width, kind, numerics))
    if isinstance(kind, Local):
        return LocalConvolution(channels, layer.shape, kind)
    return _without_weights(kind)


def _without_weights(kind: Settings) -> nn.Module:
    match kind:
        case MaxPool():
            return Pool(kind)
        case AvgPool():
            return MeanPool()
        case Upsample():
            return Repeat(kind)
        case Reorg():
            return Reorganise(kind)
        case Route():
            return Join(kind)
        case Shortcut():
            return Add(kind)
        case Dropout():
            return nn.Dropout(kind.probability)
        case _:
            return nn.Identity()


def _initialised(module: Convolution | Linear) -> nn.Module:
    init_darknet(module)
    return module


@torch.no_grad()
def init_darknet(module: nn.Module) -> None:
    """Gives all convolutions and linear maps in a module darknet's first weights: deviation or bound √(2 / inputs)."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight)
        elif isinstance(part, nn.Linear):
            bound = math.sqrt(2 / part.in_features)
            nn.init.uniform_(part.weight, -bound, bound)
        else:
            continue
        if part.bias is not None:
            nn.init.zeros_(part.bias)
