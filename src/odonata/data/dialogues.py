"""Readers of text data: chats, preferences, judgements, judged steps and questions, from files of rows.

    read = read_preferences("hh-rlhf/harmless-base.jsonl.gz", on_error="skip")
    train, heldout = split_heldout(read, count=200)

Notable: the format is found by the fields of the first row and is the same for all; a row that cannot be used stops the
reading with its file and line, or is left out and listed, as the user says. Rows are held out by their prompts.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

from odonata.data.dialogue_formats import Format, Kind, format_of, formats_with
from odonata.data.dialogue_items import (
    NEUTRAL,
    RIGHT,
    WRONG,
    Exchange,
    Item,
    ItemT,
    Judgement,
    Preference,
    Prompt,
    Question,
    Read,
    Steps,
    Turn,
    content,
)
from odonata.data.dialogue_prompts import PromptForm, Prompts, Row
from odonata.data.dialogue_turns import RowError
from odonata.data.records import read_records, record_files
from odonata.errors import DataError, RecipeError

__all__ = [
    "NEUTRAL", "RIGHT", "WRONG", "Exchange", "Item", "Judgement", "OnError", "Preference", "Prompt", "Question", "Read",
    "Steps", "Turn", "content", "read_exchanges", "read_judgements", "read_preferences", "read_questions", "read_steps",
    "split_heldout",
]  # fmt: skip

OnError = Literal["stop", "skip"]
_PARTS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev", "heldout"), "validation"),
    **dict.fromkeys(("test", "eval"), "test"),
}


def read_exchanges(
    path: str | Path, *, on_error: OnError = "stop", prompts: PromptForm = "auto", template: str | None = None
) -> Read[Exchange]:
    """Read prompts with the completions to learn (supervised fine-tuning).

    Args:
        path: a file of rows, or a folder of such files of one format; see `docs/dialogues.md`.
        on_error: "stop" at a bad row, or "skip" and list it.
        prompts: "auto": a string under `prompt` is text as it is, all else goes through the chat template; "chat":
            strings are turns of the user; "text": strings are text as they are.
        template: makes the prompt of the row's fields, "Question: {question}\\nAnswer:"; None: the field as it is.

    Raises:
        DataError: a bad row ("file:line: what"), no usable row, or rows of which no exchanges can be made.
        RecipeError: an option that does not fit the rows.
    """
    return _read(Path(path), "exchanges", on_error, Prompts(prompts, template))


def read_preferences(
    path: str | Path, *, on_error: OnError = "stop", prompts: PromptForm = "auto", template: str | None = None
) -> Read[Preference]:
    """Read pairs of a better and a worse completion. Arguments and errors as of `read_exchanges`.

    Transcripts as hh-rlhf writes them become text with `prompts="text"`, and turns otherwise.
    """
    return _read(Path(path), "preferences", on_error, Prompts(prompts, template))


def read_judgements(
    path: str | Path, *, on_error: OnError = "stop", prompts: PromptForm = "auto", template: str | None = None
) -> Read[Judgement]:
    """Read completions that are wanted or not; a preference gives two. Arguments and errors as of `read_exchanges`."""
    return _read(Path(path), "judgements", on_error, Prompts(prompts, template))


def read_steps(
    path: str | Path,
    *,
    on_error: OnError = "stop",
    prompts: PromptForm = "auto",
    template: str | None = None,
    zero: Literal["neutral", "wrong"] | None = None,
) -> Read[Steps]:
    """Read solutions whose steps are judged. Arguments and errors as of `read_exchanges`, and:

    Args:
        zero: what the label 0 means. Must be said where the labels are 0 and 1 only, since both are common.

    Raises:
        DataError: labels of 0 and 1, and `zero` is not said.
        RecipeError: `zero` is said of rows whose labels are not numbers.
    """
    read: Read[Steps] = _read(Path(path), "steps", on_error, Prompts(prompts, template))
    labels = {label for item in read.items for label in item.labels}
    if zero is not None and (read.kind != "steps" or NEUTRAL not in labels):
        raise RecipeError(f"zero={zero!r} says what the label 0 means, but {read.origin} has no such labels")
    if zero is None and NEUTRAL in labels and WRONG not in labels:
        raise DataError(
            f"{read.origin}: the labels of steps are 0 and 1; say whether 0 means zero='wrong' or 'neutral'"
        )
    if zero == "wrong":
        items = [replace(item, labels=tuple(label or WRONG for label in item.labels)) for item in read.items]
        return replace(read, items=tuple(items))
    return read


def read_questions(
    path: str | Path, *, on_error: OnError = "stop", prompts: PromptForm = "auto", template: str | None = None
) -> Read[Question]:
    """Read prompts with what rewards need to judge an answer. Arguments and errors as of `read_exchanges`.

    Of chats and preferences the prompts are read, for rewards that a model gives.
    """
    return _read(Path(path), "questions", on_error, Prompts(prompts, template))


def split_heldout(
    read: Read[ItemT], *, share: float | None = None, count: int | None = None, seed: int = 0
) -> tuple[Read[ItemT], Read[ItemT]]:
    """Return what is trained on and what is held out.

    Prompts are drawn by a hash of what they say, all rows of one together, so that no prompt stands in both parts and
    rows added later move few of the others.

    Args:
        read: from one of the readers.
        share: held out, of the items, in (0, 1).
        count: items held out at least (rows of one prompt stay together). Neither: the folder's files say it by their
            names, train.jsonl and validation.jsonl (or, where there is none, test.jsonl), and are taken as they are.
        seed: another one holds out others.

    Raises:
        RecipeError: both, or neither where the files do not say it, or either where they do.
        DataError: one part would be empty, or a file of a folder with parts belongs to none.
    """
    named = "train" in read.parts and not {"validation", "test"}.isdisjoint(read.parts)
    if share is not None and count is not None:
        raise RecipeError("name a share or a count to hold out, not both")
    if share is None and count is None:
        if not named:
            raise RecipeError(f"{read.origin}: name a share or a count to hold out; no files are called train and test")
        return _named_parts(read)
    if named:
        raise RecipeError(
            f"{read.origin}: its files say what is held out ({', '.join(sorted(set(read.parts)))}); "
            "leave share and count away, or name one of the files"
        )
    if share is not None and not 0 < share < 1:
        raise RecipeError(f"the share to hold out is {share}; it must be between 0 and 1")
    wanted = count if count is not None else max(1, round((share or 0) * len(read)))
    if wanted < 1:
        raise RecipeError(f"the count to hold out is {wanted}; it must be at least 1")
    groups: dict[str, list[int]] = {}
    for number, item in enumerate(read.items):
        groups.setdefault(content(item.prompt), []).append(number)
    held: set[int] = set()
    for key in sorted(groups, key=lambda key: hashlib.sha256(f"{seed} {key}".encode(errors="surrogatepass")).digest()):
        if len(held) >= wanted:
            break
        held.update(groups[key])
    if len(held) >= len(read):
        raise DataError(f"{read.origin}: holding out {wanted} of {len(read)} rows ({len(groups)} prompts) leaves none")
    numbers = range(len(read))
    return read.choose([i for i in numbers if i not in held]), read.choose([i for i in numbers if i in held])


def _named_parts(read: Read[ItemT]) -> tuple[Read[ItemT], Read[ItemT]]:
    if "" in read.parts:
        place = read.items[read.parts.index("")].where
        raise DataError(f"{place}: the file's name begins with neither train nor validation nor test, as others do")
    name = "validation" if "validation" in read.parts else "test"
    train, heldout = ([i for i, part in enumerate(read.parts) if part == wanted] for wanted in ("train", name))
    return read.choose(train), read.choose(heldout)


# ---- reading ---------------------------------------------------------------------------------------------------------


@dataclass
class _Reading:
    """What is known while the rows of a file or folder are read."""

    origin: Path
    kind: Kind
    on_error: OnError
    prompts: Prompts
    problems: list[str] = field(default_factory=list[str])
    first: tuple[Format, str] | None = None

    def report(self, where: str, what: str) -> None:
        if self.on_error == "stop":
            raise DataError(f"{where}: {what}")
        self.problems.append(f"{where}: {what}")

    def items(self, record: Mapping[str, Any], where: str) -> list[Item]:
        """What a row says. Raises RowError where it is bad, DataError where the whole file is another."""
        format = format_of(record)
        if self.first is None:
            if format is None:
                have = ", ".join(map(str, record)) or "no fields"
                raise RowError(f"the row has {have}; {self.kind} are read from {formats_with(self.kind)}")
            if self.kind not in format.readers:
                raise DataError(
                    f"{where}: a row of the format {format.name} ({', '.join(format.fields)}) gives "
                    f"{' or '.join(format.readers)}, not {self.kind}; these are read from {formats_with(self.kind)}"
                )
            self.first = format, where
        expected, place = self.first
        reader = expected.readers[self.kind]
        if format is None or format.readers.get(self.kind) is not reader:
            lacks = expected.lacks(record)
            other = f"the row is of the format {format.name}" if format is not None else "the row is of no known format"
            raise RowError(f"{lacks or other}; the first row ({place}) is of the format {expected.name}")
        return reader(Row(record, where, self.prompts))


def _read(path: Path, kind: Kind, on_error: OnError, prompts: Prompts) -> Read[Any]:
    if on_error not in ("stop", "skip"):
        raise RecipeError(f"on_error is {on_error!r}; it must be 'stop' or 'skip'")
    if prompts.form not in ("auto", "chat", "text"):
        raise RecipeError(f"prompts is {prompts.form!r}; it must be 'auto', 'chat' or 'text'")
    reading = _Reading(path, kind, on_error, prompts)
    items, parts = list[Item](), list[str]()
    for file in record_files(path):
        for where, record in read_records(file, reading.report):
            try:
                found = reading.items(record, where)
            except RowError as error:
                reading.report(where, str(error))
                continue
            items += found
            parts += [_part(file)] * len(found)
    if not items:
        first = f"; {len(reading.problems)} bad rows, the first: {reading.problems[0]}" if reading.problems else ""
        raise DataError(f"{path}: no usable row{first or '; it is empty'}")
    format, _ = cast("tuple[Format, str]", reading.first)
    parts_said = tuple(parts) if path.is_dir() else ()
    return Read[Any](cast("tuple[Any, ...]", tuple(items)), tuple(reading.problems), format.name, str(path), parts_said)


def _part(file: Path) -> str:
    """The part that a file's name begins with: train-00000-of-00002.parquet is of "train"."""
    return _PARTS.get(re.split(r"[-_.]", file.name.lower())[0], "")
