"""The embedded sets of texts by name, with their options: `digits-sum:digits=8,worked=0.15`."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any, Protocol

from odonata.data.countdown_texts import CountdownTexts
from odonata.data.digit_sums import DigitSums
from odonata.errors import DataError


class TextSet(Protocol):
    """Prompts, what may follow them, and what their rewards need to know; text i of a split never changes."""

    @property
    def name(self) -> str:
        """As it is named on the command line."""
        ...

    @property
    def alphabet(self) -> str:
        """The characters of its texts, each once."""
        ...

    @property
    def longest(self) -> int:
        """Characters of a completion at most, the end not counted."""
        ...

    def prompt(self, split: str, index: int) -> str:
        """Return a prompt."""
        ...

    def row(self, split: str, index: int) -> Mapping[str, Any]:
        """Return what a reward needs to know of it."""
        ...

    def text(self, split: str, index: int) -> tuple[str, str]:
        """Return a prompt and what follows it, without the end."""
        ...


SETS = {"digits-sum": DigitSums, "countdown": CountdownTexts}
"""Name → set."""


def is_text_set(path: str) -> bool:
    """Whether a path names an embedded set."""
    return path.partition(":")[0] in SETS


def open_text_set(path: str) -> TextSet:
    """Return an embedded set by name.

    Args:
        path: `digits-sum`, or with options after a colon, `digits-sum:digits=8`.

    Raises:
        DataError: no such set or option.
    """
    name, _, rest = path.partition(":")
    if name not in SETS:
        near = difflib.get_close_matches(name, SETS, 2) or list(SETS)
        raise DataError(f"no embedded set of texts {name!r}; there are {', '.join(near)}")
    kind: Any = SETS[name]
    types = {field.name: type(field.default) for field in dataclasses.fields(kind)}
    options: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        key, _, value = part.partition("=")
        if key not in types:
            raise DataError(f"{path}: {name} has no option {key!r}; it has {', '.join(types)}")
        try:
            options[key] = types[key](value)
        except ValueError as error:
            raise DataError(f"{path}: {key} is {value!r}, which is no {types[key].__name__}") from error
    return kind(**options)
