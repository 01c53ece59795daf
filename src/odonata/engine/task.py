"""A recipe come to life: what a room builds and the engine trains."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from odonata.engine.method import Method


class BatchStream(Protocol):
    """An endless stream of batches that can begin anywhere: its whole state is the number of steps done."""

    def start(self, step: int = 0, rank: int = 0, world: int = 1) -> Iterator[Any]:
        """Return this rank's share of the batch of each step from `step` on."""
        ...


@dataclass
class Task:
    """What `fit` needs besides the recipe."""

    method: Method
    batches: BatchStream
    batch_size: int
    """Samples an update, over all ranks."""
    fingerprint: str
    """Changes when the data do."""
    evaluate: Callable[[Method], dict[str, float]] | None = None
    """Returns figures by name; runs on every rank alike."""
    goal: str = ""
    """The figure that decides which checkpoint is best."""
    better: Literal["higher", "lower"] = "higher"
    save_assets: Callable[[Path], None] | None = None
    """Writes into the run's `assets/` what the model needs besides weights."""
    assets: Any = None
    """What those assets are in memory, for whoever trains without a run folder."""
    recipe: Any = None
    """The recipe with what follows from the data (steps from epochs, rate from batch); None: as it was given."""
    watch: Callable[[int, dict[str, float]], None] | None = None
    """Reads the figures of each line of the log, with their step; what it warns of by `logging` enters the log."""
    conclude: Callable[[Method, Path | None], list[str]] | None = None
    """Called on the leading rank when the run has come to its end, with the run folder: may write there what the person
    should have, and returns lines to print."""
    notes: list[str] = field(default_factory=list[str])
    """What the person should know before training starts: skipped files, inferred conventions."""
