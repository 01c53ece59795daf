"""An embedded set of texts: sums of digits, with and without the steps in between.

A prompt is a row of digits, `314159=`. What follows is the last digit of their sum, either at once, `#3$`, or after the
running sums, `348943#3$`. A model that learns from both can say either. Only the second kind it can get right.

That makes it a bench for learning from rewards alone: the right behaviour is there, but rare, and nothing but the
reward tells which it is. Texts are made by a rule, as every task whose answers a program can check is.

Text i of a split is a pure function of (seed, split, i). A row of digits belongs to one split only.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

from odonata.data.keys import mix
from odonata.errors import DataError

SPLITS = ("train", "val", "test")
ALPHABET = "0123456789=#"
"""All characters but those for padding and the end."""


@dataclass(frozen=True)
class DigitSums:
    """The set.

    Args:
        digits: in a prompt, 2 or more.
        worked: share of texts with the running sums.
        slips: chance that a running sum is drawn from all ten digits instead; the sums after it go on from there.
        seed: of all chance.

    Raises:
        DataError: a value out of its range.
    """

    digits: int = 6
    worked: float = 0.3
    slips: float = 0.03
    seed: int = 0

    def __post_init__(self) -> None:
        if self.digits < 2 or not (0 <= self.worked <= 1 and 0 <= self.slips <= 1):
            raise DataError(f"digits-sum: want digits >= 2 and shares in [0, 1], got {self}")

    @property
    def name(self) -> str:
        """As it is named on the command line."""
        seed = f",seed={self.seed}" if self.seed else ""
        return f"digits-sum:digits={self.digits},worked={self.worked:g},slips={self.slips:g}{seed}"

    @property
    def alphabet(self) -> str:
        """The characters of its texts."""
        return ALPHABET

    @property
    def longest(self) -> int:
        """Characters of a completion at most, the end not counted."""
        return self.digits + 2

    def numbers(self, split: str, index: int) -> tuple[int, ...]:
        """Return the digits of a prompt."""
        random = Random(mix(self.seed, SPLITS.index(split), index, 11))
        while True:
            numbers = tuple(random.randrange(10) for _ in range(self.digits))
            if _split_of(numbers) == split:
                return numbers

    def prompt(self, split: str, index: int) -> str:
        """Return a prompt."""
        return _prompt(self.numbers(split, index))

    def row(self, split: str, index: int) -> Mapping[str, Any]:
        """Return what a reward needs to know of a prompt: its answer."""
        return {"answer": str(sum(self.numbers(split, index)) % 10)}

    def text(self, split: str, index: int) -> tuple[str, str]:
        """Return a prompt and what follows it, without the end."""
        numbers = self.numbers(split, index)
        random = Random(mix(self.seed, SPLITS.index(split), index, 12))
        if random.random() >= self.worked:
            return _prompt(numbers), f"#{sum(numbers) % 10}"
        total, sums = 0, ""
        for number in numbers:
            total = (total + number) % 10
            if random.random() < self.slips:
                total = random.randrange(10)
            sums += str(total)
        return _prompt(numbers), f"{sums}#{total}"


def steps_of(prompt: str, completion: str) -> list[tuple[str, bool]]:
    """Return the steps of a completion, each a character of the running sums or the answer, and whether it is right.

    A sum is right if it is the true sum of the digits so far; nothing after a wrong one is.
    """
    numbers = [int(character) for character in prompt.rstrip("=")]
    sums, mark, answer = completion.partition("#")
    steps: list[tuple[str, bool]] = []
    total, right = 0, True
    for place, character in enumerate(sums):
        total = (total + numbers[place]) % 10 if place < len(numbers) else -1
        right = right and character == str(total)
        steps.append((character, right))
    if mark:
        steps.append((mark + answer, right and answer == str(sum(numbers) % 10)))
    return steps


def _prompt(numbers: tuple[int, ...]) -> str:
    return "".join(map(str, numbers)) + "="


def _split_of(numbers: tuple[int, ...]) -> str:
    """Every row of digits belongs to one split: eight in ten to train."""
    bucket = zlib.crc32(bytes(numbers)) % 10
    return "test" if bucket == 0 else "val" if bucket == 1 else "train"
