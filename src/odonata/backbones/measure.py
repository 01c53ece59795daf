"""What a tower costs, and how far its cells see.

Notable:
- Costs are counted on PyTorch's meta device: shapes pass through the network, numbers do not, so B7 at 600 pixels takes
  a second and no memory.
- A FLOP of the literature on efficient networks is a multiplication with its addition. `macs` counts those; PyTorch's
  own counter counts both and gives twice as much. Norms, activations and pooling are left out, as in published tables.
- Attention counts as its two matrix products, whichever kernel would run.
- The receptive field is found by spreading NaN from columns of pixels: it passes every operation that reads it, maxima
  and zero weights among them, so the result is exact for these operations and needs no formula for them.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from odonata.backbones.interface import Backbone

WHOLE_IMAGE_FROM = 4096
"""Width in pixels from which on a cell that still sees both edges is said to see the whole image."""

_aten = torch.ops.aten
_PRODUCTS = {_aten.convolution, _aten.mm, _aten.addmm, _aten.bmm, _aten.baddbmm, _aten.linear}
_Tower = TypeVar("_Tower", bound=nn.Module)


@dataclass(frozen=True)
class Counts:
    """What a forward pass costs."""

    parameters: int
    """Weights, the classifier's among them if there is one; buffers are not counted."""
    macs: int
    """Multiply-adds of convolutions, linear maps and attention, of the whole batch."""
    activations: int
    """Numbers that convolutions, linear maps and matrix products put out, of the whole batch: what Radosavovic et al.
    2020 (2003.13678) call activations."""


def count(backbone: Backbone, image_size: int | tuple[int, int], batch: int = 1) -> Counts:
    """Counts what a tower costs in evaluation.

    Args:
        backbone: on any device; it is not changed and nothing is computed.
        image_size: side, or (height, width), of the images in pixels.
        batch: number of images.

    >>> from odonata.backbones.create import create
    >>> f"{count(create('resnet18'), 224).macs / 1e9:.2f}"
    '1.81'
    """
    tower = on_meta(backbone).eval()
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    images = torch.empty(batch, tower.config.channels, height, width, device="meta")
    flops, outputs = FlopCounterMode(display=False), _Outputs()
    with torch.no_grad(), _attention_as_products(), flops, outputs:
        tower(images)
    return Counts(sum(p.numel() for p in backbone.parameters()), flops.get_total_flops() // 2, outputs.total)


def on_meta(module: _Tower) -> _Tower:
    """Returns a copy of a module whose tensors have shapes and no numbers."""
    tensors: dict[int, Any] = {id(b): b.to("meta") for b in module.buffers()}
    tensors |= {id(p): nn.Parameter(p.to("meta"), p.requires_grad) for p in module.parameters()}
    return copy.deepcopy(module, tensors)


class _Outputs(TorchDispatchMode):
    """Adds up the sizes of what products put out."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in _PRODUCTS:
            self.total += out.numel()
        return out


@contextmanager
def _attention_as_products() -> Generator[None]:
    """Attention falls apart into two products, which both counters see; fused kernels hide the scores' size."""
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        yield


@torch.no_grad()
def receptive_field(backbone: Backbone, layer: int) -> float:
    """Returns the width, in pixels, of what a cell of a layer can see, counted from the outermost pixels that it reads.

    Args:
        backbone: with finite weights; it is copied to the CPU in float64 and left as it was.
        layer: as in `Backbone.features`.

    Returns:
        A whole number; `math.inf` where the cell sees the whole image however wide, as with attention over all tokens
        and squeeze-and-excitation.
    """
    # In float64 on the CPU each sum is a plain one. Winograd's and Fourier's ways would spread NaN to cells beside.
    tower = copy.deepcopy(backbone).to("cpu", torch.float64).eval()
    stride = tower.taps[layer].stride
    width = stride * max(4, math.ceil(64 / stride))
    while True:
        poisoned = partial(_reaches_centre, tower, layer, width)
        if not poisoned(0, 1) and not poisoned(width - 1, width):
            break
        if width >= WHOLE_IMAGE_FROM:
            return math.inf
        width *= 2
    left = _first(lambda x: poisoned(0, x + 1), width)
    right = width - 1 - _first(lambda x: poisoned(width - 1 - x, width), width)
    return float(right - left + 1)


def _reaches_centre(tower: Backbone, layer: int, width: int, start: int, stop: int) -> bool:
    """Whether the columns start … stop - 1 of an image of this width reach the cell in the middle of a layer's map."""
    stride = tower.taps[layer].stride
    height = stride * math.ceil(32 / stride)
    images = torch.zeros(1, tower.config.channels, height, width, dtype=torch.float64)
    images[..., start:stop] = math.nan
    cells = tower.features(images, [layer], "nchw")[0]
    return bool(cells[..., cells.shape[-1] // 2].isnan().any())


def _first(holds: Callable[[int], bool], stop: int) -> int:
    """Returns the least x in 0 … stop - 1 for which a monotone condition holds; it holds for the last."""
    low, high = 0, stop - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low
