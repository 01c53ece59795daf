"""Rewards of the built-in tasks, whose answers stand behind a mark: `348933#3`.

Notable: what is not of the form is wrong (0), not unknown: the text itself is the answer, and there is none.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from odonata.posttrain.rewards.countdown import CountdownReward
from odonata.posttrain.rewards.interface import Answered, row_field

MARK = "#"


@dataclass(frozen=True)
class MarkedAnswer:
    """1 where what stands behind the mark is the row's answer, to the character, and the text came to its end."""

    name: str = "marked-answer"

    def __call__(self, answers: Sequence[Answered]) -> list[float | None]:
        """Return 0 or 1 for each answer."""
        return [float(self._right(answer)) for answer in answers]

    def _right(self, answer: Answered) -> bool:
        before, mark, said = answer.completion.partition(MARK)
        wanted = str(row_field(answer, "answer", reward=self.name))
        return bool(mark) and answer.finished and said == wanted and (not before or before.isdigit())


@dataclass(frozen=True)
class MarkedFormat:
    """1 where the text is digits, a mark, one digit, and the end."""

    name: str = "marked-format"

    def __call__(self, answers: Sequence[Answered]) -> list[float | None]:
        """Return 0 or 1 for each answer."""
        return [float(a.finished and re.fullmatch(r"[0-9]*#[0-9]", a.completion) is not None) for a in answers]


@dataclass(frozen=True)
class MarkedCountdown:
    """1 where the expression behind the mark reaches the row's target with its numbers, and the text has ended."""

    name: str = "marked-countdown"

    def __call__(self, answers: Sequence[Answered]) -> list[float | None]:
        """Return 0 or 1 for each answer."""
        return [self._judged(answer) for answer in answers]

    def _judged(self, answer: Answered) -> float:
        _, mark, said = answer.completion.rpartition(MARK)
        if not mark or not answer.finished:
            return 0.0
        (value,) = CountdownReward()([replace(answer, completion=said)])
        return value or 0.0
