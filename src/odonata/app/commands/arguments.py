"""Command-line arguments from frozen dataclasses, with one voice for all commands."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro
from rich.console import Console, RenderableType

from odonata.errors import DataError, RecipeError

Arguments = TypeVar("Arguments")


def parse(kind: type[Arguments], command: str, arguments: Sequence[str]) -> Arguments:
    """Return `kind` filled from the command line; its docstring is the description, its fields' docstrings the help.

    `--help` prints and exits with 0; a wrong option prints the nearest ones and exits with 2.
    """
    return tyro.cli(
        kind,
        args=list(arguments),
        prog=f"odonata {command}",
        config=(tyro.conf.CascadeSubcommandArgs,),
    )


def print_json(value: Any) -> None:
    """Print for programs."""
    json.dump(value, sys.stdout, indent=1, ensure_ascii=False)
    print()


def print_table(table: RenderableType, markup: bool = False) -> None:
    """Print for people; into a file or another program, a row stays on one line.

    Args:
        table: the table, or a group of tables and lines.
        markup: whether cells hold rich's markup. Names of files and labels may hold brackets of their own.
    """
    console = Console(markup=markup, highlight=False)
    if not console.is_terminal:
        console.width = 10_000
    console.print(table)


def at_least(low: int, **values: int) -> None:
    """Refuse numbers below `low`, named as the options are.

    Raises:
        RecipeError: says which.
    """
    for name, value in values.items():
        if value < low:
            raise RecipeError(f"--{name.replace('_', '-')} is {value}; it must be at least {low}")


PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")


def pictures_in(places: Sequence[Path]) -> list[Path]:
    """Return the picture files named or lying in the folders named, in order of name.

    Raises:
        DataError: a place does not exist, or there is no picture in any.
    """
    found: list[Path] = []
    for place in places:
        if place.is_dir():
            found += sorted(p for p in place.rglob("*") if p.suffix.lower() in PICTURE_SUFFIXES)
        elif place.is_file():
            found.append(place)
        else:
            raise DataError(f"{place}: no such picture or folder")
    if not found:
        raise DataError(
            f"no pictures in {', '.join(map(str, places)) or 'nothing'}; known are {' '.join(PICTURE_SUFFIXES)}"
        )
    return found
