"""Monte Carlo tree search by PUCT: Q + c·P·√N / (1 + n), for one agent and for two players who move in turn.

Silver et al. 2017, arXiv:1712.01815 (AlphaZero) and its published pseudocode; Rosin 2011 (PUCB). DeepSeek-R1
(arXiv:2501.12948, section 4.2) reports that this search over a language model's text did not scale for them: too many
continuations, and no good value model. What works for a game need not work for text.

Notable:
- Two players: a value is negated once a ply on the way up. One agent: never. `Problem.players` says which; the wrong
  one makes a search that plays for its opponent.
- An edge without visits has Q = 0, as AlphaZero's, or the mean of its parent: the results differ, so it is named.
- N counts the node's own evaluation, so the first choice at a node is by its priors. AlphaZero's pseudocode has it so
  everywhere but at the root, whose first choice it leaves to the order of the actions.
- The move is chosen by visits, which are steadier than values; equal visits by value.
- The budget counts simulations, each of which ends in one evaluation: of a new leaf, the root's included, or of an end,
  which costs nothing to evaluate but is counted, so that a search of a finished tree halts. How often the evaluation
  was really asked is reported beside it.
- Several leaves can be collected before they are evaluated together. Meanwhile their visits count in N alone (Liu et
  al. 2020, arXiv:1810.11755), or as lost (Silver et al. 2016: `virtual_loss`). A leaf is never asked for twice: where
  the search arrives at one that is awaited, the batch is evaluated as it is.
- Noise is put on the root's priors for one search, and not written into the tree that a later search goes on with.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Generator, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

from odonata.errors import DataError, RecipeError
from odonata.posttrain.search.tree import Evaluation, Node, Problem, ranked

S = TypeVar("S")
A = TypeVar("A", bound=Hashable)

Evaluate = Callable[[Sequence[S]], Sequence[Evaluation[A]]]
"""From states, none of them an end, to what is thought of each."""
Path = list[tuple[Node[S, A], int]]
"""Nodes from the root, each with the number of the edge taken."""


@dataclass(frozen=True)
class ConstantC:
    """The same weight of exploration at every node."""

    c: float = 1.4
    """0 or more."""

    def __call__(self, count: int) -> float:
        """Return c for a node with so many visits."""
        return self.c


@dataclass(frozen=True)
class AlphaZeroC:
    """AlphaZero's weight, which grows with the visits: ln((1 + N + base) / base) + initial."""

    initial: float = 1.25
    base: float = 19652.0

    def __call__(self, count: int) -> float:
        """Return c for a node with so many visits."""
        return math.log((1 + count + self.base) / self.base) + self.initial


@dataclass(frozen=True)
class RootNoise:
    """Dirichlet noise on the priors of the root: (1 − fraction)·P + fraction·Dir(alpha)."""

    alpha: float = 0.3
    """Small where there are many actions: AlphaZero has 0.3 in chess, 0.03 in Go."""
    fraction: float = 0.25


@dataclass(frozen=True)
class MCTSConfig:
    """How the tree is searched."""

    exploration: ConstantC | AlphaZeroC = field(default_factory=ConstantC)
    """The weight c of the prior's term."""
    unvisited: Literal["zero", "parent"] = "zero"
    """Q of an edge before its first visit: 0, or the mean value of the node that it leaves."""
    noise: RootNoise | None = None
    """Noise on the root's priors; needs `seed`."""
    batch: int = 1
    """Leaves that are evaluated together, at most."""
    virtual_loss: float | None = None
    """What a visit counts for whose evaluation is awaited, −1 in AlphaGo; None counts it in N, but not in Q. Only with
    `batch` above 1."""
    seed: int | None = None
    """Of equal edges one by chance; None takes the first."""

    def __post_init__(self) -> None:
        weights = (self.exploration.c,) if isinstance(self.exploration, ConstantC) else (self.exploration.initial,)
        if not all(math.isfinite(weight) and weight >= 0 for weight in weights):
            raise RecipeError(f"exploration: c must be 0 or more, not {weights[0]}")
        if isinstance(self.exploration, AlphaZeroC) and not self.exploration.base > 0:
            raise RecipeError(f"exploration: base must be above 0, not {self.exploration.base}")
        if self.unvisited not in ("zero", "parent"):
            raise RecipeError(f"unvisited must be zero or parent, not {self.unvisited!r}")
        if self.batch < 1:
            raise RecipeError(f"batch must be 1 or more, not {self.batch}")
        if self.virtual_loss is not None and self.batch == 1:
            raise RecipeError("virtual_loss has no use where one leaf is evaluated at a time; raise batch or leave it")
        if self.noise is not None:
            if self.seed is None:
                raise RecipeError("noise is drawn, so it needs a seed")
            if not self.noise.alpha > 0 or not 0 <= self.noise.fraction <= 1:
                raise RecipeError(f"noise: alpha must be above 0 and fraction from 0 to 1, not {self.noise}")


