"""A run's report: one HTML page that stands by itself, drawn from what the run folder holds."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from odonata.engine.run import write_atomically
from odonata.errors import RunError

_HIDDEN = ("step", "lr", "samples_per_s", "wait")
_STYLE = """
:root{color-scheme:light dark;--ink:#1b2430;--paper:#fff;--soft:#66758a;--line:#d8dee6;--curve:#1769c2}
@media(prefers-color-scheme:dark){:root{--ink:#e6ebf2;--paper:#11161d;--soft:#93a1b3;--line:#2c3642;--curve:#6db3ff}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:60rem;margin:2rem
auto;padding:0 1rem} h1{font-size:1.5rem}h2{font-size:1.1rem;margin-top:2rem;border-bottom:1px solid var(--line)}
table{border-collapse:collapse}td,th{text-align:left;padding:.15rem .9rem .15rem 0;vertical-align:top}
td.number{text-align:right;font-variant-numeric:tabular-nums}
.soft{color:var(--soft)}figure{display:inline-block;margin:.5rem 1rem .5rem 0;vertical-align:top}
figcaption{font-size:.85rem;max-width:15rem}svg text{fill:var(--soft);font-size:11px}
polyline{fill:none;stroke:var(--curve);stroke-width:1.5}svg .axis{stroke:var(--line)}
img{image-rendering:pixelated;min-width:128px;max-width:100%}details pre{overflow:auto;font-size:.8rem}
"""


@dataclass(frozen=True)
class Exhibit:
    """A picture of the report's gallery with what the model said of it."""

    picture: str
    """`data:` address of the picture."""
    lines: Sequence[str]
    """Text under it."""


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's log; a last line cut short by a kill is left out.

    Raises:
        RunError: there is no log.
    """
    path = folder / "log.jsonl"
    if not path.is_file():
        raise RunError(f"{folder} is not a run folder: it has no log.jsonl")
    rows: list[dict[str, Any]] = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def write_report(folder: Path, gallery: Sequence[Exhibit] = (), panels: Sequence[tuple[str, str]] = ()) -> Path:
    """Write `report.html` into a run folder and return its path.

    Args:
        folder: the run.
        gallery: pictures to show; a page written again without them keeps none.
        panels: sections that the room adds: a title, and HTML that needs no other file.

    Raises:
        RunError: not a run folder.
    """
    rows = read_log(folder)
    recipe = (folder / "config.yaml").read_text()
    environment = json.loads((folder / "environment.json").read_text())
    name = yaml.safe_load(recipe)["name"]
    curves = _curves(rows)
    parts = [
        f"<h1>{html.escape(name)} <span class=soft>{html.escape(folder.name)}</span></h1>",
        f"<p class=soft>{html.escape(_sentence(rows, environment))}</p>",
        *_warnings(rows),
        "<h2>Figures</h2>", _table(_last_evaluation(rows)),
        "<h2>Curves</h2>", *(_plot(key, points) for key, points in curves.items()),
    ]  # fmt: skip
    if gallery:
        parts += ["<h2>Held-back pictures</h2>", *map(_figure, gallery)]
    for title, content in panels:
        parts += [f"<h2>{html.escape(title)}</h2>", content]
    parts += [
        "<h2>To repeat it</h2>",
        f"<pre>odonata train {html.escape(str(folder / 'config.yaml'))}</pre>",
        f"<details><summary>recipe</summary><pre>{html.escape(recipe)}</pre></details>",
        f"<details><summary>environment</summary><pre>{html.escape(json.dumps(environment, indent=1))}</pre></details>",
    ]
    title, body = html.escape(f"{name} – {folder.name}"), "".join(parts)
    page = (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{title}</title><link rel=icon href='data:,'><style>{_STYLE}</style><body>{body}</body></html>"
    )
    write_atomically(folder / "report.html", page)
    return folder / "report.html"


def _sentence(rows: Sequence[Mapping[str, Any]], environment: Mapping[str, Any]) -> str:
    speeds = [row["samples_per_s"] for row in rows if "samples_per_s" in row]
    waits = [row["wait"] for row in rows if "wait" in row]
    middle = sorted(speeds)[len(speeds) // 2] if speeds else 0
    wait = sum(waits) / len(waits) if waits else 0
    return (
        f"{rows[-1]['step'] if rows else 0} steps, seed {environment['seed']}, "
        f"{environment['world_size']} process(es), "
        f"{middle:,.0f} samples/s (median), {wait:.1%} of the time waiting for data; odonata {environment['odonata']}, "
        f"torch {environment['torch']}"
    )


def _warnings(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the run was warned of, each thing once: pictures that were skipped, signs of collapse."""
    told = list(dict.fromkeys(str(row["warning"]) for row in rows if "warning" in row))
    if not told:
        return []
    return ["<h2>Warnings</h2><ul>", *(f"<li>{html.escape(warning)}" for warning in told), "</ul>"]


def _last_evaluation(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    figures: dict[str, float] = {}
    for row in rows:
        if "lr" not in row and "warning" not in row:  # lines of training carry the rate; lines of evaluation do not
            figures = {k: v for k, v in row.items() if isinstance(v, (int, float))}
    return figures


def _curves(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    curves: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        for key, value in row.items():
            if key not in _HIDDEN and isinstance(value, (int, float)):
                curves.setdefault(key, []).append((row["step"], value))
    return {key: points for key, points in curves.items() if len(points) > 1}


def _table(figures: Mapping[str, float]) -> str:
    if not figures:
        return "<p class=soft>No evaluation was made.</p>"
    rows = "".join(
        f"<tr><td>{html.escape(key)}<td class=number>{value:.4g}" for key, value in figures.items() if key != "step"
    )
    return f"<table>{rows}</table><p class=soft>at step {figures['step']:.0f}</p>"


def _plot(key: str, points: Sequence[tuple[float, float]], width: int = 280, height: int = 120) -> str:
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    low, high = min(ys), max(ys)
    left, right = min(xs), max(xs)

    def place(x: float, y: float) -> str:
        across = (x - left) / ((right - left) or 1) * (width - 50) + 45
        down = height - 18 - (y - low) / ((high - low) or 1) * (height - 30)
        return f"{across:.1f},{down:.1f}"

    line = " ".join(place(x, y) for x, y in points)
    return (
        f"<figure><svg width={width} height={height} role=img aria-label='{html.escape(key)}'>"
        f"<line class=axis x1=45 x2={width} y1={height - 18} y2={height - 18} />"
        f"<text x=2 y=16>{high:.3g}</text><text x=2 y={height - 20}>{low:.3g}</text>"
        f"<text x=45 y={height - 4}>{left:.0f}</text><text x={width - 40} y={height - 4}>{right:.0f}</text>"
        f"<polyline points='{line}'/></svg><figcaption>{html.escape(key)} by step</figcaption></figure>"
    )


def _figure(exhibit: Exhibit) -> str:
    lines = "<br>".join(html.escape(line) for line in exhibit.lines)
    return f"<figure><img src='{exhibit.picture}' alt=''><figcaption>{lines}</figcaption></figure>"
