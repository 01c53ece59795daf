"""Runs the trials of a claim over processes, keeps what is finished, and comes to the verdict.

Notable:
- A finished trial is a line of `trials.jsonl` in the work folder: a claim that was interrupted goes on where it was.
  Lines made by other source code, or under another budget, are not taken.
- Every process computes on one thread. Times that matter are CPU seconds (`time.process_time`), so that other work on
  the machine changes them little.
- A trial that fails stops the claim, and the error names it.
"""

from __future__ import annotations

import hashlib
import json
import math
import multiprocessing
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from odonata.claims.claim import Claim, Figures, Setting, Split, Trial
from odonata.claims.record import Record, describe_machine
from odonata.claims.statistics import compare, verdict_of
from odonata.errors import OdonataError, RunError

QUICK_BUDGET = 0.02
QUICK_SEEDS = 2

Report = Callable[[str, int, int], None]
"""Called with what is done, how many trials are finished, and how many there are."""


@dataclass(frozen=True)
class Finished:
    """A trial with what it measured and cost."""

    trial: Trial
    figures: Figures
    cpu_seconds: float
    wall_seconds: float

    def to_dict(self) -> dict[str, object]:
        """Return plain values."""
        return {
            "cell": self.trial.cell, "seed": self.trial.seed, "split": self.trial.split,
            "setting": dict(self.trial.setting), "figures": self.figures,
            "cpu_seconds": round(self.cpu_seconds, 3), "wall_seconds": round(self.wall_seconds, 3),
        }  # fmt: skip


def run_claim(
    claim: Claim, folder: Path, *, jobs: int = 1, quick: bool = False, report: Report | None = None, command: str = ""
) -> Record:
    """Run every trial that is not finished yet, and decide.

    Args:
        claim: what is tested.
        folder: work folder; created where absent, resumed where it holds trials.
        jobs: processes; 1 computes in this one.
        quick: a smoke test: two seeds, no tuning, a fiftieth of the length. Its verdict means nothing.
        report: is told of progress.
        command: how a person repeats this; the record names it.

    Raises:
        RunError: a trial failed, or the folder cannot be written.
    """
    seeds = claim.seeds[:QUICK_SEEDS] if quick else claim.seeds
    runner = _Runner(claim, folder, jobs, QUICK_BUDGET if quick else 1.0, report or (lambda *_: None), len(seeds))
    runner.prepare()
    chosen, tuning = runner.tune() if claim.tuned and not quick else (_first_settings(claim), [])
    final = runner.finish([
        runner.trial(condition, variant, chosen[f"{variant}@{condition}"], seed, "test")
        for seed in seeds for condition, variant in claim.cells()
    ])  # fmt: skip
    results: dict[str, dict[int, Figures]] = {}
    for done in final:
        results.setdefault(done.trial.cell, {})[done.trial.seed] = done.figures
    outcomes = [compare(comparison, results) for comparison in claim.comparisons]
    trials = [*tuning, *final]
    return Record(
        claim=json.loads(json.dumps(claim.to_dict())),
        verdict=verdict_of(outcomes),
        outcomes=[outcome.to_dict() for outcome in outcomes],
        chosen={cell: dict(setting) for cell, setting in chosen.items()},
        tuning=[done.to_dict() for done in tuning],
        trials=[done.to_dict() for done in final],
        seeds=list(seeds),
        cost={
            "trials": len(trials),
            "cpu_seconds": round(sum(done.cpu_seconds for done in trials), 1),
            "wall_seconds": round(sum(done.wall_seconds for done in trials), 1),
        },
        machine=describe_machine(),
        command=command or shlex.join(["odonata", *sys.argv[1:]]),
        quick=quick,
    )


def _first_settings(claim: Claim) -> dict[str, Setting]:
    return {f"{variant}@{condition}": claim.settings(variant)[0] for condition, variant in claim.cells()}


