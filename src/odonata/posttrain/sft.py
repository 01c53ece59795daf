"""Supervised fine-tuning: the next token of answers that people, or better models, gave.

The loss is that of any language model, cross-entropy of each token; only what stands in the answers counts, their end
tokens included, and prompts are given. So there is no network and no loss of its own here, only what is learned of a
row.

Notable:
- A conversation teaches its last answer, or all of the assistant's (`--learn all`). For the latter all answers stand in
  one sequence, each behind exactly the words that it would follow in use. That holds where the chat template writes the
  beginning of a conversation alike whether or not it goes on; some drop earlier thoughts, and are refused by name.
- The end token that the template puts behind an answer is learned, what follows it up to the next turn is not.
- The loss is the mean over the tokens of the whole batch, of all ranks and micro-batches, as in `NextToken`.

References: Ouyang et al. 2022, arXiv:2203.02155, step 1. Packing and loss on prompts are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

from odonata.data.dialogues import Exchange, Turn
from odonata.errors import DataError, RecipeError
from odonata.language.sequences import Sequences
from odonata.posttrain.options import PolicyOptions
from odonata.posttrain.rows import Encoder


@dataclass(frozen=True)
class SFTOptions(PolicyOptions):
    """What is learned from examples."""

    learn: Literal["last", "all"] = "last"
    """Of a conversation: the assistant's last answer, or all of them."""
    examples: int = 4096
    """Texts of a built-in task that are learned: worked ones that come out right."""

    def check(self, path: str) -> None:
        """Refuse options that contradict each other.

        Raises:
            RecipeError: names them.
        """
        super().check(path)
        if path and self.examples != SFTOptions.examples:
            raise RecipeError(f"--examples is about built-in tasks; {path} brings its own rows (--data.limit)")
        if self.examples < 1:
            raise RecipeError(f"--examples is {self.examples}; it must be at least 1")
        if not path and self.learn != "last":
            raise RecipeError(f"--learn {self.learn} is about conversations; the texts of a task are none")


class LearnedRow(NamedTuple):
    """Ids, and which of them are learned."""

    ids: tuple[int, ...]
    scored: tuple[bool, ...]

    def cut(self, most: int) -> LearnedRow | None:
        """Return the first ids; None where none of them is learned."""
        shorter = LearnedRow(self.ids[:most], self.scored[:most])
        return shorter if any(shorter.scored) else None


@dataclass(frozen=True)
class PadLearned:
    """Makes a batch of rows."""

    pad_id: int

    def __call__(self, rows: Sequence[LearnedRow]) -> Sequences:
        """Return the batch."""
        longest = max(len(row.ids) for row in rows)
        ids = torch.full((len(rows), longest), self.pad_id)
        scored = torch.zeros(len(rows), longest, dtype=torch.bool)
        for place, row in enumerate(rows):
            ids[place, : len(row.ids)] = torch.tensor(row.ids)
            scored[place, : len(row.ids)] = torch.tensor(row.scored)
        return Sequences(ids, scored)


@dataclass(frozen=True)
class ExchangeEncoder:
    """Examples to ids.

    Args:
        encoder: of prompts and answers.
        learn: which answers of a conversation count.
    """

    encoder: Encoder
    learn: Literal["last", "all"] = "last"

    def __call__(self, item: Exchange) -> LearnedRow:
        """Return an example as ids.

        Raises:
            DataError: the template cannot write it so that what is learned is what would be said.
        """
        if self.learn == "all" and sum(turn.role == "assistant" for turn in item.turns) > 1:
            return self._all_answers(item.turns)
        prompt, completion = self.encoder.prompt(item.prompt), self.encoder.completion(item.prompt, item.completion)
        return LearnedRow((*prompt, *completion), (False,) * len(prompt) + (True,) * len(completion))

    def _all_answers(self, turns: Sequence[Turn]) -> LearnedRow:
        tokenizer = self.encoder.tokenizer
        whole = self._written(turns, asks=False)
        answers = [place for place, turn in enumerate(turns) if turn.role == "assistant"]
        begins, ends = [0], [0]
        for place in answers:
            before, after = self._written(turns[:place], asks=True), self._written(turns[: place + 1], asks=False)
            if not (whole.startswith(before) and whole.startswith(after)):
                raise DataError(
                    f"{self._template()} writes the beginning of this conversation otherwise once it goes on (turn "
                    f"{place + 1}), so not all answers can be learned in one sequence; use --learn last, or --template "
                    "chatml, llama3 or plain"
                )
            begins.append(len(before))
            ends.append(len(after))
        ids = tokenizer.encode(whole[: begins[1]])
        scored = [False] * len(ids)
        for number in range(1, len(begins)):
            last = number == len(answers)
            # Up to where the next answer begins: an end token parts what is learned from what is given next.
            told = tokenizer.encode(whole[begins[number] : None if last else begins[number + 1]])
            stop = next((i + 1 for i, token in enumerate(told) if token in tokenizer.eos_ids), 0)
            if last:
                told = told[:stop] if stop else [*told, tokenizer.end()]
                stop = len(told)
            elif not any(
                token in tokenizer.eos_ids for token in tokenizer.encode(whole[begins[number] : ends[number]])
            ):
                raise DataError(
                    f"{self._template()} writes no end token behind the assistant's turn {answers[number - 1] + 1}, "
                    "so a model would not learn to end there; use --learn last, or --template chatml, llama3 or plain"
                )
            ids += told
            scored += [True] * stop + [False] * (len(told) - stop)
        return LearnedRow(tuple(ids), tuple(scored))

    def _written(self, turns: Sequence[Turn], asks: bool) -> str:
        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        return self.encoder.tokenizer.chat(messages, self.encoder.template, add_generation_prompt=asks)

    def _template(self) -> str:
        chosen, own = self.encoder.template, self.encoder.tokenizer.template is not None
        if chosen != "auto":
            return f"the chat template {chosen}"
        return "the model's own chat template" if own else "the chat template plain"
