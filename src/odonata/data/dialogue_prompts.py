"""Prompts from rows: which strings are a user's turn and which are text as they are.

A string under the key `prompt` is text as it is, as in TRL; a string under any other key (a question, an instruction)
is a turn of the user. `Prompts` changes that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from odonata.data.dialogue_items import Prompt, Turn
from odonata.data.dialogue_turns import SHAREGPT_ROLES, RowError, check_asks, sound_text, turns_of_messages
from odonata.data.hh_transcripts import transcript_of
from odonata.errors import RecipeError

PromptForm = Literal["auto", "chat", "text"]
UNREAD = ("tools", "functions", "history", "images")
"""Fields that change what a conversation means, and that no reader here knows."""


@dataclass(frozen=True)
class Prompts:
    """How prompts are made of rows.

    Args:
        form: "auto": a string under `prompt` is text as it is, everything else goes through the chat template; "chat":
            strings are turns of the user; "text": strings are text as they are.
        template: the text of a prompt with the row's fields in braces, as "Question: {question}\\nAnswer:".
    """

    form: PromptForm = "auto"
    template: str | None = None

    def of_string(self, text: str, fields: Mapping[str, Any], *, chat: bool) -> Prompt:
        """Return the prompt that a string makes; `chat` says what "auto" means for it."""
        if self.template is not None:
            text = sound_text(self._filled(self.template, fields), "the prompt that the template makes")
        if self.form == "text" or (self.form == "auto" and not chat):
            return Prompt(text=text)
        return Prompt(turns=(Turn("user", text),))

    def of_turns(self, turns: tuple[Turn, ...], *, transcript: bool = False) -> Prompt:
        """Return the prompt of a conversation; only transcripts can be written as text without a chat template."""
        if self.template is not None:
            raise RecipeError("a prompt template is for prompts that are strings; these rows are conversations")
        if self.form == "text" and transcript:
            return Prompt(text=transcript_of(turns, ask=True))
        if self.form == "text":
            raise RecipeError("these rows are conversations: they go through the chat template, not as prompts='text'")
        return Prompt(turns=turns)

    @staticmethod
    def _filled(template: str, fields: Mapping[str, Any]) -> str:
        try:
            return template.format_map(fields)
        except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
            have = ", ".join(map(str, fields))
            raise RecipeError(
                f"the prompt template {template!r} does not fit the rows ({type(error).__name__}: {error}); "
                f"they have {have}; braces of your own are written double"
            ) from error


@dataclass(frozen=True)
class Row:
    """One row of a file and how its prompt is to be made."""

    record: Mapping[str, Any]
    where: str
    prompts: Prompts

    def text(self, key: str) -> str:
        """A field that must hold text."""
        if key not in self.record:
            raise RowError(f"{key!r} is missing; the row has {', '.join(map(str, self.record)) or 'no fields'}")
        return sound_text(self.record[key], repr(key))

    def string_prompt(self, key: str) -> Prompt:
        """The prompt that stands as a string under a key."""
        return self.prompts.of_string(self.text(key), self.record, chat=key != "prompt")

    def prompt(self) -> Prompt:
        """What stands under `prompt`: a string or a list of messages."""
        value = self.record["prompt"]
        if not isinstance(value, list):
            return self.string_prompt("prompt")
        turns = turns_of_messages(value, "prompt")
        check_asks(turns, "prompt")
        return self.prompts.of_turns(turns)

    def conversation(self, key: str) -> tuple[Turn, ...]:
        """All turns of a field of messages or ShareGPT's, with a system text that stands beside them."""
        if unread := [name for name in UNREAD if self.record.get(name)]:
            raise RowError(f"{unread[0]!r} is not read; write what it says into {key!r}")
        if key == "conversations":
            turns = turns_of_messages(self.record[key], key, SHAREGPT_ROLES, "from", "value")
        else:
            turns = turns_of_messages(self.record[key], key)
        if self.record.get("system") and turns[0].role != "system":
            turns = (Turn("system", self.text("system")), *turns)
        return turns