@dataclass(frozen=True)
class Decision(Generic[A]):
    """What a search decided."""

    action: A
    """The most visited."""
    visits: dict[A, int]
    """Of every action of the root."""
    values: dict[A, float]
    """Mean value of the actions that were visited, for who moves."""
    value: float
    """Mean value of the root."""
    simulations: int
    """Of this search."""
    evaluations: int
    """States that the evaluation was asked for; the rest were ends."""
    calls: int
    """How often it was asked."""


def puct_scores(node: Node[S, A], priors: Sequence[float], config: MCTSConfig) -> list[float]:
    """Return what each edge of a node scores: Q + c·P·√N / (1 + n).

    Args:
        node: expanded.
        priors: of its edges, with noise at the root.
        config: the weight c, and what edges without visits count.

    Source: Silver et al. 2017, arXiv:1712.01815, pseudocode `ucb_score`.
    """
    count = node.count + sum(node.pending)
    weight = config.exploration(count) * math.sqrt(count)
    unvisited = 0.0 if config.unvisited == "zero" else node.value
    lost = config.virtual_loss
    scores: list[float] = []
    for prior, visits, total, pending in zip(priors, node.visits, node.totals, node.pending, strict=True):
        if pending and lost is not None:
            value = (total + lost * pending) / (visits + pending)
        else:
            value = total / visits if visits else unvisited
        scores.append(value + weight * prior / (1 + visits + pending))
    return scores


