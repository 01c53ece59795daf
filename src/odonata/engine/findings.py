"""What a run's log shows to be wrong: curves of figures with their noise, and the findings that fit any method.

Notable:
- A figure of one line is that of one batch. Whether a curve has risen is judged by the means of its first and its last
  quarter, against the noise between neighbouring lines; nothing is said of less than two standard errors.
- Rooms add findings of their own (`DOCTOR` in a room's index); those here need losses, gradients and times alone.
- No torch: a run is examined as fast as its log is read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median
from typing import Any, Literal, NamedTuple, cast

import yaml

from odonata.errors import RunError

Severity = Literal["ok", "watch", "wrong"]

ENOUGH = 8
"""Lines of the log that a curve needs before its quarters are compared: two lines in each."""
ERRORS = 2.0
"""Standard errors below which a difference is noise: one in twenty by chance."""
SPIKE = 10.0
"""Times the median gradient norm: the clip cuts such a step to a tenth, and Adam's averages remember it."""
ZERO_SHARE = 0.5
"""Share of lines without any gradient from which a run is one that does not learn."""
LOSS_RISE = 0.1
"""Share by which a loss that should fall has to rise: less is what a harder batch does."""
OVERFIT = 0.02
"""Share by which a held-back loss must lie above its best value: about the noise of a few hundred rows."""
WAIT = 0.25
"""Share of the time spent waiting for data from which more workers pay."""
LOST = 0.05
"""Fall of a share from its best that two evaluations in a row must show, or twice that in one: with 256 rows a standard
error is 0.025 at four of five right, and less where more are."""
LOWER = 1 / 3
"""What a rate that is too high is multiplied by to begin with; one that is too low by its inverse."""
WATCHING = "run watch: "
"""How warnings begin that a run gave itself: the doctor finds what they say anew."""


@dataclass(frozen=True)
class Finding:
    """One thing that a run shows."""

    name: str
    severity: Severity
    """`ok`: looks odd and is not; `watch`: may go wrong; `wrong`: does."""
    text: str
    """What is seen, with figures and steps."""
    remedy: str = ""
    """What to do about it."""
    option: str = ""
    """The option that does it, as on the command line."""
    stage: str = ""
    """Of a run made of runs: which of them."""

    def __str__(self) -> str:
        return f"{self.name}: {self.text} {self.remedy}".strip()

    def to_dict(self) -> dict[str, str]:
        """As plain values."""
        return asdict(self)


class Level(NamedTuple):
    """A stretch of a curve."""

    mean: float
    first: int
    """Step of its first line."""
    last: int


