"""Rewards for answers that can be checked: equal in value (`math`), or letter by letter (`math-exact`).

Notable: there is no alarm signal and no thread to time out, because the reader is bounded by construction; so the
verdicts are the same in any thread. A completion without a marked answer, or with one in no known notation, is wrong
(0). None, for "could not be judged", is left to what can be read but not decided: sin²x + cos²x against 1, or a value
out of bounds.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from functools import lru_cache

from odonata.errors import DataError
from odonata.posttrain.rewards.algebra import Undecided, Unreadable
from odonata.posttrain.rewards.answers import extract_answer, read_answer, same_answer
from odonata.posttrain.rewards.interface import Answered, row_field


class MathReward:
    """1 if the marked answer equals the row's `answer` in value, 0 if not, None if neither can be shown.

    The row's `answer` is a number, an answer's text, or a whole solution that marks its answer.
    """

    name = "math"

    def __call__(self, answers: Sequence[Answered]) -> list[float | None]:
        """Return 1, 0 or None an answer.

        Raises:
            DataError: a row lacks `answer`, or its answer is empty.
        """
        return [self._judge(answer) for answer in answers]

    def _judge(self, answer: Answered) -> float | None:
        wanted = answer_of_row(answer, self.name)
        got = extract_answer(answer.completion)
        if got is None:
            return 0.0
        if " ".join(got.split()) == " ".join(wanted.split()):
            return 1.0
        return equal_in_value(wanted, got)


class ExactReward:
    """1 if the marked answer is the row's `answer` letter by letter, but for spaces and case; else 0."""

    name = "math-exact"

    def __call__(self, answers: Sequence[Answered]) -> list[float]:
        """Return 1 or 0 an answer.

        Raises:
            DataError: a row lacks `answer`, or its answer is empty.
        """
        return [self._judge(answer) for answer in answers]

    def _judge(self, answer: Answered) -> float:
        got = extract_answer(answer.completion)
        return float(got is not None and _squeezed(got) == _squeezed(answer_of_row(answer, self.name)))


def answer_of_row(answer: Answered, reward: str) -> str:
    """Return the text of the row's answer; a whole number stored as 27.0 reads 27.

    Raises:
        DataError: the row has no `answer`, or it is empty or neither number nor text.
    """
    value = row_field(answer, "answer", reward=reward)
    if isinstance(value, float) and math.isfinite(value):
        return repr(int(value) if value.is_integer() else value)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, str) and value.strip():
        return extract_answer(value) or value.strip()
    raise DataError(f"the reward {reward!r} cannot use the answer {value!r} of the row of {answer.prompt[:60]!r}")


def equal_in_value(wanted: str, got: str) -> float | None:
    """Return 1, 0 or, where neither can be shown, None for the answer `got` where `wanted` is right."""
    try:
        right = _read(wanted)
    except (Unreadable, Undecided):
        return None
    try:
        verdict = same_answer(right, read_answer(got))
    except Unreadable:
        return 0.0
    except Undecided:
        return None
    return None if verdict is None else float(verdict)


@lru_cache(maxsize=4096)
def _read(text: str) -> Hashable:
    return read_answer(text)


def _squeezed(text: str) -> str:
    return "".join(text.split()).casefold()
