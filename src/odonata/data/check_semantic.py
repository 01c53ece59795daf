"""A look at a set of pictures with maps of classes before a network is trained on it."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from odonata.data.images import MAX_PIXELS
from odonata.data.open_semantic import open_semantic
from odonata.data.report_tables import listing
from odonata.data.semantic import VOID, SemanticSource
from odonata.data.semantic_batches import read_semantic
from odonata.errors import DataError


@dataclass(frozen=True)
class SemanticReport:
    """What a check of pictures with maps of classes found.

    Args:
        origin, kind: what was read.
        num_images: usable pictures.
        splits: number of pictures of each.
        shares: share of the pixels about which something is said, of each class.
        class_images: number of pictures with each class.
        void: share of all pixels about which nothing is said.
        problems: (place, reason) of what would stop a training.
        warnings: what to mind before training.
    """

    origin: str
    kind: str
    num_images: int
    splits: dict[str, int]
    shares: dict[str, float]
    class_images: dict[str, int]
    void: float
    problems: list[tuple[str, str]]
    warnings: list[str]

    @property
    def ok(self) -> bool:
        """Whether a training on it would not stop."""
        return not self.problems and any(self.shares.values())

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON can hold them, and whether a training would go on."""
        return {**asdict(self), "ok": self.ok}

    def render(self) -> RenderableType:
        """The report as tables for a terminal."""
        table = Table("label", "class", "pixels", "pictures")
        for label, (name, share) in enumerate(self.shares.items()):
            table.add_row(str(label), Text(name), f"{share:.2%}", f"{self.class_images[name]:,}")
        table.add_row(str(VOID), "void, of all pixels", f"{self.void:.2%}", "")
        splits = ", ".join(f"{name} {count:,}" for name, count in self.splits.items()) or "no splits"
        parts: list[RenderableType] = [
            Text(f"{self.origin} ({self.kind}): {self.num_images:,} pictures; {splits}", style="italic"),
            table,
        ]
        parts += [Text(f"warning: {warning}", style="yellow") for warning in self.warnings]
        parts += listing("would stop a training", [f"{where}: {what}" for where, what in self.problems])
        return Group(*parts)


def check_semantic(
    path: str | Path, *, images: str | Path | None = None, split: str | None = None, max_pixels: int = MAX_PIXELS
) -> SemanticReport:
    """Read a set whole, decode every picture and map, and report.

    Args:
        path, images: as in `open_semantic`; bad pictures are gathered, not raised.
        split: look at this one only.
        max_pixels: limit on a picture's size.

    Raises:
        DataError: nothing usable is there at all.
    """
    source = open_semantic(path, images=images, on_error="skip")
    source = source if split is None else source.split(split)
    pixels, pictures = np.zeros(VOID + 1, dtype=np.int64), np.zeros(VOID + 1, dtype=np.int64)
    problems = [(problem.where, problem.what) for problem in source.problems]
    for sample in source:
        try:
            labels = read_semantic(replace(sample, map=sample.map.strictly()), max_pixels).classes
        except DataError as error:
            problems.append((sample.map.name, str(error).removeprefix(f"{sample.map.name}: ")))
            continue
        assert labels is not None
        counts = np.bincount(labels.numpy().ravel(), minlength=VOID + 1)
        pixels, pictures = pixels + counts, pictures + (counts > 0)
    known = max(1, int(pixels[:VOID].sum()))
    shares = {name: float(pixels[label] / known) for label, name in enumerate(source.classes)}
    return SemanticReport(
        origin=source.origin,
        kind=source.kind,
        num_images=len(source),
        splits=dict(Counter(sample.split for sample in source if sample.split is not None)),
        shares=shares,
        class_images={name: int(pictures[label]) for label, name in enumerate(source.classes)},
        void=float(pixels[VOID] / max(1, int(pixels.sum()))),
        problems=problems,
        warnings=_warnings(source, shares),
    )


def _warnings(source: SemanticSource, shares: dict[str, float]) -> list[str]:
    warnings: list[str] = []
    if empty := [name for name, share in shares.items() if not share]:
        warnings.append(f"{len(empty)} of {len(source.classes)} classes have no pixels: {', '.join(empty[:5])}")
    if rare := [name for name, share in shares.items() if 0 < share < 1e-3]:
        warnings.append(f"{len(rare)} classes have less than a thousandth of the pixels: {', '.join(rare[:5])}")
    return warnings
