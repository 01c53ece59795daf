"""Command-line arguments from frozen dataclasses, with one voice for all commands."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro

from odonata.errors import DataError

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
