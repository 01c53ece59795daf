"""Rows of text files as tokens: which are given, which are learned, and what does not fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, TypeVar

from odonata.data.dialogues import Prompt, Read, split_heldout
from odonata.errors import DataError
from odonata.posttrain.options import DialogueData
from odonata.text.text_tokenizer import TextTokenizer

Reader = Callable[..., Read[Any]]
Encoded = TypeVar("Encoded")


@dataclass(frozen=True)
class Encoder:
    """Prompts and completions to ids.

    Args:
        tokenizer: of the model.
        template: the chat template, or `auto`.
    """

    tokenizer: TextTokenizer
    template: str = "auto"

    def prompt(self, prompt: Prompt) -> list[int]:
        """Return the ids of a prompt: text as it stands, turns through the template up to the assistant's.

        Raises:
            DataError: it has no token, or the template refuses it.
        """
        if prompt.turns:
            ids = self.tokenizer.encode(self.tokenizer.chat(_messages(prompt), self.template))
        else:
            ids = self.tokenizer.encode(prompt.text, special=True)
            # A text is gone on from: an end that the tokenizer adds of its own would stand in between.
            while ids and ids[-1] in self.tokenizer.eos_ids and self.tokenizer.encode(prompt.text)[-1:] != ids[-1:]:
                ids = ids[:-1]
        if not ids:
            raise DataError("the prompt has no token; give the model something to go on from")
        return ids

    def completion(self, prompt: Prompt, text: str) -> list[int]:
        """Return the ids of a completion up to its end token.

        Raises:
            DataError: the template writes the turns before an answer otherwise once there is one.
        """
        if not prompt.turns:
            return [*self.tokenizer.encode(text), self.tokenizer.end()]
        before = self.tokenizer.chat(_messages(prompt), self.template)
        answer = {"role": "assistant", "content": text}
        whole = self.tokenizer.chat([*_messages(prompt), answer], self.template, add_generation_prompt=False)
        if not whole.startswith(before):
            raise DataError(
                "the chat template writes this conversation otherwise once it is answered, so what is learned is not "
                "what would be said; use --template chatml, llama3 or plain"
            )
        ids = self.tokenizer.encode(whole[len(before) :])
        first = next((place for place, token in enumerate(ids) if token in self.tokenizer.eos_ids), None)
        return [*ids, self.tokenizer.end()] if first is None else ids[: first + 1]

    def text(self, prompt: Prompt) -> str:
        """Return a prompt as rewards and people see it."""
        return self.tokenizer.chat(_messages(prompt), self.template) if prompt.turns else prompt.text


def _messages(prompt: Prompt) -> list[dict[str, str]]:
    return [{"role": turn.role, "content": turn.content} for turn in prompt.turns]


@dataclass
class Parts:
    """What was read: to train on, and held back."""

    train: Read[Any]
    heldout: Read[Any] | None
    notes: list[str]


def read_parts(reader: Reader, data: DialogueData, seed: int, **options: Any) -> Parts:
    """Read rows and hold some back, by prompt.

    Raises:
        DataError: a row cannot be used (or, where bad ones are skipped, none can).
    """
    read = reader(
        data.path, on_error=data.on_error, prompts=data.prompts, template=data.prompt_template or None, **options
    )
    named = "train" in read.parts and not {"validation", "test"}.isdisjoint(read.parts)
    if not data.heldout and not named:
        train, heldout = read, None
    else:
        train, heldout = split_heldout(read, share=None if named else data.heldout, seed=seed)
    if data.limit and data.limit < len(train):
        train = train.choose(sorted(Random(0).sample(range(len(train)), data.limit)))
    held = f"{len(heldout)} held back" if heldout is not None else "none held back"
    notes = [f"data: {read.origin} ({read.kind}): {len(train)} rows to train on, {held}"]
    if read.problems:
        notes.append(f"left out {len(read.problems)} bad rows, first: {read.problems[0]}")
    return Parts(train, heldout, notes)


def encoded(
    items: Sequence[Any],
    encode: Callable[[Any], Encoded],
    length: Callable[[Encoded], int],
    cut: Callable[[Encoded, int], Encoded | None],
    data: DialogueData,
    notes: list[str],
    least: int = 1,
) -> list[Encoded]:
    """Return rows as tokens; those that are too long are treated as the options say, and counted.

    Args:
        items: rows, each with `where`.
        encode: row to tokens.
        length: tokens of a row.
        cut: a row at most so long; None where nothing to learn is left.
        data: the options.
        notes: gets a line for what was left out or cut.
        least: rows that must be left.

    Raises:
        DataError: a row cannot be encoded and `on_error` is "stop", or is too long and `too_long` is "stop"; names its
            place.
    """
    kept: list[Encoded] = []
    long: list[str] = []
    bad: list[str] = []
    for item in items:
        try:
            row = encode(item)
        except DataError as error:
            if data.on_error == "stop":
                raise DataError(f"{item.where}: {error}") from error
            bad.append(f"{item.where}: {error}")
            continue
        tokens = length(row)
        if tokens <= data.max_length:
            kept.append(row)
            continue
        long.append(item.where)
        if data.too_long == "stop":
            raise DataError(
                f"{item.where}: {tokens} tokens are more than --data.max-length {data.max_length}; raise it, or set "
                "--data.too-long skip or cut"
            )
        shorter = cut(row, data.max_length) if data.too_long == "cut" else None
        kept += [shorter] if shorter is not None else []
    if long:
        what = "cut" if data.too_long == "cut" else "left out"
        notes.append(f"{what} {len(long)} rows of more than {data.max_length} tokens, first: {long[0]}")
    if bad:
        notes.append(f"left out {len(bad)} rows that cannot be encoded, first: {bad[0]}")
    if len(kept) < least and bad:
        raise DataError(f"{data.path or 'the task'}: no row can be used; the first: {bad[0]}")
    if len(kept) < least:
        raise DataError(f"{data.path or 'the task'}: no row has at most {data.max_length} tokens (--data.max-length)")
    return kept


Pair = tuple[tuple[int, ...], tuple[int, ...]]
"""Ids of a prompt, and of a completion."""


def pair_length(pair: Pair) -> int:
    """Return the tokens of prompt and completion."""
    return len(pair[0]) + len(pair[1])


def cut_pair(pair: Pair, most: int) -> Pair | None:
    """Return a pair whose completion ends at the limit; None where the prompt fills it."""
    room = most - len(pair[0])
    return (pair[0], pair[1][:room]) if room > 0 else None
