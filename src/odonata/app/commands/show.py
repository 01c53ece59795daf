"""`odonata list` and `odonata show`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

from odonata.app.catalog import Entry, find, methods, named_presets
from odonata.app.commands.arguments import parse, print_json, print_table
from odonata.card import MARKS


@dataclass(frozen=True)
class ListArguments:
    """List the methods: `odonata list [ROOM]`.

    The marks are read from what the tests and claims last recorded: it trains, its numbers agree with an independent
    implementation (parity), published weights go in and out, its claim has a verdict, bad input gets a clear error.
    """

    room: Annotated[str | None, tyro.conf.Positional] = None
    """Only this room."""
    json: bool = False
    """For programs: a list of {name, room, marks}."""


def list_methods(arguments: Sequence[str]) -> None:
    """Print the methods."""
    options = parse(ListArguments, "list", arguments)
    entries = methods(options.room)
    if options.json:
        print_json([{"name": e.name, "room": e.room, "marks": e.marks} for e in entries])
        return
    table = Table(box=None, pad_edge=False)
    for column in ("method", "room", *MARKS, "what it is"):
        table.add_column(column, justify="center" if column in MARKS else "left")
    for entry in entries:
        table.add_row(entry.name, entry.room, *(_mark(entry, mark) for mark in MARKS), entry.card.summary)
    print_table(table, markup=True)


@dataclass(frozen=True)
class ShowArguments:
    """Show one method, `odonata show siglip`, or one backbone, `odonata show vit-b16`; or all of those: `backbones`."""

    name: Annotated[str, tyro.conf.Positional]
    """The method, or the backbone."""
    image_size: int = 0
    """For a backbone: side of the picture that it is measured on, in pixels (0 = its own, or 224)."""
    presets: bool = False
    """For a method: also its named conventions, which `--preset` takes."""
    json: bool = False
    """For programs."""


def show(arguments: Sequence[str]) -> None:
    """Print one method."""
    options = parse(ShowArguments, "show", arguments)
    from odonata.app.commands import show_backbone

    if options.name == "backbones":
        show_backbone.show_families(options.json)
        return
    if show_backbone.is_backbone(options.name):
        show_backbone.show_backbone(options.name, options.image_size, options.json)
        return
    entry = find(options.name)
    evidence = entry.evidence
    if options.json:
        print_json({"name": entry.name, "room": entry.room, "summary": entry.card.summary, "paper": entry.card.paper,
                    "claims": entry.card.claims, "marks": entry.marks, "evidence": evidence,
                    **({"presets": list(named_presets(entry.name))} if options.presets else {})})  # fmt: skip
        return
    console = Console()
    console.print(f"[bold]{entry.name}[/bold] ({entry.room})  {entry.card.summary}")
    console.print(f"{entry.card.paper}", highlight=False)
    table = Table(box=None, pad_edge=False)
    for column in ("", "mark", "shown by"):
        table.add_column(column)
    for mark in MARKS:
        shown = evidence.get(mark, [])
        more = f" and {len(shown) - 2} more" if len(shown) > 2 else ""
        table.add_row(_mark(entry, mark), mark, ", ".join(shown[:2]) + more if shown else "nothing recorded")
    console.print(table)
    console.print(f"claims: {', '.join(entry.card.claims) or 'none'}")
    for preset, fields in named_presets(entry.name).items() if options.presets else ():
        shown = ", ".join(f"{name} {value}" for name, value in fields.items() if isinstance(value, (str, int, float)))
        console.print(f"--preset {preset}: {shown or 'the defaults'}", highlight=False, markup=False)
    console.print(f"train:  odonata train {entry.name}    options: odonata train {entry.name} --help")


def _mark(entry: Entry, mark: str) -> str:
    return "[green]●[/green]" if entry.marks[mark] else "[dim]○[/dim]"
