"""`odonata train` and `odonata resume`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from odonata.app.catalog import default_recipe, find, methods
from odonata.app.commands.arguments import parse
from odonata.engine.config_file import from_plain, read_recipe_name
from odonata.engine.recipe import Recipe
from odonata.errors import RecipeError


def train(arguments: Sequence[str]) -> int:
    """Train a method by name, or a saved recipe, with any field changed by an option."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0 if arguments else 2
    recipe = parse_recipe(arguments[0], arguments[1:])
    recipe.check()
    from odonata.engine import distributed

    if recipe.devices > 1 and not distributed.is_launched():
        distributed.check_devices(recipe.devices, recipe.device)
        return distributed.launch(["train", *arguments], recipe.devices)
    from odonata.app.api import train_recipe

    train_recipe(recipe)
    return 0


def usage() -> str:
    """Return the help of `odonata train` itself, which needs no torch."""
    names = "\n".join(f"  {entry.name:<9} {entry.card.summary}" for entry in methods())
    return f"""usage: odonata train NAME|RECIPE.yaml [--field value …]

Trains a method on your data, or on an embedded set. NAME is one of
{names}

`odonata train NAME --help` lists every option. The config.yaml of a run folder is a recipe.
  --data.path    your pictures with captions, or folder of classes
  --devices N    processes on this machine (GPUs, or CPU ranks)
  --out FOLDER   the run folder (runs/NAME-N)"""


def parse_recipe(name: str, options: Sequence[str]) -> Recipe:
    """Return the recipe of a method, or of a .yaml file, with the options applied.

    Raises:
        RecipeError: no such method or file, or an unknown field in the file.
    """
    if name.startswith("-"):
        raise RecipeError(f"the method comes first: odonata train NAME {name} …")
    if name.endswith((".yaml", ".yml")) or Path(name, "config.yaml").is_file():
        path = Path(name) if name.endswith((".yaml", ".yml")) else Path(name, "config.yaml")
        method, plain = read_recipe_name(path)
        default = from_plain(plain, default_recipe(method), str(path))
    else:
        default = default_recipe(name)
    return tyro.cli(
        type(default), default=default, args=list(options), prog=f"odonata train {name}",
        description=find(default.name).card.summary, config=(tyro.conf.CascadeSubcommandArgs,),
    )  # fmt: skip


@dataclass(frozen=True)
class ResumeArguments:
    """Go on with a run from its last checkpoint, to the same bits as if it had not stopped: `odonata resume RUN`."""

    run: Annotated[Path, tyro.conf.Positional]
    """The run folder."""


def resume(arguments: Sequence[str]) -> int:
    """Resume a run, on as many processes as it had."""
    options = parse(ResumeArguments, "resume", arguments)
    from odonata.app.api import read_run_recipe, train_recipe
    from odonata.engine import distributed

    recipe = read_run_recipe(options.run)
    if recipe.devices > 1 and not distributed.is_launched():
        distributed.check_devices(recipe.devices, recipe.device)
        return distributed.launch(["resume", *arguments], recipe.devices)
    train_recipe(recipe, resume_from=options.run)
    return 0
