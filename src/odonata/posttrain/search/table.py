"""What test-time compute buys: accuracy of each way to search under each budget, as a table and as a curve."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from odonata.errors import DataError
from odonata.metrics.bootstrap import bootstrap_mean

_COLOURS = ("#0b6bcb", "#c2410c", "#15803d", "#9333ea", "#a16207", "#0f766e", "#be185d", "#4b5563")
_SIZE, _LEFT, _RIGHT, _TOP, _BOTTOM = (960, 620), 80, 40, 106, 70
_INK, _FAINT, _GRID = "#1f2328", "#59636e", "#d1d9e0"

Outcomes = Mapping[str, Mapping[int, Sequence[float]]]
"""Method → budget → how right the answer to each problem was, 0 to 1; the problems in the same order everywhere."""


@dataclass(frozen=True)
class ScalingRow:
    """One method under one budget."""

    method: str
    budget: int
    accuracy: float
    low: float
    high: float
    problems: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def scaling_table(
    outcomes: Outcomes, *, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> list[ScalingRow]:
    """Return accuracy with its interval over problems, for each method and budget.

    Args:
        outcomes: method → budget → outcome of each problem.
        level, resamples, seed: of the bootstrap, as in `bootstrap_mean`.

    Returns:
        rows in the order of the methods, budgets rising.

    Raises:
        DataError: there is nothing, an outcome is not within 0 and 1, a budget is below 1, or methods were asked
            different numbers of problems; names which.
    """
    rows: list[ScalingRow] = []
    for method, by_budget in outcomes.items():
        for budget in sorted(by_budget):
            values, place = list(by_budget[budget]), f"{method}, budget {budget}"
            if budget < 1:
                raise DataError(f"{place}: a budget is 1 or more")
            for number, value in enumerate(values):
                if not 0 <= value <= 1:
                    raise DataError(f"{place}: the outcome of problem {number} is {value}; wanted is 0 to 1")
            if rows and len(values) != rows[0].problems:
                first = rows[0]
                raise DataError(
                    f"{place} has {len(values)} problems, but {first.method}, budget {first.budget} has "
                    f"{first.problems}: methods are compared on the same problems"
                )
            if not values:
                raise DataError(f"{place} has no problem")
            found = bootstrap_mean(values, level=level, resamples=resamples, seed=seed)
            rows.append(ScalingRow(method, budget, found.estimate, found.low, found.high, len(values)))
    if not rows:
        raise DataError("there are no outcomes to tabulate")
    return rows


def format_table(rows: Sequence[ScalingRow]) -> str:
    """Return the table as text: a line for each method, a column for each budget, accuracy in percent with interval."""
    budgets = sorted({row.budget for row in rows})
    cells = {(row.method, row.budget): _cell(row) for row in rows}
    methods = list(dict.fromkeys(row.method for row in rows))
    return _aligned(
        [
            ["budget", *(str(budget) for budget in budgets)],
            *([method, *(cells.get((method, budget), "–") for budget in budgets)] for method in methods),
        ]
    )


def format_costs(tokens: Mapping[str, Mapping[int, float]]) -> str:
    """Return what each method generated under each budget as text: tokens for a question, on average."""
    budgets = sorted({budget for by_budget in tokens.values() for budget in by_budget})
    lines = [["tokens", *(str(budget) for budget in budgets)]]
    lines += [
        [method, *(f"{by_budget[budget]:.1f}" if budget in by_budget else "–" for budget in budgets)]
        for method, by_budget in tokens.items()
    ]
    return _aligned(lines)


def draw_curve(rows: Sequence[ScalingRow], path: Path, *, title: str = "Accuracy by budget") -> None:
    """Write the curve as PNG: budgets on a logarithmic axis, a line for each method, bars for the intervals.

    Args:
        rows: of `scaling_table`.
        path: ends in .png; its folder exists.
        title: above it.

    Raises:
        DataError: there is no row, or the file is no .png or cannot be written.
    """
    if not rows:
        raise DataError("there is nothing to draw")
    if path.suffix.lower() != ".png":
        raise DataError(f"{path}: a curve is written as .png")
    canvas = Image.new("RGB", _SIZE, "white")
    pen = ImageDraw.Draw(canvas)
    pen.text((_LEFT, 14), title, font=_font(20), fill=_INK)
    _frame(pen, sorted({row.budget for row in rows}), rows)
    methods = list(dict.fromkeys(row.method for row in rows))
    _legend(pen, methods)
    for number, method in enumerate(methods):
        own = sorted((row for row in rows if row.method == method), key=lambda row: row.budget)
        _line(pen, own, rows, number, len(methods))
    try:
        canvas.save(path)
    except OSError as error:
        raise DataError(f"{path}: the curve cannot be written: {error.strerror}") from error


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    """Return lines in columns, the first on the left, the others on the right."""
    widths = [max(len(line[n]) for line in lines) for n in range(len(lines[0]))]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))])
        for line in lines
    )


def _cell(row: ScalingRow) -> str:
    return f"{100 * row.accuracy:.1f} [{100 * row.low:.1f}, {100 * row.high:.1f}]"


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _x_of(budget: int, rows: Sequence[ScalingRow]) -> float:
    first, last = math.log2(min(row.budget for row in rows)), math.log2(max(row.budget for row in rows))
    room = _SIZE[0] - _LEFT - _RIGHT - 60
    return _LEFT + 30 + room * ((math.log2(budget) - first) / (last - first) if last > first else 0.5)


def _y_of(accuracy: float) -> float:
    return _SIZE[1] - _BOTTOM - accuracy * (_SIZE[1] - _TOP - _BOTTOM)


def _frame(pen: ImageDraw.ImageDraw, budgets: Sequence[int], rows: Sequence[ScalingRow]) -> None:
    for tenth in range(0, 11, 2):
        y = _y_of(tenth / 10)
        pen.line((_LEFT, y, _SIZE[0] - _RIGHT, y), fill=_GRID, width=1)
        pen.text((_LEFT - 10, y), f"{10 * tenth} %", font=_font(14), fill=_FAINT, anchor="rm")
    written = -math.inf
    for budget in budgets:
        x, half = _x_of(budget, rows), pen.textlength(str(budget), font=_font(14)) / 2
        pen.line((x, _y_of(0), x, _y_of(0) + 5), fill=_FAINT, width=1)
        if x - half > written:
            pen.text((x, _y_of(0) + 8), str(budget), font=_font(14), fill=_INK, anchor="mt")
            written = x + half + 8
    middle = (_LEFT + _SIZE[0] - _RIGHT) / 2
    pen.text((middle, _SIZE[1] - 16), "budget (logarithmic)", font=_font(14), fill=_FAINT, anchor="ms")


def _legend(pen: ImageDraw.ImageDraw, methods: Sequence[str]) -> None:
    x, y = float(_LEFT), 52
    for number, method in enumerate(methods):
        width = 35 + pen.textlength(method, font=_font(14))
        if x > _LEFT and x + width - 20 > _SIZE[0] - _RIGHT:
            x, y = float(_LEFT), y + 20
        colour = _COLOURS[number % len(_COLOURS)]
        pen.ellipse((x, y - 5, x + 10, y + 5), fill=colour)
        pen.text((x + 15, y), method, font=_font(14), fill=_INK, anchor="lm")
        x += width


def _line(
    pen: ImageDraw.ImageDraw, own: Sequence[ScalingRow], rows: Sequence[ScalingRow], number: int, methods: int
) -> None:
    colour = _COLOURS[number % len(_COLOURS)]
    # Bars of one budget stand beside one another, so that none hides another.
    shift = 5 * (number - (methods - 1) / 2)
    points = [(_x_of(row.budget, rows) + shift, _y_of(row.accuracy)) for row in own]
    if len(points) > 1:
        pen.line(points, fill=colour, width=2, joint="curve")
    for row, (x, y) in zip(own, points, strict=True):
        pen.line((x, _y_of(row.low), x, _y_of(row.high)), fill=colour, width=2)
        pen.ellipse((x - 4, y - 4, x + 4, y + 4), fill=colour)
