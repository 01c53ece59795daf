"""Compound scaling: how the factors on depth, width and resolution are searched, and what one axis alone would need.

Notable:
- Multiply-adds grow with depth · width² · resolution². Depths round up to whole blocks and widths to multiples of 8, so
  real networks do not hit a target exactly: what they cost is counted, never derived from the factors. B0 with the
  paper's coefficients and phi = 1 costs 2.58 times as much, not 2; with phi = 4 it is 16.4, and 16 is meant.
- The paper searches with phi = 1, where the cost is to double, and then raises the three coefficients to the power of
  phi. B1 … B7 are not exactly these powers; they are `odonata.backbones.efficientnet.VARIANTS`.

Source: Tan and Le 2019 (1905.11946), sec. 3.3, eq. 3; one-axis scaling as in sec. 3.2 and table 7.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import torch

from odonata.backbones.efficientnet import EfficientNetConfig, build
from odonata.backbones.measure import count

Axis = Literal["depth", "width", "resolution"]
Coefficients = tuple[float, float, float]
"""alpha, beta and gamma: factors on depth, width and resolution."""

PAPER: Coefficients = (1.2, 1.1, 1.15)
"""What the paper's search found for B0."""


@dataclass(frozen=True)
class Scored:
    """One row of a search."""

    alpha: float
    """Factor on depth."""
    beta: float
    """Factor on width."""
    gamma: float
    """Factor on resolution."""
    config: EfficientNetConfig
    """The configuration that they give."""
    macs: int
    """Multiply-adds at its resolution, counted."""
    score: float
    """What the caller's function says of it; more is better."""


def scale(config: EfficientNetConfig, depth: float, width: float, resolution: float) -> EfficientNetConfig:
    """Returns a configuration with its depth, width and resolution multiplied; the resolution is rounded to a pixel."""
    return replace(
        config,
        depth=config.depth * depth,
        width=config.width * width,
        resolution=max(1, round(config.resolution * resolution)),
    )


def scale_compound(
    config: EfficientNetConfig, phi: float | int, coefficients: Coefficients = PAPER
) -> EfficientNetConfig:
    """Returns a configuration scaled by the coefficients to the power of phi, at about 2^phi times the cost (eq. 3)."""
    alpha, beta, gamma = coefficients
    return scale(config, alpha**phi, beta**phi, gamma**phi)


@lru_cache(maxsize=1024)
def macs(config: EfficientNetConfig) -> int:
    """Returns the multiply-adds of a configuration at its resolution, without a classifier."""
    with torch.device("meta"):
        tower = build(config)
    return count(tower, config.resolution).macs


def grid(
    alphas: Iterable[float],
    betas: Iterable[float],
    gammas: Iterable[float],
    target: float = 2.0,
    tolerance: float = 0.1,
) -> list[Coefficients]:
    """Returns the combinations, none below 1, with alpha · beta² · gamma² within `tolerance` of `target`.

    Args:
        alphas, betas, gammas: factors to try on depth, width and resolution.
        target: what the cost is to be multiplied by.
        tolerance: relative to `target`.

    Raises:
        ValueError: no combination is left.
    """
    kept = [
        (alpha, beta, gamma)
        for alpha, beta, gamma in itertools.product(alphas, betas, gammas)
        if min(alpha, beta, gamma) >= 1 and abs(alpha * beta**2 * gamma**2 / target - 1) <= tolerance
    ]
    if not kept:
        raise ValueError(
            f"no alpha, beta, gamma of the grid give alpha·beta²·gamma² within {tolerance:.0%} of {target}"
        )
    return kept


def search(
    base: EfficientNetConfig, candidates: Sequence[Coefficients], score: Callable[[EfficientNetConfig], float]
) -> list[Scored]:
    """Scores each way to spend more multiply-adds (sec. 3.3, step 1).

    Args:
        base: what is scaled.
        candidates: see `grid`.
        score: trains and evaluates a configuration, or stands in for that; more is better.

    Returns:
        A row for each candidate, the best first.
    """
    rows: list[Scored] = []
    for alpha, beta, gamma in candidates:
        config = scale(base, alpha, beta, gamma)
        rows.append(Scored(alpha, beta, gamma, config, macs(config), score(config)))
    return sorted(rows, key=lambda row: -row.score)


def scale_one_axis(config: EfficientNetConfig, axis: Axis, to_flops: float | int) -> tuple[EfficientNetConfig, float]:
    """Scales one axis alone until a tower costs what is wanted.

    Args:
        config: what is scaled.
        axis: `depth`, `width` or `resolution`.
        to_flops: multiply-adds wanted, counted as `macs` counts them.

    Returns:
        The configuration whose cost is nearest among those that this axis can reach, and the factor. It may miss by a
        few per cent, of small towers by more: blocks and maps are whole, widths multiples of 8.

    Raises:
        ValueError: the axis would have to grow more than 64-fold, or shrink below a 64th.
    """

    def scaled(factor: float) -> EfficientNetConfig:
        return scale(config, **({"depth": 1.0, "width": 1.0, "resolution": 1.0} | {axis: factor}))

    low, high = 1.0, 1.0
    while macs(scaled(high)) < to_flops:
        low, high = high, high * 2
        if high > 64:
            raise ValueError(
                f"{axis} alone reaches {macs(scaled(low)):.3g} multiply-adds at 64-fold, not {to_flops:.3g}"
            )
    while macs(scaled(low)) > to_flops:
        low, high = low / 2, low
        if low < 1 / 64:
            raise ValueError(f"{axis} alone still costs {macs(scaled(high)):.3g} at a 32nd, more than {to_flops:.3g}")
    while high - low > 1e-3 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if macs(scaled(middle)) <= to_flops else (low, middle)
    factor = min((low, high), key=lambda f: abs(macs(scaled(f)) - to_flops))
    return scaled(factor), factor
