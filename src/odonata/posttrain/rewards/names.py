"""Rewards by name: `math`, `format:PATTERN`, `length:2000:500`, `my_rewards.py:polite`. Imports only what is named."""

from __future__ import annotations

import difflib
from importlib import import_module

from odonata.errors import RecipeError
from odonata.posttrain.rewards.interface import Reward

NAMES = {
    "math": "1 if the answer equals the row's `answer`, also as a symbolic expression",
    "math-exact": "1 if the answer is the row's `answer` letter by letter, but for spaces and case",
    "format": "1 for <think>…</think><answer>…</answer>; format:PATTERN: 1 if your regular expression matches it",
    "countdown": "1 if the expression reaches the row's `target` with each of its `numbers` once",
    "code": "1 if the program passes all unit tests of the row's `problem` or `tests`, in the sandbox",
    "code-fraction": "the share of those tests that pass: to look at, not to train on",
    "expression": "1 if the program of the small array language passes all tests of the row's `problem` or `tests`",
    "expression-fraction": "the share of those tests that pass",
    "marked-answer": "1 if what stands behind # is the row's `answer`: digits-sum",
    "marked-format": "1 for digits, # and one digit: digits-sum",
    "marked-countdown": "1 if the expression behind # reaches the row's `target` with its `numbers`: countdown",
    "length": "-1 if the completion was cut at the limit; length:LIMIT:MARGIN: DAPO's ramp, in characters",
}
"""What each name earns, for the help and for messages."""

CLASSES = {
    "math": "math:MathReward",
    "math-exact": "math:ExactReward",
    "format": "format:FormatReward",
    "countdown": "countdown:CountdownReward",
    "code": "code:CodeReward",
    "code-fraction": "code:CodeFractionReward",
    "expression": "expressions:ExpressionReward",
    "expression-fraction": "expressions:ExpressionFractionReward",
    "marked-answer": "marked:MarkedAnswer",
    "marked-format": "marked:MarkedFormat",
    "marked-countdown": "marked:MarkedCountdown",
    "length": "length:LengthReward",
}


def reward_named(name: str) -> Reward:
    """Return the reward called `name`.

    Args:
        name: one of `NAMES`; `format:PATTERN` with a regular expression; `length:LIMIT:MARGIN` in characters; or
            `run:FOLDER`, a reward model; or `file.py:function`, a function of your own from a list of `Answered` to a
            list of numbers.

    Raises:
        RecipeError: no reward has that name (the nearest are listed), or its arguments do not fit.
    """
    kind, _, argument = name.partition(":")
    if argument and kind == "format":
        return _load("format:PatternReward")(argument)
    if argument and kind == "run":
        return _load("model:ModelReward")(argument)
    if argument and kind == "length":
        return _load("length:LengthReward")(*_limit_and_margin(argument))
    path, _, function = name.rpartition(":")
    if path.endswith(".py"):
        return _load("user:UserReward")(path, function)
    if name.endswith(".py"):
        raise RecipeError(f"the reward {name!r} names a file without its function: write {name}:FUNCTION")
    if name not in CLASSES:
        if name == "run":
            raise RecipeError("the reward 'run' names no reward model: write run:FOLDER, of a run or a directory")
        near = difflib.get_close_matches(name, NAMES, 3) or list(NAMES)
        raise RecipeError(
            f"unknown reward {name!r}; perhaps you meant {', '.join(near)}, run:FOLDER, or file.py:function"
        )
    return _load(CLASSES[name])()


def _load(target: str):  # the class, from a module that is imported only now
    module, _, name = target.partition(":")
    return getattr(import_module(f"odonata.posttrain.rewards.{module}"), name)


def _limit_and_margin(argument: str) -> tuple[int, int]:
    limit, _, margin = argument.partition(":")
    if not (limit.isdecimal() and margin.isdecimal()):
        raise RecipeError(
            f"length:{argument} does not fit: write length:LIMIT:MARGIN in characters, e.g. length:2000:500"
        )
    return int(limit), int(margin)
