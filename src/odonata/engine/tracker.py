"""Where figures go while a run trains. `log.jsonl` always; TensorBoard where it is installed; others in a few lines."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from odonata.errors import RunError


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
        self.file.close()


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return float("inf")  # a line cut short by a kill


class TensorBoard:
    """Events under `tensorboard/` of the run folder, by torch's own writer (extra `track`)."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter  # pyright: ignore[reportPrivateImportUsage]

        self.writer: Any = SummaryWriter(str(folder))

    def log(self, step: int, values: Mapping[str, float | str]) -> None:
        """Write each number as a scalar."""
        for key, value in values.items():
            if not isinstance(value, str):
                self.writer.add_scalar(key, value, step)

    def close(self) -> None:
        """Flush and close."""
        self.writer.close()


def trackers(folder: Path, upto: int | None = None) -> list[Tracker]:
    """Return the trackers of a run: always `log.jsonl`, and TensorBoard where it is installed."""
    found: list[Tracker] = [JSONLines(folder / "log.jsonl", upto)]
    if importlib.util.find_spec("tensorboard"):
        found.append(TensorBoard(folder / "tensorboard"))
    return found