class MCTS(Generic[S, A]):
    """A search tree that goes on growing.

    Args:
        problem: what is searched.
        evaluate: what is thought of leaves: `by_value`, `Rollouts`, or a function of one's own.
        state: the root, no end.
        config: how.

    Raises:
        DataError: the state is an end.

    >>> from odonata.posttrain.search.evaluations import Rollouts
    >>> from odonata.posttrain.search.games import ConnectGame
    >>> game = ConnectGame(3, 3, 3)
    >>> tree = MCTS(game, Rollouts(game, seed=0), game.parse("XX. OO. ..."), MCTSConfig(seed=0))
    >>> tree.run(100).action
    2
    """

    def __init__(
        self, problem: Problem[S, A], evaluate: Evaluate[S, A], state: S, config: MCTSConfig | None = None
    ) -> None:
        if problem.players not in (1, 2):
            raise RecipeError(f"a problem has 1 player or 2 who move in turn, not {problem.players}")
        self.problem, self.evaluate, self.config = problem, evaluate, config or MCTSConfig()
        self.root: Node[S, A] = self._node(state)
        self._generator = None if self.config.seed is None else random.Random(self.config.seed)
        self._root_priors: list[float] = []
        if self.root.terminal is not None:
            raise DataError(f"the state {state!r} is an end: there is nothing to choose")

    def run(self, simulations: int) -> Decision[A]:
        """Search on, and decide.

        Args:
            simulations: how many more.

        Raises:
            RecipeError: there are none.
            DataError: the problem or the evaluation gave something that cannot be used.
        """
        search = self.searching(simulations)
        try:
            wanted = next(search)
            while True:
                wanted = search.send(self.evaluate(wanted))
        except StopIteration as end:
            return end.value

    def searching(self, simulations: int) -> Generator[list[S], Sequence[Evaluation[A]], Decision[A]]:
        """Search as `run` does, but ask for evaluations from outside: several trees can be asked about together.

        Yields:
            states, none of them an end; what is sent back is what is thought of each.

        Raises:
            RecipeError, DataError: as of `run`.
        """
        if simulations < 1:
            raise RecipeError(f"a search needs one simulation or more, not {simulations}")
        left, asked, calls = simulations, 0, 0
        if not self.root.expanded:
            self._expand([([], self.root)], (yield [self.root.state]))
            left, asked, calls = left - 1, 1, 1
        self._root_priors = self._with_noise(self.root.priors)
        while left:
            leaves, ended = self._collect(left)
            if leaves:
                self._expand(leaves, (yield [leaf.state for _, leaf in leaves]))
                asked, calls = asked + len(leaves), calls + 1
            left -= len(leaves) + ended
        return self._decide(simulations, asked, calls)

    def advance(self, action: A) -> None:
        """Make the state after an action the root, and keep what is known below it.

        Raises:
            DataError: the root has no such action, or it leads to an end.
        """
        known = self.root.actions or [action for action, _ in self.problem.actions(self.root.state)]
        if action not in known:
            raise DataError(f"the state {self.root.state!r} has no action {action!r}")
        child = self.root.children[known.index(action)] if self.root.expanded else None
        child = child or self._node(self.problem.step(self.root.state, action))
        if child.terminal is not None:
            raise DataError(f"{action!r} leads to an end: there is nothing more to choose")
        self.root = child

    def _node(self, state: S) -> Node[S, A]:
        return Node(state, self.problem.terminal_value(state))

    def _collect(self, left: int) -> tuple[list[tuple[Path[S, A], Node[S, A]]], int]:
        """Return leaves to evaluate, and how many simulations ended at an end meanwhile."""
        leaves: list[tuple[Path[S, A], Node[S, A]]] = []
        ended = 0
        while len(leaves) < self.config.batch and len(leaves) + ended < left:
            path, leaf = self._descend()
            if leaf.terminal is not None:
                self._back_up(path, leaf, leaf.terminal)
                ended += 1
                continue
            if any(leaf is other for _, other in leaves):
                break
            for node, number in path:
                node.pending[number] += 1
            leaves.append((path, leaf))
        for path, _ in leaves:
            for node, number in path:
                node.pending[number] -= 1
        return leaves, ended

    def _descend(self) -> tuple[Path[S, A], Node[S, A]]:
        """Return the path of best edges to a node that was not evaluated, or to an end."""
        path: Path[S, A] = []
        node = self.root
        priors = self._root_priors
        while node.expanded:
            number = self._best(puct_scores(node, priors, self.config))
            path.append((node, number))
            child = node.children[number]
            if child is None:
                child = node.children[number] = self._node(self.problem.step(node.state, node.actions[number]))
            node, priors = child, child.priors
        return path, node

    def _best(self, scores: list[float]) -> int:
        best = max(scores)
        if self._generator is None:
            return scores.index(best)
        return self._generator.choice([number for number, score in enumerate(scores) if score == best])

    def _expand(self, leaves: Sequence[tuple[Path[S, A], Node[S, A]]], found: Sequence[Evaluation[A]]) -> None:
        """Give leaves what is thought of them, and tell the nodes above."""
        if len(found) != len(leaves):
            raise DataError(f"the evaluation was asked for {len(leaves)} states and returned {len(found)} values")
        for (path, leaf), evaluation in zip(leaves, found, strict=True):
            if not math.isfinite(evaluation.value):
                raise DataError(f"the value of {leaf.state!r} is {evaluation.value}, which is no finite number")
            leaf.expand(self.problem.actions(leaf.state) if evaluation.actions is None else evaluation.actions)
            self._back_up(path, leaf, evaluation.value)

    def _back_up(self, path: Path[S, A], leaf: Node[S, A], value: float) -> None:
        leaf.count += 1
        leaf.total += value
        for node, number in reversed(path):
            if self.problem.players == 2:
                value = -value
            node.visits[number] += 1
            node.totals[number] += value
            node.count += 1
            node.total += value

    def _with_noise(self, priors: list[float]) -> list[float]:
        noise = self.config.noise
        if noise is None or self._generator is None:
            return priors
        draws = [self._generator.gammavariate(noise.alpha, 1) for _ in priors]
        total = sum(draws) or 1.0
        return [
            (1 - noise.fraction) * prior + noise.fraction * draw / total
            for prior, draw in zip(priors, draws, strict=True)
        ]

    def _decide(self, simulations: int, asked: int, calls: int) -> Decision[A]:
        root = self.root
        best = ranked(root)[0]
        if not any(root.visits):  # one simulation evaluates the root alone: nothing but its priors can decide
            best = self._best(self._root_priors)
        return Decision(
            action=root.actions[best],
            visits=dict(zip(root.actions, root.visits, strict=True)),
            values={a: t / n for a, t, n in zip(root.actions, root.totals, root.visits, strict=True) if n},
            value=root.value,
            simulations=simulations,
            evaluations=asked,
            calls=calls,
        )
