"""From scores of steps to the score of a solution, for a process reward model.

Lightman et al. 2023, arXiv:2305.20050 (Let's Verify Step by Step), appendix F: product or minimum over steps, neutral
steps counted as good or as bad; product with neutral as good is their choice. Snell et al. 2024, arXiv:2408.03314: the
last step's score, which is what a model trained on outcomes means.

Notable:
- A product is returned as its logarithm, so that long solutions do not become 0 together.
- Product and minimum can only fall with each step, so they prefer short solutions whatever their steps are.
  `equal_steps` compares a solution with those of as many steps only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from odonata.errors import DataError, RecipeError

Aggregate = Literal["min", "prod", "mean", "last"]
AGGREGATES: tuple[Aggregate, ...] = ("min", "prod", "mean", "last")


def aggregate_steps(scores: Sequence[float], how: Aggregate) -> float:
    """Return one score for a solution.

    Args:
        scores: of each step the probability that it is good, 0 to 1.
        how: the minimum, the logarithm of the product, the mean, or the last.

    Returns:
        0 to 1; for `prod` −∞ to 0.

    Raises:
        DataError: there is no step, or a score is no probability.
        RecipeError: an unknown aggregate.
    """
    if how not in AGGREGATES:
        raise RecipeError(f"steps are aggregated by {', '.join(AGGREGATES)}, not {how!r}")
    if not scores:
        raise DataError("a solution without steps has no score")
    for number, score in enumerate(scores):
        if not 0 <= score <= 1:
            raise DataError(f"step {number} scores {score}; scores of steps are probabilities")
    if how == "prod":
        return math.fsum(math.log(score) for score in scores) if min(scores) > 0 else -math.inf
    if how == "mean":
        return math.fsum(scores) / len(scores)
    return min(scores) if how == "min" else scores[-1]


def score_solutions(solutions: Sequence[Sequence[float]], how: Aggregate, *, equal_steps: bool = False) -> list[float]:
    """Return a score for each solution of one problem.

    Args:
        solutions: scores of the steps of each.
        how: see `aggregate_steps`.
        equal_steps: score by rank among the solutions of as many steps: the share of them that it beats, equals
            counted half, from above 0 to below 1. So a number of steps wins nothing; one that is alone has 0.5.

    Raises:
        DataError: a solution has no step, or a score is no probability; names which.
    """
    found: list[float] = []
    for number, steps in enumerate(solutions):
        try:
            found.append(aggregate_steps(steps, how))
        except DataError as error:
            raise DataError(f"solution {number}: {error}") from error
    if not equal_steps:
        return found
    peers: dict[int, list[float]] = {}
    for steps, score in zip(solutions, found, strict=True):
        peers.setdefault(len(steps), []).append(score)
    return [_rank(score, peers[len(steps)]) for steps, score in zip(solutions, found, strict=True)]


def step_scores(probabilities: Sequence[Sequence[float]], *, neutral: Literal["good", "bad"] = "good") -> list[float]:
    """Return the probability that each step is good, from a model that knows three kinds.

    Args:
        probabilities: of each step: bad, neutral, good; they sum to 1.
        neutral: what a neutral step counts as.

    Raises:
        DataError: a row is no distribution over three.
        RecipeError: `neutral` is neither.
    """
    if neutral not in ("good", "bad"):
        raise RecipeError(f"neutral steps count as good or bad, not {neutral!r}")
    for number, row in enumerate(probabilities):
        if len(row) != 3 or not all(0 <= p <= 1 for p in row) or abs(math.fsum(row) - 1) > 1e-4:
            raise DataError(f"step {number} has {list(row)}; wanted are probabilities of bad, neutral and good")
    return [min(1.0, row[2] + row[1]) if neutral == "good" else row[2] for row in probabilities]


def _rank(score: float, peers: Sequence[float]) -> float:
    return sum((other < score) + 0.5 * (other == score) for other in peers) / len(peers)
