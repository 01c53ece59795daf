"""What is kept of a claim that has run: every figure behind its verdict, and how to repeat it."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from odonata.claims.claim import Comparison
from odonata.claims.figure import draw
from odonata.claims.statistics import Outcome, Results, Verdict, compare, mean_of, rank_correlation, verdict_of
from odonata.errors import RunError

RECORDED = Path(__file__).resolve().parent / "recorded"
"""The package's own records."""


@dataclass(frozen=True)
class Record:
    """A claim that has run."""

    claim: dict[str, Any]
    """See `Claim.to_dict`."""
    verdict: Verdict
    outcomes: list[dict[str, Any]]
    """Each comparison with mean, low, high and verdict."""
    chosen: dict[str, dict[str, float]]
    """Cell → the setting that validation chose."""
    tuning: list[dict[str, Any]]
    trials: list[dict[str, Any]]
    seeds: list[int]
    cost: dict[str, float]
    """Number of trials, their CPU seconds, and wall seconds as if run one after another."""
    machine: dict[str, Any]
    """Versions, processor and date."""
    command: str
    quick: bool = False

    @property
    def name(self) -> str:
        """The claim's name."""
        return self.claim["name"]

    def results(self) -> Results:
        """Return cell → seed → figures of the reported trials."""
        results: dict[str, dict[int, dict[str, float]]] = {}
        for trial in self.trials:
            results.setdefault(trial["cell"], {})[trial["seed"]] = trial["figures"]
        return results

    def recompute(self) -> tuple[Verdict, list[Outcome]]:
        """Return the verdict and outcomes, decided anew from the figures."""
        comparisons = [Comparison(**plain) for plain in self.claim["comparisons"]]
        outcomes = [compare(comparison, self.results()) for comparison in comparisons]
        return verdict_of(outcomes), outcomes

    def beside_published(self) -> tuple[list[tuple[str, float, float]], float] | None:
        """Return (cell, published figure, mean of ours), the best published first, and the rank correlation of the two.

        None where the claim has no published figures.
        """
        published: dict[str, Any] | None = self.claim.get("published")
        if not published:
            return None
        results = self.results()
        rows = [
            (cell, float(figure), mean_of(results[cell], published["quantity"]))
            for cell, figure in published["figures"].items()
        ]
        rows.sort(key=lambda row: -row[1])
        return rows, rank_correlation([row[1] for row in rows], [row[2] for row in rows])

    def save(self, folder: Path) -> Path:
        """Write `NAME.json` and `NAME.svg`; return the first.

        Raises:
            RunError: the folder cannot be written.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"{self.name}.json"
            _write(path, _readable(asdict(self)) + "\n")
            _write(path.with_suffix(".svg"), draw(self.claim, self.results()))
        except OSError as error:
            raise RunError(f"{folder}: cannot write the record here: {error.strerror}") from error
        return path

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Record:
        """Return a record from what `save` wrote.

        Raises:
            RunError: it is not a record.
        """
        try:
            return cls(**plain)
        except TypeError as error:
            raise RunError(f"not the record of a claim: {error}") from error

    @classmethod
    def load(cls, path: Path) -> Record:
        """Read a record.

        Raises:
            RunError: the file is missing or not a record.
        """
        try:
            return cls.from_dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, json.JSONDecodeError) as error:
            raise RunError(f"{path}: cannot read a record: {error}") from error


def record_in_package(record: Record, folder: Path = RECORDED) -> Path:
    """Keep a record among those that the package carries; for checkouts under development.

    Raises:
        RunError: it is a smoke test, or its verdict does not follow from its figures, or the folder is not writable.
    """
    if record.quick:
        raise RunError(f"{record.name}: a --quick run is a smoke test and cannot be recorded")
    if record.recompute()[0] != record.verdict:
        raise RunError(f"{record.name}: the verdict {record.verdict!r} does not follow from the figures")
    if not os.access(folder, os.W_OK):
        raise RunError(f"{folder} is not writable; --record is for a checkout installed with pip install -e .")
    return record.save(folder)


def describe_machine() -> dict[str, Any]:
    """Return versions, processor and date."""
    versions = {name: importlib.metadata.version(name) for name in ("odonata", "torch", "numpy", "scipy")}
    return {
        "versions": {**versions, "python": platform.python_version()},
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def _readable(plain: dict[str, Any]) -> str:
    """Return JSON with one line a trial, so that records can be read and compared as text."""
    rows = ("tuning", "trials", "outcomes")
    head = json.dumps({k: v for k, v in plain.items() if k not in rows}, indent=1, ensure_ascii=False)
    lists = [
        f' "{name}": [\n' + ",\n".join(f"  {json.dumps(row, ensure_ascii=False)}" for row in plain[name]) + "\n ]"
        for name in rows
    ]
    return head.removesuffix("\n}") + ",\n" + ",\n".join(lists) + "\n}"


def _write(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
