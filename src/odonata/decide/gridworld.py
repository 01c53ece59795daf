"""The grid world of Zhao's book: a map of text, one character a cell, and what its cells give.

    .....
    .##..
    ..#..
    .#T#.
    .#...

Notable, because re-implementations get it wrong: a forbidden cell (`#`) can be entered, and costs; the target (`T`)
ends nothing unless asked to, so staying there pays for ever and v*(target) = 1 / (1 − γ); a reward belongs to the cell
that is *entered*, so that to stay on a forbidden cell costs its penalty each time. Who walks into the border stays and
gets `r_boundary`. The printed ε-greedy tables (figures 5.6 and 5.7) hold only if that costs `r_boundary + r_forbidden`
on a forbidden cell, and figure 8.6 only if it costs `r_boundary` alone: `bump_on_forbidden` says which.

Source: Zhao 2025, Mathematical Foundations of Reinforcement Learning, sections 1.1 to 1.4 and figure 2.7. The
environment in the book's code repository is another process (walls that block, a target that ends); nothing here
follows it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from odonata.decide.mdp import MDP, deterministic
from odonata.errors import DataError, RecipeError

Bump = Literal["boundary", "sum"]
BOOK_MAP = (".....", ".##..", "..#..", ".#T#.", ".#...")
"""The 5 × 5 grid of the book's figures from chapter 2 on."""
ACTIONS = ("up", "right", "down", "left", "stay")
"""a1 … a5."""
MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1), (0, 0))
CELLS = {".": "free", "#": "forbidden", "T": "target", "S": "start"}
"""What a map may hold."""


@dataclass(frozen=True)
class GridRules:
    """What a grid world gives, and when it ends. The defaults are the book's."""

    r_forbidden: float = -1.0
    """For entering, or staying on, a forbidden cell."""
    r_boundary: float = -1.0
    """For walking into the border."""
    r_target: float = 1.0
    """For entering, or staying on, a target."""
    r_other: float = 0.0
    """For entering any other cell."""
    step_cost: float = 0.0
    """Taken off every reward."""
    target: Literal["endless", "terminal"] = "endless"
    """Whether the episode ends where a target is entered; a target is then worth nothing itself."""
    bump_on_forbidden: Bump = "boundary"
    """What walking into the border costs on a forbidden cell: r_boundary, or the sum of that and r_forbidden."""


def read_map(path: str | Path) -> tuple[str, ...]:
    """Return the rows of a map file.

    Raises:
        DataError: not a file, empty, ragged, with an unknown character, or without a target; names the line.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"{path}: cannot read the map: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a text file: byte {error.start} is no UTF-8") from error
    while lines and not lines[-1].strip():
        lines.pop()
    return check_map([line.rstrip() for line in lines], str(path))


def check_map(rows: Sequence[str], where: str) -> tuple[str, ...]:
    """Return the rows of a map that is one.

    Raises:
        DataError: see `read_map`.
    """
    if not rows:
        raise DataError(f"{where}: the map is empty; wants rows of {_legend()}")
    for number, row in enumerate(rows, 1):
        for column, cell in enumerate(row, 1):
            if cell not in CELLS:
                raise DataError(f"{where}:{number}: {cell!r} in column {column} is no cell; known are {_legend()}")
        if len(row) != len(rows[0]):
            raise DataError(
                f"{where}:{number}: {len(row)} cells, and {len(rows[0])} in line 1; rows must be equally long"
            )
    if not rows[0]:
        raise DataError(f"{where}:1: an empty row; wants rows of {_legend()}")
    if not any("T" in row for row in rows):
        raise DataError(f"{where}: there is no target (T) on the map")
    return tuple(rows)


def _legend() -> str:
    return ", ".join(f"{cell} ({what})" for cell, what in CELLS.items())


def grid_mdp(rows: Sequence[str] = BOOK_MAP, rules: GridRules | None = None, discount: float = 0.9) -> MDP:
    """Return the process of a map.

    Args:
        rows: the map. States are its cells, row by row; actions are `ACTIONS`.
        rules: what the cells give; None: the book's.
        discount: γ.

    Returns:
        Episodes begin at S, on any of several, or anywhere where there is none.

    Raises:
        RecipeError: a reward is not finite.
    """
    rules = rules or GridRules()
    for name in ("r_forbidden", "r_boundary", "r_target", "r_other", "step_cost"):
        if not np.isfinite(getattr(rules, name)):
            raise RecipeError(f"--{name.replace('_', '-')} is {getattr(rules, name)}; it must be finite")
    height, width = len(rows), len(rows[0])
    shape = (height * width, len(MOVES))
    successors, rewards, ends = np.zeros(shape, np.int64), np.zeros(shape), np.zeros(shape, np.bool_)
    gives = {"#": rules.r_forbidden, "T": rules.r_target, ".": rules.r_other, "S": rules.r_other}
    for state in range(shape[0]):
        row, column = divmod(state, width)
        for action, (down, right) in enumerate(MOVES):
            y, x = row + down, column + right
            inside = 0 <= y < height and 0 <= x < width
            if inside:
                reward = gives[rows[y][x]]
            elif rows[row][column] == "#" and rules.bump_on_forbidden == "sum":
                reward = rules.r_boundary + rules.r_forbidden
            else:
                reward = rules.r_boundary
            successors[state, action] = y * width + x if inside else state
            rewards[state, action] = reward - rules.step_cost
            ends[state, action] = rules.target == "terminal" and inside and rows[y][x] == "T"
        if rules.target == "terminal" and rows[row][column] == "T":  # nothing happens after the end
            successors[state], rewards[state], ends[state] = state, 0.0, True
    begins = np.array([cell == "S" for row in rows for cell in row], np.float64)
    starts = begins if begins.any() else np.ones(shape[0])
    return deterministic(successors, rewards, ends, discount, starts / starts.sum())
