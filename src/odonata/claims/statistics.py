"""What decides a claim: paired t intervals, and three possible verdicts."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from odonata.claims.claim import Comparison

Verdict = Literal["supported", "not supported", "inconclusive"]
Results = Mapping[str, Mapping[int, Mapping[str, float]]]
"""Cell → seed → figures."""
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval."""

    mean: float
    low: float
    high: float

    def exp(self) -> Interval:
        """Return the interval of a ratio from that of its logarithm."""
        return Interval(math.exp(self.mean), math.exp(self.low), math.exp(self.high))


@dataclass(frozen=True)
class Outcome:
    """How one comparison came out."""

    comparison: Comparison
    interval: Interval
    """Of the difference, or of the ratio."""
    verdict: Verdict
    seeds: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {**asdict(self.comparison), **asdict(self.interval), "verdict": self.verdict, "n": self.seeds}


def t_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """Return the mean with its two-sided Student t interval.

    Args:
        values: two or more independent measurements.
        confidence: coverage.

    Raises:
        ValueError: fewer than two values, or one that is not finite.

    >>> t_interval([1.0, 2.0, 3.0])
    Interval(mean=2.0, low=-0.484..., high=4.484...)
    """
    if len(values) < 2 or not all(math.isfinite(value) for value in values):
        raise ValueError(f"an interval needs two finite values or more, not {list(values)}")
    from scipy.stats import t

    mean = statistics.fmean(values)
    half = float(t.ppf((1 + confidence) / 2, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)


def compare(comparison: Comparison, results: Results) -> Outcome:
    """Decide one comparison from the figures of the trials, paired by seed.

    Raises:
        ValueError: the cells were not run with the same seeds, or a ratio is asked of a figure that is not positive.
    """
    treatment = _side(comparison.treatment, comparison.quantity, results)
    if isinstance(comparison.control, str):
        control = _side(comparison.control, comparison.quantity, results)
    else:
        control = dict.fromkeys(treatment, float(comparison.control))
    if treatment.keys() != control.keys():
        raise ValueError(
            f"{comparison.name!r} is paired, but its sides ran with seeds {sorted(treatment)} and {sorted(control)}"
        )
    interval = _paired(comparison, treatment, control)
    return Outcome(comparison, interval, judge(interval, comparison.relation, comparison.margin), len(treatment))


def judge(interval: Interval, relation: Literal[">", "<"], margin: float) -> Verdict:
    """Return the verdict: on which side of the margin does the whole interval lie?

    >>> judge(Interval(2, 1, 3), ">", 0), judge(Interval(2, 1, 3), "<", 0), judge(Interval(0, -1, 1), ">", 0)
    ('supported', 'not supported', 'inconclusive')
    """
    above, below = interval.low > margin, interval.high < margin
    if above or below:
        return "supported" if above == (relation == ">") else "not supported"
    return "inconclusive"


def verdict_of(outcomes: Sequence[Outcome]) -> Verdict:
    """Return a claim's verdict: all primary comparisons must hold; one that fails is enough against it."""
    verdicts = {outcome.verdict for outcome in outcomes if outcome.comparison.primary}
    if verdicts == {"supported"}:
        return "supported"
    return "not supported" if "not supported" in verdicts else "inconclusive"


def mean_of(trials: Mapping[int, Mapping[str, float]], quantity: str) -> float:
    """Return the mean of a figure over the seeds of a cell."""
    return statistics.fmean(figures[quantity] for figures in trials.values())


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Return Spearman's ρ; equal values share their mean rank.

    >>> rank_correlation([1.0, 2.0, 3.0], [10.0, 20.0, 15.0])
    0.5
    """
    ranks = [_ranks(values) for values in (first, second)]
    return statistics.correlation(*ranks)


def _ranks(values: Sequence[float]) -> list[float]:
    return [sum((other < value) + 0.5 * (other == value) for other in values) + 0.5 for value in values]


def _paired(comparison: Comparison, treatment: Mapping[int, float], control: Mapping[int, float]) -> Interval:
    if not comparison.ratio:
        return t_interval([treatment[seed] - control[seed] for seed in treatment])
    if min(*treatment.values(), *control.values()) <= 0:
        raise ValueError(f"{comparison.name!r} is a ratio, but {comparison.quantity} is not always positive")
    return t_interval([math.log(treatment[seed] / control[seed]) for seed in treatment]).exp()


def _side(expression: str, quantity: str, results: Results) -> dict[int, float]:
    """Return seed → value of a cell, or of the gap between two."""
    first, *rest = [_figures(cell, quantity, results) for cell in expression.split(" - ")]
    for other in rest:
        if other.keys() != first.keys():
            raise ValueError(f"{expression!r} is paired, but ran with seeds {sorted(first)} and {sorted(other)}")
        first = {seed: value - other[seed] for seed, value in first.items()}
    return first


def _figures(cell: str, quantity: str, results: Results) -> dict[int, float]:
    return {seed: figures[quantity] for seed, figures in results[cell].items()}
