"""A claim's figure as SVG: a point for each seed, mean and interval for each cell; readable on light and dark."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from odonata.claims.statistics import CONFIDENCE, Interval, Results, t_interval

_COLOURS = ("#0b6bcb", "#c2410c", "#15803d", "#9333ea", "#a16207")
_DARK = ("#60a5fa", "#fb923c", "#4ade80", "#c084fc", "#facc15")
_WIDTH, _PANEL, _LEFT, _RIGHT, _TOP, _BOTTOM = 720, 260, 70, 20, 20, 48


def draw(claim: dict[str, Any], results: Results) -> str:
    """Return the figure.

    Args:
        claim: what a record holds of the claim: `name`, `hypothesis`, `conditions`, `variants`, `axis`, `plots`.
        results: cell → seed → figures.
    """
    plots: list[dict[str, Any]] = claim["plots"]
    head = 66
    height = head + len(plots) * _PANEL
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" class="claim-figure" '
        f'aria-label="{escape(claim["name"])}: {escape(claim["hypothesis"])}" font-family="system-ui, sans-serif">',
        _style(),
        f'<rect class="ground" width="{_WIDTH}" height="{height}"/>',
        f'<text class="ink" x="{_LEFT}" y="24" font-size="16" font-weight="600">{escape(claim["name"])}</text>',
        *_legend(claim["variants"]),
    ]
    for number, plot in enumerate(plots):
        parts += _panel(plot, claim, results, head + number * _PANEL)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _style() -> str:
    light = "".join(f".v{n}{{fill:{colour};stroke:{colour}}}" for n, colour in enumerate(_COLOURS))
    dark = "".join(f".v{n}{{fill:{colour};stroke:{colour}}}" for n, colour in enumerate(_DARK))
    return (
        f"<style>.ground{{fill:#fff}}.ink{{fill:#1f2328}}.faint{{fill:#59636e}}.grid{{stroke:#d1d9e0}}{light}"
        f"@media (prefers-color-scheme:dark){{.ground{{fill:#0d1117}}.ink{{fill:#f0f6fc}}.faint{{fill:#9198a1}}"
        f".grid{{stroke:#3d444d}}{dark}}}</style>"
    )


def _legend(variants: Sequence[str]) -> list[str]:
    parts: list[str] = []
    x = float(_LEFT)
    for number, variant in enumerate(variants):
        parts.append(f'<circle class="v{number % 5}" cx="{x + 5:.0f}" cy="44" r="5"/>')
        parts.append(f'<text class="ink" x="{x + 15:.0f}" y="48" font-size="13">{escape(variant)}</text>')
        x += 36 + 7.2 * len(variant)
    note = f"point: one seed · bar: mean with {CONFIDENCE:.0%} interval"
    return [*parts, f'<text class="faint" x="{_WIDTH - _RIGHT}" y="24" font-size="11" text-anchor="end">{note}</text>']


def _panel(plot: dict[str, Any], claim: dict[str, Any], results: Results, top: int) -> list[str]:
    quantity: str = plot["quantity"]
    cells = {
        (condition, variant): [figures[quantity] for figures in results.get(f"{variant}@{condition}", {}).values()
                               if math.isfinite(figures.get(quantity, math.nan))]
        for condition in claim["conditions"] for variant in claim["variants"]
    }  # fmt: skip
    intervals = {cell: t_interval(values) for cell, values in cells.items() if len(values) > 1}
    shown = [value for values in cells.values() for value in values]
    shown += [
        end for interval in intervals.values() for end in (interval.low, interval.high) if not plot["log"] or end > 0
    ]
    if not shown:
        return []
    ticks, y_of = _axis(min(shown), max(shown), plot["log"], top + _TOP, top + _PANEL - _BOTTOM)
    parts = _frame(ticks, y_of, plot["label"], top)
    group = (_WIDTH - _LEFT - _RIGHT) / len(claim["conditions"])
    for place, condition in enumerate(claim["conditions"]):
        centre = _LEFT + group * (place + 0.5)
        y = top + _PANEL - _BOTTOM + 18
        parts.append(
            f'<text class="ink" x="{centre:.1f}" y="{y}" font-size="12" text-anchor="middle">{escape(condition)}</text>'
        )
        step = min(60.0, group * 0.8 / len(claim["variants"]))
        for number, variant in enumerate(claim["variants"]):
            x = centre + (number - (len(claim["variants"]) - 1) / 2) * step
            parts += _cell(x, step, cells[condition, variant], intervals.get((condition, variant)), number, y_of)
    if not claim["axis"]:
        return parts
    y = top + _PANEL - 10
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(
        f'<text class="faint" x="{middle}" y="{y}" font-size="12" text-anchor="middle">{escape(claim["axis"])}</text>'
    )
    return parts


def _frame(ticks: Sequence[float], y_of: Callable[[float], float], label: str, top: int) -> list[str]:
    parts: list[str] = []
    for tick in ticks:
        y = y_of(tick)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(
            f'<text class="faint" x="{_LEFT - 8}" y="{y + 4:.1f}" font-size="11" text-anchor="end">{tick:g}</text>'
        )
    middle = top + _TOP + (_PANEL - _TOP - _BOTTOM) / 2
    turn = f'transform="rotate(-90 18 {middle})"'
    parts.append(
        f'<text class="ink" x="18" y="{middle}" font-size="12" text-anchor="middle" {turn}>{escape(label)}</text>'
    )
    return parts


def _cell(
    x: float,
    step: float,
    values: Sequence[float],
    interval: Interval | None,
    number: int,
    y_of: Callable[[float], float],
) -> list[str]:
    colour = f"v{number % 5}"
    spread = min(7.0, step / 5)
    parts: list[str] = []
    for n, value in enumerate(values):
        place = f'cx="{x + spread * (2 * (n % 2) - 1):.1f}" cy="{y_of(value):.1f}"'
        parts.append(f'<circle class="{colour}" opacity="0.55" {place} r="2.6"/>')
    if interval is not None:
        low, high, mean = y_of(interval.low), y_of(interval.high), y_of(interval.mean)
        parts.append(
            f'<line class="{colour}" x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}" stroke-width="1.6"/>'
        )
        half = min(10.0, step / 3)
        bar = f'x1="{x - half:.1f}" x2="{x + half:.1f}" y1="{mean:.1f}" y2="{mean:.1f}"'
        parts.append(f'<line class="{colour}" {bar} stroke-width="3"/>')
    return parts


def _axis(
    low: float, high: float, log: bool, top: float, bottom: float
) -> tuple[list[float], Callable[[float], float]]:
    """Return the ticks and the function from value to vertical place."""
    log = log and low > 0
    if log:
        first, last = math.log10(low), math.log10(high)
        room = max(0.05, (last - first) * 0.08)
    else:
        first, last = low, high
        room = max((high - low) * 0.08, abs(high) * 1e-3, 1e-12)
    first, last = first - room, last + room

    def y_of(value: float) -> float:
        place = math.log10(max(value, 1e-300)) if log else value
        share = (place - first) / (last - first)
        return bottom - min(max(share, 0.0), 1.0) * (bottom - top)

    return _log_ticks(first, last) if log else _even_ticks(first, last), y_of


def _log_ticks(first: float, last: float) -> list[float]:
    """Return 1, 2 and 5 times the powers of ten between two logarithms; even ticks where those are too few."""
    decades = range(math.floor(first), math.ceil(last) + 1)
    ticks = [digit * 10.0**decade for decade in decades for digit in (1, 2, 5)]
    shown = [tick for tick in ticks if first <= math.log10(tick) <= last]
    return shown if len(shown) > 2 else _even_ticks(10**first, 10**last)


def _even_ticks(first: float, last: float) -> list[float]:
    step = _nice((last - first) / 8)
    return [round(n * step, 12) for n in range(math.ceil(first / step), math.floor(last / step) + 1)]


def _nice(step: float) -> float:
    """Return the least 1, 2 or 5 times a power of ten that is not below the step."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= step * 0.999)
