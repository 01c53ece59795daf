"""A language of array expressions for models too small to write Python: eight to twelve words solve a classic problem.

A program is a sequence of words in prefix order, each with a fixed number of operands, so it needs no parentheses,
and one word is one token. `a` is the input array. Trapping rain water is ten words:

    sum - both highs a rev highs rev a a

The meaning is total: whatever parses has a value. Numbers are whole and stay within ±10^9; `max`, `first` and their
like give 0 for an empty array; two arrays of different lengths are paired up to the shorter; a number beside an array
counts for each place; where an array is wanted, a number is the array of that one. Only the step limit ends a run
without a value.
"""

from __future__ import annotations

import difflib
import functools
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from random import Random
from typing import Any

from odonata.errors import DataError
from odonata.posttrain.problems import Problem

BOUND = 10**9
MAX_WORDS = 40
MAX_STEPS = 20_000

Value = int | list[int]


class NotAProgram(Exception):
    """The words are no program: says which one stands wrong."""


@dataclass(frozen=True)
class Word:
    """One word of the language."""

    arity: int
    meaning: str
    apply: Callable[..., Any]


def _fold(function: Callable[[list[int]], int]) -> Callable[[list[int]], int]:
    return lambda numbers: function(numbers) if numbers else 0


def _with_previous(numbers: list[int]) -> list[int]:
    return [0, *numbers[:-1]] if numbers else []


