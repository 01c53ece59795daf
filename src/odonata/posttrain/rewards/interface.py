"""The contract of a reward: answers in, one number or `None` each out; and the weighted total with its parts.

Notable: the parts are kept, weights of zero included, because a run that hacks one part shows it nowhere else. A part
that could not be judged takes the total with it, unless its weight is zero. Trainers drop such answers from the
baseline.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from odonata.errors import DataError, RecipeError, RunError


@dataclass(frozen=True)
class Answered:
    """One prompt with one completion."""

    prompt: str
    completion: str
    """The text without the end token."""
    row: Mapping[str, Any]
    """The row of the data file: answer, numbers, target, tests."""
    finished: bool
    """The completion ended with the end token; False: it was cut at the limit."""
    prompt_ids: tuple[int, ...] = ()
    """The prompt's tokens; empty where there is only text."""
    ids: tuple[int, ...] = ()
    """The completion's tokens as they were sampled, the end token included; empty where there is only text."""


class Reward(Protocol):
    """A named function of a batch of answers."""

    @property
    def name(self) -> str:
        """The name under which the part is reported."""
        ...

    def __call__(self, answers: Sequence[Answered]) -> Sequence[float | None]:
        """Return one number an answer; `None` where it could not be judged."""
        ...


@dataclass(frozen=True)
class Judged:
    """The verdicts on a batch, in its order."""

    total: list[float | None]
    """The weighted sum; `None` where a part with weight could not be judged."""
    parts: dict[str, list[float | None]]
    """What each reward said, by name."""


def judge(rewards: Sequence[Reward], weights: Sequence[float], answers: Sequence[Answered]) -> Judged:
    """Return the weighted total of `rewards` for each answer, and the parts.

    Args:
        rewards: at least one; their names must differ.
        weights: one a reward, finite; a reward of weight 0 is reported and counts for nothing.
        answers: the batch; may be empty.

    Raises:
        RecipeError: no reward, names that repeat, or weights that do not fit.
        RunError: a reward returned something else than one finite number or `None` an answer.
    """
    check_weights(names := [reward.name for reward in rewards], weights)
    parts = {reward.name: _checked(reward, answers) for reward in rewards}
    totals = [_total([parts[name][i] for name in names], weights) for i in range(len(answers))]
    return Judged(totals, parts)


def check_weights(names: Sequence[str], weights: Sequence[float]) -> None:
    """Refuse what no total can be made of.

    Raises:
        RecipeError: no reward, names that repeat, or weights that do not fit.
    """
    if not names:
        raise RecipeError("there is no reward: name at least one")
    if len(weights) != len(names) or not all(math.isfinite(weight) for weight in weights):
        raise RecipeError(f"{len(names)} rewards ({', '.join(names)}) need as many finite weights, not {list(weights)}")
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise RecipeError(f"the reward {repeated[0]!r} is named twice: give it once, with the sum of the weights")


def row_field(answer: Answered, *names: str, reward: str) -> Any:
    """Return the first of the fields `names` that the row has.

    Raises:
        DataError: the row has none of them; names the reward that needs it and the row's fields.
    """
    for name in names:
        if name in answer.row:
            return answer.row[name]
    have = ", ".join(map(str, answer.row)) or "none"
    wanted = " or ".join(repr(name) for name in names)
    raise DataError(
        f"the reward {reward!r} needs the field {wanted} in each row; {_shown(answer)} has the fields {have}"
    )


def _shown(answer: Answered) -> str:
    return f"the row of the prompt {answer.prompt[:60]!r}"


def _checked(reward: Reward, answers: Sequence[Answered]) -> list[float | None]:
    values = list(reward(answers))
    if len(values) != len(answers):
        raise RunError(f"the reward {reward.name!r} returned {len(values)} values for {len(answers)} answers")
    for answer, value in zip(answers, values, strict=True):
        if value is not None and not (isinstance(value, int | float) and math.isfinite(value)):
            raise RunError(
                f"the reward {reward.name!r} returned {value!r} for {_shown(answer)}: wanted a finite number, "
                "or None where it cannot judge"
            )
    return [None if value is None else float(value) for value in values]


def _total(values: list[float | None], weights: Sequence[float]) -> float | None:
    total = 0.0
    for value, weight in zip(values, weights, strict=True):
        if weight == 0:
            continue
        if value is None:
            return None
        total += weight * value
    return total
