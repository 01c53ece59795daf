"""A look at text data before a model is trained on it: what is broken, repeated, leaked, lopsided or strangely long."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from odonata.data.dialogues import (
    NEUTRAL,
    RIGHT,
    WRONG,
    Exchange,
    Item,
    Judgement,
    Preference,
    Question,
    Read,
    Steps,
    content,
    read_exchanges,
    read_judgements,
    read_preferences,
    read_questions,
    read_steps,
)
from odonata.data.report_tables import Histogram, bars, histogram, listing
from odonata.errors import RecipeError

DialogueKind = Literal["chat", "preference", "judgement", "steps", "questions"]
FEW = 50
"""Of fewer pairs, a share says little."""
LONGER = 0.6
_EDGES = (16, 64, 256, 1024, 4096, 16_384, 65_536)


@dataclass(frozen=True)
class DialogueReport:
    """What a check of text data found.

    Args:
        origin, kind, format: what was read, as what, and how it is written.
        fingerprint: of the content.
        num_items: usable items.
        parts: number of items of each part, where the files name parts.
        problems: "file:line: what" of rows that would stop a training.
        repeats: items that say the same as an earlier one.
        repeated_prompts: items whose prompt an earlier one has.
        shared_prompts: (place, place) of prompts that stand both in what is trained on and in what is held out.
        facts: what is known of this kind: the balance of labels, the share of longer answers that are chosen.
        lengths: histograms of prompts and completions in characters, and of turns.
        warnings: what to mind before training.
    """

    origin: str
    kind: str
    format: str
    fingerprint: str
    num_items: int
    parts: dict[str, int]
    problems: list[str]
    repeats: int
    repeated_prompts: int
    shared_prompts: list[tuple[str, str]]
    facts: dict[str, float]
    lengths: dict[str, Histogram] = field(default_factory=dict[str, Histogram])
    warnings: list[str] = field(default_factory=list[str])

    @property
    def ok(self) -> bool:
        """Whether every row can be used."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON can hold them, and whether a training would go on."""
        return {**asdict(self), "ok": self.ok}

    def render(self) -> RenderableType:
        """The report as tables for a terminal."""
        table = Table(show_header=False)
        table.add_row("items", f"{self.num_items:,}")
        table.add_row("parts", ", ".join(f"{name} {count:,}" for name, count in self.parts.items()) or "none")
        table.add_row("rows left out", f"{len(self.problems):,}")
        table.add_row("items that repeat another", f"{self.repeats:,}")
        table.add_row("items with the prompt of another", f"{self.repeated_prompts:,}")
        table.add_row("prompts also held out", f"{len(self.shared_prompts):,}")
        for name, value in self.facts.items():
            table.add_row(Text(name), f"{value:,.3g}" if value != int(value) else f"{int(value):,}")
        table.add_row("fingerprint", self.fingerprint)
        parts: list[RenderableType] = [Text(f"{self.origin} ({self.kind}: {self.format})", style="italic"), table]
        parts += [Text(f"warning: {warning}", style="yellow") for warning in self.warnings]
        parts += listing("would stop a training", self.problems)
        parts += listing("trained on and held out", [f"{a} = {b}" for a, b in self.shared_prompts])
        parts += [bars(title, counts) for title, counts in self.lengths.items() if counts]
        return Group(*parts)