REDUCERS: dict[str, Word] = {
    "sum": Word(1, "the sum", sum),
    "max": Word(1, "the largest; 0 if empty", _fold(max)),
    "min": Word(1, "the smallest; 0 if empty", _fold(min)),
    "len": Word(1, "the length", len),
    "first": Word(1, "the first; 0 if empty", _fold(lambda x: x[0])),
    "last": Word(1, "the last; 0 if empty", _fold(lambda x: x[-1])),
    "mid": Word(1, "the one in the middle (place n/2, rounded down); 0 if empty", _fold(lambda x: x[len(x) // 2])),
}
"""From an array to a number."""

ARRAYS: dict[str, Word] = {
    "rev": Word(1, "in reverse", lambda x: x[::-1]),
    "sort": Word(1, "in rising order", sorted),
    "sums": Word(1, "running sums", lambda x: list(accumulate(x))),
    "highs": Word(1, "running maxima", lambda x: list(accumulate(x, max))),
    "lows": Word(1, "running minima", lambda x: list(accumulate(x, min))),
    "diff": Word(1, "each minus the one before it; one shorter", lambda x: [b - a for a, b in pairwise(x)]),
    "shift": Word(1, "each place takes the one before it, the first takes 0", _with_previous),
    "tail": Word(1, "all but the first", lambda x: x[1:]),
    "places": Word(1, "0, 1, 2, … of the same length", lambda x: list(range(len(x)))),
    "meets": Word(
        1, "for every pair of places, the smaller of the two numbers", lambda x: [min(p, q) for p in x for q in x]
    ),
    "gaps": Word(
        1,
        "for every pair of places, how far they lie apart",
        lambda x: [abs(i - j) for i in range(len(x)) for j in range(len(x))],
    ),
}
"""From an array to an array; the pairs of `meets` and `gaps` are in the same order."""

PAIRED: dict[str, Word] = {
    "+": Word(2, "plus", operator.add),
    "-": Word(2, "minus", operator.sub),
    "*": Word(2, "times", operator.mul),
    "both": Word(2, "the smaller", min),
    "either": Word(2, "the larger", max),
    "=": Word(2, "1 where equal, else 0", lambda x, y: int(x == y)),
    "<": Word(2, "1 where the first is smaller, else 0", lambda x, y: int(x < y)),
}
"""From two numbers to one, place by place."""

LEAVES: dict[str, Word] = {
    "a": Word(0, "the input", list[int]),
    "0": Word(0, "zero", lambda: 0),
    "1": Word(0, "one", lambda: 1),
}
"""What has no operands."""

WORDS = LEAVES | PAIRED | ARRAYS | REDUCERS
"""The vocabulary."""

Tree = tuple[str, tuple["Tree", ...]]


def parse(text: str) -> Tree:
    """Return the tree of a program.

    Args:
        text: words separated by spaces, 1 to 40.

    Raises:
        NotAProgram: a word is unknown, one is missing, or some are left over.
    """
    words = text.split()
    if not 1 <= len(words) <= MAX_WORDS:
        raise NotAProgram(f"a program has 1 to {MAX_WORDS} words, not {len(words)}")
    stack = list[Tree]()
    for place, word in zip(range(len(words), 0, -1), reversed(words), strict=True):  # operands stand ready, last first
        if word not in WORDS:
            raise NotAProgram(f"word {place}, {word!r}, is not in the language")
        arity = WORDS[word].arity
        if len(stack) < arity:
            raise NotAProgram(f"word {place}, {word!r}, lacks an operand")
        operands = tuple(stack.pop() for _ in range(arity))
        stack.append((word, operands))
    if len(stack) > 1:
        raise NotAProgram(f"{len(stack) - 1} operands are left over")
    return stack[0]


def evaluate(tree: Tree, numbers: Sequence[int], max_steps: int = MAX_STEPS) -> Value | None:
    """Return the value of a program on an array; None: it took more than `max_steps` places of arrays.

    >>> evaluate(parse("max * gaps a meets a"), [1, 8, 6, 2, 5, 4, 8, 3, 7])
    49
    """
    steps = _Steps(max_steps)
    try:
        return _evaluated(tree, [_bounded(n) for n in numbers], steps)
    except _OutOfSteps:
        return None


def random_program(rng: Random, shortest: int = 1, longest: int = 12) -> str:
    """Return a random program of `shortest` to `longest` words that gives a number and reads the input.

    Raises:
        DataError: the lengths do not fit (no number is read from the input in a single word).
    """
    if not 1 <= shortest <= longest <= MAX_WORDS or longest < 2:
        raise DataError(f"random programs need 1 <= shortest <= longest <= {MAX_WORDS} and longest >= 2")
    while True:
        words = _drawn(rng, rng.randint(max(2, shortest), longest), REDUCERS)
        if "a" in words:
            return " ".join(words)


def solves(text: str, problem: Problem) -> bool:
    """Say if a program passes every case of a problem; what does not parse passes none."""
    try:
        tree = parse(text)
    except NotAProgram:
        return False
    return all(evaluate(tree, case.arguments[0]) == case.expected for case in problem.cases())


@functools.cache
def expressible(problem: Problem) -> None:
    """Check that a problem maps one array to one number.

    Raises:
        DataError: it does not; names those that the language was made for.
    """
    fits = all(len(case.arguments) == 1 and type(case.expected) is int for case in problem.cases())
    if not fits or any(not all(type(n) is int for n in case.arguments[0]) for case in problem.cases()):
        near = ", ".join(difflib.get_close_matches(problem.name, SOLUTIONS, len(SOLUTIONS), 0.0))
        raise DataError(f"the problem {problem.name!r} is not from an array to a number; these are: {near}")


SOLUTIONS = {
    "container-with-most-water": "max * gaps a meets a",
    "trapping-rain-water": "sum - both highs a rev highs rev a a",
    "best-time-to-buy-and-sell": "max - a lows a",
    "maximum-subarray": "max - sums a lows shift sums a",
    "missing-number": "- + sum places a len a sum a",
    "majority-element": "mid sort a",
}
"""A solution of each problem of the catalogue that the language can express."""


class _OutOfSteps(Exception):
    pass


class _Steps:
    def __init__(self, left: int):
        self.left = left

    def spend(self, steps: int) -> None:
        self.left -= steps
        if self.left < 0:
            raise _OutOfSteps


def _evaluated(tree: Tree, numbers: list[int], steps: _Steps) -> Value:
    name, operands = tree
    if name == "a":
        return numbers
    values = [_evaluated(operand, numbers, steps) for operand in operands]
    if name in PAIRED:
        return _place_by_place(PAIRED[name].apply, values[0], values[1], steps)
    if name in LEAVES:
        return LEAVES[name].apply()
    array = values[0] if isinstance(values[0], list) else [values[0]]
    steps.spend(1 + (len(array) ** 2 if name in ("meets", "gaps") else len(array)))
    result = WORDS[name].apply(array)
    return [_bounded(n) for n in result] if isinstance(result, list) else _bounded(result)


def _place_by_place(function: Callable[[int, int], int], one: Value, other: Value, steps: _Steps) -> Value:
    if isinstance(one, int) and isinstance(other, int):
        steps.spend(1)
        return _bounded(function(one, other))
    length = min(len(value) for value in (one, other) if isinstance(value, list))
    steps.spend(1 + length)
    left = one if isinstance(one, list) else [one] * length
    right = other if isinstance(other, list) else [other] * length
    return [_bounded(function(x, y)) for x, y in zip(left, right, strict=False)]


def _bounded(n: int) -> int:
    return max(-BOUND, min(BOUND, n))


def _drawn(rng: Random, length: int, kind: dict[str, Word] | None = None) -> list[str]:
    """Draw a tree of exactly `length` words whose root is of the given kind (None: any)."""
    if length == 1:
        return [rng.choice(["a", "a", "a", "0", "1"])]
    words = kind or (ARRAYS | REDUCERS | PAIRED)
    name = rng.choice([name for name, word in words.items() if word.arity < length])
    if WORDS[name].arity == 1:
        return [name, *_drawn(rng, length - 1)]
    first = rng.randint(1, length - 2)
    return [name, *_drawn(rng, first), *_drawn(rng, length - 1 - first)]
