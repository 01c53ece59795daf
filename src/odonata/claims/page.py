"""Recorded claims as one self-contained HTML page: verdicts first, then each claim with its figure and its numbers."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from odonata.claims.figure import draw
from odonata.claims.record import Record

_STYLE = """
:root{color-scheme:light dark;--ink:#1f2328;--faint:#59636e;--line:#d1d9e0;--ground:#fff;--yes:#15803d;--no:#b91c1c}
@media (prefers-color-scheme:dark){:root{--ink:#f0f6fc;--faint:#9198a1;--line:#3d444d;--ground:#0d1117;--yes:#4ade80;
--no:#f87171}}
body{font:16px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--ground);max-width:62rem;margin:2rem auto;
padding:0 1rem}
h1{font-size:1.6rem}h2{font-size:1.25rem;margin-top:3rem;border-top:1px solid var(--line);padding-top:1rem}
table{border-collapse:collapse;width:100%;font-size:.9rem}
.wide{overflow-x:auto}
th,td{text-align:left;padding:.3rem .6rem;border-bottom:1px solid var(--line);vertical-align:top}
td.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.supported{color:var(--yes);font-weight:600}.not{color:var(--no);font-weight:600}.faint{color:var(--faint)}
svg.claim-figure{width:100%;height:auto;max-width:46rem}
dt{color:var(--faint);font-size:.85rem}dd{margin:0 0 .6rem}code{font-size:.9em}a{color:inherit}
"""


def page(records: Sequence[Record]) -> str:
    """Return the page.

    Args:
        records: in the order to show.
    """
    rows = "".join(
        f'<tr><td><a href="#{escape(r.name)}">{escape(r.name)}</a></td><td>{_verdict(r.verdict)}</td>'
        f'<td>{escape(r.claim["hypothesis"])}</td><td class="n">{minutes(r.cost["cpu_seconds"])}</td></tr>'
        for r in records
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Odonata: claims</title>'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><style>{_STYLE}</style></head><body>'
        "<h1>Claims of papers, tried</h1><p>Each is an experiment at a size that fits a laptop. A claim is supported "
        "when the whole 95 % interval of every primary comparison, paired by seed, lies on the side that the "
        "hypothesis names; not supported "
        "when one lies wholly on the other side; else the experiment did not decide. A verdict is about "
        "the experiment at this size.</p>"
        f'<div class="wide"><table><tr><th>claim</th><th>verdict</th><th>hypothesis</th><th>CPU time</th></tr>{rows}'
        f"</table></div>{''.join(_section(record) for record in records)}</body></html>\n"
    )


def minutes(seconds: float) -> str:
    """Return a time as people say it."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def measured(outcome: dict[str, Any]) -> str:
    """Return the mean and interval of a comparison; of the figure itself where it is compared with a constant."""
    shift = _constant(outcome)
    mean, low, high = (outcome[key] + shift for key in ("mean", "low", "high"))
    unit = "×" if outcome["ratio"] else ""
    digits = ".3g" if outcome["ratio"] or abs(mean) < 0.1 else ".2f"
    return f"{mean:{digits}}{unit} [{low:{digits}}, {high:{digits}}]"


def wanted(outcome: dict[str, Any]) -> str:
    """Return what the hypothesis says of a comparison."""
    unit = "×" if outcome["ratio"] else ""
    return f"{outcome['relation']} {outcome['margin'] + _constant(outcome):.4g}{unit}"


def _constant(outcome: dict[str, Any]) -> float:
    return 0.0 if outcome["ratio"] or isinstance(outcome["control"], str) else float(outcome["control"])


def _section(record: Record) -> str:
    claim, machine = record.claim, record.machine
    facts = {
        "hypothesis": claim["hypothesis"], "source": claim["source"], "data": claim["data"],
        "scaled down": claim["scaled_down"],
    }  # fmt: skip
    terms = "".join(f"<dt>{key}</dt><dd>{escape(value)}</dd>" for key, value in facts.items())
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return (
        f'<h2 id="{escape(record.name)}">{escape(record.name)}: {_verdict(record.verdict)}</h2><dl>{terms}</dl>'
        f"{draw(claim, record.results())}{_comparisons(record)}{_published(record)}{_settings(record)}"
        f'<p class="faint">{record.cost["trials"]:.0f} trials, {minutes(record.cost["cpu_seconds"])} of CPU time, '
        f"seeds {', '.join(map(str, record.seeds))}; {escape(machine['date'])}, {escape(versions)}.<br>Again: "
        f"<code>{escape(record.command)}</code></p>"
    )


def _comparisons(record: Record) -> str:
    rows = "".join(
        f"<tr><td>{escape(o['name'])}{'' if o['primary'] else ' <span class=faint>(secondary)</span>'}</td>"
        f"<td>{escape(o['treatment'])} against {escape(str(o['control']))}</td><td>{escape(o['quantity'])}</td>"
        f'<td class="n">{escape(measured(o))}</td><td class="n">{escape(wanted(o))}</td>'
        f"<td>{_verdict(o['verdict'])}</td></tr>"
        for o in record.outcomes
    )
    head = "".join(f"<th>{name}</th>" for name in ("comparison", "cells", "figure", "mean [95 %]", "wanted", "verdict"))
    return f'<div class="wide"><table><tr>{head}</tr>{rows}</table></div>'


def _published(record: Record) -> str:
    beside = record.beside_published()
    if beside is None:
        return ""
    rows = "".join(
        f'<tr><td>{escape(cell)}</td><td class="n">{theirs:.2f}</td><td class="n">{ours:.2f}</td></tr>'
        for cell, theirs, ours in beside[0]
    )
    source = escape(record.claim["published"]["source"])
    return (
        f"<h3>Beside the published figures</h3><p>{source}. Rank correlation with the means here: {beside[1]:.2f}.</p>"
        f'<div class="wide"><table><tr><th>cell</th><th>published</th><th>here</th></tr>{rows}</table></div>'
    )


def _settings(record: Record) -> str:
    if not record.tuning:
        return ""
    rows = "".join(
        f"<tr><td>{escape(cell)}</td><td>{escape(', '.join(f'{k} = {v:g}' for k, v in setting.items()))}</td></tr>"
        for cell, setting in record.chosen.items()
    )
    tried = len(record.tuning) // max(1, len(record.chosen))
    return (
        f"<details><summary>settings, each the best of {tried} on validation</summary>"
        f'<div class="wide"><table><tr><th>cell</th><th>setting</th></tr>{rows}</table></div></details>'
    )


def _verdict(verdict: str) -> str:
    kind = {"supported": "supported", "not supported": "not"}.get(verdict, "faint")
    return f'<span class="{kind}">{verdict}</span>'