@dataclass(frozen=True)
class Curve:
    """One figure by step; at least one line, none of them infinite or NaN."""

    steps: tuple[int, ...]
    values: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.values)

    @property
    def quarter(self) -> int:
        """Lines of a quarter."""
        return max(1, len(self) // 4)

    @property
    def start(self) -> Level:
        """The first quarter."""
        return Level(fmean(self.values[: self.quarter]), self.steps[0], self.steps[self.quarter - 1])

    @property
    def end(self) -> Level:
        """The last quarter."""
        return Level(fmean(self.values[-self.quarter :]), self.steps[-self.quarter], self.steps[-1])

    @property
    def rise(self) -> float:
        """How much higher the end is than the start."""
        return self.end.mean - self.start.mean

    @property
    def error(self) -> float:
        """The standard error of `rise`, from neighbouring lines by the median: trends and spikes count little."""
        between = [abs(b - a) for a, b in pairwise(self.values)]
        if not between:
            return 0.0
        # The median of |N(0, 2σ²)| is 0.6745 · √2 σ; the means of two quarters differ by σ √(2/n).
        return median(between) / 0.6745 / math.sqrt(self.quarter)

    def rises(self, least: float = 0.0) -> bool:
        """Whether the end lies above the start by more than noise and `least`."""
        return len(self) >= ENOUGH and self.rise > max(least, ERRORS * self.error)

    def falls(self, least: float = 0.0) -> bool:
        """Whether the end lies below the start by more than noise and `least`."""
        return len(self) >= ENOUGH and -self.rise > max(least, ERRORS * self.error)

    def lost(self) -> bool:
        """Whether a share that is measured now and then was better before than it is now, by more than chance."""
        if len(self) < 2:
            return False
        best = max(self.values)
        return max(self.values[-2:]) < best - LOST or self.values[-1] < best - 2 * LOST

    def best(self, sign: int = 1) -> tuple[int, float]:
        """Return the step and value of the highest line, or of the lowest where `sign` is −1; the first of equals."""
        place = max(range(len(self)), key=lambda i: (sign * self.values[i], -i))
        return self.steps[place], self.values[place]


@dataclass(frozen=True)
class Record:
    """What is known of a run."""

    config: Mapping[str, Any]
    """`config.yaml`."""
    rows: Sequence[Mapping[str, Any]]
    """Lines of the log."""
    rollouts: Sequence[Mapping[str, Any]] = field(default_factory=list[Mapping[str, Any]])
    """Lines of `rollouts.jsonl`, of methods that sample."""

    @property
    def method(self) -> str:
        """Its name."""
        return str(self.config.get("name", ""))

    def option(self, path: str, default: Any = None) -> Any:
        """Return an option by its path, such as `method.beta`."""
        node: Any = self.config
        for key in path.split("."):
            if not isinstance(node, Mapping) or key not in node:
                return default
            node = cast(Mapping[str, Any], node)[key]
        return node

    def curve(self, name: str) -> Curve | None:
        """Return the figures of that name; None where the log has none that is finite."""
        points = [(int(row["step"]), float(row[name])) for row in self.rows if _is_number(row.get(name))]
        points = [(step, value) for step, value in points if math.isfinite(value)]
        return Curve(*(tuple(column) for column in zip(*points, strict=True))) if points else None  # pyright: ignore[reportArgumentType]

    def names(self, prefix: str = "") -> list[str]:
        """Return the figures of the log whose names begin so, in their order."""
        return list(
            dict.fromkeys(k for row in self.rows for k, v in row.items() if k.startswith(prefix) and _is_number(v))
        )


def read_record(folder: Path) -> Record:
    """Return what a run folder holds; a last line cut short by a kill is left out.

    Raises:
        RunError: not a run folder, or one without a log.
    """
    for name in ("config.yaml", "log.jsonl"):
        if not (folder / name).is_file():
            raise RunError(f"{folder} is not a run folder, or one that never made a step: it has no {name}")
    try:
        config = yaml.safe_load((folder / "config.yaml").read_text())
    except yaml.YAMLError as error:
        raise RunError(f"{folder / 'config.yaml'} is not YAML: {error}") from error
    if not isinstance(config, dict):
        raise RunError(f"{folder / 'config.yaml'} holds no recipe")
    return Record(
        cast("dict[str, Any]", config), read_lines(folder / "log.jsonl"), read_lines(folder / "rollouts.jsonl")
    )


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a file of JSON lines that have a step; nothing where there is no file."""
    rows: list[dict[str, Any]] = []
    for line in path.read_text(errors="replace").splitlines() if path.is_file() else []:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(row, dict) and _is_number(cast("dict[str, Any]", row).get("step")):
            rows.append(cast("dict[str, Any]", row))
    return rows


def general(record: Record, *, minimises: bool = True) -> Iterator[Finding]:
    """Look for what can be wrong with any run.

    Args:
        record: of the run.
        minimises: whether the value of the loss says how well it goes.
    """
    if not record.names():
        yield Finding("no figures", "watch", "the log has no figures.", "Wait, or lower --log-every.", "--log-every 1")
        return
    yield from _unfinished(record)
    yield from _not_finite(record)
    yield from _gradients(record)
    if minimises and (loss := record.curve("loss")) and loss.rises(LOSS_RISE * abs(loss.start.mean)):
        yield Finding(
            "loss rises", "watch", f"the loss rises from {loss.start.mean:.4g} to {loss.end.mean:.4g}.",
            "Lower the rate, or warm up longer.", rate_times(record, LOWER),
        )  # fmt: skip
    yield from _overfitting(record)
    wait = record.curve("wait")
    if wait and (share := fmean(wait.values)) > WAIT:
        yield Finding(
            "waiting for data", "watch", f"{share:.0%} of the time goes into waiting for data.",
            "Prepare batches in more processes.", "--data.workers 4",
        )  # fmt: skip
    for told in dict.fromkeys(str(row["warning"]) for row in record.rows if "warning" in row):
        if WATCHING not in told:
            yield Finding("warning", "watch", f"the log warns: {told}")


def _unfinished(record: Record) -> Iterator[Finding]:
    last, steps = max(int(row["step"]) for row in record.rows), record.option("steps", 0)
    if last < steps:
        early = " or stopped early, as --early-stop asks" if record.option("early_stop") else ""
        yield Finding(
            "not at its end", "ok" if early else "watch",
            f"the log ends at step {last} of {steps}: under way, killed{early}.",
            "If it was killed, `odonata resume` goes on from its last checkpoint.",
        )  # fmt: skip


def _not_finite(record: Record) -> Iterator[Finding]:
    for row in record.rows:
        bad = [k for k, v in row.items() if _is_number(v) and not math.isfinite(v)]
        if bad:
            yield Finding(
                "not a number", "wrong", f"{', '.join(bad)} is not finite at step {row['step']}.",
                "Lower the rate, clip by the norm, or train in full precision.", rate_times(record, LOWER),
            )  # fmt: skip
            return


def _gradients(record: Record) -> Iterator[Finding]:
    for name in record.names("grad_norm"):
        norms = record.curve(name)
        if norms is None or len(norms) < ENOUGH:
            continue
        zeros = sum(value == 0 for value in norms.values) / len(norms)
        if zeros > ZERO_SHARE:
            yield Finding(
                "no gradient", "wrong", f"{name} is 0 in {zeros:.0%} of the lines: nothing is learned there.",
                "See the other findings for the reason.",
            )  # fmt: skip
            continue
        middle = median(norms.values)
        spikes = [step for step, value in zip(norms.steps, norms.values, strict=True) if value > SPIKE * middle > 0]
        if spikes:
            shown = ", ".join(map(str, spikes[:5])) + (", …" if len(spikes) > 5 else "")
            high = max(norms.values)
            yield Finding(
                "gradient spikes", "watch",
                f"{name} is above {SPIKE:.0f} times its median of {middle:.3g} at step {shown}, {high:.3g} at most.",
                "Look at the rows of these steps; clip by the norm, or lower the rate.", rate_times(record, LOWER),
            )  # fmt: skip


def _overfitting(record: Record) -> Iterator[Finding]:
    for name in ("heldout/loss", "nats"):
        curve = record.curve(name)
        if curve is None or len(curve) < 2:
            continue
        step, best = curve.best(-1)
        last = curve.values[-1]
        if last > best + OVERFIT * abs(best) and step < curve.steps[-1]:
            yield Finding(
                "over-fitting", "watch",
                f"{name} was lowest at step {step}, {best:.4g}, and is {last:.4g} at step {curve.steps[-1]}.",
                f"Train for {step} steps, or on more rows.", f"--steps {step}",
            )  # fmt: skip


def rate_times(record: Record, factor: float) -> str:
    """Return the option that sets the learning rate to so many times what it was."""
    rate = record.option("optim.lr")
    return f"--optim.lr {rate * factor:.1g}" if isinstance(rate, (int, float)) else "--optim.lr"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
