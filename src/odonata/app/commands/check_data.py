"""`odonata check-data`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from odonata.app.commands.arguments import parse, print_json, print_table


@dataclass(frozen=True)
class CheckArguments:
    """Report what is wrong with a data set: `odonata check-data PATH`.

    Unreadable pictures, duplicates, empty and repeated captions, histograms of sizes and lengths. Ends with status 1
    where something would stop a training.
    """

    path: Annotated[str, tyro.conf.Positional]
    """Manifest, json of captions, folder, shards, or an embedded set; what --data.path takes."""
    images: Path | None = None
    """Folder that picture names are relative to."""
    image_column: str | None = None
    """Column of a manifest with the pictures."""
    caption_column: str | None = None
    """Column of a manifest with the captions."""
    split: str | None = None
    """Only this split."""
    near_duplicates: bool = False
    """Also look for pictures that differ only by scaling or compression."""
    json: bool = False
    """For programs."""


def check_data(arguments: Sequence[str]) -> int:
    """Print the report."""
    options = parse(CheckArguments, "check-data", arguments)
    from odonata.data.check import check

    report = check(
        options.path,
        images=options.images,
        image_column=options.image_column,
        caption_column=options.caption_column,
        split=options.split,
        near_duplicates=options.near_duplicates,
    )
    if options.json:
        print_json(report.to_dict())
    else:
        print_table(report.render())
    return 0 if report.ok else 1
