"""Classic array problems with tests: a statement for the prompt, and cases that the statement does not show.

Expected outputs come from brute force that is written for its plainness, over every pair, slice or order, so that one
can see that it is right. Inputs are drawn from a seed, so another seed gives unseen tests for the true reward; the
edge cases are in every set. A solution passes all cases or fails.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import Any

from odonata.errors import DataError


@dataclass(frozen=True)
class Case:
    """The arguments of one call and what it must return."""

    arguments: tuple[Any, ...]
    expected: Any


@dataclass(frozen=True, eq=False)
class Problem:
    """One problem: what is asked, and how its tests arise."""

    name: str
    function: str
    """The name that the program must define."""
    statement: str
    example: tuple[Any, ...]
    """The arguments that the statement shows; in the tests too."""
    reference: Callable[..., Any]
    draw: Callable[[Random], tuple[Any, ...]]
    """Draws the arguments of one case."""
    edges: tuple[tuple[Any, ...], ...] = ()
    """Arguments that are in every set of tests."""

    def cases(self, seed: int = 0, drawn: int = 18) -> tuple[Case, ...]:
        """Return the example, the edges and `drawn` cases from `seed`, with expected outputs."""
        return _cases(self, seed, drawn)

    def prompt(self) -> str:
        """Return the statement with its example and the name of the function."""
        shown = ", ".join(map(repr, self.example))
        return (
            f"{self.statement}\nWrite a Python function `{self.function}`.\n"
            f"Example: {self.function}({shown}) == {self.reference(*self.example)!r}\n"
        )

    def row(self) -> dict[str, str]:
        """Return the row of a data file for the rewards `code` and `expression`; it holds no test."""
        return {"prompt": self.prompt(), "problem": self.name}


def problem_named(name: object) -> Problem:
    """Return the problem called `name`.

    Raises:
        DataError: there is none; lists the nearest.
    """
    for problem in problems():
        if problem.name == name:
            return problem
    names = [problem.name for problem in problems()]
    near = difflib.get_close_matches(str(name), names, 3) or names
    raise DataError(f"unknown problem {name!r}; perhaps you meant {', '.join(near)}")


def problems() -> Sequence[Problem]:
    """Return all problems, the container with the most water first."""
    from odonata.posttrain.problems_array import PROBLEMS

    return PROBLEMS


@lru_cache(maxsize=256)
def _cases(problem: Problem, seed: int, drawn: int) -> tuple[Case, ...]:
    rng = Random(f"{problem.name} {seed}")
    inputs = [problem.example, *problem.edges, *(problem.draw(rng) for _ in range(drawn))]
    return tuple(Case(arguments, problem.reference(*arguments)) for arguments in inputs)
