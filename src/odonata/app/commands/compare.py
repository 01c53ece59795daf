"""`odonata compare`: what differs between runs, and what came out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
import yaml
from rich.table import Table
from rich.text import Text

from odonata.app.commands.arguments import parse, print_json, print_table
from odonata.errors import RunError


@dataclass(frozen=True)
class CompareArguments:
    """Put runs side by side: `odonata compare runs/x runs/y`."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run folders, two or more."""
    json: bool = False
    """For programs: {settings: {field: [values]}, figures: {name: [values]}}."""


def compare(arguments: Sequence[str]) -> None:
    """Print the settings that differ and the last figures of each run."""
    options = parse(CompareArguments, "compare", arguments)
    if len(options.runs) < 2:
        raise RunError("compare takes two run folders or more")
    settings = [_flat(_read_config(run)) for run in options.runs]
    figures = [last_figures(run) for run in options.runs]
    differing = {
        k: [s.get(k) for s in settings] for k in _keys(settings) if len({repr(s.get(k)) for s in settings}) > 1
    }
    measured = {k: [f.get(k) for f in figures] for k in _keys(figures)}
    if options.json:
        print_json({"runs": [str(run) for run in options.runs], "settings": differing, "figures": measured})
        return
    table = Table(box=None, pad_edge=False)
    for column in ("", *map(str, options.runs)):
        table.add_column(column, justify="left" if not column else "right")
    for title, rows in (("settings that differ", differing), ("last figures", measured)):
        table.add_row(Text(title, style="bold"))
        for key, values in rows.items():
            table.add_row(key, *(f"{v:.4g}" if isinstance(v, float) else str(v) for v in values))
    print_table(table)


def last_figures(run: Path) -> dict[str, Any]:
    """Return the newest value of each figure in a run's log.

    Raises:
        RunError: there is no log.
    """
    path = run / "log.jsonl"
    if not path.is_file():
        raise RunError(f"{run} is not a run folder: it has no log.jsonl")
    figures: dict[str, Any] = {}
    for line in path.read_text().splitlines():
        try:
            figures.update({k: v for k, v in json.loads(line).items() if not isinstance(v, str)})
        except json.JSONDecodeError:  # the last line of a run that was killed
            continue
    return figures


def _read_config(run: Path) -> dict[str, Any]:
    path = run / "config.yaml"
    if not path.is_file():
        raise RunError(f"{run} is not a run folder: it has no config.yaml")
    return yaml.safe_load(path.read_text())


def _flat(node: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(node, dict):
        return {prefix: node}
    flat: dict[str, Any] = {}
    for key, value in node.items():
        flat.update(_flat(value, f"{prefix}.{key}" if prefix else str(key)))
    return flat


def _keys(rows: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for row in rows for key in row))
