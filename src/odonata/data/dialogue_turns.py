"""Turns from lists of messages, and what makes a conversation a sound one.

Notable: a conversation is refused rather than mended. Two turns of the assistant in a row, a system turn in the middle,
a blank turn: each would be trained on without complaint and seen only in what the model says afterwards. Two turns of
the user in a row are sound, since people do write twice; so is a tool's turn after the assistant's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from odonata.data.dialogue_items import ROLES, Role, Turn
from odonata.data.records import has_bad_bytes

SHAREGPT_ROLES: Mapping[str, Role] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "tool": "tool",
    "observation": "tool",
}
OPENAI_ROLES: Mapping[str, Role] = {role: role for role in ROLES}


class RowError(ValueError):
    """What is wrong with a row; the reader adds its place, and raises or notes it."""


def shown(value: Any) -> str:
    """A value for a message: null, or its type and how it begins."""
    if value is None:
        return "null"
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 40 else text[:37] + '...'}"


def sound_text(value: Any, name: str) -> str:
    """Return a text that is one and is not blank. Raises RowError, which calls it `name`."""
    if not isinstance(value, str):
        raise RowError(f"{name} is {shown(value)}, want text")
    if not value.strip():
        raise RowError(f"{name} is empty")
    if has_bad_bytes(value):
        raise RowError(f"{name} holds bytes that are not UTF-8 or half a surrogate pair; no tokenizer can read it")
    return value


def turns_of_messages(
    value: Any,
    key: str,
    roles: Mapping[str, Role] = OPENAI_ROLES,
    role_key: str = "role",
    content_key: str = "content",
) -> tuple[Turn, ...]:
    """Return the turns of a list of messages; their order is not checked yet.

    Args:
        value: as the file has it.
        key: name of the field, for messages.
        roles: the file's names of roles, and ours.
        role_key, content_key: the file's names of the fields of a message.

    Raises:
        RowError: not a list of messages, a missing or unknown role, or an empty turn.
    """
    if not isinstance(value, list):
        raise RowError(f'{key!r} is {shown(value)}, want a list of {{"{role_key}": ..., "{content_key}": ...}}')
    if not value:
        raise RowError(f"{key!r} has no turns")
    return tuple(_turn(message, key, i, roles, role_key, content_key) for i, message in enumerate(value, start=1))


def _turn(message: Any, key: str, number: int, roles: Mapping[str, Role], role_key: str, content_key: str) -> Turn:
    place = f"turn {number} of {key!r}"
    if not isinstance(message, dict):
        raise RowError(f'{place} is {shown(message)}, want {{"{role_key}": ..., "{content_key}": ...}}')
    if message.get(role_key) is None:
        raise RowError(f"{place} has no {role_key!r}, only {', '.join(message) or 'nothing'}")
    name = message[role_key]
    role = roles.get(name) if isinstance(name, str) else None
    if role is None:
        raise RowError(f"{place} has the unknown role {name!r}; known are {', '.join(roles)}")
    if message.get("tool_calls"):
        raise RowError(f"{place} calls tools ('tool_calls'), which is not read; write the call into {content_key!r}")
    if content_key not in message:
        raise RowError(f"{place} ({name}) has no {content_key!r}, only {', '.join(message)}")
    return Turn(role, sound_text(_joined(message[content_key], place), f"{place} ({name})"))


def _joined(content: Any, place: str) -> Any:
    """OpenAI's content in parts, [{"type": "text", "text": ...}], as one text."""
    if not isinstance(content, list):
        return content
    for part in content:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise RowError(f'{place} has a part {shown(part)}; only {{"type": "text", "text": ...}} is read')
    return "".join(part["text"] for part in content)


def check_order(turns: Sequence[Turn], key: str) -> None:
    """Refuse turns whose order no chat can have.

    Args:
        turns: from the first on.
        key: name of the field, for messages.

    Raises:
        RowError: names the turn.
    """
    before: Role | None = None
    for number, turn in enumerate(turns, start=1):
        place = f"turn {number} of {key!r}"
        if turn.role == "system" and number > 1:
            raise RowError(f"{place} is the system's; it can only be the first")
        if turn.role == "assistant" and before in (None, "system"):
            raise RowError(f"{place} is the assistant's, but nobody has asked yet")
        if turn.role == "assistant" and before == "assistant":
            raise RowError(f"{place} is the assistant's like the one before; two in a row cannot be told apart")
        if turn.role == "tool" and before not in ("assistant", "tool"):
            raise RowError(f"{place} is a tool's, but does not follow the assistant's")
        before = turn.role


def check_asks(turns: Sequence[Turn], key: str) -> None:
    """Refuse a prompt that asks nothing: no turns, or the assistant's or the system's turn last.

    Raises:
        RowError: says which.
    """
    check_order(turns, key)
    if not turns:
        raise RowError(f"{key!r} has no turns before the answer")
    if turns[-1].role in ("assistant", "system"):
        raise RowError(f"the prompt in {key!r} ends with the {turns[-1].role}'s turn; nothing is asked")


def split_answer(turns: Sequence[Turn], key: str) -> tuple[tuple[Turn, ...], str]:
    """Return the turns before the last, and the last, which must be the assistant's.

    Raises:
        RowError: it is not, or the order is not sound.
    """
    if turns[-1].role != "assistant":
        raise RowError(f"the last turn of {key!r} is the {turns[-1].role}'s; want the assistant's answer")
    check_order(turns, key)
    check_asks(turns[:-1], key)
    return tuple(turns[:-1]), turns[-1].content
