"""Corner pooling: a corner of a box often lies outside of the object, so each place looks along its row or column.

The top pool of a place is the maximum of all places from it downwards: the topmost edge of an object shows itself
there. A top-left corner needs `top_pool` and `left_pool`, a bottom-right one the other two.

Gradients go to one place each. Where values are equal (zeros after a ReLU) it is the one that the scan meets first, as
in the authors' C++; `torch.cummax` would take the last, so the source of each maximum is found anew.

Source: Law and Deng 2018 (CornerNet), sec. 3.3, eq. 6 and 7.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Maps = Float[Tensor, "*batch channels height width"]


def top_pool(features: Maps) -> Maps:
    """Return at every place the maximum from it down to the bottom; the same shape."""
    return _scan(features, -2, from_end=True)


def bottom_pool(features: Maps) -> Maps:
    """Return at every place the maximum from the top down to it; the same shape."""
    return _scan(features, -2, from_end=False)


def left_pool(features: Maps) -> Maps:
    """Return at every place the maximum from it to the right side; the same shape."""
    return _scan(features, -1, from_end=True)


def right_pool(features: Maps) -> Maps:
    """Return at every place the maximum from the left side to it; the same shape."""
    return _scan(features, -1, from_end=False)


def _scan(features: Tensor, dim: int, *, from_end: bool) -> Tensor:
    if torch.compiler.is_exporting():
        return _doubled(features, dim, from_end=from_end)
    if not features.requires_grad or not torch.is_grad_enabled():
        if not from_end:
            return features.cummax(dim).values
        return features.flip(dim).cummax(dim).values.flip(dim)
    length = features.shape[dim]
    with torch.no_grad():
        scanned = features.flip(dim) if from_end else features
        running = scanned.cummax(dim).values
        steps = torch.arange(length, device=features.device)
        steps = steps[:, None] if dim == -2 else steps
        # a place is a source where the maximum so far rises; the first place always is one
        rises = torch.ones_like(running, dtype=torch.bool)
        rises.narrow(dim, 1, length - 1).copy_(running.diff(dim=dim) > 0)
        source = torch.where(rises, steps, 0).cummax(dim).values
        if from_end:
            source = (length - 1 - source).flip(dim)
    return features.gather(dim, source)


def _doubled(features: Tensor, dim: int, *, from_end: bool) -> Tensor:
    """The same by comparing with what lies 1, 2, 4, … places on: ONNX has no running maximum. For up to 1,024 cells."""
    length = features.shape[dim]
    for step in (2**i for i in range(10)):
        padding = [0, 0] * (-1 - dim) + ([0, step] if from_end else [step, 0])
        shifted = F.pad(features, padding, value=-torch.inf).narrow(dim, step if from_end else 0, length)
        features = torch.maximum(features, shifted)
    return features
