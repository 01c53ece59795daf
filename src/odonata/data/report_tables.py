"""What the reports on data sets are made of: histograms with bars, and lists that end before they fill the screen."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

Histogram = list[tuple[str, int]]
_SHOWN = 10


def histogram(values: Sequence[float], edges: Sequence[float]) -> Histogram:
    """Counts between edges, the ends open, empty ends left out."""
    if not values:
        return []
    counts = np.bincount(np.searchsorted(np.asarray(edges), np.asarray(values), side="right"), minlength=len(edges) + 1)
    names = [f"< {edges[0]:g}"]
    names += [f"{low:g} – {high:g}" for low, high in itertools.pairwise(edges)]
    names.append(f"≥ {edges[-1]:g}")
    filled = np.flatnonzero(counts)
    return [(names[i], int(counts[i])) for i in range(int(filled[0]), int(filled[-1]) + 1)]


def bars(title: str, counts: Histogram) -> Table:
    """A histogram as a table with bars."""
    table = Table(title=title, show_header=False, box=None, title_justify="left", padding=(0, 1))
    top = max(count for _, count in counts)
    for name, count in counts:
        table.add_row(Text(name), f"{count:,}", Text("█" * max(1, round(30 * count / top)) if count else ""))
    return table


def listing(title: str, lines: list[str]) -> list[RenderableType]:
    """The first lines under a title, and how many more there are."""
    if not lines:
        return []
    more = [f"… and {len(lines) - _SHOWN:,} more"] if len(lines) > _SHOWN else []
    return [Text(f"{title}:", style="bold"), *(Text(f"  {line}") for line in [*lines[:_SHOWN], *more])]
