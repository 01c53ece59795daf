"""The Python façade: `odonata.train`, `odonata.load`, `odonata.evaluate`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from odonata.app.catalog import RECOGNISED_IN, default_recipe, find, resolve, room_index
from odonata.engine.checkpoint import latest_step
from odonata.engine.config_file import from_plain, read_recipe_name, to_plain
from odonata.engine.distributed import from_leader, join_world, leave_world
from odonata.engine.fit import train as train_task
from odonata.engine.recipe import Recipe
from odonata.engine.run import check_writable, next_run_folder
from odonata.errors import RecipeError, RunError, WeightsError


def recipe(name: str, **fields: Any) -> Recipe:
    """Return a method's recipe with fields changed.

    Args:
        name: a method, or the path of a saved recipe.
        fields: by their names on the command line with `.` written as `__`: `steps=100`, `data__path="photos/"`,
            `optim__lr=1e-4`, `bias_init=-6.0`.

    Raises:
        RecipeError: no such method or field.

    >>> recipe("siglip", steps=10, optim__lr=3e-4).optim.lr
    0.0003
    """
    if name.endswith((".yaml", ".yml")):
        method, plain = read_recipe_name(Path(name))
        base = from_plain(plain, default_recipe(method), name)
    else:
        base = default_recipe(name)
    for key, value in fields.items():
        base = _replace(base, key.split("__"), value, key)
    return base


def _replace(node: Any, path: list[str], value: Any, key: str) -> Any:
    names = {f.name for f in dataclasses.fields(node)}
    head, rest = path[0], path[1:]
    if head not in names and isinstance(node, Recipe) and head in {f.name for f in dataclasses.fields(node.method)}:
        return dataclasses.replace(node, method=_replace(node.method, path, value, key))
    if head not in names:
        raise RecipeError(f"{type(node).__name__} has no field {head!r} (asked for by {key}); it has {sorted(names)}")
    if rest:
        return dataclasses.replace(node, **{head: _replace(getattr(node, head), rest, value, key)})
    if dataclasses.is_dataclass(value) or not isinstance(value, (str, int, float, bool, tuple, list, dict, type(None))):
        return dataclasses.replace(node, **{head: value})
    # The same checks of type as a recipe file gets.
    return from_plain({head: to_plain(value)}, node, key)


def train(name: str | Recipe, **fields: Any) -> Path:
    """Train a method, a saved recipe, or a `Recipe`, and return the run folder; see `recipe` for the fields.

    Raises:
        OdonataError: the recipe, the data or the run folder cannot be used, or training had to stop.
    """
    chosen = name if isinstance(name, Recipe) else recipe(name, **fields)
    if chosen.devices > 1:
        raise RecipeError("several devices are started by the command line: odonata train … --devices N, or torchrun")
    return train_recipe(chosen)


def train_recipe(chosen: Recipe, resume_from: Path | None = None) -> Path:
    """Build the recipe's task and train it; return the run folder. Under torchrun every rank calls this."""
    chosen.check()
    world = join_world(chosen.device)
    try:
        folder = resume_from or Path(from_leader(chosen.out or str(next_run_folder(chosen.name))))
        if resume_from is None and (folder / "config.yaml").exists():
            raise RunError(
                f"{folder} already holds a run; resume it with `odonata resume {folder}` or choose another --out"
            )
        check_writable(folder)
        torch.manual_seed(chosen.seed)
        room = room_index(find(chosen.name).room)
        if runner := getattr(room, "RUNNERS", {}).get(chosen.name):
            lines = resolve(runner)(chosen, folder, world, resume=resume_from is not None)
            if world.leads:
                print(*lines, sep="\n")
                print(f"report: {report_run(folder)}")
            return folder
        build = resolve(room.BUILD)
        # Without a checkpoint the run starts over, from whatever it started from: --init, a tower, a filter.
        begun = resume_from is not None and latest_step(folder / "checkpoints") is not None
        task = build(chosen, folder / "assets" if begun else None)
        chosen = task.recipe or chosen
        if world.leads:
            from rich.console import Console

            console = Console(stderr=True)
            for note in task.notes:
                console.print(note, highlight=False, markup=False, soft_wrap=True)
            plan = f"{chosen.name}: {chosen.steps} steps of {task.batch_size}, on {world.size} × {world.device}"
            console.print(f"{plan} → {folder}", highlight=False, markup=False, soft_wrap=True)
        train_task(chosen, task, folder, world, resume=resume_from is not None)
        if world.leads:
            print(f"report: {report_run(folder)}")
    finally:
        leave_world()
    return folder


def report_run(folder: Path, pictures: int = 12) -> Path:
    """Write a run's report page and return its path; the room chooses what its pictures show.

    Raises:
        RunError: not a run folder, or one without a checkpoint.
    """
    from odonata.app.report import Exhibit, write_report

    chosen = read_run_recipe(folder)
    room = room_index(find(chosen.name).room)
    exhibits = resolve(room.EXHIBITS)(chosen, folder, pictures) if pictures else []
    panels = resolve(room.PANELS)(chosen, folder) if hasattr(room, "PANELS") else []
    return write_report(folder, [Exhibit(picture, lines) for picture, lines in exhibits], panels)


def read_run_recipe(folder: Path) -> Recipe:
    """Return the recipe of a run.

    Raises:
        RunError: not a run folder.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        raise RunError(f"{folder} is not a run folder: it has no config.yaml")
    return recipe(str(path))


def load(path: str | Path, *, device: str = "auto", **options: Any) -> Any:
    """Return what predicts with a run, or with published weights.

    Args:
        path: a run folder, or a file or folder of published weights.
        device: `auto` takes a GPU where there is one.
        options: for weights that do not say all about themselves; see the room's loader.

    Raises:
        OdonataError: nothing there, or nothing that a room knows.
    """
    path = Path(path)
    if not path.exists():
        raise WeightsError(f"{path}: no such run folder or weights")
    place = torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")
    if (path / "config.yaml").is_file():
        name, _ = read_recipe_name(path / "config.yaml")
        return resolve(room_index(find(name).room).LOAD)(path, name, place, **options)
    return resolve(room_index(room_of(path)).LOAD)(path, None, place, **options)


def room_of(path: Path) -> str:
    """Return the room of a run, or of weights.

    Raises:
        WeightsError: nothing there, or nothing that a room knows.
    """
    if not path.exists():
        raise WeightsError(f"{path}: no such run folder or weights")
    if (path / "config.yaml").is_file():
        return find(read_recipe_name(path / "config.yaml")[0]).room
    for room in RECOGNISED_IN:
        recognises = getattr(room_index(room), "RECOGNISES", None)
        if recognises and resolve(recognises)(path):
            return room
    from odonata.weights.read import describe, read_state

    raise WeightsError(f"{path}: the layout is not known ({describe(read_state(path))})")


def evaluate(path: str | Path, **options: Any) -> dict[str, Any]:
    """Measure a run or published weights; the options are those of `odonata evaluate`.

    Returns:
        figures by name, each with its interval where it has one.
    """
    from odonata.app.commands.evaluate import arguments_of, run_evaluation

    return run_evaluation(arguments_of([str(path)])(Path(path), **options))
