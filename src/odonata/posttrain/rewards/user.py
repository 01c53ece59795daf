"""A reward of the user's own: `file.py:function`, from a list of `Answered` to a list of numbers.

It runs in a process of its own, with the whole environment but without the run: what hangs is killed by the wall
clock and costs one batch, not the run; what raises or returns nonsense stops the run with a message that says where.
This is protection from accidents: the function may do whatever its author may.

```python
# my_rewards.py
def polite(answers):
    return [float("please" in answer.completion) for answer in answers]     # None: cannot judge
```
"""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from odonata.errors import RecipeError, RunError
from odonata.posttrain.rewards.interface import Answered

logger = logging.getLogger(__name__)
MOST_HANGS = 3
START_SECONDS = 120.0


class UserReward:
    """What a function in a file says; None for a batch on which it hung."""

    def __init__(self, path: str, function: str, wall_seconds: float = 60.0):
        """Take the file, the name in it, and how long a batch may last, in seconds by the clock.

        Raises:
            RecipeError: the file or the function is not there, or the limit is not positive.
        """
        if not Path(path).is_file():
            raise RecipeError(f"the reward {path}:{function}: there is no file {path}")
        if wall_seconds <= 0:
            raise RecipeError(f"the reward {path}:{function} needs a positive limit, not {wall_seconds} s")
        self.name, self.path, self.function = f"{path}:{function}", path, function
        self.wall_seconds, self.hangs = wall_seconds, 0
        self.worker: _Worker | None = None
        if not _defines(Path(path), function):
            raise RecipeError(f"the reward {self.name}: {path} defines no function {function!r}")

    def __call__(self, answers: Sequence[Answered]) -> list[float | None]:
        """Return what the function says of each answer, or None for all if it hung.

        Raises:
            RunError: the function raised (names its file, line and the row), returned something else than one finite
                number or None an answer, or hung three times in a row.
        """
        worker = self.worker = self.worker or _Worker(self.name, self.path, self.function)
        reply = worker.ask([asdict(answer) | {"row": dict(answer.row)} for answer in answers], self.wall_seconds)
        if reply is None:
            return self._hung(len(answers))
        self.hangs = 0
        if "error" in reply:
            self.close()
            raise RunError(f"the reward {self.name} {reply['error']}")
        return reply["values"]

    def close(self) -> None:
        """End the process; the next call starts another."""
        if self.worker is not None:
            self.worker.stop()
            self.worker = None

    def _hung(self, count: int) -> list[float | None]:
        self.close()
        self.hangs += 1
        if self.hangs >= MOST_HANGS:
            raise RunError(
                f"the reward {self.name} did not answer within {self.wall_seconds} s on {MOST_HANGS} batches in a row"
            )
        logger.warning(
            "the reward %s did not answer within %s s: its process was ended and %d answers stay unjudged",
            self.name, self.wall_seconds, count,
        )  # fmt: skip
        return [None] * count


class _Worker:
    """The process of one user's function: lines of JSON in, lines of JSON out, on pipes of their own."""

    def __init__(self, name: str, path: str, function: str):
        asked, self.requests = os.pipe()
        self.replies, answered = os.pipe()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "odonata.posttrain.rewards.user_worker", str(asked), str(answered), path, function],
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr.fileno() if _has_descriptor(sys.stderr) else subprocess.DEVNULL,
            pass_fds=(asked, answered),
            start_new_session=True,
        )
        os.close(asked)
        os.close(answered)
        os.set_blocking(self.requests, False)
        self.stop = weakref.finalize(self, _stop, self.process, self.requests, self.replies)
        ready = self._read_line(time.monotonic() + START_SECONDS)
        if ready is None or "error" in ready:
            self.stop()
            why = f"did not load within {START_SECONDS:.0f} s" if ready is None else ready["error"]
            raise RunError(f"the reward {name} {why}")

    def ask(self, answers: list[dict[str, Any]], wall_seconds: float) -> dict[str, Any] | None:
        """Return the reply; None: there was none within the limit."""
        deadline = time.monotonic() + wall_seconds
        try:
            data = json.dumps(answers).encode() + b"\n"
        except TypeError as error:
            raise RunError(f"the rows cannot be sent to the reward's process: {error}") from error
        while data:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([], [self.requests], [], left)[1]:
                return None
            try:
                data = data[os.write(self.requests, data[: 1 << 16]) :]
            except BrokenPipeError:
                break
        return self._read_line(deadline)

    def _read_line(self, deadline: float) -> dict[str, Any] | None:
        data = bytearray()
        while not data.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self.replies], [], [], left)[0]:
                return None
            chunk = os.read(self.replies, 1 << 16)
            if not chunk:
                return {"error": self._farewell()}
            data += chunk
        return json.loads(data)

    def _farewell(self) -> str:
        try:
            return f"ended its process (status {self.process.wait(1)})"
        except subprocess.TimeoutExpired:
            return "closed the pipe of its process"


def _stop(process: subprocess.Popen[bytes], *pipes: int) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)  # what the function started goes with it
    process.wait()
    for pipe in pipes:
        os.close(pipe)


def _defines(path: Path, function: str) -> bool:
    import ast

    try:
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    except (SyntaxError, UnicodeDecodeError) as error:
        raise RecipeError(f"the reward {path}:{function}: {path} is no Python: {error}") from error
    names = {name for node in tree.body for name in _bound(node)}
    return function in names or "*" in names


def _bound(node: Any) -> list[str]:
    """Return the names that a statement binds: a definition, an import, an assignment."""
    import ast

    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.Import | ast.ImportFrom):
        return [alias.asname or alias.name for alias in node.names]
    if isinstance(node, ast.Assign):
        return [target.id for target in node.targets if isinstance(target, ast.Name)]
    return []


def _has_descriptor(stream: Any) -> bool:
    try:
        return stream.fileno() >= 0
    except (AttributeError, OSError, ValueError):
        return False
