"""One answer from many: majority vote, weighted vote, best of n.

Wang et al. 2022, arXiv:2203.11171 (self-consistency); Cobbe et al. 2021, arXiv:2110.14168 (best of n by a verifier);
Li et al. 2022, arXiv:2206.02336 (votes weighted by a verifier).

Notable:
- Answers are compared in canonical form, by a function that is handed in: "0.5" and "1/2" are one vote for one answer
  only if it says so. What it cannot parse (None) has no vote, and forms no class that could win.
- A tie is broken in a way that has a name: by who was seen first, or by the weights.
- An unknown score (None) is not 0: such a sample is left out of the choice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from odonata.errors import DataError, RecipeError

T = TypeVar("T")


@dataclass(frozen=True)
class Vote(Generic[T]):
    """How a vote came out."""

    winner: T | None
    """The first of the winning class as it was given; None where no answer could be parsed."""
    index: int | None
    """Its place among the answers."""
    support: dict[Hashable, float]
    """Canonical answer → votes or weight, in order of appearance."""
    unparsable: int
    """Answers without a canonical form."""

    @property
    def share(self) -> float:
        """The winner's share of all votes that were cast; 0 where none was."""
        total = sum(self.support.values())
        return max(self.support.values()) / total if total else 0.0


def majority_vote(
    answers: Sequence[T],
    canonical: Callable[[T], Hashable | None],
    *,
    ties: Literal["first", "weight"] = "first",
    weights: Sequence[float] | None = None,
) -> Vote[T]:
    """Return the answer that most samples agree on.

    Args:
        answers: one per sample.
        canonical: the form in which answers are compared; None for what it cannot parse.
        ties: between classes of one size, which wins: the one seen first, or that of the greater total weight.
        weights: one per sample, 0 or more; for `ties="weight"` only.

    Raises:
        RecipeError: weights without use, or missing.
        DataError: a weight is negative or not finite, or they are not as many as the answers.

    >>> majority_vote(["7", "seven", "7.0", "8", "8"], lambda text: float(text) if text[0].isdigit() else None).winner
    '7'
    """
    if ties not in ("first", "weight"):
        raise RecipeError(f"ties are broken by first or weight, not {ties!r}")
    if (weights is not None) != (ties == "weight"):
        raise RecipeError(
            "ties='weight' needs weights" if weights is None else "weights have no use where ties are broken by first"
        )
    keys = [canonical(answer) for answer in answers]
    votes = _sums(keys, [1.0] * len(keys))
    second = votes if weights is None else _sums(keys, _checked(weights, len(keys)))
    return _elect(answers, keys, votes, second)


def weighted_vote(answers: Sequence[T], canonical: Callable[[T], Hashable | None], weights: Sequence[float]) -> Vote[T]:
    """Return the answer of the greatest total weight; of equal ones that seen first.

    Args:
        answers: one per sample.
        canonical: the form in which answers are compared; None for what it cannot parse.
        weights: one per sample, 0 or more: probabilities of being right, not their logarithms.

    Raises:
        DataError: a weight is negative or not finite, or they are not as many as the answers.
    """
    keys = [canonical(answer) for answer in answers]
    votes = _sums(keys, _checked(weights, len(keys)))
    return _elect(answers, keys, votes, votes)


def best_of_n(scores: Sequence[float | None]) -> int | None:
    """Return the place of the highest score, the first of equal ones; None where no score is known.

    Args:
        scores: one per sample; None where it is unknown. −∞ is a score, +∞ is another.

    Raises:
        DataError: a score is not a number, or there is no sample.
    """
    if not scores:
        raise DataError("there is no sample to choose from")
    known = [(number, score) for number, score in enumerate(scores) if score is not None]
    for number, score in known:
        if math.isnan(score):
            raise DataError(f"the score of sample {number} is NaN; give None where it is unknown")
    return max(known, key=lambda pair: pair[1])[0] if known else None


def _checked(weights: Sequence[float], count: int) -> Sequence[float]:
    if len(weights) != count:
        raise DataError(f"there are {count} answers, but {len(weights)} weights")
    for number, weight in enumerate(weights):
        if not (math.isfinite(weight) and weight >= 0):
            raise DataError(f"weight {number} is {weight}; weights are 0 or more (logarithms must be exponentiated)")
    return weights


def _sums(keys: Sequence[Hashable | None], weights: Sequence[float]) -> dict[Hashable, float]:
    found: dict[Hashable, list[float]] = {}
    for key, weight in zip(keys, weights, strict=True):
        if key is not None:
            found.setdefault(key, []).append(weight)
    return {key: math.fsum(parts) for key, parts in found.items()}


def _elect(
    answers: Sequence[T],
    keys: Sequence[Hashable | None],
    votes: dict[Hashable, float],
    second: dict[Hashable, float],
) -> Vote[T]:
    unparsable = sum(key is None for key in keys)
    if not votes:
        return Vote(None, None, votes, unparsable)
    index = keys.index(max(votes, key=lambda key: (votes[key], second[key])))
    return Vote(answers[index], index, votes, unparsable)
