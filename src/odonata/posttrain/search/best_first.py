"""What a tree search must beat with the same budget: ends by chance, and the most promising state first."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from odonata.errors import DataError, RecipeError
from odonata.posttrain.search.evaluations import Rollouts
from odonata.posttrain.search.tree import Problem

S = TypeVar("S", bound=Hashable)
A = TypeVar("A", bound=Hashable)


@dataclass(frozen=True)
class FoundEnd(Generic[S]):
    """The best end of a search for one agent."""

    value: float
    """−∞ where no end was seen."""
    state: S | None
    evaluations: int
    """States that were looked at: ends of plays, or states that were given a value."""


def random_search(problem: Problem[S, A], state: S, budget: int, *, seed: int, good: float = 1.0) -> FoundEnd[S]:
    """Play to the end by chance, again and again.

    Args:
        problem: for one agent.
        state: where each play begins.
        budget: how many plays.
        seed: of the chance.
        good: a value that is good enough to stop.

    Raises:
        RecipeError: the problem is for two, or the budget is not above 0.
    """
    _check(problem, budget)
    plays = Rollouts(problem, seed=seed)
    for number in range(budget):
        if plays.play(state) >= good:
            return _found(plays.best, number + 1)
    return _found(plays.best, budget)


def best_first(
    problem: Problem[S, A],
    state: S,
    value: Callable[[S], float],
    budget: int,
    *,
    seed: int | None = None,
    good: float = 1.0,
) -> FoundEnd[S]:
    """Expand the state of the highest value, again and again; a state is looked at once.

    Args:
        problem: for one agent.
        state: where to begin.
        value: how promising a state is; an end counts by its own value.
        budget: how many states are given a value, ends included.
        seed: of equal values one by chance; None takes the first.
        good: the value of an end that is good enough to stop.

    Raises:
        RecipeError: the problem is for two, or the budget is not above 0.
        DataError: a state is no end, but has no action.
    """
    _check(problem, budget)
    generator = random.Random(seed)
    best: tuple[float, S] | None = None
    seen: set[S] = set()
    fringe: list[tuple[float, float, int, S]] = []

    def look(place: S) -> None:
        nonlocal best
        seen.add(place)
        end = problem.terminal_value(place)
        if end is None:
            heapq.heappush(fringe, (-value(place), generator.random() if seed is not None else 0.0, len(seen), place))
        elif best is None or end > best[0]:
            best = (end, place)

    look(state)
    while fringe:
        place = heapq.heappop(fringe)[-1]
        actions = problem.actions(place)
        if not actions:
            raise DataError(f"the state {place!r} is no end, but has no action")
        for action, _ in actions:
            if len(seen) >= budget or (best is not None and best[0] >= good):
                return _found(best, len(seen))
            child = problem.step(place, action)
            if child not in seen:
                look(child)
    return _found(best, len(seen))


def _check(problem: Problem[S, A], budget: int) -> None:
    if problem.players != 1:
        raise RecipeError(f"this search is for one agent; the problem has {problem.players} players")
    if budget < 1:
        raise RecipeError(f"the budget must be 1 or more, not {budget}")


def _found(best: tuple[float, S] | None, evaluations: int) -> FoundEnd[S]:
    if best is None:
        return FoundEnd(float("-inf"), None, evaluations)
    return FoundEnd(best[0], best[1], evaluations)