class _Runner:
    def __init__(self, claim: Claim, folder: Path, jobs: int, budget: float, report: Report, seeds: int) -> None:
        self.claim, self.folder, self.jobs, self.budget, self.report = claim, folder, jobs, budget, report
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"{folder}: cannot write a work folder here: {error.strerror}") from error
        self.log = folder / "trials.jsonl"
        self.code = fingerprint(claim)
        self.known = self._read()
        tuning = len(claim.tuning_seeds) * len(claim.settings(claim.variants[0])) if claim.tuned and budget == 1 else 0
        self.total = len(claim.cells()) * (seeds + tuning)
        self.done = 0

    def trial(self, condition: str, variant: str, setting: Setting, seed: int, split: Split) -> Trial:
        return Trial(self.claim.name, condition, variant, setting, seed, split, self.budget, self.folder)

    def prepare(self) -> None:
        if self.claim.prepare is None:
            return
        self.report("preparing", 0, self.total)
        _single_thread()
        self.claim.prepare(self.folder, self.budget)

    def tune(self) -> tuple[dict[str, Setting], list[Finished]]:
        """Return the best setting of each cell on validation, and all trials that led to it."""
        trials = [
            self.trial(condition, variant, setting, seed, "val")
            for condition, variant in self.claim.cells()
            for setting in self.claim.settings(variant)
            for seed in self.claim.tuning_seeds
        ]
        finished = self.finish(trials)
        chosen: dict[str, Setting] = {}
        for condition, variant in self.claim.cells():
            own = [done for done in finished if done.trial.cell == f"{variant}@{condition}"]
            chosen[f"{variant}@{condition}"] = best_setting(own, self.claim.tune_by)
        return chosen, finished

    def finish(self, trials: Sequence[Trial]) -> list[Finished]:
        """Return the trials, finished: from the log, or run now."""
        for done in self._run([trial for trial in trials if trial.key not in self.known]):
            self.known[done.trial.key] = done
            self._write(done)
            self.report(done.trial.cell, self.done + len([t for t in trials if t.key in self.known]), self.total)
        self.done += len(trials)
        self.report("", self.done, self.total)
        return [replace(self.known[trial.key], trial=trial) for trial in trials]

    def _run(self, trials: Sequence[Trial]) -> Iterator[Finished]:
        if self.jobs == 1 or len(trials) < 2:
            _single_thread()
            yield from (_attempt(lambda trial=trial: execute(self.claim.trial, trial), trial) for trial in trials)
            return
        with ProcessPoolExecutor(self.jobs, multiprocessing.get_context("spawn"), _single_thread) as pool:
            running = {pool.submit(execute, self.claim.trial, trial): trial for trial in trials}
            try:
                yield from _as_they_finish(running)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _read(self) -> dict[str, Finished]:
        known: dict[str, Finished] = {}
        for line in self.log.read_text(encoding="utf-8").splitlines() if self.log.is_file() else []:
            try:
                row = json.loads(line)
            except json.JSONDecodeError:  # the last line of a run that was killed
                continue
            if row["code"] == self.code:
                condition, variant, setting, seed, split, budget = json.loads(row["key"])
                trial = Trial(self.claim.name, condition, variant, setting, seed, split, budget)
                known[row["key"]] = Finished(trial, row["figures"], row["cpu_seconds"], row["wall_seconds"])
        return known

    def _write(self, done: Finished) -> None:
        row = {"key": done.trial.key, "code": self.code, **done.to_dict()}
        with self.log.open("a+b") as file:
            if file.tell() and not self._ends_with_newline(file):
                file.write(b"\n")
            file.write(json.dumps(row).encode() + b"\n")

    @staticmethod
    def _ends_with_newline(file: IO[bytes]) -> bool:
        """Whether the last line is whole: a kill may have cut it, and what follows must not be lost with it."""
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def best_setting(finished: Iterable[Finished], tune_by: str) -> Setting:
    """Return the setting with the best mean over the tuning seeds; a figure that is not finite is the worst."""
    sign = -1 if tune_by.startswith("-") else 1
    figures: dict[str, list[float]] = {}
    settings: dict[str, Setting] = {}
    for done in finished:
        key = json.dumps(dict(done.trial.setting))
        value = sign * done.figures[tune_by.removeprefix("-")]
        figures.setdefault(key, []).append(value if math.isfinite(value) else -math.inf)
        settings[key] = done.trial.setting
    return settings[max(figures, key=lambda key: sum(figures[key]) / len(figures[key]))]


def execute(run: Callable[[Trial], Figures], trial: Trial) -> Finished:
    """Run one trial and measure what it costs, child processes included."""
    wall, cpu = time.perf_counter(), _cpu_seconds()
    figures = {key: float(value) for key, value in run(trial).items()}
    return Finished(trial, figures, _cpu_seconds() - cpu, time.perf_counter() - wall)


def fingerprint(claim: Claim) -> str:
    """Return a digest of the source behind a trial's figures: the claim's module, and the small worlds."""
    module = sys.modules[claim.trial.__module__]
    path = Path(module.__file__ or "")
    shared = sorted(path.parent.glob("*_toy*.py"))
    digest = hashlib.blake2b(digest_size=8)
    for file in [path, *shared]:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _as_they_finish(running: dict[Future[Finished], Trial]) -> Iterator[Finished]:
    left = set(running)
    while left:
        ready, left = wait(left, return_when=FIRST_COMPLETED)
        for future in ready:
            yield _attempt(future.result, running[future])


def _attempt(result: Callable[[], Finished], trial: Trial) -> Finished:
    try:
        return result()
    except BrokenProcessPool as error:
        raise RunError(f"{trial.name}: its process died; was there enough memory?") from error
    except OdonataError:
        raise
    except Exception as error:
        raise RunError(f"{trial.name} failed: {type(error).__name__}: {error}") from error


def _cpu_seconds() -> float:
    times = os.times()
    return time.process_time() + times.children_user + times.children_system


def _single_thread() -> None:
    import torch

    torch.set_num_threads(1)
