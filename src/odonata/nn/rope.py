"""Rotary positions on a grid of patches: each half of a head turns with one of the two coordinates.

Notable:
- Coordinates are the centres of the patches in [-1, 1] on either axis, so an image of another size needs no resizing.
- Prefix tokens (class, registers) are not turned: their rows of the table are the identity.
- While training the coordinates may be shifted, stretched per axis and scaled at random (DINOv3's augmentation).

Sources: Su et al. 2021 (RoFormer), eq. 34; Heo et al. 2024 (RoPE for ViT), sec. 3.2, axial; Siméoni et al. 2025
(DINOv3), sec. 3.2 and facebookresearch/dinov3 `layers/rope_position_encoding.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


@dataclass(frozen=True)
class Rotation:
    """Cosines and sines of the angles by which queries and keys are turned, `[tokens, head_dim]` or with a batch."""

    cos: Float[Tensor, "*batch tokens head_dim"]
    sin: Float[Tensor, "*batch tokens head_dim"]

    @cached_property
    def signed_sin(self) -> Float[Tensor, "*batch tokens head_dim"]:
        """The sines, those of the first half negated: factors of the halves once they have changed places."""
        first, second = self.sin.chunk(2, -1)
        return torch.cat([-first, second], -1)

    def take(self, kept: Int[Tensor, "batch kept"]) -> Rotation:
        """Returns the rotation of a subset of the tokens, another one for each sample."""
        return Rotation(self.cos[kept], self.sin[kept])


def rotate(
    x: Float[Tensor, "batch heads tokens head_dim"], rotation: Rotation
) -> Float[Tensor, "batch heads tokens head_dim"]:
    """Turns queries or keys (RoFormer, eq. 34, with the halves of a head as the two parts of each pair).

    Args:
        x: queries or keys.
        rotation: for the same tokens.

    Returns:
        The turned vectors, of the same length and type.
    """
    cos, sin = rotation.cos, rotation.signed_sin
    if cos.ndim == 3:
        cos, sin = cos[:, None], sin[:, None]
    # The same bits as [-second, first] · sin, in fewer passes over x and its gradient.
    return (x * cos + x.roll(x.shape[-1] // 2, -1) * sin).to(x.dtype)


def patch_centres(grid: tuple[int, int], device: torch.device | None = None) -> Float[Tensor, "patches 2"]:
    """Centres of the patches of a grid, row by row, as (y, x) in [-1, 1]; each axis is scaled by itself."""
    y, x = ((torch.arange(n, device=device) + 0.5) / n * 2 - 1 for n in grid)
    return torch.stack(torch.meshgrid(y, x, indexing="ij"), -1).flatten(0, 1)


class AxialRoPE(nn.Module):
    """Makes rotations for grids of patches.

    Args:
        head_dim: width of a head, divisible by 4.
        base: ratio between the longest and the shortest period; the shortest is the whole image's half, 1.
        shift: while training, both coordinates move by a uniform draw of ± this.
        jitter: while training, each axis is stretched by a log-uniform draw between 1/jitter and jitter.
        rescale: while training, both axes are stretched together by such a draw.

    Raises:
        ValueError: `head_dim` is not divisible by 4.
    """

    periods: Tensor

    def __init__(
        self,
        head_dim: int,
        base: float = 100.0,
        shift: float | None = None,
        jitter: float | None = None,
        rescale: float | None = None,
    ) -> None:
        super().__init__()
        if head_dim % 4:
            raise ValueError(f"axial RoPE needs heads of a width divisible by 4, not {head_dim}")
        self.base = base
        self.shift, self.jitter, self.rescale = shift, jitter, rescale
        # The order of these operations is that of transformers' DINOv3, for equal bits.
        self.register_buffer("periods", rope_periods(head_dim, base), persistent=False)

    def forward(
        self, grid: tuple[int, int], prefix_tokens: int = 0, generator: torch.Generator | None = None
    ) -> Rotation:
        """Returns the rotation of the tokens of one image.

        Args:
            grid: rows and columns of its patches.
            prefix_tokens: tokens before the patches, which are not turned.
            generator: source of the random numbers while training; torch's global one if not given.
        """
        return self.at(self._moved(patch_centres(grid, self.periods.device), generator), prefix_tokens)

    def at(self, coordinates: Float[Tensor, "patches 2"], prefix_tokens: int = 0) -> Rotation:
        """Returns the rotation for patches at these (y, x)."""
        angles = 2 * math.pi * coordinates.to(self.periods)[:, :, None] / self.periods
        angles = angles.flatten(1).tile(2)
        still = angles.new_zeros(prefix_tokens, angles.shape[1])
        angles = torch.cat([still, angles])
        return Rotation(angles.cos(), angles.sin())

    def _moved(self, coordinates: Tensor, generator: torch.Generator | None) -> Tensor:
        if not self.training:
            return coordinates

        def draw(count: int, bound: float) -> Tensor:
            device = coordinates.device if generator is None else generator.device
            uniform = torch.rand(count, generator=generator, device=device).to(coordinates.device)
            return (2 * uniform - 1) * bound

        if self.shift is not None:
            coordinates = coordinates + draw(2, self.shift)
        if self.jitter is not None:
            coordinates = coordinates * draw(2, math.log(self.jitter)).exp()
        if self.rescale is not None:
            coordinates = coordinates * draw(1, math.log(self.rescale)).exp()
        return coordinates

    def extra_repr(self) -> str:
        return f"base={self.base}, shift={self.shift}, jitter={self.jitter}, rescale={self.rescale}"


def rope_periods(head_dim: int, base: float) -> Float[Tensor, "quarter"]:
    """Periods of the frequencies of one axis, from 1 up to almost `base`, in units of half an image."""
    return base ** torch.arange(0, 1, 4 / head_dim, dtype=torch.float32)