def check_dialogues(
    path: str | Path,
    kind: DialogueKind,
    *,
    heldout: str | Path | None = None,
    zero: Literal["neutral", "wrong"] | None = None,
) -> DialogueReport:
    """Read a set whole and report.

    Args:
        path: as the readers take it; bad rows are gathered, not raised.
        kind: what it is to be read as.
        heldout: another set that must share no prompt with it. None: the parts that a folder's files name.
        zero: of steps, what the label 0 means, as `read_steps` takes it.

    Raises:
        DataError: nothing usable is there, or it cannot be read as that kind.
        RecipeError: `zero` with another kind.
    """
    if zero is not None and kind != "steps":
        raise RecipeError(f"zero={zero!r} says what a label of steps means; the kind {kind!r} does not use it")
    read = _read(path, kind, zero)
    problems = list(read.problems)
    shared = list[tuple[str, str]]()
    if heldout is not None:
        other = _read(heldout, kind, zero)
        problems += other.problems
        shared = _shared(read.items, other.items)
    elif len(set(read.parts)) > 1:
        parted = list(zip(read.items, read.parts, strict=True))
        shared = _shared(
            [item for item, part in parted if part == "train"],
            [item for item, part in parted if part in ("validation", "test")],
        )
    facts, warnings = _FACTS[kind](read.items)
    repeats, repeated_prompts = (_repeats(lines) for lines in (map(content, read.items), _prompts(read.items)))
    if repeats:
        warnings.append(f"{repeats:,} items repeat others word for word; each copy counts in training")
    if shared:
        warnings.append(f"{len(shared):,} prompts are trained on and held out: what is measured there is memory")
    return DialogueReport(
        origin=read.origin,
        kind=kind,
        format=read.kind,
        fingerprint=read.fingerprint(),
        num_items=len(read),
        parts=dict(Counter(part or "of no part" for part in read.parts)) if any(read.parts) else {},
        problems=problems,
        repeats=repeats,
        repeated_prompts=repeated_prompts,
        shared_prompts=shared,
        facts=facts,
        lengths=_lengths(read.items),
        warnings=warnings,
    )


def _read(path: str | Path, kind: DialogueKind, zero: Literal["neutral", "wrong"] | None) -> Read[Any]:
    match kind:
        case "chat":
            return read_exchanges(path, on_error="skip")
        case "preference":
            return read_preferences(path, on_error="skip")
        case "judgement":
            return read_judgements(path, on_error="skip")
        case "steps":
            return read_steps(path, on_error="skip", zero=zero)
        case "questions":
            return read_questions(path, on_error="skip")


def _prompts(items: Iterable[Item]) -> Iterable[str]:
    return (content(item.prompt) for item in items)


def _repeats(lines: Iterable[str]) -> int:
    counts = Counter(lines)
    return counts.total() - len(counts)


def _shared(items: Sequence[Item], heldout: Sequence[Item]) -> list[tuple[str, str]]:
    """Places of the prompts that stand in both, each prompt once."""
    places = {prompt: item.where for item, prompt in zip(items, _prompts(items), strict=True)}
    found = {prompt: item.where for item, prompt in zip(heldout, _prompts(heldout), strict=True) if prompt in places}
    return [(places[prompt], where) for prompt, where in found.items()]


def _lengths(items: Sequence[Item]) -> dict[str, Histogram]:
    prompts = [sum(len(turn.content) for turn in item.prompt.turns) or len(item.prompt.text) for item in items]
    histograms = {"characters in a prompt": histogram(prompts, _EDGES)}
    if completions := [len(text) for item in items for text in _completions(item)]:
        histograms["characters in a completion"] = histogram(completions, _EDGES)
    if steps := [len(item.steps) for item in items if isinstance(item, Steps)]:
        histograms["steps in a solution"] = _each(steps)
    if turns := [len(item.prompt.turns) for item in items if item.prompt.turns]:
        histograms["turns in a prompt"] = _each(turns)
    return histograms


def _each(counts: Sequence[int]) -> Histogram:
    """How often each number occurs, those over 16 together."""
    found = Counter(min(count, 17) for count in counts)
    return [(str(count) if count < 17 else "> 16", found[count]) for count in sorted(found)]


def _completions(item: Item) -> tuple[str, ...]:
    match item:
        case Preference():
            return (item.chosen, item.rejected)
        case Steps():
            return ("\n".join(item.steps),)
        case Question():
            return ()
        case _:
            return (item.completion,)


# ---- what is known of each kind --------------------------------------------------------------------------------------

_Facts = tuple[dict[str, float], list[str]]


def _chat(items: Sequence[Exchange]) -> _Facts:
    system = sum(bool(item.prompt.turns) and item.prompt.turns[0].role == "system" for item in items)
    text = sum(bool(item.prompt.text) for item in items)
    facts = {
        "conversations with a system turn": float(system),
        "prompts that are text": float(text),
        "characters to learn": float(sum(len(item.completion) for item in items)),
    }
    warnings: list[str] = []
    answers = Counter(item.completion.strip() for item in items)
    answer, count = answers.most_common(1)[0]
    if count >= FEW and count > len(items) / 20:
        warnings.append(f"{count / len(items):.0%} of the completions are {answer[:40]!r}")
    return facts, warnings


