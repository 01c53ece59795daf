"""Prompts to be answered and rewarded: those of a task, or of a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from odonata.data.keys import mix
from odonata.data.loader import Key
from odonata.data.text_sets import TextSet
from odonata.text.text_tokenizer import TextTokenizer


@dataclass(frozen=True)
class PromptItem:
    """One prompt."""

    ids: tuple[int, ...]
    text: str
    row: Mapping[str, Any]
    """What rewards need to know."""
    key: int
    """Tells this visit of this prompt from all others; what is sampled depends on it."""


class Questions(Protocol):
    """Prompts by (epoch, index)."""

    def __len__(self) -> int: ...

    def __getitem__(self, key: Key) -> PromptItem: ...


@dataclass(frozen=True)
class SetQuestions:
    """Prompts of an embedded set, new ones without end.

    Args:
        texts: the set.
        split: which part of it.
        tokenizer: text to ids.
        length: prompts of an epoch.
    """

    texts: TextSet
    split: str
    tokenizer: TextTokenizer
    length: int = 1_000_000

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, key: Key) -> PromptItem:
        epoch, index = key
        place = epoch * self.length + index
        text = self.texts.prompt(self.split, place)
        return PromptItem(
            tuple(self.tokenizer.encode(text)), text, self.texts.row(self.split, place), mix(epoch, index)
        )


@dataclass(frozen=True)
class RowQuestions:
    """Prompts of a file.

    Args:
        rows: ids, text and row of each.
    """

    rows: Sequence[tuple[tuple[int, ...], str, Mapping[str, Any]]]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: Key) -> PromptItem:
        epoch, index = key
        ids, text, row = self.rows[index]
        return PromptItem(ids, text, row, mix(epoch, index))
