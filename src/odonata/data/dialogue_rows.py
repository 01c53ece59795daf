"""Rows of chats, preferences and judgements: each function says what one row of a format means.

All take a `Row` and return its items, and raise RowError with what is wrong; `dialogue_formats` says which is called.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from odonata.data.dialogue_items import Exchange, Item, Judgement, Preference, Prompt, Turn
from odonata.data.dialogue_prompts import UNREAD, Row
from odonata.data.dialogue_turns import RowError, shown, sound_text, split_answer, turns_of_messages
from odonata.data.hh_transcripts import split_pair, turns_of_transcript

# ---- exchanges -------------------------------------------------------------------------------------------------------


def exchange_of_messages(row: Row) -> list[Item]:
    """`messages` or ShareGPT's `conversations`: the last turn is what is learned, all before it the prompt."""
    key = "messages" if row.record.get("messages") is not None else "conversations"
    before, answer = split_answer(row.conversation(key), key)
    return [Exchange(row.prompts.of_turns(before), answer, row.where)]


def exchange_of_completion(row: Row) -> list[Item]:
    """`prompt` and `completion`, each a string or messages."""
    prompt, completion = _prompt_and_completion(row)
    return [Exchange(prompt, completion, row.where)]


def exchange_of_instruction(row: Row) -> list[Item]:
    """Alpaca's `instruction`, `input` (may be absent or empty; a blank line between) and `output`."""
    if unread := [name for name in UNREAD if row.record.get(name)]:
        raise RowError(f"{unread[0]!r} is not read; write the conversation as 'messages'")
    asked, more = row.text("instruction"), row.record.get("input")
    if more is not None and not isinstance(more, str):
        raise RowError(f"'input' is {shown(more)}, want text")
    asked = f"{asked}\n\n{sound_text(more, repr('input'))}" if more and more.strip() else asked
    return [Exchange(row.prompts.of_string(asked, row.record, chat=True), row.text("output"), row.where)]


def exchange_between(question: str, solution: str) -> Callable[[Row], list[Item]]:
    """A reader of a question and its worked solution, as they are: GSM8K's keep their <<3*4=12>> and "####"."""

    def read(row: Row) -> list[Item]:
        return [Exchange(row.string_prompt(question), row.text(solution), row.where)]

    return read


def _prompt_and_completion(row: Row) -> tuple[Prompt, str]:
    if not isinstance(row.record["completion"], list):
        return row.prompt(), row.text("completion")
    turns, answer = split_answer(_whole(row, "completion"), "completion")
    return row.prompts.of_turns(turns), answer


def _whole(row: Row, key: str) -> tuple[Turn, ...]:
    """The conversation of a field of messages, which may repeat the prompt or not."""
    value = row.record["prompt"]
    asked = turns_of_messages(value, "prompt") if isinstance(value, list) else (Turn("user", row.text("prompt")),)
    turns = turns_of_messages(row.record[key], key)
    if [turn.role for turn in turns] == ["assistant"]:
        return (*asked, *turns)
    if turns[: len(asked)] == asked or (isinstance(value, str) and asked[0] in turns):
        return turns
    raise RowError(f"{key!r} is no answer to 'prompt': want one turn of the assistant, or the prompt's turns and that")


# ---- preferences and judgements --------------------------------------------------------------------------------------


def split_preference(row: Row) -> tuple[Prompt, str, str]:
    """The prompt of a pair, which may stand in both sides only, and the two answers; these may still be equal."""
    both = [isinstance(row.record[key], list) for key in ("chosen", "rejected")]
    if both[0] != both[1]:
        raise RowError("'chosen' and 'rejected' must both be text or both be messages")
    if row.record.get("prompt") is not None:
        if not all(both):
            return row.prompt(), row.text("chosen"), row.text("rejected")
        turns, better, worse = split_pair(_whole(row, "chosen"), _whole(row, "rejected"))
        return row.prompts.of_turns(turns), better, worse
    chosen, rejected = row.record["chosen"], row.record["rejected"]
    if isinstance(chosen, list):
        turns, better, worse = split_pair(turns_of_messages(chosen, "chosen"), turns_of_messages(rejected, "rejected"))
        return row.prompts.of_turns(turns), better, worse
    sides = turns_of_transcript(chosen, "chosen"), turns_of_transcript(rejected, "rejected")
    turns, better, worse = split_pair(*sides)
    prompt = row.prompts.of_turns(turns, transcript=True)
    # In a transcript that is text, a space stands between "Assistant:" and what it says.
    return (prompt, f" {better}", f" {worse}") if prompt.text else (prompt, better, worse)


def preference(row: Row) -> list[Item]:
    """A pair; equal answers are an error."""
    prompt, chosen, rejected = split_preference(row)
    if chosen == rejected:
        raise RowError(f"'chosen' and 'rejected' are equal: {chosen.strip()[:40]!r}")
    margin = row.record.get("margin")
    if margin is not None:
        if isinstance(margin, bool) or not isinstance(margin, int | float) or not math.isfinite(margin):
            raise RowError(f"'margin' is {shown(margin)}, want a finite number")
        margin = float(margin)
    return [Preference(prompt, chosen, rejected, margin, row.where)]


def judgements_of_pair(row: Row) -> list[Item]:
    """A pair as two judgements."""
    (pair,) = preference(row)
    assert isinstance(pair, Preference)
    return [
        Judgement(pair.prompt, pair.chosen, True, row.where),
        Judgement(pair.prompt, pair.rejected, False, row.where),
    ]


def judgement(row: Row) -> list[Item]:
    """`prompt`, `completion` and `label`."""
    prompt, completion = _prompt_and_completion(row)
    return [Judgement(prompt, completion, _truth(row.record["label"], "'label'"), row.where)]


def judgements_of_solutions(row: Row) -> list[Item]:
    """Every field that holds {"solution": ..., "is_correct": ...}, as GSM8K's published model solutions do."""
    prompt, found = row.string_prompt("question"), list[Item]()
    for name, value in row.record.items():
        if isinstance(value, dict) and "is_correct" in value:
            solution = sound_text(value.get("solution"), f"'solution' in {name!r}")
            right = _truth(value["is_correct"], f"'is_correct' in {name!r}")
            found.append(Judgement(prompt, solution, right, row.where))
    if not found:
        raise RowError("no field holds a solution with 'is_correct'")
    return found


def _truth(value: Any, name: str) -> bool:
    """true or false, also as tables have them: 1 and 0, or the words."""
    if isinstance(value, bool | int | str):
        word = str(value).strip().lower()
        if word in ("true", "1", "false", "0"):
            return word in ("true", "1")
    raise RowError(f"{name} is {shown(value)}, want true or false")
