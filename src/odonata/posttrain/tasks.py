"""The built-in tasks: texts, a base that has read them, and rewards that a program computes.

They are made by a rule, as every task whose answers can be checked is, and small enough for the whole line of methods
to run in minutes on a laptop.
"""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass

from odonata.data.text_sets import TextSet, open_text_set
from odonata.errors import RecipeError


@dataclass(frozen=True)
class BuiltIn:
    """What belongs to a task besides its texts."""

    variant: str
    """Size of the base."""
    steps: int
    """Updates that the base is trained for."""
    batch_size: int
    lr: float
    rewards: tuple[str, ...]
    """Names of the rewards."""
    weights: tuple[float, ...]
    parts: int
    """Micro-batches of like lengths, which saves padding where lengths differ much."""
    truth: str
    """The reward that says whether an answer is right; what models are judged by."""


TASKS = {
    "digits-sum": BuiltIn("micro", 4000, 64, 3e-3, ("marked-answer", "marked-format"), (1.0, 0.1), 1, "marked-answer"),
    "countdown": BuiltIn("micro", 3000, 64, 3e-3, ("marked-countdown",), (1.0,), 4, "marked-countdown"),
}
"""Name → task."""


@dataclass(frozen=True)
class Task:
    """A built-in task with its options."""

    texts: TextSet
    built_in: BuiltIn


def task_named(name: str) -> Task:
    """Return a task, `digits-sum` or with options `digits-sum:digits=8`; `base_steps` shortens its base's training.

    Raises:
        RecipeError: no such task.
        DataError: no such option.
    """
    kind, _, rest = name.partition(":")
    if kind not in TASKS:
        near = difflib.get_close_matches(kind, TASKS, 2) or list(TASKS)
        raise RecipeError(f"--task {kind!r} is unknown; there are {', '.join(near)}")
    built_in, kept = TASKS[kind], list[str]()
    for part in filter(None, rest.split(",")):
        key, _, value = part.partition("=")
        if key == "base_steps":
            if not value.isdigit() or int(value) < 1:
                raise RecipeError(f"--task {name}: base_steps is {value!r}; it must be 1 or more")
            built_in = dataclasses.replace(built_in, steps=int(value))
        else:
            kept.append(part)
    return Task(open_text_set(kind + (":" + ",".join(kept) if kept else "")), built_in)
