"""Where figures go while a run trains. `log.jsonl` always; TensorBoard where it is installed; others in a few lines."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, cast

from odonata.errors import RunError

logger = logging.getLogger(__name__)


class Tracker(Protocol):
    """What another tracking service must offer."""

    def log(self, step: int, values: Mapping[str, float | str]) -> None:
        """Take the figures of one step."""
        ...

    def close(self) -> None:
        """Write what is still held back."""
        ...


class JSONLines:
    """One JSON object a line: `{"step": 10, "loss": 2.3, …}`.

    Args:
        path: the file, appended to.
        upto: lines of later steps are removed first: a resumed run writes them again.

    Raises:
        RunError: the file cannot be written.
    """

    def __init__(self, path: Path, upto: int | None = None) -> None:
        self.path = path
        if upto is not None and path.exists():
            kept = [line for line in path.read_text().splitlines() if _step_of(line) <= upto]
            partial = path.with_suffix(".partial")
            partial.write_text("".join(line + "\n" for line in kept))
            partial.replace(path)
        self.file = path.open("a", buffering=1)

    def log(self, step: int, values: Mapping[str, float | str]) -> None:
        """Append one line.

        Raises:
            RunError: the disk is full or the file gone.
        """
        try:
            self.file.write(json.dumps({"step": step, **values}) + "\n")
        except OSError as error:
            raise RunError(f"{self.path}: cannot write the log at step {step}: {error.strerror}") from error

    def close(self) -> None:
        """Close the file."""
        with contextlib.suppress(OSError):  # what could not be written cannot be flushed either, and was told
            self.file.close()


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return float("inf")  # a line cut short by a kill


class TensorBoard:
    """Scalar events for TensorBoard (extra `track`), without torch's writer: its thread ends with a traceback where the
    disk is full. Events are an addition to the log: if they cannot be written, the run goes on.
    """

    def __init__(self, folder: Path) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary = cast(Any, event_pb2).Event, cast(Any, summary_pb2).Summary
        self._writer: Any = None
        try:
            folder.mkdir(exist_ok=True)
            name = f"events.out.tfevents.{time.time():.0f}.{platform.node()}.{os.getpid()}"
            self._writer = RecordWriter((folder / name).open("ab"))
        except OSError as error:
            self._give_up(error)
        self._write(file_version="brain.Event:2")

    def log(self, step: int, values: Mapping[str, float | str]) -> None:
        """Write each number as a scalar."""
        numbers = [{"tag": key, "simple_value": value} for key, value in values.items() if not isinstance(value, str)]
        self._write(step=step, summary=self._summary(value=[self._summary.Value(**number) for number in numbers]))

    def _write(self, **content: Any) -> None:
        if self._writer is None:
            return
        try:
            self._writer.write(self._event(wall_time=time.time(), **content).SerializeToString())
            self._writer.flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self.close()
        logger.warning("no more events for TensorBoard, which cannot be written: %s", error.strerror)

    def close(self) -> None:
        """Close the file."""
        writer, self._writer = self._writer, None
        if writer is not None:
            with contextlib.suppress(OSError):
                writer.close()


def trackers(folder: Path, upto: int | None = None) -> list[Tracker]:
    """Return the trackers of a run: always `log.jsonl`, and TensorBoard where it is installed."""
    found: list[Tracker] = [JSONLines(folder / "log.jsonl", upto)]
    if importlib.util.find_spec("tensorboard"):
        found.append(TensorBoard(folder / "tensorboard"))
    return found
