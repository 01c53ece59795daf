"""Plain texts to learn to write from: files cut into windows, and the embedded sets.

Notable: which windows are held back is decided by place, the last part of the texts, so that no word of a held-back
window was trained on.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import lzma
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from odonata.data.keys import mix
from odonata.data.loader import Key
from odonata.data.records import has_bad_bytes
from odonata.data.text_sets import TextSet, is_text_set
from odonata.errors import DataError, RecipeError


@dataclass(frozen=True)
class TextData:
    """Texts: where they are and how they are fed."""

    path: str = "digits-sum"
    """A .txt or .md file (also .gz, .xz), a .jsonl with "text" in each row, a folder of them; or an embedded set:
    "digits-sum", "countdown", with options, "digits-sum:digits=8,worked=0.15"."""
    context: int = 128
    """Tokens of a window of a file. The embedded sets' texts are as long as they are."""
    batch_size: int = 64
    """Sequences in a step, all processes together."""
    heldout: float = 0.05
    """Share of a file's end that is held back."""
    workers: int = 0
    """Processes that prepare batches beside each training process."""

    def check(self) -> None:
        """Refuse values out of their range, and those that an embedded set would not use.

        Raises:
            RecipeError: names the option.
        """
        if self.context < 1:
            raise RecipeError(f"--data.context is {self.context}; it must be at least 1")
        if not 0 <= self.heldout < 1:
            raise RecipeError(f"--data.heldout is {self.heldout}; it lies in [0, 1)")
        if is_text_set(self.path):
            for name in ("context", "heldout"):
                if getattr(self, name) != getattr(TextData, name):
                    raise RecipeError(f"--data.{name} is for files: the texts of {self.path} have their own ends")


@dataclass
class Texts:
    """What was read of files."""

    documents: list[str]
    origin: str
    """As it was named."""

    def fingerprint(self) -> str:
        """Return what changes when the texts do."""
        digest = hashlib.sha256()
        for document in self.documents:
            digest.update(document.encode() + b"\0")
        return digest.hexdigest()


def read_texts(path: str | Path) -> Texts:
    """Return the documents of a file, or of all files of a folder, in order of name.

    Raises:
        DataError: nothing there, no text in it, or a row without a text; names file and line.
    """
    place = Path(path).expanduser()
    if not place.exists():
        raise DataError(f"{path}: no such file, folder or embedded set of texts")
    files = sorted(p for p in place.rglob("*") if p.is_file()) if place.is_dir() else [place]
    documents = [text for file in files for text in _documents(file) if text.strip()]
    if not documents:
        raise DataError(f"{path}: there is no text in it; known are .txt, .md and .jsonl, also as .gz and .xz")
    return Texts(documents, str(path))


def _documents(file: Path) -> list[str]:
    suffixes = [suffix.lower() for suffix in file.suffixes]
    kind = next((suffix for suffix in reversed(suffixes) if suffix not in (".gz", ".xz")), "")
    if kind not in (".txt", ".jsonl", ".md"):
        return []
    openers: dict[str, Callable[..., object]] = {".gz": gzip.open, ".xz": lzma.open}
    opener = openers.get(suffixes[-1], open)
    try:
        with opener(file, "rt", encoding="utf-8-sig") as stream:  # pyright: ignore[reportGeneralTypeIssues]
            text = str(stream.read())
    except (OSError, EOFError, UnicodeDecodeError, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"{file}: cannot be read as text: {error}") from error
    if kind != ".jsonl":
        return [text]
    # Not splitlines(): a text may hold separators of lines other than this one.
    return [_text_of(line, f"{file}:{number}") for number, line in enumerate(text.split("\n"), 1) if line.strip()]


def _text_of(line: str, where: str) -> str:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not JSON: {error}") from error
    if not isinstance(row, dict) or not isinstance(row.get("text"), str):
        raise DataError(f'{where}: want a row {{"text": "…"}}')
    if has_bad_bytes(row["text"]):
        raise DataError(f"{where}: the text holds half a surrogate pair, which no bytes can be written for")
    return row["text"]


@dataclass(frozen=True)
class Windows:
    """One long row of tokens in windows; each epoch but the first begins them at another place.

    Args:
        ids: all tokens.
        context: tokens of a window.
        seed: of the places.

    Raises:
        DataError: there is not one window.
    """

    ids: Sequence[int]
    context: int
    seed: int = 0

    def __post_init__(self) -> None:
        if len(self.ids) < self.context + 1:
            raise DataError(f"{len(self.ids)} tokens of text are fewer than a window of --data.context {self.context}")

    def __len__(self) -> int:
        return (len(self.ids) - 1) // self.context

    def __getitem__(self, key: Key) -> tuple[list[int], list[int]]:
        """Return the first token of a window, and those that follow it."""
        epoch, index = key
        moved = mix(self.seed, epoch, 21) % self.context if epoch else 0
        start = min(index * self.context + moved, len(self.ids) - 1 - self.context)
        window = list(self.ids[start : start + self.context + 1])
        return window[:1], window[1:]


@dataclass(frozen=True)
class SetTexts:
    """Texts of an embedded set, a new one for every key, as prompt and completion in tokens.

    Args:
        texts: the set.
        split: which part of it.
        encode: text to ids.
        end: the token that ends a completion.
        length: texts of an epoch.
    """

    texts: TextSet
    split: str
    encode: Callable[[str], list[int]]
    end: int
    length: int = 1_000_000

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, key: Key) -> tuple[list[int], list[int]]:
        """Return the ids of a prompt, and of what follows it."""
        epoch, index = key
        prompt, completion = self.texts.text(self.split, epoch * self.length + index)
        return self.encode(prompt), [*self.encode(completion), self.end]
