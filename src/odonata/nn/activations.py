"""Activations by the name that published configurations use for them.

CLIP was trained with QuickGELU, most later models with the exact GELU, and everything converted from Flax with the
tanh approximation, which is Flax's default. The three differ by up to 2e-2, enough to spoil a zero-shot classifier.
"""

from collections.abc import Callable
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

ActivationName = Literal["quick_gelu", "gelu", "gelu_tanh", "relu", "silu"]


def quick_gelu(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """x · σ(1.702 x), the approximation of GELU of CLIP's released models (openai/CLIP model.py)."""
    return x * torch.sigmoid(1.702 * x)


def gelu(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """x · Φ(x), exact (Hendrycks and Gimpel 2016, eq. 1)."""
    return F.gelu(x)


def gelu_tanh(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """The tanh approximation of GELU (Hendrycks and Gimpel 2016, sec. 2), Flax's default: SigLIP's flavour."""
    return F.gelu(x, approximate="tanh")


_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "quick_gelu": quick_gelu,
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "relu": F.relu,
    "silu": F.silu,
}


class Activation(nn.Module):
    """A named activation as a module, so that it shows in `print(model)`.

    Args:
        name: one of `quick_gelu`, `gelu`, `gelu_tanh`, `relu`, `silu`.

    Raises:
        ValueError: the name is unknown.
    """

    def __init__(self, name: ActivationName) -> None:
        super().__init__()
        self.name = name
        self._function = _lookup(name)

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Applies the activation element by element."""
        return self._function(x)

    def extra_repr(self) -> str:
        return self.name


def activation(name: ActivationName) -> Activation:
    """Returns the activation module called `name`; raises ValueError for an unknown one."""
    return Activation(name)


def _lookup(name: str) -> Callable[[Tensor], Tensor]:
    if name not in _FUNCTIONS:
        raise ValueError(f"activation {name!r} is unknown; choose one of {', '.join(get_args(ActivationName))}")
    return _FUNCTIONS[name]
