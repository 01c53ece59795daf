"""Rows made of a built-in task, for methods that learn from files: what the base itself says, judged by a program.

A base answers prompts several times by chance. Of the answers to a prompt, the first right and the first wrong one make
a pair; or every answer is a judgement of its own. Which answers are right says the task's reward.

Notable:
- The rows are kept in the run's `assets/samples.jsonl`, in a form that `--data.path` reads: one can look at them, and a
  resumed run reads them there instead of asking again.
- Answers that were cut, and those without a character, are left out and counted: a file could not hold them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from odonata.data.dialogues import RIGHT, WRONG, Exchange, Judgement, Preference, Prompt, Read, Steps
from odonata.errors import DataError, RecipeError, RunError
from odonata.language.sampling import Sampling
from odonata.posttrain.questions import SetQuestions
from odonata.posttrain.rewards.interface import Answered
from odonata.posttrain.rewards.marked import MARK
from odonata.posttrain.rewards.names import reward_named
from odonata.posttrain.rollout import Asking
from odonata.posttrain.start import Start
from odonata.posttrain.tasks import Task

FILE = "samples.jsonl"
_PROMPTS_AT_A_TIME = 128

Row = dict[str, Any]


@dataclass(frozen=True)
class Sampled:
    """How many answers of the base are judged, where a built-in task is learned."""

    prompts: int = 512
    """Prompts that the base answers."""
    answers: int = 8
    """To each of them."""
    temperature: float = 1.0
    """By which scores are divided."""

    def check(self, path: str) -> None:
        """Refuse values that no sample can have, and any where rows come from a file.

        Raises:
            RecipeError: names them.
        """
        if path and self != Sampled():
            raise RecipeError(f"--sampled is about built-in tasks; {path} brings its own rows")
        for name, low in (("prompts", 1), ("answers", 2)):
            if getattr(self, name) < low:
                raise RecipeError(f"--sampled.{name} is {getattr(self, name)}; it must be at least {low}")
        if self.temperature <= 0:
            raise RecipeError(f"--sampled.temperature is {self.temperature}; a choice needs chance: above 0")


class Judged(NamedTuple):
    """An answer of the base."""

    prompt: str
    text: str
    right: bool


def judged_answers(start: Start, sampled: Sampled, seed: int, notes: list[str]) -> list[list[Judged]]:
    """Return what the base says to prompts of its task: those usable, of each prompt.

    Args:
        start: a policy before training, of a task.
        sampled: how many.
        seed: of the prompts and of chance.
        notes: gets a line on what was asked, and on what was left out.
    """
    assert start.task is not None
    texts, tokenizer = start.task.texts, start.assets.tokenizer
    asking = Asking(
        tokenizer, [reward_named(start.task.built_in.truth)], [1.0], sampled.answers, texts.longest + 8,
        Sampling(sampled.temperature), seed,
    )  # fmt: skip
    questions = SetQuestions(texts, "train", tokenizer)
    found: list[list[Judged]] = []
    for first in range(0, sampled.prompts, _PROMPTS_AT_A_TIME):
        items = [questions[seed, i] for i in range(first, min(first + _PROMPTS_AT_A_TIME, sampled.prompts))]
        with torch.no_grad():
            said = asking.ask(start.decoder, items)
        whole = zip(said.texts, said.judged.total, said.finished.tolist(), strict=True)
        usable = [
            (text, value) if ended and text.strip() and value is not None else None for text, value, ended in whole
        ]
        for place, item in enumerate(items):
            mine = usable[place * sampled.answers : (place + 1) * sampled.answers]
            found.append([Judged(item.text, known[0], known[1] > 0) for known in mine if known is not None])
    kept = sum(map(len, found))
    right = sum(answer.right for answers in found for answer in answers)
    asked = sampled.prompts * sampled.answers
    notes.append(
        f"{sampled.prompts} prompts of {texts.name}, answered {sampled.answers} times each by the model as it begins: "
        f"{right / max(1, kept):.0%} right, {asked - kept} of {asked} cut or empty and left out"
    )
    return found


def pair_rows(answers: Sequence[Sequence[Judged]]) -> list[Row]:
    """Return a pair of each prompt that has a right and a wrong answer: the first of either."""
    rows: list[Row] = []
    for said in answers:
        right = next((answer for answer in said if answer.right), None)
        wrong = next((answer for answer in said if not answer.right), None)
        if right is not None and wrong is not None:
            rows.append({"prompt": right.prompt, "chosen": right.text, "rejected": wrong.text})
    return rows


def judgement_rows(answers: Sequence[Sequence[Judged]]) -> list[Row]:
    """Return every answer with its judgement."""
    return [{"prompt": a.prompt, "completion": a.text, "label": a.right} for said in answers for a in said]


def worked_rows(task: Task, count: int, seed: int, notes: list[str]) -> list[Row]:
    """Return texts of a task that show their work and come to a right answer.

    Args:
        task: gives texts, and the reward that says which are right.
        count: rows wanted.
        seed: another one takes others.
        notes: gets a line.

    Raises:
        DataError: the task's texts hold next to none.
    """
    reward = reward_named(task.built_in.truth)
    rows: list[Row] = []
    for place in range(100 * count):
        index = seed * 100_000_000 + place
        prompt, text = task.texts.text("train", index)
        answered = Answered(prompt, text, task.texts.row("train", index), True)
        if not text.startswith(MARK) and reward([answered]) == [1.0]:
            rows.append({"prompt": prompt, "completion": text})
        if len(rows) == count:
            notes.append(f"learned of {task.texts.name}: worked texts alone, and only those that come out right")
            return rows
    raise DataError(f"{task.texts.name}: {100 * count} texts hold {len(rows)} that are worked and right, of {count}")


def read_of(rows: Sequence[Row], origin: str) -> Read[Any]:
    """Return rows made here as the readers of files return theirs.

    Raises:
        DataError: there are none.
    """
    if not rows:
        raise DataError(f"{origin}: no prompt got both a right and a wrong answer; take more with --sampled.prompts")
    items: tuple[Any, ...] = tuple(_item(row, f"{FILE}:{number}") for number, row in enumerate(rows, 1))
    return Read(items, (), "sampled", origin)


def _item(row: Row, where: str) -> Preference | Judgement | Exchange | Steps:
    prompt = Prompt(text=row["prompt"])
    if "completions" in row:
        labels = tuple(RIGHT if right else WRONG for right in row["labels"])
        return Steps(prompt, tuple(row["completions"]), labels, where)
    if "chosen" in row:
        return Preference(prompt, row["chosen"], row["rejected"], None, where)
    if "label" in row:
        return Judgement(prompt, row["completion"], row["label"], where)
    return Exchange(prompt, row["completion"], where)


def write_rows(folder: Path, rows: Sequence[Row]) -> None:
    """Write rows into a run's `assets/`."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / FILE).write_text(text, encoding="utf-8")


def read_rows(folder: Path) -> list[Row]:
    """Read what `write_rows` wrote.

    Raises:
        RunError: the file is missing or damaged.
    """
    file = folder / FILE
    try:
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise RunError(f"{file}: the run cannot go on without the rows that it learns from: {error}") from error
