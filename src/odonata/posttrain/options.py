"""Options that the methods of this room share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from odonata.errors import RecipeError
from odonata.language.assets import LoRA
from odonata.posttrain.tasks import TASKS, task_named


@dataclass(frozen=True)
class PolicyOptions:
    """Which model is trained, and how text becomes its tokens."""

    model: str = ""
    """What to begin with: a directory as transformers writes it, or a run. Empty: the small base of a built-in task."""
    task: str = ""
    """A built-in task with its own texts, base and rewards: digits-sum or countdown, with options after a colon."""
    template: str = "auto"
    """How conversations are written: the model's own chat template, or chatml, llama3, plain."""
    lora: LoRA = field(default_factory=LoRA)
    """Train low-rank updates alone; the frozen weights then are the reference as well."""

    def check(self, path: str) -> None:
        """Refuse options that contradict each other.

        Args:
            path: of the data; empty where there are none.

        Raises:
            RecipeError: names them.
        """
        if self.task and path:
            raise RecipeError(
                f"--task {self.task} brings its own texts; it does not go together with --data.path {path}"
            )
        if path and not self.model:
            raise RecipeError("--data.path needs a model to train: name a directory or a run with --model")
        if self.task or not path:
            task_named(self.task or next(iter(TASKS)))
        if self.lora.rank < 0:
            raise RecipeError(f"--lora.rank is {self.lora.rank}; it must be 0 (off) or more")


@dataclass(frozen=True)
class OnlineOptions(PolicyOptions):
    """How a policy answers, and what its answers earn."""

    reward: tuple[str, ...] = ()
    """What is earned: names such as math, format, countdown, code, run:FOLDER of a reward model, or file.py:function.
    Empty: the task's own."""
    reward_weights: tuple[float, ...] = ()
    """Of each reward (empty: 1 each, or the task's own); what weighs 0 is only shown."""
    max_new_tokens: int = 256
    """Of an answer at most; a task's own limit where it is smaller."""
    temperature: float = 1.0
    """By which scores are divided, in sampling and in learning alike."""

    def check(self, path: str) -> None:
        """Refuse options that contradict each other.

        Raises:
            RecipeError: names them.
        """
        super().check(path)
        if self.max_new_tokens < 1:
            raise RecipeError(f"--max-new-tokens is {self.max_new_tokens}; it must be at least 1")
        if self.temperature <= 0:
            raise RecipeError(f"--temperature is {self.temperature}; learning needs chance, so it must be above 0")
        if self.lora.dropout:
            raise RecipeError(
                f"--lora.dropout is {self.lora.dropout}; answers are sampled and learned without dropout: set it 0"
            )
        if self.reward_weights and self.reward and len(self.reward_weights) != len(self.reward):
            raise RecipeError(f"--reward-weights has {len(self.reward_weights)} entries for {len(self.reward)} rewards")


@dataclass(frozen=True)
class DialogueData:
    """Rows of text: where they are and how they are fed."""

    path: str = ""
    """A .jsonl file (also .gz), .json, or a folder of them. Empty: the texts of the task."""
    batch_size: int = 64
    """Rows in a step, all processes together."""
    heldout: float = 0.05
    """Share of the rows that is held back, where the folder's files do not say it (0 = none)."""
    prompts: Literal["auto", "chat", "text"] = "auto"
    """Whether prompts go through the chat template: as the row's form says, always, or never."""
    prompt_template: str = ""
    """Makes the prompt of the row's fields, such as "Question: {question} Answer:" (empty: the field as it is)."""
    limit: int = 0
    """Train on so many rows only, always the same choice (0 = all)."""
    on_error: Literal["stop", "skip"] = "stop"
    """What to do about a row that cannot be used: stop with a message, or leave it out and count it."""
    max_length: int = 1024
    """Tokens of a prompt with its completion at most."""
    too_long: Literal["stop", "skip", "cut"] = "skip"
    """What to do about a longer row: stop with a message, leave it out and count it, or cut the completion's end."""
    workers: int = 0
    """Processes that prepare batches beside each training process."""


@dataclass(frozen=True)
class PromptData(DialogueData):
    """Prompts: where they are and how they are fed."""

    batch_size: int = 16
    """Prompts in a step, all processes together."""
    max_length: int = 1024
    """Tokens of a prompt at most; its answer comes on top."""
    too_long: Literal["stop", "skip"] = "skip"
    """What to do about a longer prompt: stop with a message, or leave it out and count it."""

    def check(self) -> None:
        """Refuse options about files where a built-in task brings the prompts.

        Raises:
            RecipeError: names one.
        """
        about_files = ("heldout", "prompts", "prompt_template", "limit", "on_error", "max_length", "too_long")
        for name in () if self.path else about_files:
            if getattr(self, name) != getattr(PromptData, name):
                raise RecipeError(
                    f"--data.{name.replace('_', '-')} is about files; a built-in task brings its own prompts"
                )


@dataclass(frozen=True)
class NoData:
    """The task brings all texts."""
