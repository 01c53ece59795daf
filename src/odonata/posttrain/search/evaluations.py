"""What a tree search thinks of a leaf: a value function's word, or the outcome of playing on by chance."""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Sequence
from typing import Generic, Literal, TypeVar

from odonata.errors import DataError, RecipeError
from odonata.posttrain.search.tree import Evaluation, Problem

S = TypeVar("S")
A = TypeVar("A", bound=Hashable)


def by_value(function: Callable[[Sequence[S]], Sequence[float]]) -> Callable[[Sequence[S]], list[Evaluation[A]]]:
    """Return an evaluation by a value function; the priors are the problem's.

    Args:
        function: from states to values, each for the agent who moves in the state.
    """

    def evaluate(states: Sequence[S]) -> list[Evaluation[A]]:
        return [Evaluation(float(value)) for value in function(states)]

    return evaluate


class Rollouts(Generic[S, A]):
    """The mean outcome of playing on by chance to the end.

    Args:
        problem: with the right number of players: outcomes are turned to who moves at the leaf.
        seed: of the chance.
        count: plays for each leaf, averaged; they count as one evaluation.
        policy: every action alike, or by the problem's priors.
        max_steps: a play that has not ended by then is an error.

    Attributes:
        best: value and state of the best end that a play came to; for one agent. Ends that are in the tree itself are
            not asked for here: `tree.best_end` has those.

    Raises:
        RecipeError: an argument is out of range.
        DataError: when called: a play does not end.
    """

    def __init__(
        self,
        problem: Problem[S, A],
        *,
        seed: int,
        count: int = 1,
        policy: Literal["uniform", "prior"] = "uniform",
        max_steps: int = 1000,
    ) -> None:
        if count < 1 or max_steps < 1:
            raise RecipeError(f"count and max_steps must be 1 or more, not {count} and {max_steps}")
        if policy not in ("uniform", "prior"):
            raise RecipeError(f"policy must be uniform or prior, not {policy!r}")
        self.problem, self.count, self.policy, self.max_steps = problem, count, policy, max_steps
        self.best: tuple[float, S] | None = None
        self._generator = random.Random(seed)

    def __call__(self, states: Sequence[S]) -> list[Evaluation[A]]:
        """Return what came of playing on from each state."""
        return [Evaluation(sum(self.play(state) for _ in range(self.count)) / self.count) for state in states]

    def play(self, state: S) -> float:
        """Return the outcome of one play, for the agent who moves in the state."""
        sign = 1.0
        flip = -1.0 if self.problem.players == 2 else 1.0
        for _ in range(self.max_steps):
            value = self.problem.terminal_value(state)
            if value is not None:
                if self.problem.players == 1 and (self.best is None or value > self.best[0]):
                    self.best = (value, state)
                return sign * value
            state = self.problem.step(state, self._draw(state))
            sign *= flip
        raise DataError(f"a play did not end within {self.max_steps} steps; give the problem a limit, or raise it")

    def _draw(self, state: S) -> A:
        actions = self.problem.actions(state)
        if not actions:
            raise DataError(f"the state {state!r} is no end, but has no action")
        if self.policy == "uniform":
            return actions[int(self._generator.random() * len(actions))][0]
        weights = [weight for _, weight in actions]
        if sum(weights) <= 0:
            raise DataError(f"all {len(weights)} priors of the state {state!r} are 0")
        return self._generator.choices([action for action, _ in actions], weights)[0]
