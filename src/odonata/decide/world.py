"""The world that a run solves: a process, and what a person needs to read its tables.

Notable: Gymnasium's environments do not say what their actions are called. Where states are the cells of a grid, the
mean displacement of an action tells: on slippery ice "left" goes left, up and down alike, which is left on average.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from odonata.decide.gridworld import ACTIONS, BOOK_MAP, MOVES, GridRules, grid_mdp, read_map
from odonata.decide.mdp import MDP, from_environment
from odonata.engine.run import write_atomically
from odonata.errors import RecipeError, WeightsError
from odonata.weights.read import read_json

ARROWS = {"up": "↑", "right": "→", "down": "↓", "left": "←", "stay": "○"}
"""How actions with a direction are shown."""


@dataclass(frozen=True)
class Legend:
    """What a person needs to read tables; needs no process."""

    origin: str
    """Where the world came from: a file, an environment, or the book."""
    actions: tuple[str, ...]
    """Their names: directions where they have one, else numbers."""
    shape: tuple[int, int]
    """Rows and columns that the states are shown in; one column where they are no grid."""
    marks: tuple[str, ...] = ()
    """The map, one character a cell; empty where there is none."""

    @property
    def is_grid(self) -> bool:
        """Whether states are the cells of a grid and actions have directions."""
        return self.shape[1] > 1 and all(action in ARROWS for action in self.actions)

    def mark(self, state: int) -> str:
        """Return the character of a state on the map; a space where there is none."""
        return self.marks[state // self.shape[1]][state % self.shape[1]] if self.marks else " "

    def save(self, file: Path) -> None:
        """Write it as JSON."""
        write_atomically(file, json.dumps(asdict(self), indent=1))

    @classmethod
    def load(cls, file: Path) -> Legend:
        """Read what `save` wrote.

        Raises:
            WeightsError: absent, or not what `save` wrote.
        """
        if not file.is_file():
            raise WeightsError(f"{file}: missing; it says what the tables' states and actions are")
        plain = read_json(file)
        try:
            rows, columns = plain["shape"]
            return cls(str(plain["origin"]), tuple(plain["actions"]), (rows, columns), tuple(plain["marks"]))
        except (KeyError, TypeError, ValueError) as error:
            raise WeightsError(f"{file}: wants origin, actions, shape and marks; found {sorted(plain)}") from error


@dataclass(frozen=True)
class World:
    """A process and its legend."""

    mdp: MDP
    legend: Legend


def grid_world(path: str, rules: GridRules, discount: float) -> World:
    """Return the world of a map file, or of the book's map where the path is empty.

    Raises:
        DataError: see `read_map`.
        RecipeError: a reward is not finite.
    """
    rows = read_map(path) if path else BOOK_MAP
    legend = Legend(path or "the book's 5 × 5 grid", ACTIONS, (len(rows), len(rows[0])), rows)
    return World(grid_mdp(rows, rules, discount), legend)


def gymnasium_world(name: str, options: Mapping[str, str], discount: float) -> World:
    """Return the world of a Gymnasium environment that has a model.

    Args:
        name: as `gymnasium.make` knows it.
        options: handed to `gymnasium.make`, each read as YAML: `is_slippery false` is a boolean.
        discount: γ.

    Raises:
        RecipeError: Gymnasium is not installed, does not know the name or an option, or there is no model.
    """
    try:
        import gymnasium
    except ImportError as error:
        raise RecipeError("--env needs gymnasium: pip install 'odonata[control]'") from error
    try:
        environment = gymnasium.make(name, **{key: yaml.safe_load(value) for key, value in options.items()})
    except (gymnasium.error.Error, TypeError, KeyError, ValueError, yaml.YAMLError) as error:
        raise RecipeError(f"--env {name}: {str(error).splitlines()[0]}") from error
    try:
        mdp = from_environment(environment, discount)
        return World(mdp, _legend_of(name, environment.unwrapped, mdp))
    finally:
        environment.close()


def _legend_of(name: str, bare: Any, mdp: MDP) -> Legend:
    drawn = getattr(bare, "desc", None)
    sizes = [getattr(bare, "shape", None), getattr(drawn, "shape", None)]
    shape = next(
        (tuple(map(int, s)) for s in sizes if s is not None and len(s) == 2 and np.prod(s) == mdp.states), None
    )
    numbers = tuple(str(action) for action in range(mdp.actions))
    if shape is None:
        return Legend(name, numbers, (mdp.states, 1))
    rows, columns = shape
    marks: tuple[str, ...] = ()
    if drawn is not None and drawn.shape == shape:
        marks = tuple("".join(cell.decode() for cell in row) for row in drawn)
    return Legend(name, directions(mdp, columns) or numbers, (rows, columns), marks)


def directions(mdp: MDP, columns: int) -> tuple[str, ...] | None:
    """Return the direction of each action on a grid of so many columns; None where two have the same, or it is oblique.

    Only steps to a neighbouring cell count: a fall back to the start says nothing of the action.
    """
    rows_now, columns_now = np.divmod(np.arange(mdp.states)[:, None, None], columns)
    rows_next, columns_next = np.divmod(mdp.successors, columns)
    down, right = rows_next - rows_now, columns_next - columns_now
    near = mdp.probabilities * (np.abs(down) + np.abs(right) <= 1)
    mean = np.stack([(near * down).sum((0, 2)), (near * right).sum((0, 2))], 1)
    mean /= np.maximum(near.sum((0, 2)), 1e-12)[:, None]
    names: list[str] = []
    for action in mean:
        size = float(np.abs(action).max())
        if size < 0.05:
            names.append("stay")
            continue
        if float(np.abs(action).min()) > 0.5 * size:
            return None
        axis = int(np.abs(action).argmax())
        move = tuple(int(np.sign(action[axis])) if place == axis else 0 for place in range(2))
        names.append(ACTIONS[MOVES.index(move)])
    return tuple(names) if len(set(names)) == len(names) else None