def _preference(items: Sequence[Preference]) -> _Facts:
    unequal = [item for item in items if len(item.chosen) != len(item.rejected)]
    longer = sum(len(item.chosen) > len(item.rejected) for item in unequal) / max(1, len(unequal))
    margins = sum(item.margin is not None for item in items)
    facts = {
        "share of pairs whose longer answer is chosen": longer,
        "characters of the chosen, median": statistics.median(len(item.chosen) for item in items),
        "characters of the rejected, median": statistics.median(len(item.rejected) for item in items),
        "pairs with a margin": float(margins),
    }
    warnings: list[str] = []
    if len(unequal) >= FEW and not 1 - LONGER <= longer <= LONGER:
        which = "longer" if longer > LONGER else "shorter"
        warnings.append(
            f"the {which} answer is chosen in {max(longer, 1 - longer):.0%} of the pairs: length is rewarded"
        )
    if 0 < margins < len(items):
        warnings.append(f"only {margins:,} of {len(items):,} pairs have a margin")
    chosen = {(content(item.prompt), item.chosen) for item in items}
    if both := sum((content(item.prompt), item.rejected) in chosen for item in items):
        warnings.append(f"{both:,} answers are chosen in one pair and rejected in another")
    return facts, warnings


def _judgement(items: Sequence[Judgement]) -> _Facts:
    wanted = sum(item.desirable for item in items)
    unwanted = len(items) - wanted
    facts = {"wanted": float(wanted), "unwanted": float(unwanted), "share wanted": wanted / len(items)}
    warnings: list[str] = []
    if not wanted or not unwanted:
        warnings.append(f"all completions are {'wanted' if wanted else 'unwanted'}: there is nothing to tell apart")
    elif not 1 <= wanted / unwanted <= 4 / 3:
        # Ethayarajh et al. 2024, "KTO", section 4.2.
        side, weight = ("unwanted", wanted / unwanted) if wanted > unwanted else ("wanted", unwanted / wanted)
        warnings.append(
            f"{wanted:,} wanted and {unwanted:,} unwanted: KTO asks for weights that make them 1:1 to 4:3, "
            f"such as {weight:.2f} for the {side}"
        )
    says: dict[tuple[str, str], set[bool]] = {}
    for item in items:
        says.setdefault((content(item.prompt), item.completion), set()).add(item.desirable)
    if both := sum(len(labels) > 1 for labels in says.values()):
        warnings.append(f"{both:,} answers are wanted in one row and unwanted in another")
    return facts, warnings


def _steps(items: Sequence[Steps]) -> _Facts:
    labels = Counter(label for item in items for label in item.labels)
    first = [item.first_mistake for item in items if item.first_mistake is not None]
    facts = {
        "steps": float(labels.total()),
        "steps right": float(labels[RIGHT]),
        "steps neutral": float(labels[NEUTRAL]),
        "steps wrong": float(labels[WRONG]),
        "solutions without a mistake": float(len(items) - len(first)),
    }
    if first:
        facts["right steps before the first mistake, mean"] = statistics.fmean(first)
    one_sided = len([count for count in labels.values() if count]) == 1
    return facts, ["all steps have the same label: there is nothing to tell apart"] if one_sided else []


def _questions(items: Sequence[Question]) -> _Facts:
    facts = {f"rows with {name!r}": 0.0 for name in ("answer", "numbers", "target", "tests")}
    for name in ("answer", "numbers", "target", "tests"):
        facts[f"rows with {name!r}"] = float(sum(item.row.get(name) is not None for item in items))
    answers: dict[str, set[str]] = {}
    given = Counter(str(item.row["answer"]) for item in items if item.row.get("answer") is not None)
    for item in items:
        if item.row.get("answer") is not None:
            answers.setdefault(content(item.prompt), set()).add(str(item.row["answer"]))
    warnings: list[str] = []
    if given:
        answer, count = given.most_common(1)[0]
        facts["different answers"] = float(len(given))
        facts[f"share of the commonest answer, {answer[:20]!r}"] = count / given.total()
    if torn := sum(len(found) > 1 for found in answers.values()):
        warnings.append(f"{torn:,} prompts stand with different answers")
    return facts, warnings


_FACTS: Mapping[DialogueKind, Callable[[Any], _Facts]] = {
    "chat": _chat,
    "preference": _preference,
    "judgement": _judgement,
    "steps": _steps,
    "questions": _questions,
}
