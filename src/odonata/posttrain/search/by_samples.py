"""What one set of samples says of every budget up to its size: voting, choosing by scores, and the ceiling of both.

Notable:
- Every figure is the mean over all choices of k among the n samples (see `pass_at_k`); for votes with weights, over
  choices drawn by chance, which is unbiased as well.
- A vote elects an answer, not a text. Where texts with one answer are not all right, as when one was cut, it is as
  right as they are on average: which of them stands for the rest is a matter of order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from odonata.errors import DataError, RecipeError
from odonata.posttrain.search.asked import Answer
from odonata.posttrain.search.pass_at_k import best_of_k, majority_at_k

CEILING = "pass@k"
SAMPLE = "sample"
LOGPROB, MEAN_LOGPROB = "log p", "log p / length"
DRAWS = 512
"""Choices of k samples drawn for a vote with weights, at least."""


@dataclass(frozen=True)
class Sampled:
    """The samples of one question."""

    answers: Sequence[Answer]
    right: Sequence[float]
    """How right each is, 0 to 1."""
    keys: Sequence[Hashable | None] = ()
    """The form in which votes compare each, None for what cannot be parsed; empty where there is no vote."""
    scores: Mapping[str, Sequence[float]] = field(default_factory=dict[str, Sequence[float]])
    """Name → score of each, higher for better: ways to choose the best of n."""
    weights: Mapping[str, Sequence[float]] = field(default_factory=dict[str, Sequence[float]])
    """Name → weight of each, 0 or more: ways to weigh votes."""

    def __post_init__(self) -> None:
        count = len(self.answers)
        lengths = [len(self.right), *map(len, self.scores.values()), *map(len, self.weights.values())]
        if not count or any(length != count for length in lengths) or len(self.keys) not in (0, count):
            raise DataError(f"{count} samples need as many outcomes, keys, scores and weights")


def budgets_up_to(budget: int) -> list[int]:
    """Return 1, 2, 4 … and the budget itself.

    Raises:
        RecipeError: it is below 1.
    """
    if budget < 1:
        raise RecipeError(f"--budget is {budget}; it must be at least 1")
    return sorted({2**power for power in range(budget.bit_length())} | {budget})


def outcomes_of(
    sampled: Sequence[Sampled], budgets: Sequence[int], *, seed: int = 0
) -> dict[str, dict[int, list[float]]]:
    """Return how right each way to choose is, by budget and question.

    Args:
        sampled: the samples of each question; of all of them the same keys, scores and weights are known.
        budgets: numbers of samples, none more than there are.
        seed: of the choices that are drawn for votes with weights.

    Returns:
        `sample`, one answer by chance; `best-of-n (…)` for each score; `vote`, and `vote (…)` for each weight; and
        `pass@k`.
    """
    ways: dict[str, Callable[[int, int], float]] = {}
    for name in sampled[0].scores:
        ways[f"best-of-n ({name})"] = lambda i, k, name=name: best_of_k(sampled[i].scores[name], sampled[i].right, k)
    if sampled[0].keys:
        ways["vote"] = lambda i, k: vote_at_k(sampled[i].keys, sampled[i].right, k)
    found = {SAMPLE: {1: [math.fsum(each.right) / len(each.right) for each in sampled]}}
    found |= {name: {k: [way(i, k) for i in range(len(sampled))] for k in budgets} for name, way in ways.items()}
    for name in sampled[0].weights:
        rows = [
            weighted_vote_at(each.keys, each.weights[name], each.right, budgets, seed=seed + number)
            for number, each in enumerate(sampled)
        ]
        found[f"vote ({name})"] = {k: [row[k] for row in rows] for k in budgets}
    # Chosen by the truth, the best of k is right where any of them is: that is pass@k, also for grades between 0 and 1.
    found[CEILING] = {k: [best_of_k(each.right, each.right, k) for each in sampled] for k in budgets}
    return found


def vote_at_k(keys: Sequence[Hashable | None], right: Sequence[float], k: int) -> float:
    """Return how right the majority of k samples is, on average.

    Args:
        keys: the answers in canonical form; None has no vote.
        right: how right each sample is.
        k: how many vote, at most as many as there are.

    Raises:
        DataError: k is out of range.
    """
    classes: dict[Hashable, list[float]] = {}
    for key, value in zip(keys, right, strict=True):
        if key is not None:
            classes.setdefault(key, []).append(value)
    return math.fsum(
        majority_at_k(keys, key, k) * math.fsum(values) / len(values) for key, values in classes.items() if any(values)
    )


def weighted_vote_at(
    keys: Sequence[Hashable | None],
    weights: Sequence[float],
    right: Sequence[float],
    budgets: Sequence[int],
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[int, float]:
    """Return how right the answer of the greatest weight among k samples is, by budget.

    Args:
        keys: as of `vote_at_k`.
        weights: of each sample, 0 or more.
        right: how right each sample is.
        budgets: values of k.
        draws: orders of the samples that are drawn, at least; the first k of each are one choice of k. They come as
            rotations of fewer, so that every sample is first as often, and one vote alone is exact.
        seed: of the draws.

    Raises:
        DataError: a weight is negative or not finite, or a budget is out of range.
    """
    count = len(keys)
    if not all(1 <= k <= count for k in budgets):
        raise DataError(f"budgets must be from 1 to the number of samples, {count}; they are {list(budgets)}")
    if wrong := [weight for weight in weights if not (math.isfinite(weight) and weight >= 0)]:
        raise DataError(f"a weight is {wrong[0]}; weights are 0 or more")
    names = list(dict.fromkeys(key for key in keys if key is not None))
    if not names:
        return dict.fromkeys(budgets, 0.0)
    place_of = {name: place for place, name in enumerate(names)}
    classes = np.array([place_of.get(key, len(names)) for key in keys])  # the last is no class: what has no vote
    share = np.array([np.mean(np.asarray(right)[classes == place]) for place in range(len(names))])
    generator = np.random.default_rng(seed)
    drawn = generator.permuted(np.tile(np.arange(count), (-(-draws // count), 1)), axis=1)
    orders = np.concatenate([np.roll(drawn, turn, axis=1) for turn in range(count)])
    votes = np.eye(len(names) + 1)[classes[orders]][:, :, :-1]
    sums = (votes * np.asarray(weights, float)[orders][:, :, None]).cumsum(1)
    sums[votes.cumsum(1) == 0] = -1.0  # not yet seen, which even a weight of 0 is above
    # In a random order the class seen first is any of equal ones, so chance may break ties.
    luck = generator.random((len(orders), len(names)))
    found: dict[int, float] = {}
    for k in budgets:
        now = sums[:, k - 1]
        best = now.max(1, keepdims=True)
        elected = np.where(now == best, luck, -1.0).argmax(1)
        found[k] = float(np.where(best[:, 0] >= 0, share[elected], 0.0).mean())
    return found
