"""Countdown: reach the target with the given numbers, each exactly once, by + - * / and parentheses.

The verifier of TinyZero (Pan et al. 2025, github.com/Jiayi-Pan/TinyZero, verl/utils/reward_score/countdown.py)
without its `eval`, on which `9**9**9**9` hangs the trainer: a parser of its own, and exact fractions.

Deliberate differences: no tolerance (TinyZero accepts 1e-5); no score for a mere attempt (name `format` beside it,
with a weight of 0.1); a completion without <answer> tags may be the bare expression in its last line, as small models
write it; what stands behind an equals sign must be the value of what stands before it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction

from odonata.errors import DataError
from odonata.posttrain.rewards.interface import Answered, row_field

MAX_CHARACTERS = 300
MAX_DEPTH = 40
TOKEN = re.compile(r"\s*(?:([0-9]{1,12})(?![0-9.])|([-+*/()]))")
SIGNS = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-", "–": "-", "[": "(", "]": ")"})


class CountdownReward:
    """1 if the expression reaches the row's `target` and uses each of its `numbers` as often as given, else 0."""

    name = "countdown"

    def __call__(self, answers: Sequence[Answered]) -> list[float]:
        """Return 1 or 0 an answer.

        Raises:
            DataError: a row lacks `numbers` (or `nums`) or `target`, or they are no numbers.
        """
        return [self._judge(answer) for answer in answers]

    def _judge(self, answer: Answered) -> float:
        numbers = row_field(answer, "numbers", "nums", reward=self.name)
        target = row_field(answer, "target", reward=self.name)
        if type(target) is not int or not isinstance(numbers, list | tuple) or any(type(n) is not int for n in numbers):
            raise DataError(
                f"the reward 'countdown' needs whole numbers and a whole target; the row of {answer.prompt[:60]!r} has "
                f"{numbers!r} and {target!r}"
            )
        try:
            value, used = evaluate_arithmetic(stated_expression(answer.completion))
        except ValueError:
            return 0.0
        return float(value == target and Counter(used) == Counter(numbers))


def stated_expression(completion: str) -> str:
    """Return the expression in the last <answer> tags, or else the last line behind the thoughts."""
    _, thought, rest = completion.rpartition("</think>")
    text = rest if thought else completion
    end = text.rfind("</answer>")
    begin = text.rfind("<answer>", 0, end) if end >= 0 else -1
    if begin >= 0:
        return text[begin + len("<answer>") : end].strip()
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else ""


def evaluate_arithmetic(text: str) -> tuple[Fraction, list[int]]:
    """Return the exact value of an expression and the numbers in it, in their order.

    Args:
        text: whole numbers, + - * / (also × ÷), parentheses and signs, at most 300 characters; `= number` may follow.

    Raises:
        ValueError: it is nothing of that kind (`**`, decimals, `2(3)`), divides by zero, or its own equation is wrong.

    >>> evaluate_arithmetic("(50 + (69 - 38)) = 81")
    (Fraction(81, 1), [50, 69, 38])
    """
    if len(text) > MAX_CHARACTERS:
        raise ValueError("too long")
    left, equal, right = text.translate(SIGNS).partition("=")
    reader = _Reader(_tokens(left))
    value = reader.sum(0)
    if reader.at != len(reader.tokens):
        raise ValueError(f"{reader.tokens[reader.at]!r} after the end of the expression")
    if equal and not _is_value(right.strip(), value):
        raise ValueError("the equation does not hold")
    return value, [int(token) for token in reader.tokens if token.isdigit()]


def _is_value(text: str, value: Fraction) -> bool:
    return (
        bool(re.fullmatch(r"-?[0-9]{1,30}(?:/[0-9]{1,30})?", text))
        and not text.endswith("/0")
        and Fraction(text) == value
    )


def _tokens(text: str) -> list[str]:
    tokens = list[str]()
    at, text = 0, text.rstrip()
    while at < len(text):
        match = TOKEN.match(text, at)
        if match is None:
            raise ValueError(f"{text[at : at + 10]!r} is no number, sign or parenthesis")
        tokens.append(match[1] or match[2])
        at = match.end()
    return tokens


class _Reader:
    """Reads sums of products of signed numbers and parentheses; `depth` bounds the recursion."""

    def __init__(self, tokens: list[str]):
        self.tokens, self.at = tokens, 0

    def take(self, signs: str) -> str:
        if self.at < len(self.tokens) and self.tokens[self.at] in signs:
            self.at += 1
            return self.tokens[self.at - 1]
        return ""

    def sum(self, depth: int) -> Fraction:
        value = self.product(depth)
        while sign := self.take("+-"):
            other = self.product(depth)
            value = value + other if sign == "+" else value - other
        return value

    def product(self, depth: int) -> Fraction:
        value = self.signed(depth)
        while sign := self.take("*/"):
            other = self.signed(depth)
            if sign == "/" and other == 0:
                raise ValueError("division by zero")
            value = value * other if sign == "*" else value / other
        return value

    def signed(self, depth: int) -> Fraction:
        if depth > MAX_DEPTH:
            raise ValueError("nested too deeply")
        if sign := self.take("+-"):
            value = self.signed(depth + 1)
            return -value if sign == "-" else value
        if self.take("("):
            value = self.sum(depth + 1)
            if not self.take(")"):
                raise ValueError("a parenthesis that is not closed")
            return value
        if self.at == len(self.tokens) or not self.tokens[self.at].isdigit():
            raise ValueError("a number is missing")
        self.at += 1
        return Fraction(int(self.tokens[self.at - 1]))
