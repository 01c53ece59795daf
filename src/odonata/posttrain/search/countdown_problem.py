"""Countdown as a problem for one agent: join numbers by + − × ÷ until one is left; it should be the target.

Notable:
- Fractions are exact: 8 ÷ (3 − 8 ÷ 3) is 24, not nearly.
- Numbers of one value are one: an action names values, so twins do not double the actions.
- `solve` tries everything and is the oracle: n numbers have at most 3ⁿ⁻¹·n!·(n−1)! ends, 3,888 for four.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import combinations
from typing import Literal, NamedTuple

from odonata.errors import RecipeError

Item = tuple[Fraction, str]
"""A number that is left, and how it came about."""
Numbers = tuple[Item, ...]
"""What is left, by value."""
OPERATIONS = "+-*/"


class Joining(NamedTuple):
    """Two of the numbers that are left, joined."""

    left: Fraction
    operation: str
    right: Fraction

    def __str__(self) -> str:
        return f"{self.left} {self.operation} {self.right}"


class CountdownProblem:
    """Reach the target with every number used once.

    Args:
        target: what the last number should be.
        operations: some of + - * /.
        score: what an end that misses is worth: 0 (`exact`), or 1 / (1 + its distance) (`near`). One that hits is 1.
        use_all: else a number that hits ends it, whatever is left.

    Raises:
        RecipeError: an option is unknown.

    >>> problem = CountdownProblem(24)
    >>> solve(problem, problem.start([3, 3, 8, 8]))
    '(8 / (3 - (8 / 3)))'
    """

    players = 1

    def __init__(
        self,
        target: int,
        *,
        operations: str = OPERATIONS,
        score: Literal["exact", "near"] = "exact",
        use_all: bool = True,
    ) -> None:
        if not operations or set(operations) - set(OPERATIONS):
            raise RecipeError(f"operations are some of {' '.join(OPERATIONS)}, not {operations!r}")
        if score not in ("exact", "near"):
            raise RecipeError(f"score must be exact or near, not {score!r}")
        self.target, self.operations, self.score, self.use_all = Fraction(target), operations, score, use_all

    def start(self, numbers: Sequence[int]) -> Numbers:
        """Return the state before anything is joined.

        Raises:
            RecipeError: there is no number.
        """
        if not numbers:
            raise RecipeError("countdown needs one number or more")
        return tuple(sorted((Fraction(number), str(number)) for number in numbers))

    def actions(self, state: Numbers) -> Sequence[tuple[Joining, float]]:
        """Return every way to join two of the numbers, with equal priors."""
        found: dict[Joining, float] = {}
        for (a, _), (b, _) in combinations(state, 2):
            for operation in self.operations:
                found[Joining(a, operation, b)] = 1.0
                if operation in "-/":
                    found[Joining(b, operation, a)] = 1.0
        return [(joining, prior) for joining, prior in found.items() if joining.operation != "/" or joining.right != 0]

    def step(self, state: Numbers, action: Joining) -> Numbers:
        """Return what is left after two numbers were joined."""
        left = next(item for item in state if item[0] == action.left)
        rest = list(state)
        rest.remove(left)
        right = next(item for item in rest if item[0] == action.right)
        rest.remove(right)
        rest.append((apply(action), f"({left[1]} {action.operation} {right[1]})"))
        return tuple(sorted(rest))

    def terminal_value(self, state: Numbers) -> float | None:
        """Return 1 for a hit, what a miss is worth, or None where there is more to join."""
        hit = any(value == self.target for value, _ in state)
        if hit and (len(state) == 1 or not self.use_all):
            return 1.0
        if len(state) > 1:
            return None
        return self.nearness(state) if self.score == "near" else 0.0

    def nearness(self, state: Numbers) -> float:
        """Return 1 / (1 + distance) of the number that is nearest to the target: a value function of little wit."""
        return 1 / (1 + float(min(abs(value - self.target) for value, _ in state)))

    def is_solved(self, state: Numbers) -> bool:
        """Whether a state is an end that hits the target."""
        return self.terminal_value(state) is not None and any(value == self.target for value, _ in state)


def apply(action: Joining) -> Fraction:
    """Return what two numbers make.

    Raises:
        ZeroDivisionError: a division by 0, which is no action of the problem.
    """
    left, operation, right = action
    if operation == "+":
        return left + right
    if operation == "-":
        return left - right
    return left * right if operation == "*" else left / right


def solve(problem: CountdownProblem, state: Numbers) -> str | None:
    """Return an expression that hits the target, or None where there is none, by trying everything.

    Args:
        problem: the target and the rules.
        state: where to begin.
    """
    return _solve(problem, state, set())


def _solve(problem: CountdownProblem, state: Numbers, hopeless: set[tuple[Fraction, ...]]) -> str | None:
    values = tuple(value for value, _ in state)
    if values in hopeless:
        return None
    if problem.terminal_value(state) is not None:
        return next((text for value, text in state if value == problem.target), None)
    for action, _ in problem.actions(state):
        found = _solve(problem, problem.step(state, action), hopeless)
        if found is not None:
            return found
    hopeless.add(values)
    return None
