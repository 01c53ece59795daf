"""An embedded set of texts: reach a target from three small numbers, by searching or by guessing.

A prompt is `3,7,2:8=`. What follows is a guess, `#3-2+7`, or attempts before an answer, each a chain of steps with its
running value: `3-7=-4+2=-2;3+7=10-2=8;#3+7-2`. No two attempts come to the same value. Guesses are any chain at all, so
they are seldom right, and nothing about a problem's solution can be learned by heart from them. A search ends at the
target; one that has not found it after its last attempt answers with that one.

Every problem can be solved. Text i of a split is a pure function of (seed, split, i), and three numbers with a target
belong to one split only.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import permutations, product
from random import Random
from typing import Any

from odonata.data.keys import mix
from odonata.errors import DataError

SPLITS = ("train", "val", "test")
ALPHABET = "0123456789+-*()=:,;#"
"""All characters but those for padding and the end."""

Chain = tuple[tuple[int, int, int], str]
"""Three numbers in order and two operations: (a ∘ b) ∘ c."""
_DRAWS = 10_000
"""After so many problems none of which can be used, there is none."""


@dataclass(frozen=True)
class CountdownTexts:
    """The set.

    Args:
        largest: of the three numbers, 2 to 9.
        target: at most; 2 or more.
        operations: that may be used, of + - *.
        worked: share of texts with attempts.
        attempts: in a text at most.
        slips: chance that a step's value is wrong.
        seed: of all chance.

    Raises:
        DataError: a value out of its range.
    """

    largest: int = 9
    target: int = 30
    operations: str = "+-"
    worked: float = 0.3
    attempts: int = 5
    slips: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 2 <= self.largest <= 9 or self.target < 2 or self.attempts < 1:
            raise DataError(f"countdown: want largest in 2…9, target >= 2 and attempts >= 1, got {self}")
        if not self.operations or not set(self.operations) <= set("+-*"):
            raise DataError(f"countdown: operations are some of + - *, not {self.operations!r}")
        if not (0 <= self.worked <= 1 and 0 <= self.slips <= 1):
            raise DataError(f"countdown: worked and slips are shares in [0, 1], got {self}")

    @property
    def name(self) -> str:
        """As it is named on the command line."""
        shares = f"worked={self.worked:g},slips={self.slips:g}"
        seed = f",seed={self.seed}" if self.seed else ""
        problems = f"largest={self.largest},target={self.target},operations={self.operations}"
        return f"countdown:{problems},attempts={self.attempts},{shares}{seed}"

    @property
    def alphabet(self) -> str:
        """The characters of its texts."""
        return ALPHABET

    @property
    def longest(self) -> int:
        """Characters of a completion at most, the end not counted."""
        attempt = "9*9=81*9=729;" if "*" in self.operations else "9+9=18+9=27;"
        return self.attempts * len(attempt) + len("#(9-9)*9")

    def problem(self, split: str, index: int) -> tuple[tuple[int, int, int], int]:
        """Return three numbers and a target that can be reached from them.

        Raises:
            DataError: so few problems are possible that none belongs to the split.
        """
        random = Random(mix(self.seed, SPLITS.index(split), index, 13))
        for _ in range(_DRAWS):
            a, b, c = (random.randint(1, self.largest) for _ in range(3))
            target = value_of(((a, b, c), random.choice(self.operations) + random.choice(self.operations)))
            if 1 <= target <= self.target and _split_of((a, b, c), target) == split:
                numbers = [a, b, c]
                random.shuffle(numbers)
                return (numbers[0], numbers[1], numbers[2]), target
        raise DataError(f"{self.name}: no problem belongs to {split}; choose a larger target or larger numbers")

    def prompt(self, split: str, index: int) -> str:
        """Return a prompt."""
        return _prompt(*self.problem(split, index))

    def row(self, split: str, index: int) -> Mapping[str, Any]:
        """Return what a reward needs to know of a prompt: numbers and target."""
        numbers, target = self.problem(split, index)
        return {"numbers": list(numbers), "target": target}

    def text(self, split: str, index: int) -> tuple[str, str]:
        """Return a prompt and what follows it, without the end."""
        numbers, target = self.problem(split, index)
        random = Random(mix(self.seed, SPLITS.index(split), index, 14))
        if random.random() >= self.worked:
            return _prompt(numbers, target), f"#{written(random.choice(list(chains(numbers, self.operations))))}"
        search, answer = "", ""
        for chain in self._different(numbers, random)[: self.attempts]:
            steps, reached = self._attempt(chain, random)
            search, answer = search + steps, written(chain)
            if reached == target:
                break
        return _prompt(numbers, target), f"{search}#{answer}"

    def _different(self, numbers: tuple[int, int, int], random: Random) -> list[Chain]:
        """Return chains in random order, one for each value that can be reached."""
        found = list(chains(numbers, self.operations))
        random.shuffle(found)
        return list({value_of(chain): chain for chain in found}.values())

    def _attempt(self, chain: Chain, random: Random) -> tuple[str, int]:
        """Return an attempt with its running values, and the value that it comes to."""
        (first, *rest), operations = chain
        value, text = first, str(first)
        for operation, number in zip(operations, rest, strict=True):
            value = _apply(value, operation, number)
            if random.random() < self.slips:
                value += random.choice((-1, 1))
            text += f"{operation}{number}={value}"
        return text + ";", value


def _prompt(numbers: tuple[int, int, int], target: int) -> str:
    return f"{','.join(map(str, numbers))}:{target}="


def chains(numbers: tuple[int, int, int], operations: str) -> Iterator[Chain]:
    """Return every chain over the numbers, each order of them with every pair of operations."""
    for order in sorted(set(permutations(numbers))):
        for pair in product(operations, repeat=2):
            yield (order[0], order[1], order[2]), "".join(pair)


def value_of(chain: Chain) -> int:
    """Return what a chain comes to."""
    (a, b, c), (first, second) = chain
    return _apply(_apply(a, first, b), second, c)


def written(chain: Chain) -> str:
    """Return a chain as an expression, with brackets where precedence would read it otherwise."""
    (a, b, c), (first, second) = chain
    inner = f"{a}{first}{b}"
    return f"({inner}){second}{c}" if second == "*" and first != "*" else f"{inner}{second}{c}"


def _apply(left: int, operation: str, right: int) -> int:
    return left + right if operation == "+" else left - right if operation == "-" else left * right


def _split_of(numbers: tuple[int, int, int], target: int) -> str:
    """Every problem belongs to one split, in whatever order its numbers stand: eight in ten to train."""
    bucket = zlib.crc32(bytes([*sorted(numbers), target % 256])) % 10
    return "test" if bucket == 0 else "val" if bucket == 1 else "train"
