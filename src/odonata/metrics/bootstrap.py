"""How sure a mean is: intervals from resampling, and from Student's t for a few paired runs."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from odonata.errors import DataError

Values = Sequence[float] | NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval."""

    estimate: float
    low: float
    high: float
    level: float

    def excludes(self, value: float) -> bool:
        """Whether the value lies outside the interval."""
        return value < self.low or value > self.high


def bootstrap_mean(values: Values, *, level: float = 0.95, resamples: int = 10_000, seed: int = 0) -> Interval:
    """Return the mean with its percentile bootstrap interval.

    Args:
        values: one figure per sample (for an accuracy: 0 or 1).
        level: coverage, in (0, 1).
        resamples: how often to resample.
        seed: the same seed gives the same interval.

    Raises:
        DataError: there is no value, or one is not finite.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, section 13.3.
    """
    data = _checked(values, 1, level)
    generator = np.random.default_rng(seed)
    means = np.empty(resamples)
    # In blocks, so that a large test set does not need resamples × samples at once.
    block = max(1, 4_000_000 // len(data))
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        means[start : start + rows] = data[generator.integers(len(data), size=(rows, len(data)))].mean(1)
    tail = (1 - level) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(float(data.mean()), float(low), float(high), level)


def paired_bootstrap(
    first: Values, second: Values, *, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Return the mean of ``first - second`` with its interval, for two models scored on the same samples.

    Raises:
        DataError: the lengths differ, or as `bootstrap_mean`.
    """
    return bootstrap_mean(_differences(first, second), level=level, resamples=resamples, seed=seed)


def paired_t_interval(first: Values, second: Values, *, level: float = 0.95) -> Interval:
    """Return the mean of ``first - second`` with its t interval, for a few runs with the same seeds.

    Raises:
        DataError: the lengths differ, or there are fewer than two pairs.
    """
    data = _checked(_differences(first, second), 2, level)
    mean = float(data.mean())
    margin = float(stats.t.ppf((1 + level) / 2, len(data) - 1) * data.std(ddof=1) / np.sqrt(len(data)))
    return Interval(mean, mean - margin, mean + margin, level)


def _differences(first: Values, second: Values) -> NDArray[np.float64]:
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.shape != b.shape:
        raise DataError(f"paired figures must be equally many, not {a.size} and {b.size}")
    return a - b


def _checked(values: Values, least: int, level: float) -> NDArray[np.float64]:
    data = np.asarray(values, dtype=np.float64).ravel()
    if len(data) < least:
        raise DataError(f"an interval needs {least} values or more, not {len(data)}")
    if not np.isfinite(data).all():
        raise DataError(f"value {int(np.flatnonzero(~np.isfinite(data))[0])} is not finite")
    if not 0 < level < 1:
        raise DataError(f"level must lie between 0 and 1, not {level}")
    return data
