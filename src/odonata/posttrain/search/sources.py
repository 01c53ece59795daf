"""Where questions come from: a file of rows, or a built-in task; and what follows from that for a search."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from odonata.data.dialogue_prompts import PromptForm
from odonata.data.dialogues import OnError, Prompt, Question, read_questions
from odonata.data.text_sets import is_text_set
from odonata.errors import DataError, RecipeError
from odonata.posttrain.rewards.names import reward_named
from odonata.posttrain.search.asked import truth_for
from odonata.posttrain.search.step_beam import StepEnd
from odonata.posttrain.tasks import task_named

STEPS = {"digits-sum": StepEnd("", 1), "countdown": StepEnd(";", 32)}
"""Built-in task → where a step of its texts ends: after a character, or with an attempt."""
MAX_NEW_TOKENS = 512
"""Of an answer to a question of a file."""


@dataclass(frozen=True)
class Source:
    """Questions, and what a search of their answers takes from them where nothing else is said."""

    questions: tuple[Question, ...]
    reward: str
    """The name of what says whether an answer is right."""
    step: StepEnd
    max_new_tokens: int
    notes: tuple[str, ...] = ()


def open_source(
    path: str,
    *,
    count: int = 256,
    reward: str = "",
    on_error: OnError = "stop",
    prompts: PromptForm | None = None,
    template: str = "",
) -> Source:
    """Return questions of a file, or of a built-in task's split `val`.

    Args:
        path: a file that `read_questions` reads, or `digits-sum`, `countdown`, with options after a colon.
        count: questions at most, the first ones.
        reward: what says whether an answer is right; empty: the task's, or the one that fits a file's rows.
        on_error, prompts, template: as of `read_questions`; of files only.

    Raises:
        DataError: the file cannot be used.
        RecipeError: an option that does not fit, or rows that do not say which answers are right.
    """
    if count < 1:
        raise RecipeError(f"--prompts is {count}; it must be at least 1")
    if is_text_set(path):
        return _of_task(path, count, reward, prompts, template, on_error)
    if not Path(path).exists():
        raise DataError(f"{path}: no such file of questions, nor a built-in task ({', '.join(STEPS)})")
    read = read_questions(path, on_error=on_error, prompts=prompts or "auto", template=template or None)
    notes = [f"questions: {min(count, len(read))} of {len(read)} from {read.origin} ({read.kind})"]
    if read.problems:
        notes.append(f"left out {len(read.problems)} bad rows, first: {read.problems[0]}")
    questions = read.items[:count]
    name = reward or truth_for(questions[0])
    reward_named(name)  # a mistyped one is reported before anything is generated
    return Source(questions, name, StepEnd(), MAX_NEW_TOKENS, tuple(notes))


def _of_task(
    name: str, count: int, reward: str, prompts: PromptForm | None, template: str, on_error: OnError
) -> Source:
    for option, given in (("--prompt-form", prompts is not None), ("--prompt-template", bool(template)),
                          ("--on-error", on_error != "stop")):  # fmt: skip
        if given:
            raise RecipeError(f"{option} is about files; the built-in task {name} brings its own prompts")
    task = task_named(name)
    texts = task.texts
    questions = tuple(
        Question(Prompt(text=texts.prompt("val", i)), texts.row("val", i), f"{texts.name}, prompt {i}")
        for i in range(count)
    )
    truth = reward or task.built_in.truth
    note = f"questions: {count} of {texts.name}, embedded, of its split val"
    reward_named(truth)
    return Source(questions, truth, STEPS[name.partition(":")[0]], texts.longest + 8, (note,))
