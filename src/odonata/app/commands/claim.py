"""`odonata claim list`, `run` and `report`."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from odonata import claims
from odonata.app.commands.arguments import parse, print_json
from odonata.errors import RecipeError, RunError

if TYPE_CHECKING:
    from odonata.claims.record import Record

USAGE = """usage: odonata claim list | run NAME… | report [NAME…]

The claims of papers as experiments that fit a laptop: hypothesis, variants tuned alike, paired seeds, and a verdict
that can come out either way.

  list     every claim, with the verdict that was recorded
  run      try claims here: trials are kept, and a run that was stopped goes on where it was
  report   the recorded figures as a table, and as a page for people

`odonata claim run --help` tells more."""
_COLOURS = {"supported": "green", "not supported": "red", "inconclusive": "yellow"}


def claim(arguments: Sequence[str]) -> int:
    """Run one of the subcommands."""
    commands: dict[str, Callable[[Sequence[str]], None]] = {"list": list_claims, "run": run, "report": report}
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if arguments else 2
    if arguments[0] not in commands:
        raise RecipeError(f"no odonata claim {arguments[0]!r}; there are {', '.join(commands)}")
    commands[arguments[0]](arguments[1:])
    return 0


@dataclass(frozen=True)
class ListArguments:
    """List the claims with their recorded verdicts."""

    json: bool = False
    """For programs: a list of {name, room, summary, verdict, cpu_seconds}."""


def list_claims(arguments: Sequence[str]) -> None:
    """Print every claim."""
    options = parse(ListArguments, "claim list", arguments)
    recorded = claims.recorded()
    rows: list[dict[str, Any]] = []
    for name, card in claims.CLAIMS.items():
        kept = recorded.get(name)
        verdict, cost = (kept["verdict"], kept["cost"]["cpu_seconds"]) if kept else (None, None)
        rows.append({"name": name, "room": card.room, "summary": card.summary, "verdict": verdict, "cpu_seconds": cost})
    if options.json:
        print_json(rows)
        return
    table = Table(box=None, pad_edge=False)
    for column in ("claim", "room", "recorded", "CPU time", "what is claimed"):
        table.add_column(
            column, justify="right" if column == "CPU time" else "left", no_wrap=column in ("claim", "recorded")
        )
    for row in rows:
        cost = "" if row["cpu_seconds"] is None else f"{row['cpu_seconds'] / 60:.1f} min"
        table.add_row(row["name"], row["room"], _painted(row["verdict"]), cost, row["summary"])
    Console().print(table)


@dataclass(frozen=True)
class RunArguments:
    """Try claims: `odonata claim run siglip-batch-size`."""

    names: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Claims, or `all`."""
    jobs: int = 2
    """Trials computed at a time, each on one thread."""
    quick: bool = False
    """A smoke test: two seeds, no tuning, a fiftieth of the length. Its verdict means nothing."""
    record: bool = False
    """Keep the result among the package's own records (in a checkout under development)."""
    out: Path = Path("runs/claims")
    """Where the work folders are."""


def run(arguments: Sequence[str]) -> None:
    """Run claims and print how they came out."""
    options = parse(RunArguments, "claim run", arguments)
    if not options.names:
        raise RecipeError(f"which claim? There are {', '.join(claims.CLAIMS)}")
    if options.jobs < 1:
        raise RecipeError(f"--jobs is {options.jobs}; it must be 1 or more")
    if options.quick and options.record:
        raise RecipeError("--quick is a smoke test: its result cannot be recorded")
    names = list(claims.CLAIMS) if options.names == ("all",) else list(options.names)
    for name in names:
        claims.find(name)  # a mistyped second name is reported before the first claim has run for minutes
    for name in names:
        _run(name, options, shlex.join(["odonata", "claim", "run", *_without_names(arguments, options.names), name]))


