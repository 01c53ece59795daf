"""Roots and means from noisy measurements: Robbins and Monro's algorithm, and what it is called elsewhere.

Notable: all that tables learn from samples is this one rule, w ← w − a_k g̃(w). With g(w) = w − E[x] it is the
incremental mean; with g the gradient of an expected loss it is stochastic gradient descent; with a Bellman equation it
is a temporal difference. It converges where the slope of g lies between two positive numbers, Σ a_k = ∞ and Σ a_k² < ∞,
and the noise has mean 0 and bounded variance (Zhao, theorem 6.1). None of these is for decoration: 1 / k² stands still,
a constant never comes to rest, and on w³ − 5, whose slope has no bound, 1 / k itself runs away.

Source: Robbins and Monro 1951; Zhao 2025, Mathematical Foundations of Reinforcement Learning, chapter 6.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from odonata.errors import RecipeError

Runs = Float64[np.ndarray, "runs"]
"""One number for each of many independent runs."""


@dataclass(frozen=True)
class StepSize:
    """a_k = scale / (k + offset)^power, k from 1.

    Raises:
        RecipeError: a step that is not positive.

    >>> StepSize().at(4), StepSize(0.1, power=0).at(4)
    (0.25, 0.1)
    """

    scale: float = 1.0
    """The first step, without an offset."""
    power: float = 1.0
    """0: constant; 1: the mean of all samples."""
    offset: float = 0.0
    """How many steps too late it begins."""

    def __post_init__(self) -> None:
        if not (0 < self.scale < np.inf and self.power >= 0 and self.offset > -1):
            raise RecipeError(
                f"step size {self.scale:g} / (k + {self.offset:g})^{self.power:g}: wants a positive scale, a power "
                f"that is not negative, and an offset above −1"
            )

    def at(self, k: int) -> float:
        """Return a_k."""
        return self.scale / (k + self.offset) ** self.power

    @property
    def sums_to_infinity(self) -> bool:
        """Σ a_k = ∞: the start can be forgotten, however far away."""
        return self.power <= 1

    @property
    def squares_are_summable(self) -> bool:
        """Σ a_k² < ∞: the noise dies away."""
        return self.power > 0.5


def robbins_monro(
    measure: Callable[[Runs], Runs], start: Runs, steps: int, sizes: StepSize, *, limit: float = 1e6
) -> tuple[Runs, Runs]:
    """Look for the root of a function that can only be measured with noise.

    Args:
        measure: returns g(w) + noise for each run; g must rise through its root.
        start: w_1.
        steps: measurements to make.
        sizes: a_k.
        limit: a run that passes it has diverged, and is left there.

    Returns:
        w after the last step, and for each run the step at which it diverged (∞: it did not).
    """
    w, diverged = start.astype(np.float64), np.full(len(start), np.inf)
    for k in range(1, steps + 1):
        running = np.isinf(diverged)
        if not running.any():
            break
        w = np.where(running, w - sizes.at(k) * np.where(running, measure(w), 0.0), w)
        diverged[running & ~(np.abs(w) <= limit)] = k
    return w, diverged


def means(
    samples: Float64[np.ndarray, "steps runs"], start: Runs, sizes: StepSize
) -> Float64[np.ndarray, "steps runs"]:
    """Return the estimates of a mean after each sample: w ← w − a_k (w − x_k) (Zhao, eq. 6.4).

    Args:
        samples: x_k of each run.
        start: w_1; with a_1 = 1 it is forgotten at once.
        sizes: 1 / k gives the mean of all samples so far, to the last bit but rounding.
    """
    w, estimates = start.astype(np.float64), np.empty_like(samples)
    for k, sample in enumerate(samples, 1):
        w = w - sizes.at(k) * (w - sample)
        estimates[k - 1] = w
    return estimates


def sgd(
    gradient: Callable[[Float64[np.ndarray, "dim"], Float64[np.ndarray, "batch sample"]], Float64[np.ndarray, "dim"]],
    start: Float64[np.ndarray, "dim"],
    samples: Float64[np.ndarray, "count sample"],
    sizes: StepSize,
    *,
    steps: int,
    batch: int = 1,
    rng: np.random.Generator,
) -> Float64[np.ndarray, "steps dim"]:
    """Descend along gradients of samples: Robbins and Monro's algorithm for the root of E[∇f] (Zhao, eq. 6.13).

    Args:
        gradient: the mean of ∇f(w, x) over a batch of x.
        start: w_1.
        samples: drawn with replacement; a batch of all of them is gradient descent, and draws nothing.
        sizes: a_k.
        steps: to make.
        batch: samples a step; 1: stochastic gradient descent, more: mini-batches.
        rng: draws the samples.

    Returns:
        w after each step.

    Raises:
        RecipeError: a batch of none, or of more than there are.
    """
    if not 1 <= batch <= len(samples):
        raise RecipeError(f"a batch of {batch} from {len(samples)} samples; it must lie between 1 and all of them")
    w, path = start.astype(np.float64), np.empty((steps, len(start)))
    for k in range(1, steps + 1):
        chosen = samples if batch == len(samples) else samples[rng.integers(len(samples), size=batch)]
        w = w - sizes.at(k) * gradient(w, chosen)
        path[k - 1] = w
    return path
