"""Small games for two, with perfect players: rows of stones (tic-tac-toe, a small Connect Four), and Nim.

States are pairs of the mover's and the other's stones as bit sets, so that who moves is never written down, and values
are for who moves without further ado.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Generic, TypeVar

from odonata.errors import DataError, RecipeError
from odonata.posttrain.search.tree import Problem

S = TypeVar("S", bound=Hashable)
A = TypeVar("A", bound=Hashable)
Stones = tuple[int, int]
"""Bit sets of fields: the mover's, and the other's."""


class ConnectGame:
    """So many stones in a row win: on a free field (tic-tac-toe is 3, 3, 3), or dropped into columns.

    Args:
        rows, columns: of the board.
        length: of the row that wins.
        gravity: stones fall: an action is a column; else it is a field, row by row from the top.

    Raises:
        RecipeError: no row of this length fits.
    """

    players = 2

    def __init__(self, rows: int, columns: int, length: int, *, gravity: bool = False) -> None:
        if not 1 <= length <= max(rows, columns) or min(rows, columns) < 1:
            raise RecipeError(f"no row of {length} fits on a board of {rows} × {columns}")
        self.rows, self.columns, self.length, self.gravity = rows, columns, length, gravity
        self.lines = self._lines()
        self._won: dict[int, bool] = {}
        self._actions: dict[int, list[tuple[int, float]]] = {}

    @property
    def start(self) -> Stones:
        """The empty board."""
        return 0, 0

    def actions(self, state: Stones) -> Sequence[tuple[int, float]]:
        """Return the legal moves, with equal priors."""
        taken = state[0] | state[1]
        if taken not in self._actions:
            places = range(self.columns) if self.gravity else range(self.rows * self.columns)
            self._actions[taken] = [(place, 1.0) for place in places if not taken >> place & 1]
        return self._actions[taken]

    def step(self, state: Stones, action: int) -> Stones:
        """Return the board after a move, seen by the other."""
        field, taken = action, state[0] | state[1]
        if self.gravity:
            field += (self.rows - 1) * self.columns
            while taken >> field & 1:
                field -= self.columns
        return state[1], state[0] | 1 << field

    def terminal_value(self, state: Stones) -> float | None:
        """Return −1 where the other has just won, 0 for a full board, None where the game goes on."""
        mover, other = state
        won = self._won.get(other)
        if won is None:
            won = self._won[other] = any(other & line == line for line in self.lines)
        if won:
            return -1.0
        return 0.0 if (mover | other).bit_count() == self.rows * self.columns else None

    def parse(self, board: str) -> Stones:
        """Return the state of a board of X, O and points, rows from the top; X began.

        Raises:
            DataError: other characters, or counts that X and O cannot have.
        """
        fields = "".join(board.split())
        if len(fields) != self.rows * self.columns or set(fields) - set("XO."):
            raise DataError(f"a board has {self.rows} × {self.columns} fields of X, O and points, not {board!r}")
        first, second = (sum(1 << n for n, field in enumerate(fields) if field == stone) for stone in "XO")
        ahead = first.bit_count() - second.bit_count()
        if ahead not in (0, 1):
            raise DataError(f"X began, so it has as many stones as O or one more; {board!r} has {ahead:+d}")
        return (second, first) if ahead else (first, second)

    def show(self, state: Stones) -> str:
        """Return the board as rows of X, O and points."""
        mover, other = state
        first, second = (mover, other) if mover.bit_count() == other.bit_count() else (other, mover)
        fields = ["X" if first >> n & 1 else "O" if second >> n & 1 else "." for n in range(self.rows * self.columns)]
        return "\n".join("".join(fields[r * self.columns : (r + 1) * self.columns]) for r in range(self.rows))

    def _lines(self) -> list[int]:
        lines: list[int] = []
        for row in range(self.rows):
            for column in range(self.columns):
                for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
                    ends = row + down * (self.length - 1), column + right * (self.length - 1)
                    if ends[0] < self.rows and 0 <= ends[1] < self.columns:
                        places = [(row + down * n, column + right * n) for n in range(self.length)]
                        lines.append(sum(1 << (r * self.columns + c) for r, c in places))
        return lines


class Nim:
    """Take any number from one heap; who takes the last one wins.

    Bouton 1901, Annals of Mathematics 3: who moves loses if, and only if, the XOR of the heaps is 0.
    """

    players = 2

    def actions(self, state: tuple[int, ...]) -> Sequence[tuple[tuple[int, int], float]]:
        """Return (heap, number taken), with equal priors."""
        return [((heap, taken), 1.0) for heap, size in enumerate(state) for taken in range(1, size + 1)]

    def step(self, state: tuple[int, ...], action: tuple[int, int]) -> tuple[int, ...]:
        """Return the heaps after a move."""
        heap, taken = action
        return (*state[:heap], state[heap] - taken, *state[heap + 1 :])

    def terminal_value(self, state: tuple[int, ...]) -> float | None:
        """Return −1 where nothing is left: the other took the last."""
        return None if any(state) else -1.0


class Minimax(Generic[S, A]):
    """The perfect player of a small game for two: every state's value by looking at all that can follow.

    Args:
        problem: for two players, small enough that its states fit into memory, and without circles.

    Raises:
        RecipeError: it is not for two players.
    """

    def __init__(self, problem: Problem[S, A]) -> None:
        if problem.players != 2:
            raise RecipeError(f"minimax is for 2 players, not {problem.players}")
        self.problem = problem
        self._values: dict[S, float] = {}

    def value(self, state: S) -> float:
        """Return what perfect play is worth to who moves."""
        if state not in self._values:
            end = self.problem.terminal_value(state)
            self._values[state] = max(self.action_values(state).values()) if end is None else end
        return self._values[state]

    def action_values(self, state: S) -> dict[A, float]:
        """Return what each move is worth to who makes it."""
        return {action: -self.value(self.problem.step(state, action)) for action, _ in self.problem.actions(state)}

    def best_actions(self, state: S) -> list[A]:
        """Return all perfect moves."""
        values = self.action_values(state)
        best = max(values.values())
        return [action for action, value in values.items() if value == best]


def play_game(problem: Problem[S, A], state: S, first: Callable[[S], A], second: Callable[[S], A]) -> float:
    """Play a game to its end.

    Args:
        problem: for two players.
        state: where it begins.
        first, second: choose a move; `first` moves first.

    Returns:
        what the end is worth to `first`.
    """
    turn = 0
    while (value := problem.terminal_value(state)) is None:
        state = problem.step(state, (first, second)[turn % 2](state))
        turn += 1
    return -value if turn % 2 else value