def _run(name: str, options: RunArguments, command: str) -> None:
    from odonata.claims.record import record_in_package
    from odonata.claims.runner import run_claim

    folder = options.out / (f"{name}-quick" if options.quick else name)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(name, total=None)

        def tell(what: str, done: int, total: int) -> None:
            progress.update(task, description=f"{name}: {what}", completed=done, total=total)

        record = run_claim(
            claims.load(name), folder, jobs=options.jobs, quick=options.quick, report=tell, command=command
        )
    path = record.save(folder)
    print_record(record)
    print(f"→ {path}")
    if options.record:
        print(f"→ {record_in_package(record)}")


@dataclass(frozen=True)
class ReportArguments:
    """Show what was recorded: `odonata claim report siglip-batch-size -o pages`."""

    names: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Claims; all that are recorded where none is named."""
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("runs/claims")
    """Folder to write claims.html into."""


def report(arguments: Sequence[str]) -> None:
    """Print the recorded comparisons and write a page."""
    options = parse(ReportArguments, "claim report", arguments)
    recorded = claims.recorded()
    for name in options.names:
        claims.find(name)
        if name not in recorded:
            raise RunError(f"claim {name} has no record yet; `odonata claim run {name} --record` makes one")
    from odonata.claims.page import page
    from odonata.claims.record import Record

    records = [Record.from_dict(recorded[name]) for name in options.names or recorded]
    for record in records:
        print_record(record)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "claims.html").write_text(page(records), encoding="utf-8")
    except OSError as error:
        raise RunError(f"{options.out}: cannot write a page here: {error.strerror}") from error
    print(f"→ {options.out / 'claims.html'}")


def print_record(record: Record) -> None:
    """Print a claim's verdict and its comparisons."""
    from odonata.claims.page import measured, minutes, wanted

    console = Console()
    smoke = " [dim](smoke test: means nothing)[/dim]" if record.quick else ""
    console.print(f"[bold]{record.name}[/bold]: {_painted(record.verdict)}{smoke}")
    console.print(record.claim["hypothesis"], style="dim", highlight=False)
    table = Table(box=None, pad_edge=False)
    for column in ("comparison", "figure", "mean [95 %]", "wanted", "verdict"):
        table.add_column(column, justify="right" if column in ("mean [95 %]", "wanted") else "left")
    for outcome in record.outcomes:
        name = outcome["name"] if outcome["primary"] else f"[dim]{outcome['name']} (secondary)[/dim]"
        interval = measured(outcome).replace("[", r"\[")
        table.add_row(name, outcome["quantity"], interval, wanted(outcome), _painted(outcome["verdict"]))
    console.print(table)
    if beside := record.beside_published():
        _print_published(console, record, *beside)
    cost, date = minutes(record.cost["cpu_seconds"]), record.machine["date"]
    console.print(f"{record.cost['trials']:.0f} trials, {cost} of CPU time, {date}", style="dim", highlight=False)


def _print_published(
    console: Console, record: Record, rows: Sequence[tuple[str, float, float]], correlation: float
) -> None:
    table = Table(box=None, pad_edge=False)
    for column in ("cell", "published", "here"):
        table.add_column(column, justify="left" if column == "cell" else "right")
    for cell, theirs, ours in rows:
        table.add_row(cell, f"{theirs:.2f}", f"{ours:.2f}")
    console.print(f"beside {record.claim['published']['source']}: rank correlation {correlation:.2f}", highlight=False)
    console.print(table)


def _painted(verdict: str | None) -> str:
    return f"[{_COLOURS[verdict]}]{verdict}[/{_COLOURS[verdict]}]" if verdict else "[dim]not run[/dim]"


def _without_names(arguments: Sequence[str], names: Sequence[str]) -> list[str]:
    """The arguments that decide what comes out: not the claims' names, nor where files are put."""
    kept: list[str] = []
    skip = False
    for argument in arguments:
        if not skip and argument not in names and not argument.startswith("--out"):
            kept.append(argument)
        skip = argument == "--out"
    return kept
