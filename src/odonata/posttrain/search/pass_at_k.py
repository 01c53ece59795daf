"""What k samples achieve, estimated from n ≥ k: any of them right, their majority right, the best-scored one right.

Notable:
- All are unbiased and exact: the mean over every choice of k among the n samples, not over some that were drawn.
  1 − (1 − c/n)ᵏ, the obvious estimate, is too low.
- The intervals resample problems, not samples: they say how sure a figure is for other problems of this kind.
- Equal votes, and equal scores, are broken by chance, which is what first seen means for samples in any order.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Hashable, Sequence

from odonata.errors import DataError, RecipeError
from odonata.metrics.bootstrap import Interval, bootstrap_mean


def pass_at_k(n: int, c: int, k: int) -> float:
    """Return the probability that one of k samples is right: 1 − C(n−c, k) / C(n, k).

    Args:
        n: samples that were drawn.
        c: how many of them are right.
        k: how many are allowed, at most n.

    Raises:
        DataError: not 0 ≤ c ≤ n and 1 ≤ k ≤ n.

    Source: Chen et al. 2021, arXiv:2107.03374, equation 1, as the product that their figure 3 computes.

    >>> pass_at_k(4, 1, 2)
    0.5
    """
    if not 0 <= c <= n:
        raise DataError(f"{c} of {n} samples cannot be right")
    _check(n, k)
    if n - c < k:
        return 1.0
    # Π (1 − k/i) over i = n−c+1 … n, as a sum of logarithms: no binomial that overflows, no difference near 1.
    return -math.expm1(math.fsum(math.log1p(-k / i) for i in range(n - c + 1, n + 1)))


def pass_at_k_over(
    counts: Sequence[tuple[int, int]], k: int, *, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Return the mean of pass@k over problems with its bootstrap interval.

    Args:
        counts: (n, c) of each problem.
        k: as in `pass_at_k`.
        level, resamples, seed: as in `bootstrap_mean`.

    Raises:
        DataError: a problem has fewer than k samples, or there is none; names which.
    """
    values: list[float] = []
    for number, (n, c) in enumerate(counts):
        try:
            values.append(pass_at_k(n, c, k))
        except DataError as error:
            raise DataError(f"problem {number}: {error}") from error
    return bootstrap_mean(values, level=level, resamples=resamples, seed=seed)


def majority_at_k(answers: Sequence[Hashable | None], truth: Hashable, k: int) -> float:
    """Return the probability that the majority of k samples is right.

    Exact: the number of choices of k with so many right ones, and every other answer less often or as often, is a
    coefficient of a product of polynomials, one for each answer.

    Args:
        answers: canonical, one per sample; None for what cannot be parsed, which takes a place but has no vote.
        truth: the canonical right answer, not None.
        k: how many samples vote, at most as many as there are.

    Raises:
        DataError: k is out of range, or the truth is None.
    """
    if truth is None:
        raise DataError("the right answer is None, which stands for what cannot be parsed")
    _check(len(answers), k)
    sizes = Counter(answer for answer in answers if answer is not None)
    right = sizes.pop(truth, 0)
    mute = len(answers) - right - sum(sizes.values())
    won = 0.0
    for votes in range(1, min(right, k) + 1):
        ways = _ways_below(list(sizes.values()), mute, votes, k - votes)
        chosen = math.comb(right, votes)
        won += math.fsum(chosen * ways[ties] / math.comb(len(answers), k) / (1 + ties) for ties in ways)
    return min(1.0, won)


def best_of_k(scores: Sequence[float], correct: Sequence[float], k: int) -> float:
    """Return how right the best-scored of k samples is, on average.

    Args:
        scores: one per sample.
        correct: 1 for a right sample, 0 for a wrong one, or a share of right.
        k: how many samples there are to choose from, at most all.

    Raises:
        DataError: the lengths differ, a score is not a number, or k is out of range.
    """
    n = len(scores)
    if len(correct) != n:
        raise DataError(f"there are {n} scores, but {len(correct)} outcomes")
    if any(math.isnan(score) for score in scores):
        raise DataError(f"the score of sample {next(i for i, s in enumerate(scores) if math.isnan(s))} is NaN")
    _check(n, k)
    groups: dict[float, list[float]] = {}
    for score, outcome in zip(scores, correct, strict=True):
        groups.setdefault(score, []).append(outcome)
    total, below, expected = math.comb(n, k), 0, 0.0
    for score in sorted(groups):
        up_to = below + len(groups[score])
        share = (math.comb(up_to, k) - math.comb(below, k)) / total  # the best of k has this score
        expected += share * math.fsum(groups[score]) / len(groups[score])
        below = up_to
    return expected


def resampled_at_k(
    select: Callable[[Sequence[int]], bool | float], n: int, k: int, *, draws: int = 1000, seed: int = 0
) -> float:
    """Return how often any way to choose an answer is right with k samples, by drawing them.

    For what has no exact form: votes weighted by scores, ties broken by weight.

    Args:
        select: from places of k different samples, in random order, to whether the answer chosen from them is right.
        n: samples that there are.
        k: how many are drawn each time, without putting back.
        draws: how often.
        seed: the same seed draws the same samples.

    Raises:
        DataError: k is out of range.
        RecipeError: there are no draws.
    """
    _check(n, k)
    if draws < 1:
        raise RecipeError(f"draws must be 1 or more, not {draws}")
    generator = random.Random(seed)
    return math.fsum(float(select(generator.sample(range(n), k))) for _ in range(draws)) / draws


def _ways_below(sizes: Sequence[int], mute: int, votes: int, rest: int) -> dict[int, int]:
    """Return: ties → ways to draw `rest` samples of other answers, none more often than `votes`, so many as often."""
    state = {(drawn, 0): math.comb(mute, drawn) for drawn in range(min(mute, rest) + 1)}
    for size in sizes:
        after: dict[tuple[int, int], int] = {}
        for (drawn, ties), ways in state.items():
            for more in range(min(size, votes, rest - drawn) + 1):
                key = drawn + more, ties + (more == votes)
                after[key] = after.get(key, 0) + ways * math.comb(size, more)
        state = after
    return {ties: ways for (drawn, ties), ways in state.items() if drawn == rest}


def _check(n: int, k: int) -> None:
    if not 1 <= k <= n:
        raise DataError(f"k must be from 1 to the number of samples, {n}; it is {k}")
