"""Rows of judged steps, and of questions whose answers a program can judge.

All take a `Row` and return its items, and raise RowError with what is wrong; `dialogue_formats` says which is called.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from odonata.data import gold_answers as gold
from odonata.data.dialogue_items import NEUTRAL, RIGHT, WRONG, Item, Question, Steps
from odonata.data.dialogue_prompts import Row
from odonata.data.dialogue_rows import split_preference
from odonata.data.dialogue_turns import RowError, check_asks, shown, sound_text

# ---- steps -----------------------------------------------------------------------------------------------------------


def _texts(row: Row, key: str) -> tuple[str, ...]:
    value = row.record[key]
    if not isinstance(value, list) or not value:
        raise RowError(f"{key!r} is {shown(value)}, want a list of at least one text")
    return tuple(sound_text(step, f"step {number} of {key!r}") for number, step in enumerate(value, start=1))


def steps_with_labels(row: Row) -> list[Item]:
    """TRL's `prompt`, `completions` and `labels`: true and false, or 1, 0 and -1."""
    steps, values = _texts(row, "completions"), row.record["labels"]
    if not isinstance(values, list):
        raise RowError(f"'labels' is {shown(values)}, want a list")
    if len(values) != len(steps):
        raise RowError(f"{len(steps)} steps in 'completions', but {len(values)} in 'labels'")
    words = all(isinstance(value, bool) for value in values)
    whole = all(isinstance(value, int) and not isinstance(value, bool) and -1 <= value <= 1 for value in values)
    if not words and not whole:
        raise RowError(f"'labels' is {shown(values)}, want true and false, or 1 (right), 0 (neutral) and -1 (wrong)")
    known = {True: RIGHT, False: WRONG} if words else {1: RIGHT, 0: NEUTRAL, -1: WRONG}
    return [Steps(row.prompt(), steps, tuple(known[value] for value in values), row.where)]


def steps_to_mistake(row: Row) -> list[Item]:
    """BIG-Bench-Mistake: wrong from `mistake_index` on (from 0); all right where it is null."""
    steps, mistake = _texts(row, "steps"), row.record["mistake_index"]
    if mistake is None:
        mistake = len(steps)
    elif isinstance(mistake, bool) or not isinstance(mistake, int) or not 0 <= mistake < len(steps):
        raise RowError(f"'mistake_index' is {shown(mistake)}, want null or 0 to {len(steps) - 1}, one of the steps")
    labels = (RIGHT,) * mistake + (WRONG,) * (len(steps) - mistake)
    return [Steps(row.string_prompt("input"), steps, labels, row.where)]


# ---- questions -------------------------------------------------------------------------------------------------------


def question_of_prompt(row: Row) -> list[Item]:
    """A `prompt`, and whatever the rewards need beside it."""
    return [Question(row.prompt(), _with_names(row.record), row.where)]


def question_of_messages(row: Row) -> list[Item]:
    """The turns of `messages`; an answer that stands last is left out."""
    turns = row.conversation("messages")
    turns = turns[:-1] if turns[-1].role == "assistant" else turns
    check_asks(turns, "messages")
    return [Question(row.prompts.of_turns(turns), _with_names(row.record), row.where)]


def question_of_pair(row: Row) -> list[Item]:
    """The prompt of a preference, for rewards that a model gives."""
    return [Question(split_preference(row)[0], dict(row.record), row.where)]


def _with_names(record: Mapping[str, Any]) -> dict[str, Any]:
    """The row with the names that rewards look for; what is of no known kind stays for the reward to judge."""
    row = dict(record)
    if row.get("numbers") is None and row.get("nums") is not None:
        row["numbers"] = row["nums"]
    if isinstance(row.get("answer"), int | float) and not isinstance(row["answer"], bool):
        row["answer"] = gold.answer_text(row["answer"], "'answer'")
    return row


def question_under(key: str, answer: Callable[[Row], Mapping[str, str]]) -> Callable[[Row], list[Item]]:
    """A reader of questions that stand under a key, with what `answer` finds beside the row's own fields."""

    def read(row: Row) -> list[Item]:
        return [Question(row.string_prompt(key), {**row.record, **answer(row)}, row.where)]

    return read


def gold_field(row: Row) -> dict[str, str]:
    """`answer` as it is, numbers as text."""
    return {"answer": gold.answer_text(row.record["answer"], "'answer'")}


def gold_hashes(row: Row) -> dict[str, str]:
    """What follows "####" as `answer`; the whole as `solution`."""
    solution = row.text("answer")
    return {"answer": gold.answer_after_hashes(solution), "solution": solution}


def gold_letter(row: Row) -> dict[str, str]:
    """What follows "A:" in `ground_truth` as `answer`; the whole as `solution`."""
    solution = row.text("ground_truth")
    return {"answer": gold.answer_after_letter(solution), "solution": solution}


def gold_boxed(row: Row) -> dict[str, str]:
    """What stands in the last box of `solution` as `answer`."""
    return {"answer": sound_text(gold.boxed_answer(row.text("solution")), "the boxed answer in 'solution'")}


def question_of_svamp(row: Row) -> list[Item]:
    """`Body` and `Question` in one, with `Answer`."""
    fields = {**row.record, "answer": gold.answer_text(row.record["Answer"], "'Answer'")}
    asked = gold.svamp_question(row.text("Body"), row.text("Question"))
    return [Question(row.prompts.of_string(asked, fields, chat=True), fields, row.where)]


def question_of_countdown(row: Row) -> list[Item]:
    """`numbers` (or `nums`) and `target`, put into words by `COUNTDOWN_PROMPT`."""
    key = "numbers" if row.record.get("numbers") is not None else "nums"
    fields = {**row.record, **gold.countdown_fields(row.record, key)}
    asked = gold.COUNTDOWN_PROMPT.format_map(fields)
    return [Question(row.prompts.of_string(asked, fields, chat=True), fields, row.where)]
