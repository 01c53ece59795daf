"""`odonata doctor`: what is wrong with a run, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from odonata.app.catalog import find, resolve, room_index
from odonata.app.commands.arguments import parse, print_json, print_table
from odonata.engine.config_file import read_recipe_name
from odonata.engine.findings import Finding, Severity, general, read_record
from odonata.errors import RunError

_COLOURS: dict[Severity, str] = {"wrong": "bold red", "watch": "yellow", "ok": "green"}


@dataclass(frozen=True)
class DoctorArguments:
    """Say what a run's log shows to be wrong: `odonata doctor RUN`.

    Runs of language models trained further are examined for dead groups, truncation, entropy, divergence, hacking,
    over-optimisation and more; runs of other rooms for what can be wrong with any: gradients, loss, waiting, warnings.
    """

    run: Annotated[Path, tyro.conf.Positional]
    """The run folder; it may still be training."""
    json: bool = False
    """For programs: a list of {name, severity, text, remedy, option, stage}."""


def doctor(arguments: Sequence[str]) -> None:
    """Print the findings, the worst first."""
    options = parse(DoctorArguments, "doctor", arguments)
    found = examine(options.run)
    if options.json:
        print_json([finding.to_dict() for finding in found])
        return
    print_table(as_table(options.run, found))


def examine(run: Path) -> list[Finding]:
    """Return a run's findings, by its room's own doctor where it has one.

    Raises:
        RunError: not a run folder, or one without a log.
    """
    if not (run / "config.yaml").is_file():
        raise RunError(f"{run} is not a run folder: it has no config.yaml")
    room = room_index(find(read_recipe_name(run / "config.yaml")[0]).room)
    if own := getattr(room, "DOCTOR", None):
        return resolve(own)(run)
    return list(general(read_record(run)))


def as_table(run: Path, found: Sequence[Finding]) -> RenderableType:
    """Return the findings for people, with a line that counts them."""
    table = Table(box=None, pad_edge=False)
    staged = any(finding.stage for finding in found)
    for column in ("", *(("stage",) if staged else ()), "finding", "what is seen", "what to do", "option"):
        table.add_column(column, overflow="fold")
    for finding in found:
        table.add_row(
            Text(finding.severity, style=_COLOURS[finding.severity]), *((finding.stage,) if staged else ()),
            finding.name, finding.text, finding.remedy, finding.option,
        )  # fmt: skip
    return Group(*((table, Text()) if found else ()), Text(f"{run}: {summary(found)}"))


def summary(found: Sequence[Finding]) -> str:
    """Return the findings in one line."""
    wrong, watch = (sum(finding.severity == kind for finding in found) for kind in ("wrong", "watch"))
    if not wrong and not watch:
        return "nothing wrong was found"
    return ", ".join(part for count, part in ((wrong, f"{wrong} wrong"), (watch, f"{watch} to watch")) if count)
