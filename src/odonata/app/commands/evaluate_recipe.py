"""`odonata evaluate` of runs that are measured as their own recipe says, on what it held back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from odonata.errors import RecipeError


@dataclass(frozen=True)
class RecipeArguments:
    """Measure a run as it was measured in training: `odonata evaluate RUN`.

    The figures of its recipe's evaluation, of the best checkpoint or the last, on the part of its data that was held
    back. For answers under a budget, see `odonata search`.
    """

    model: Annotated[Path, tyro.conf.Positional]
    """A run folder."""
    which: str = "best"
    """The checkpoint: best or last."""
    json: bool = False
    """For programs."""
    out: Path | None = None
    """Also write the figures into this file."""


def evaluate_recipe(options: RecipeArguments) -> dict[str, Any]:
    """Return figures by name, each {value, low, high, count}.

    Raises:
        OdonataError: no run, one whose data are gone, or one that measures nothing.
    """
    if options.which not in ("best", "last"):
        raise RecipeError(f"--which {options.which!r}: there are best and last")
    return {
        name: {"value": value, "low": None, "high": None, "count": ""}
        for name, value in measured(options.model, options.which).items()
    }


def measured(folder: Path, which: str) -> dict[str, float]:
    """Return what a run's own evaluation says of a checkpoint.

    Raises:
        OdonataError: no run, one whose data are gone, or one that measures nothing.
    """
    import torch

    from odonata.app.api import read_run_recipe
    from odonata.app.catalog import find, resolve, room_index
    from odonata.engine.checkpoint import load_weights, weights_file

    recipe = read_run_recipe(folder)
    room = room_index(find(recipe.name).room)
    if recipe.name in getattr(room, "RUNNERS", {}):
        raise RecipeError(f"{folder}: {recipe.name} is made of several runs: evaluate one of the folders in it")
    task = resolve(room.BUILD)(recipe, folder / "assets")
    if task.evaluate is None:
        raise RecipeError(f"{folder}: its recipe measures nothing, or nothing is known to compare with")
    load_weights(task.method, weights_file(folder, which))
    task.method.eval()
    with torch.no_grad():
        return task.evaluate(task.method)
