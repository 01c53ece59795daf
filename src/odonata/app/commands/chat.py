"""`odonata chat`: a conversation with a language model, on the terminal or through a pipe."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from odonata.app.commands.arguments import parse
from odonata.app.commands.language_models import SpeakingOptions, open_language_model
from odonata.errors import DataError

if TYPE_CHECKING:
    from odonata.language.language_model import LanguageModel
    from odonata.language.sampling import Sampling
    from odonata.text.chat import Message
    from odonata.text.text_tokenizer import TextTokenizer

_HELP = "/reset forgets the conversation, /exit ends it"


@dataclass(frozen=True)
class ChatArguments(SpeakingOptions):
    """Talk with a language model: `odonata chat MODEL`.

    It answers line by line and keeps the conversation. /reset forgets it, /exit or the end of input ends it.
    """

    model: Annotated[Path, tyro.conf.Positional]
    """A run folder, or a directory of published weights."""
    temperature: float = field(default=0.7, kw_only=True)
    """Scores are divided by it; 0 takes the likeliest token."""
    max_new_tokens: int = field(default=512, kw_only=True)
    """Of an answer at most, its end included."""
    system: str = ""
    """What the model is told before the conversation."""


def chat(arguments: Sequence[str]) -> None:
    """Read lines and print answers until there are no more."""
    options = parse(ChatArguments, "chat", arguments)
    sampling = options.sampling()
    model = open_language_model(
        options.model, device=options.device, dtype=options.dtype, which=options.which, template=options.template
    )
    for note in [*model.notes, _HELP]:
        print(f"- {note}", file=sys.stderr)
    told: list[Message] = [{"role": "system", "content": options.system}] if options.system else []
    talk, turn = list(told), 0
    while (line := _line()) is not None:
        if not line.strip():
            continue
        if line.strip() == "/exit":
            return
        if line.strip() == "/reset":
            talk = list(told)
        elif line.strip().startswith("/"):
            print(f"- {line.strip()} is no command: {_HELP}", file=sys.stderr)
        else:
            talk = _answer(model, [*talk, {"role": "user", "content": line}], sampling, options, turn) or talk
            turn += 1


def _line() -> str | None:
    """Return the next line of what a person types, or a program writes; None where there are no more."""
    if sys.stdin.isatty():
        print("> ", end="", flush=True)
    line = sys.stdin.readline()
    return line.rstrip("\r\n") if line else None


def _answer(
    model: LanguageModel, talk: list[Message], sampling: Sampling, options: ChatArguments, turn: int
) -> list[Message] | None:
    """Print an answer as it comes; return the conversation with it, or None if the model cannot take it."""
    voice = Voice(model.tokenizer)
    try:
        [[said]] = model.generate(
            [talk], max_new_tokens=options.max_new_tokens, sampling=sampling, seed=options.seed + turn, heard=voice
        )
    except DataError as error:
        print(f"- {error}; {_HELP}", file=sys.stderr)
        return None
    print(said.text[len(voice.said) :] + ("" if said.finished else " …"), flush=True)
    return [*talk, {"role": "assistant", "content": said.text}]


class Voice:
    """Prints what a completion adds to its text, once the text is sure.

    Args:
        tokenizer: of the model.
    """

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self.tokenizer, self.said = tokenizer, ""

    def __call__(self, ids: Sequence[int]) -> None:
        """Hear the tokens so far."""
        text = self.tokenizer.decode(ids)
        # A character may take several tokens; until its last byte, decoding puts a mark of damage in its place.
        if text.startswith(self.said) and not text.endswith("\ufffd"):
            print(text[len(self.said) :], end="", flush=True)
            self.said = text
