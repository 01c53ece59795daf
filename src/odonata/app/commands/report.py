"""`odonata report`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from odonata.app.commands.arguments import parse


@dataclass(frozen=True)
class ReportArguments:
    """Write a run's report page anew, with pictures where the run has any held back: `odonata report RUN`."""

    run: Annotated[Path, tyro.conf.Positional]
    """The run folder."""
    pictures: int = 12
    """Held-back pictures shown with what the model says of them (0 = none)."""


def report(arguments: Sequence[str]) -> None:
    """Write report.html."""
    options = parse(ReportArguments, "report", arguments)
    from odonata.app.api import report_run

    print(report_run(options.run, options.pictures))
