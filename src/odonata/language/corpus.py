"""Texts as a decoder reads them: windows of files, or prompts and completions of an embedded set, in tokens."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from odonata.data.text_sets import TextSet, is_text_set, open_text_set
from odonata.data.texts import SetTexts, TextData, Texts, Windows, read_texts
from odonata.errors import DataError
from odonata.text.text_tokenizer import TextTokenizer

Pair = tuple[list[int], list[int]]
"""Ids that are given, and ids that are scored."""


@dataclass(frozen=True)
class Corpus:
    """Texts in tokens."""

    train: Any
    """Keyed data set of pairs to train on; None where all is measured."""
    heldout: Sequence[Pair]
    """Pairs to measure on; none where nothing is held back."""
    bytes_per_token: float
    """Of what is measured; 0 where tokens are characters of an embedded set."""
    notes: list[str] = field(default_factory=list[str])


def open_corpus(path: str) -> Texts | TextSet:
    """Return the texts that a path names, before they are cut into tokens.

    Raises:
        DataError: nothing there, or nothing that can be read.
    """
    return open_text_set(path) if is_text_set(path) else read_texts(path)


def divide(read: Texts | TextSet, data: TextData, tokenizer: TextTokenizer, *, seed: int, measured: int) -> Corpus:
    """Return texts to train on, and those held back.

    Args:
        read: of `open_corpus`.
        data: how they are cut.
        tokenizer: text to ids.
        seed: of the windows' places.
        measured: held-back sequences at most.

    Raises:
        DataError: the texts are too short, or the tokenizer cannot read them.
    """
    if not isinstance(read, Texts):
        note = f"data: {read.name}, embedded: a new text for every place of every batch"
        train = SetTexts(read, "train", tokenizer.encode, tokenizer.end())
        return Corpus(train, _of_set(read, tokenizer, measured), 0.0, [note])
    ids = _ids(read, tokenizer)
    kept = round(len(ids) * (1 - data.heldout))
    train = Windows(ids[:kept], data.context, seed)
    if data.batch_size > len(train):
        raise DataError(f"{read.origin}: {len(train)} windows are fewer than a batch of {data.batch_size}")
    heldout = _windows(ids[kept:], data.context, measured) if len(ids) - kept > data.context else []
    held = f"{len(heldout)} of those held back are measured" if heldout else "none is held back"
    note = f"data: {read.origin}: {len(ids):,} tokens, {len(train):,} windows of {data.context}; {held}"
    return Corpus(train, heldout, _density(ids[kept:], tokenizer), [note])


def whole(read: Texts | TextSet, context: int, tokenizer: TextTokenizer, measured: int) -> Corpus:
    """Return all of a file to measure on, or the test part of an embedded set.

    Args:
        read: of `open_corpus`.
        context: tokens of a window of a file.
        tokenizer: text to ids.
        measured: sequences at most.

    Raises:
        DataError: the texts are shorter than a window, or the tokenizer cannot read them.
    """
    if not isinstance(read, Texts):
        return Corpus(None, _of_set(read, tokenizer, measured), 0.0)
    ids = _ids(read, tokenizer)
    return Corpus(None, _windows(ids, min(context, len(ids) - 1), measured), _density(ids, tokenizer))


def _of_set(read: TextSet, tokenizer: TextTokenizer, measured: int) -> list[Pair]:
    texts = SetTexts(read, "test", tokenizer.encode, tokenizer.end())
    return [texts[0, index] for index in range(measured)]


def _windows(ids: Sequence[int], context: int, measured: int) -> list[Pair]:
    windows = Windows(ids, context)
    return [windows[0, index] for index in range(min(measured, len(windows)))]


def _ids(read: Texts, tokenizer: TextTokenizer) -> array[int]:
    """Return all documents in one row, each with its end."""
    ids = array("q")
    for document in read.documents:
        ids.extend(tokenizer.encode(document))
        ids.extend(tokenizer.eos_ids[:1])
    return ids


def _density(ids: Sequence[int], tokenizer: TextTokenizer) -> float:
    return len(tokenizer.decode(ids).encode()) / max(1, len(ids))
