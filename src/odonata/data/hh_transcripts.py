r"""Transcripts as hh-rlhf writes them, "\n\nHuman: ...\n\nAssistant: ...", and pairs of them.

Notable: the prompt of a pair is what both have in common up to their last answers, and it must be all but those. The
usual way cuts the chosen text at its last "\n\nAssistant:" and cuts the rejected one at the same character; where the
two part earlier, as they do in some of the real rows, that trains on a torn text. Such a pair is an error here, and so
are blank answers and two answers in a row (a name that stands inside a turn, written without a blank line before it).

Source: Bai et al. 2022, "Training a Helpful and Harmless Assistant with RLHF"; the data in anthropics/hh-rlhf.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from odonata.data.dialogue_items import Role, Turn
from odonata.data.dialogue_turns import RowError, check_asks, sound_text, split_answer

_SPEAKER = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
_ROLES: dict[str, Role] = {"Human": "user", "Assistant": "assistant"}
_NAMES = {"user": "Human", "assistant": "Assistant"}


def turns_of_transcript(value: Any, key: str) -> tuple[Turn, ...]:
    """Return the turns of a transcript, without the space around them; their order is not checked yet.

    Args:
        value: as the file has it.
        key: name of the field, for messages.

    Raises:
        RowError: no transcript, or an empty turn.
    """
    text = sound_text(value, repr(key))
    pieces = _SPEAKER.split(text)
    if len(pieces) < 3 or pieces[0].strip():
        raise RowError(f"{key!r} begins with {text[:20]!r}, want a transcript: '\\n\\nHuman: ...\\n\\nAssistant: ...'")
    turns: list[Turn] = []
    for number, (name, said) in enumerate(zip(pieces[1::2], pieces[2::2], strict=True), start=1):
        turns.append(Turn(_ROLES[name], sound_text(said, f"turn {number} of {key!r} ({name})").strip()))
    return tuple(turns)


def transcript_of(turns: Sequence[Turn], *, ask: bool = False) -> str:
    r"""Write turns of users and assistants as a transcript.

    Args:
        turns: without system and tool turns, which the format does not have.
        ask: end with "\n\nAssistant:", for the model to go on.

    Raises:
        ValueError: a turn of another role.
    """
    if wrong := [turn.role for turn in turns if turn.role not in _NAMES]:
        raise ValueError(f"a transcript has no {wrong[0]} turns")
    said = "".join(f"\n\n{_NAMES[turn.role]}: {turn.content}" for turn in turns)
    return said + "\n\nAssistant:" if ask else said


def split_pair(
    chosen: tuple[Turn, ...], rejected: tuple[Turn, ...], keys: tuple[str, str] = ("chosen", "rejected")
) -> tuple[tuple[Turn, ...], str, str]:
    """Return the prompt of two whole conversations, and their last answers.

    Args:
        chosen, rejected: all turns of each.
        keys: names of the fields, for messages.

    Raises:
        RowError: they differ before the last turn, or one is no sound conversation.
    """
    before, better = split_answer(chosen, keys[0])
    other, worse = split_answer(rejected, keys[1])
    if before != other:
        # Where one begins as the whole of the other, they part where the shorter one's prompt ends.
        apart = next(
            (i for i, (a, b) in enumerate(zip(before, other, strict=False), 1) if a != b),
            min(len(before), len(other)) + 1,
        )
        raise RowError(
            f"{keys[0]!r} and {keys[1]!r} differ in turn {apart} already, of {len(chosen)} and {len(rejected)}; "
            "only the last answers may differ"
        )
    check_asks(before, keys[0])
    return before, better, worse
