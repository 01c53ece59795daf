"""Rotary positions of a sequence of words, and the ways in which models stretch them to longer texts.

Notable: angles are computed in float32 whatever the model is cast to, and in the order of operations of transformers,
for equal bits.

Sources: Su et al. 2021 (RoFormer), eq. 15; Chen et al. 2023, arXiv:2306.15595 (`linear`); Llama 3.1's code and
transformers' `modeling_rope_utils.py` (`llama3`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from odonata.nn.rope import Rotation


@dataclass(frozen=True)
class RopeScaling:
    """How frequencies are changed for longer texts than a model was first trained on."""

    kind: Literal["default", "linear", "llama3"] = "default"
    factor: float = 1.0
    """By how much longer the texts are."""
    low_freq_factor: float = 1.0
    """llama3: wavelengths above the old context over this are stretched in full."""
    high_freq_factor: float = 4.0
    """llama3: wavelengths below the old context over this are left alone."""
    original_max_position_embeddings: int = 8192
    """llama3: the old context, in tokens."""


def frequencies(head_dim: int, theta: float, scaling: RopeScaling) -> Float[Tensor, " half"]:
    """Return the angle by which each pair of a head turns from one token to the next, in radians.

    Args:
        head_dim: width of a head, even.
        theta: ratio of the longest to the shortest wavelength.
        scaling: for longer texts.
    """
    plain = 1.0 / (theta ** (torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim))
    if scaling.kind == "default":
        return plain
    if scaling.kind == "linear":
        return plain / scaling.factor
    old = scaling.original_max_position_embeddings
    wavelength = 2 * math.pi / plain
    stretched = torch.where(wavelength > old / scaling.low_freq_factor, plain / scaling.factor, plain)
    share = (old / wavelength - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    between = (1 - share) * stretched / scaling.factor + share * stretched
    middle = ~(wavelength < old / scaling.high_freq_factor) & ~(wavelength > old / scaling.low_freq_factor)
    return torch.where(middle, between, stretched)


class TextRoPE(nn.Module):
    """Makes rotations for positions.

    Args:
        head_dim: width of a head, even.
        theta: ratio of the longest to the shortest wavelength.
        scaling: for longer texts.
    """

    frequencies: Tensor

    def __init__(self, head_dim: int, theta: float, scaling: RopeScaling) -> None:
        super().__init__()
        self._made_of = (head_dim, theta, scaling)
        self.register_buffer("frequencies", frequencies(*self._made_of), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> TextRoPE:
        super()._apply(fn, recurse)
        # A model in bfloat16 would turn its words by rounded angles.
        self.frequencies = frequencies(*self._made_of).to(self.frequencies.device)
        return self

    def forward(self, positions: Int[Tensor, "*batch time"], dtype: torch.dtype) -> Rotation:
        """Return the rotation of tokens at these positions, in the type of the states."""
        angles = positions.float()[..., None] * self.frequencies
        angles = torch.cat([angles, angles], -1)
        return Rotation(angles.cos().to(dtype), angles.sin().to(dtype))
