"""`odonata convert-data`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from odonata.app.commands.arguments import parse


@dataclass(frozen=True)
class ConvertDataArguments:
    """Write a set of pictures with objects in another format: `odonata convert-data voc/ out/ --to coco`.

    Reads COCO, VOC, YOLO, instance maps, and the embedded set. Says what a format cannot hold. The folder appears whole
    or not at all.
    """

    source: Annotated[str, tyro.conf.Positional]
    """What --data.path takes."""
    out: Annotated[Path, tyro.conf.Positional]
    """Folder to write; it must not hold anything."""
    to: Literal["coco", "voc", "yolo"] = "coco"
    """The format."""
    images: str = ""
    """Folder that the picture names of a COCO json are relative to."""
    on_error: Literal["raise", "skip"] = "raise"
    """What to do about a bad annotation: stop with a message, or leave it out and count it."""


def convert_data(arguments: Sequence[str]) -> None:
    """Convert and print what was written."""
    options = parse(ConvertDataArguments, "convert-data", arguments)
    from odonata.data.convert_objects import convert_objects
    from odonata.data.open_objects import open_objects

    source = open_objects(options.source, images=options.images or None, on_error=options.on_error)
    path = convert_objects(source, options.out, to=options.to)
    if source.problems:
        print(f"- mended or left out: {len(source.problems)}, first: {source.problems[0]}")
    print(f"{path}: {len(source)} pictures, {source.num_objects} objects, {len(source.categories)} classes")
