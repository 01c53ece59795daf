"""What a tree search knows: the problem it is asked, its nodes, and how they are read and drawn.

Notable:
- All values at a node are for the agent who moves there, those of its edges too. So the sign of a value changes once
  on the way from a child to its parent, where there are two players, and nowhere else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from odonata.errors import DataError

S = TypeVar("S")
A = TypeVar("A", bound=Hashable)


class Problem(Protocol[S, A]):
    """What can be searched: states, what can be done in them, and what their ends are worth."""

    @property
    def players(self) -> int:
        """1: one agent. 2: two who move in turn, and one's gain is the other's loss."""
        ...

    def actions(self, state: S) -> Sequence[tuple[A, float]]:
        """Return each action with its prior, 0 or more; they need not sum to 1. At least one unless the state ends."""
        ...

    def step(self, state: S, action: A) -> S:
        """Return the state that follows; the same one each time."""
        ...

    def terminal_value(self, state: S) -> float | None:
        """Return what an end is worth to the agent who would move next; None where the state is no end."""
        ...


@dataclass(frozen=True)
class Evaluation(Generic[A]):
    """What is thought of a state."""

    value: float
    """For the agent who moves there."""
    actions: Sequence[tuple[A, float]] | None = None
    """Actions with priors, where the evaluation proposes them, as a network of policy and value does; None asks the
    problem."""


class Node(Generic[S, A]):
    """A state in the tree, with the statistics of its edges side by side.

    Attributes:
        state: the state.
        terminal: what it is worth if it is an end.
        actions, priors: empty until it was evaluated; the priors sum to 1.
        children: a node for each action, or None.
        visits, totals: of each edge: simulations, and the sum of their values.
        pending: of each edge: visits whose evaluation is awaited.
        count, total: simulations that reached the node, its own evaluation included, and the sum of their values.
    """

    __slots__ = ("actions", "children", "count", "pending", "priors", "state", "terminal", "total", "totals", "visits")

    def __init__(self, state: S, terminal: float | None) -> None:
        if terminal is not None and not math.isfinite(terminal):
            raise DataError(f"the terminal value of {state!r} is {terminal}, which is no finite number")
        self.state = state
        self.terminal = terminal
        self.actions: list[A] = []
        self.priors: list[float] = []
        self.children: list[Node[S, A] | None] = []
        self.visits: list[int] = []
        self.totals: list[float] = []
        self.pending: list[int] = []
        self.count = 0
        self.total = 0.0

    @property
    def expanded(self) -> bool:
        """Whether it was evaluated and its edges are known."""
        return bool(self.actions)

    @property
    def value(self) -> float:
        """The mean over its simulations; 0 before the first."""
        return self.total / self.count if self.count else 0.0

    def edge_value(self, number: int) -> float | None:
        """Return the mean Q of an edge; None before its first visit."""
        return self.totals[number] / self.visits[number] if self.visits[number] else None

    def expand(self, proposed: Sequence[tuple[A, float]]) -> None:
        """Give it its edges.

        Args:
            proposed: actions with priors.

        Raises:
            DataError: there is no action, one stands twice, or the priors are no weights.
        """
        if not proposed:
            raise DataError(f"the state {self.state!r} is no end, but has no action")
        actions, weights = [action for action, _ in proposed], [weight for _, weight in proposed]
        if len(set(actions)) != len(actions):
            twice = next(action for n, action in enumerate(actions) if action in actions[:n])
            raise DataError(f"the state {self.state!r} has the action {twice!r} twice; add their priors")
        if not all(math.isfinite(weight) and weight >= 0 for weight in weights):
            wrong = next(n for n, weight in enumerate(weights) if not (math.isfinite(weight) and weight >= 0))
            raise DataError(f"the prior of {actions[wrong]!r} is {weights[wrong]}; it must be 0 or more, and finite")
        # An exact sum does not depend on the order of the actions, so the priors do not either.
        total = math.fsum(weights)
        if total <= 0:
            raise DataError(f"all {len(weights)} priors of the state {self.state!r} are 0")
        self.actions, self.priors = actions, [weight / total for weight in weights]
        self.children = [None] * len(actions)
        self.visits, self.totals, self.pending = [0] * len(actions), [0.0] * len(actions), [0] * len(actions)


@dataclass(frozen=True)
class Line(Generic[A]):
    """A line of play, from the root."""

    actions: tuple[A, ...]
    visits: int
    """Of its last edge."""
    value: float
    """Of its first edge, for who moves at the root; of a line that ends, what the end is worth."""


def ranked(node: Node[S, A]) -> list[int]:
    """Return the numbers of the edges, most visited first; equal visits by value, then as they stand."""
    return sorted(
        range(len(node.actions)),
        key=lambda n: (-node.visits[n], -(node.totals[n] / node.visits[n] if node.visits[n] else -math.inf), n),
    )


def best_line(node: Node[S, A]) -> Line[A]:
    """Return the line in which everyone takes the most visited edge; it ends where nothing was visited."""
    actions: list[A] = []
    visits, value = node.count, node.value
    place: Node[S, A] | None = node
    while place is not None and any(place.visits):
        number = ranked(place)[0]
        if not actions:
            value = place.totals[number] / place.visits[number]
        actions.append(place.actions[number])
        visits, place = place.visits[number], place.children[number]
    return Line(tuple(actions), visits, value)


def best_end(node: Node[S, A]) -> Line[A] | None:
    """Return the line to the best end that the tree holds, for one agent; of equal ends the first and shortest."""
    found: Line[A] | None = None
    level: list[tuple[Node[S, A], tuple[A, ...]]] = [(node, ())]
    while level:
        for place, path in level:
            if place.terminal is not None and place.count and (found is None or place.terminal > found.value):
                found = Line(path, place.count, place.terminal)
        level = [
            (child, (*path, action))
            for place, path in level
            for action, child in zip(place.actions, place.children, strict=True)
            if child is not None
        ]
    return found


def nodes(node: Node[S, A]) -> Iterator[Node[S, A]]:
    """Yield every node of the tree, parents before their children."""
    waiting = [node]
    while waiting:
        place = waiting.pop()
        yield place
        waiting += [child for child in reversed(place.children) if child is not None]


def draw_tree(node: Node[S, A], *, width: int = 3, depth: int = 4, name: Callable[[A], str] = str) -> str:
    """Return the tree's most visited lines as text.

    Args:
        node: the root.
        width: how many edges of a node are shown; the rest is counted.
        depth: how many moves deep.
        name: how an action reads.

    Returns:
        a line for each edge: visits and their share, mean value for who chooses it, prior.
    """
    return "\n".join([f"{node.count} visits, value {node.value:+.3f}", *_branches(node, "", width, depth, name)])


def _branches(node: Node[S, A], indent: str, width: int, depth: int, name: Callable[[A], str]) -> Iterator[str]:
    order = [number for number in ranked(node) if node.visits[number]]
    if depth < 1 or not order:
        return
    total = sum(node.visits)
    for place, number in enumerate(order[:width]):
        last = place + 1 == len(order)
        visits, value = node.visits[number], node.totals[number] / node.visits[number]
        child = node.children[number]
        end = "  end" if child is not None and child.terminal is not None else ""
        yield (
            f"{indent}{'└─' if last else '├─'} {name(node.actions[number])}  {visits} ({visits / total:.0%})  "
            f"Q {value:+.3f}  P {node.priors[number]:.3f}{end}"
        )
        if child is not None:
            yield from _branches(child, indent + ("   " if last else "│  "), width, depth - 1, name)
    if len(order) > width:
        rest = sum(node.visits[number] for number in order[width:])
        yield f"{indent}└─ … {len(order) - width} more  {rest} ({rest / total:.0%})"
