"""Captions to ids, by the rules of the model that reads them: cleaning, context length, start, end and padding.

The splitting itself is done by `tokenizers` (Rust); how to make one for each family is in `odonata.text.families`.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import tokenizers
import torch
from jaxtyping import Int
from torch import Tensor

from odonata.errors import DataError
from odonata.text.cleaning import Cleaning, clean

_BACKEND, _RULES = "tokenizer.json", "odonata_tokenizer.json"


@dataclass(frozen=True)
class TokenizerRules:
    """What a family does with the ids around the splitting.

    Args:
        cleaning: the family whose cleaning rule applies.
        context_length: ids per caption.
        eos_id: ends every caption, also one that had to be cut.
        pad_id: fills up to the context length.
        bos_id: starts every caption; None where the family has no start.
    """

    cleaning: Cleaning
    context_length: int
    eos_id: int
    pad_id: int
    bos_id: int | None = None


class Tokenizer:
    """Turns captions into ids and back.

    Args:
        backend: splits cleaned text; its own padding, truncation and post-processing are not used.
        rules: the family's rules.

    Raises:
        DataError: the context length leaves no room between start and end.
    """

    def __init__(self, backend: tokenizers.Tokenizer, rules: TokenizerRules) -> None:
        room = rules.context_length - 1 - (rules.bos_id is not None)
        if room < 1:
            raise DataError(f"a context length of {rules.context_length} leaves no room for a word")
        backend.no_padding()
        backend.no_truncation()
        self.rules = rules
        self._backend = backend
        self._room = room

    @property
    def context_length(self) -> int:
        return self.rules.context_length

    @property
    def vocab_size(self) -> int:
        """One more than the largest id: the rows of an embedding table."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    @property
    def bos_id(self) -> int | None:
        return self.rules.bos_id

    @property
    def eos_id(self) -> int:
        return self.rules.eos_id

    @property
    def pad_id(self) -> int:
        return self.rules.pad_id

    def encode(self, texts: Sequence[str]) -> Int[Tensor, "batch context"]:
        """Turn captions into ids, padded to the context length.

        Args:
            texts: captions; one that is empty, or becomes so by cleaning, gives start and end alone.

        Returns:
            int64 ids. A caption that is too long is cut, and its last id is the end id.

        Raises:
            DataError: something is not a string.
        """
        return self._padded(self._rows(texts), self.context_length)

    def encode_trimmed(self, texts: Sequence[str]) -> Int[Tensor, "batch longest"]:
        """Turn captions into ids, padded only to the longest of them.

        For a causal text tower that pools at the end id (CLIP) the embeddings are the same as those of `encode`, and
        cheaper. For a tower that attends to padding or pools the last position (SigLIP) they are not.
        """
        rows = self._rows(texts)
        return self._padded(rows, max((len(row) for row in rows), default=0))

    def decode(self, ids: Int[Tensor, "context"] | Iterable[int]) -> str:
        """Return the text of one caption's ids, without start, padding, and whatever follows the end id."""
        kept: list[int] = []
        for index in cast("list[int]", ids.tolist()) if isinstance(ids, Tensor) else ids:
            if index == self.eos_id:
                break
            if index != self.bos_id:
                kept.append(index)
        while kept and kept[-1] == self.pad_id:
            kept.pop()
        return self._backend.decode(kept).strip()

    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits that differ wherever two tokenizers could give different ids."""
        # A unigram's scores lose their last bits on the way through a file; five digits are told apart.
        backend = json.loads(self._backend.to_str(), parse_float=lambda number: f"{float(number):.5g}")
        written = json.dumps([backend, asdict(self.rules)], sort_keys=True)
        return hashlib.sha256(written.encode()).hexdigest()[:16]

    def save(self, folder: str | Path) -> None:
        """Write ``tokenizer.json`` (which other libraries read) and ``odonata_tokenizer.json`` (the rules)."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _BACKEND).write_text(self._backend.to_str(), encoding="utf-8")
        (folder / _RULES).write_text(json.dumps(asdict(self.rules), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> "Tokenizer":
        """Read what `save` wrote.

        Raises:
            DataError: a file is missing or damaged.
        """
        folder = Path(folder)
        try:
            fields = json.loads((folder / _RULES).read_text(encoding="utf-8"))
            rules = TokenizerRules(**fields)
        except (OSError, TypeError, json.JSONDecodeError) as error:
            raise DataError(f"{folder / _RULES}: cannot be read as a tokenizer's rules: {error}") from error
        return cls(read_backend(folder / _BACKEND), rules)

    def _rows(self, texts: Sequence[str]) -> list[list[int]]:
        if isinstance(texts, str):
            raise DataError("encode takes a list of captions, not one string; write encode([text])")
        for index, text in enumerate(texts):
            if not isinstance(text, str):
                raise DataError(f"caption {index} is {text!r}, a {type(text).__name__}, not a string")
        cleaned = [clean(text, self.rules.cleaning) for text in texts]
        encodings = self._backend.encode_batch(cleaned, add_special_tokens=False)
        start = [] if self.bos_id is None else [self.bos_id]
        # White space alone would become a lone word boundary in some models.
        return [
            [*start, *(encoding.ids[: self._room] if text.strip() else []), self.eos_id]
            for text, encoding in zip(cleaned, encodings, strict=True)
        ]

    def _padded(self, rows: list[list[int]], length: int) -> Tensor:
        ids = torch.full((len(rows), length), self.pad_id, dtype=torch.int64)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = torch.tensor(row)
        return ids


def read_backend(path: str | Path) -> tokenizers.Tokenizer:
    """Read a ``tokenizer.json``.

    Raises:
        DataError: the file is missing or not a tokenizer.
    """
    try:
        return tokenizers.Tokenizer.from_str(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except Exception as error:  # the Rust side raises plain Exception
        raise DataError(f"{path}: not a tokenizer.json: {error}") from error
