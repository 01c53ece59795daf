"""The precision in which losses are computed, whatever autocast made of their inputs."""

import torch
from torch import Tensor


def full_precision(x: Tensor) -> Tensor:
    """Returns `x` in float32, or in float64 if it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
