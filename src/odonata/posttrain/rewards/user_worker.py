"""The process in which a user's reward function runs: `python -m … REQUESTS REPLIES FILE FUNCTION`.

Requests and replies go by two pipes of their own, so the function may print. When it raises on a batch, each answer
is tried alone to find the row at fault.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from odonata.posttrain.rewards.interface import Answered


def main() -> None:
    """Load the function, say so, and answer one request a line until the pipe closes."""
    requests, replies = os.fdopen(int(sys.argv[1]), "rb"), os.fdopen(int(sys.argv[2]), "wb")
    path, name = sys.argv[3], sys.argv[4]

    def reply(document: dict[str, Any]) -> None:
        replies.write(json.dumps(document).encode() + b"\n")
        replies.flush()

    try:
        function = load(path, name)
    except BaseException as error:
        reply({"error": f"could not be loaded: {described(error, path)}"})
        return
    reply({})
    for line in requests:
        reply(answer(function, [Answered(**fields) for fields in json.loads(line)], path))


def load(path: str, name: str) -> Callable[[list[Answered]], Any]:
    """Return the function `name` of the file `path`, whose folder it may import from."""
    file = Path(path).resolve()
    sys.path.insert(0, str(file.parent))
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module
    spec.loader.exec_module(module)
    return getattr(module, name)


def answer(function: Callable[[list[Answered]], Any], answers: list[Answered], path: str) -> dict[str, Any]:
    """Return {"values": …}, or {"error": …} with what is wrong."""
    try:
        values = function(answers)
    except BaseException as error:
        return {"error": f"raised {described(error, path)} {culprit(function, answers)}"}
    if isinstance(values, str | bytes) or not hasattr(values, "__len__") or not hasattr(values, "__iter__"):
        return {"error": f"returned {shown(values)}: wanted a list of {len(answers)} numbers, one an answer"}
    if len(values) != len(answers):
        return {"error": f"returned {len(values)} values for {len(answers)} answers"}
    numbers: list[float | None] = []
    for value, one in zip(values, answers, strict=True):
        number = as_number(value)
        if value is not None and number is None:
            wanted = "wanted a finite number, or None where it cannot judge"
            return {"error": f"returned {shown(value)} for {row_of(one)}: {wanted}"}
        numbers.append(number)
    return {"values": numbers}


def as_number(value: Any) -> float | None:
    """Return a finite Python number, also from a NumPy or torch scalar; None: it is none."""
    if not isinstance(value, int | float) and hasattr(value, "item"):
        try:
            value = value.item()
        except (ValueError, RuntimeError):
            return None
    if not isinstance(value, int | float):
        return None
    number = float(value)
    return number if math.isfinite(number) else None


def culprit(function: Callable[[list[Answered]], Any], answers: list[Answered]) -> str:
    """Return which answer, alone, makes the function raise."""
    for one in answers:
        try:
            function([one])
        except BaseException:
            return f"on {row_of(one)}"
    return f"on these {len(answers)} answers together, though on none alone"


def row_of(one: Answered) -> str:
    """Return the row in words: its fields, and how its prompt begins."""
    return f"the row {shown(dict(one.row))} of the prompt {one.prompt[:60]!r}"


def shown(value: Any) -> str:
    """Return a value's notation, cut to 120 characters."""
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."


def described(error: BaseException, path: str) -> str:
    """Return the error with the last line of the user's file that it passed."""
    frames = traceback.extract_tb(error.__traceback__)
    inside = [frame for frame in frames if Path(frame.filename).resolve() == Path(path).resolve()]
    where = f" at {path}:{inside[-1].lineno}" if inside else ""
    return f"{type(error).__name__}: {error}{where}"


if __name__ == "__main__":
    main()
