"""What is wrong with a run of this room: the findings of its log, and a watch that tells of them while it trains.

A run is read from its folder alone: recipe, `log.jsonl`, and the answers in `rollouts.jsonl`. What a figure means is
looked up in the log, not in the method's name: whatever logs rewards and lengths is examined as one that learns from
its own answers, whatever logs a margin as one that learns from preferences.

Thresholds stand with their reasons in `findings_online.py`, `findings_rewards.py` and `findings_offline.py`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from odonata.engine.config_file import to_plain
from odonata.engine.findings import WATCHING, Finding, Record, general, read_record
from odonata.posttrain.findings_offline import examples, preferences
from odonata.posttrain.findings_online import online

if TYPE_CHECKING:
    from odonata.engine.recipe import Recipe

log = logging.getLogger(__name__)

WORSE = 0.05
"""Right answers that a stage loses to the one before it: two standard errors of 256 prompts at four of five right."""
OTHER_MODELS = ("student before", "6-distil")
"""Lines of a pipeline's table that are not about the model that goes from stage to stage."""
LINES = 3
"""Lines of the log in a row that must show a finding before a run is warned of it."""
KEPT = 256
"""Lines of training that a watch keeps; beyond, every second one, then every fourth: a long run's curve stays whole."""
AT_ONCE = ("off policy", "not a number", "over-optimisation", "best step passed")
"""Findings that one line is enough for: they are exact, or about all held-back prompts."""
EARLY = (
    *AT_ONCE, "hacking", "dead groups", "truncation", "unscored answers", "entropy collapse", "entropy explosion",
    "divergence", "clipping", "chosen answers fall", "gradient spikes", "no gradient", "reward falls",
)  # fmt: skip
"""Findings that are true before a run has ended; others may be what the next steps mend."""
_RANK = {"wrong": 0, "watch": 1, "ok": 2}


def examine(folder: Path) -> list[Finding]:
    """Return what a run shows, the worst first; nothing where it is healthy.

    Args:
        folder: a run of this room. Of a run made of runs, each stage is examined, and named in its findings.

    Raises:
        RunError: not a run folder, or one without a log.
    """
    record = read_record(folder)
    stages = sorted(part for part in folder.iterdir() if (part / "config.yaml").is_file() and part.is_dir())
    found = findings(record) if not stages else _between_stages(folder)
    for stage in stages:
        if (stage / "log.jsonl").is_file():
            found += [replace(finding, stage=stage.name) for finding in findings(read_record(stage))]
    return sorted(found, key=lambda finding: _RANK[finding.severity])


def findings(record: Record) -> list[Finding]:
    """Return what one log shows, the worst first."""
    learns_from_answers = record.curve("reward") is not None and record.curve("length") is not None
    found = list(general(record, minimises=not learns_from_answers))
    if learns_from_answers:
        found += online(record)
    elif record.curve("margin") or record.curve("accuracy"):
        found += preferences(record)
    elif record.names():
        found += examples(record)
    return sorted(found, key=lambda finding: _RANK[finding.severity])


def _between_stages(folder: Path) -> list[Finding]:
    """What the table of a run made of runs shows: a stage that loses what the one before had."""
    file = folder / "stages.json"
    table: dict[str, dict[str, float]] = json.loads(file.read_text()) if file.is_file() else {}
    # A student is another model, and begins anew.
    line = [(stage, figures["right"]) for stage, figures in table.items() if stage not in OTHER_MODELS]
    return [
        Finding(
            "a stage made it worse", "watch",
            f"right answers fall from {had:.1%} after {before} to {has:.1%} after {after}.",
            f"See what the doctor finds of {after}.", stage=after,
        )
        for (before, had), (after, has) in pairwise(line)
        if has < had - WORSE
    ]  # fmt: skip


@dataclass
class Watch:
    """Reads each line of a run's log as it is written and warns, once for each kind of finding.

    Args:
        config: the recipe as plain values.
    """

    config: Mapping[str, Any]
    rows: list[Mapping[str, float]] = field(default_factory=list[Mapping[str, float]])
    """Lines that are kept, all of evaluations among them."""
    lines: int = 0
    """Of training, so far."""
    stride: int = 1
    """Of so many lines of training one is kept."""
    shown: dict[str, int] = field(default_factory=dict[str, int])
    """Finding → lines in a row that showed it."""
    said: set[str] = field(default_factory=set[str])

    def __call__(self, step: int, scalars: Mapping[str, float]) -> None:
        """Take a line of figures; warn of what it and those before it show for the first time."""
        rows = self._keep({"step": step, **scalars})
        found = {
            finding.name: finding
            for finding in findings(Record(self.config, rows))
            if finding.name in EARLY and finding.severity != "ok"
        }
        self.shown = {name: self.shown.get(name, 0) + 1 for name in found}
        for name, finding in found.items():
            if name not in self.said and (name in AT_ONCE or self.shown[name] >= LINES):
                self.said.add(name)
                log.warning("step %d: %s%s%s", step, WATCHING, finding, f" ({finding.option})" * bool(finding.option))

    def _keep(self, row: Mapping[str, float]) -> list[Mapping[str, float]]:
        """Return the lines so far, this one included, and keep it if it is its turn."""
        rows = [*self.rows, row]
        trained = "loss" in row
        if not trained or self.lines % self.stride == 0:
            self.rows = rows
        self.lines += trained
        if sum("loss" in kept for kept in self.rows) > KEPT:
            self.stride *= 2
            dropped = [place for place, kept in enumerate(self.rows) if "loss" in kept][1::2]
            self.rows = [kept for place, kept in enumerate(self.rows) if place not in set(dropped)]
        return rows


def watch(recipe: Recipe) -> Callable[[int, dict[str, float]], None]:
    """Return a watch over a run, for `Task.watch`."""
    return Watch(to_plain(recipe))
