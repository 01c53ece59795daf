"""What the report page of a run of this room shows besides curves: the doctor's findings, and answers side by side.

One prompt's answers of a step stand beside one another, each on a ground whose colour is its advantage: what is made
likelier is green, what is made less likely is red, and the sign stands there as a number too. The first and the last
step that were logged are always shown; a slider goes through the steps between. Without scripts the middle one stands
there. The section needs no other file, and takes its colours from the reader's light or dark scheme.

Everything that a model or a file has said is escaped.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from odonata.engine.findings import Finding, read_lines
from odonata.engine.recipe import Recipe
from odonata.posttrain.doctor import examine
from odonata.posttrain.rollout_log import FILE

STEPS = 24
"""Steps that the slider has at most, evenly chosen."""
LONGEST = 1500
"""Characters of an answer that are shown: a page must open."""
MOST = 16
"""Answers of a step that are shown."""

_STYLE = """<style>
.answers{display:grid;grid-template-columns:repeat(auto-fill,minmax(11rem,1fr));gap:.6rem;margin:.5rem 0 1.2rem}
.answer{border:1px solid var(--line);border-radius:6px;padding:.4rem .6rem;font-size:.85rem;overflow:hidden}
.answer pre{white-space:pre-wrap;overflow-wrap:anywhere;max-height:14rem;overflow:auto;margin:.2rem 0 .4rem;
font-size:.85rem} .prompt{white-space:pre-wrap;overflow-wrap:anywhere;max-height:8rem;overflow:auto}
.cut{border-style:dashed}.findings{padding-left:0;list-style:none}.findings li{margin:.5rem 0}
.findings b{display:inline-block;min-width:3.5rem}.wrong b{color:#c62828}.watch b{color:#b26a00}.fine b{color:#2e7d32}
@media(prefers-color-scheme:dark){.wrong b{color:#ff8a80}.watch b{color:#ffca6a}.fine b{color:#8bd694}}
input[type=range]{width:100%;max-width:30rem;accent-color:var(--curve)}
</style>"""

_SCRIPT = """<script>
(()=>{const s=document.getElementById('step'),all=[...document.querySelectorAll('[data-between]')];
const show=()=>all.forEach((e,i)=>e.hidden=i!=s.value);s.hidden=false;s.oninput=show;show()})()
</script>"""


def panels(recipe: Recipe, run: Path) -> list[tuple[str, str]]:
    """Return sections of the report page of a run: titles, and their HTML.

    Args:
        recipe: of the run.
        run: its folder.
    """
    found = [("Doctor", findings_list(examine(run)))]
    lines = read_lines(run / FILE)
    if lines:
        found.append(("One prompt's answers", answers_by_step(lines)))
    return found


def findings_list(findings: Sequence[Finding]) -> str:
    """Return findings as a list."""
    if not findings:
        return "<p>Nothing wrong was found.</p>"
    items: list[str] = []
    for finding in findings:
        kind = "fine" if finding.severity == "ok" else finding.severity
        stage = f" <span class=soft>{html.escape(finding.stage)}</span>" if finding.stage else ""
        option = f" <code>{html.escape(finding.option)}</code>" if finding.option else ""
        items.append(
            f"<li class={kind}><b>{finding.severity}</b> {html.escape(finding.name)}{stage}: "
            f"{html.escape(finding.text)} {html.escape(finding.remedy)}{option}</li>"
        )
    return f"{_STYLE}<ul class=findings>{''.join(items)}</ul>"


def answers_by_step(lines: Sequence[Mapping[str, Any]]) -> str:
    """Return the answers of the first and last logged step, and of those between behind a slider.

    Args:
        lines: of `rollouts.jsonl`, one at least.
    """
    largest = max((abs(_number(said.get("advantage"))) for line in lines for said in _answers(line)), default=0.0)
    between = _evenly(lines[1:-1])
    parts = [_STYLE, _step("first logged step", lines[0], largest)]
    if between:
        middle = len(between) // 2
        shown = (
            f"<div data-between{'' if i == middle else ' hidden'}>{_step('step between', line, largest)}</div>"
            for i, line in enumerate(between)
        )
        parts += [
            f"<input type=range id=step hidden min=0 max={len(between) - 1} value={middle} aria-label='step'>", *shown
        ]  # fmt: skip
    if len(lines) > 1:
        parts.append(_step("last logged step", lines[-1], largest))
    return "".join(parts) + (_SCRIPT if between else "")


def _evenly(lines: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    if len(lines) <= STEPS:
        return list(lines)
    return [lines[round(i * (len(lines) - 1) / (STEPS - 1))] for i in range(STEPS)]


def _answers(line: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    return line.get("answers") or ()


def _step(title: str, line: Mapping[str, Any], largest: float) -> str:
    answers = _answers(line)
    more = f" <span class=soft>and {len(answers) - MOST} more answers</span>" if len(answers) > MOST else ""
    cards = "".join(_card(said, largest) for said in answers[:MOST])
    return (
        f"<h3>{title}: {int(line['step'])}</h3><div class=prompt><span class=soft>prompt</span> "
        f"<code>{html.escape(_short(str(line.get('prompt', ''))))}</code>{more}</div><div class=answers>{cards}</div>"
    )


def _card(said: Mapping[str, Any], largest: float) -> str:
    advantage = _number(said.get("advantage"))
    ended = bool(said.get("finished", True))
    earned = said.get("reward")
    parts = (f"{html.escape(str(name))} {_shown(value)}" for name, value in (said.get("parts") or {}).items())
    facts = [
        f"<b>{advantage:+.2f}</b> advantage", f"reward {_shown(earned)}", *parts,
        f"{html.escape(str(said.get('tokens', '?')))} tokens", *(() if ended else ("<b>cut at the limit</b>",)),
    ]  # fmt: skip
    return (
        f"<div class='answer{'' if ended else ' cut'}' style='background:{_ground(advantage, largest)}'>"
        f"<pre>{html.escape(_short(str(said.get('text', ''))))}</pre>{'<br>'.join(facts)}</div>"
    )


def _ground(advantage: float, largest: float) -> str:
    """Return a translucent colour, which is as readable on a light ground as on a dark one."""
    share = abs(advantage) / largest if largest else 0.0
    red, green, blue = (46, 160, 67) if advantage > 0 else (218, 54, 51)
    return f"rgba({red},{green},{blue},{0.45 * share:.2f})"


def _short(text: str) -> str:
    if len(text) <= LONGEST:
        return text
    return f"{text[: LONGEST // 2]} … {len(text) - LONGEST} characters left out … {text[-LONGEST // 2 :]}"


def _shown(value: Any) -> str:
    known = isinstance(value, int | float) and not math.isnan(value)
    return f"{value:.3g}" if known else "unknown"


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else 0.0
