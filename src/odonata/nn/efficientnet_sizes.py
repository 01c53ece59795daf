"""EfficientNet's published sizes and conventions, which the tower and the readers of its weights both need."""

import math
from typing import Any

SIZES: dict[str, tuple[float, float, int, float]] = {
    "b0": (1.0, 1.0, 224, 0.2),
    "b1": (1.0, 1.1, 240, 0.2),
    "b2": (1.1, 1.2, 260, 0.3),
    "b3": (1.2, 1.4, 300, 0.3),
    "b4": (1.4, 1.8, 380, 0.4),
    "b5": (1.6, 2.2, 456, 0.4),
    "b6": (1.8, 2.6, 528, 0.5),
    "b7": (2.0, 3.1, 600, 0.5),
}
"""Factors on width and depth, resolution in pixels and dropout (the authors' `efficientnet_builder.py`)."""

WIDTHS, REPEATS = (16, 24, 40, 80, 112, 192, 320), (1, 2, 2, 3, 3, 4, 1)
EXPANSIONS, KERNELS, STRIDES = (1, 6, 6, 6, 6, 6, 6), (3, 3, 5, 3, 5, 5, 3), (1, 2, 2, 2, 1, 2, 1)
"""B0's stages (Tan and Le 2019, table 1)."""

CONVENTIONS: dict[str, dict[str, Any]] = {
    "tf": {"padding": "same", "norm_eps": 1e-3, "norm_momentum": 0.01},
    "torch": {"padding": "symmetric", "norm_eps": 1e-5, "norm_momentum": 0.1},
}
"""The authors' conventions, and those of networks that were trained in PyTorch, as fields of the configuration."""


def round_channels(channels: float, divisor: int = 8) -> int:
    """Returns the nearest multiple of `divisor`, halves up, but not below 90 % of `channels` nor below `divisor`."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


def round_repeats(count: int, depth: float) -> int:
    """Returns `count` blocks times `depth`, rounded up."""
    return math.ceil(depth * count)
