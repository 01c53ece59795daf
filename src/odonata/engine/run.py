"""The run folder: all that is needed to repeat, resume, evaluate and use a run.

config.yaml        the resolved recipe
environment.json   versions, command, machine, git state, seed, fingerprint of the data
log.jsonl          figures by step
assets/            what belongs to the model: tokenizer, preprocessing
checkpoints/       step-00001000/ …, and index.json, which names the last and the best
rollouts.jsonl     of methods that sample: one prompt's answers at each logged step
report.html        what came out, for people
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

import torch

from odonata.engine.config_file import write_recipe
from odonata.engine.recipe import Recipe
from odonata.errors import RunError

_CONTENTS = (
    "config.yaml", "config.yaml.partial", "environment.json", "environment.json.partial", "log.jsonl", "assets",
    "checkpoints", "tensorboard", "rollouts.jsonl", ".lock",
)  # fmt: skip


def check_writable(folder: Path) -> None:
    """Refuse a run folder that cannot be made, before hours go into what would be written there.

    Raises:
        RunError: names the folder that is in the way.
    """
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not there.is_dir():
        raise RunError(f"{folder}: cannot write a run folder here: {there} is a file")
    if not os.access(there, os.W_OK | os.X_OK):
        raise RunError(f"{folder}: cannot write a run folder here: no permission to write in {there}")


def next_run_folder(name: str, root: Path = Path("runs")) -> Path:
    """Return `runs/NAME-N` with the first free N."""
    number = 1
    while (root / f"{name}-{number}").exists():
        number += 1
    return root / f"{name}-{number}"


class Run:
    """An open run folder, locked against a second writer.

    Args:
        folder: created where absent.
        resume: whether the folder must hold a run already; without it, it must not.

    Raises:
        RunError: the folder is in use, cannot be written, holds another run, or holds none to resume.
    """

    def __init__(self, folder: Path, *, resume: bool = False) -> None:
        self.folder = folder
        self._lock: IO[str] | None = None
        self._made = not folder.exists()
        if resume and not (folder / "config.yaml").is_file():
            raise RunError(f"{folder} is not a run folder: it has no config.yaml")
        if not resume and (folder / "config.yaml").exists():
            raise RunError(
                f"{folder} already holds a run; resume it with `odonata resume {folder}` or choose another --out"
            )
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = _lock(folder)
            (folder / "checkpoints").mkdir(exist_ok=True)
            (folder / "assets").mkdir(exist_ok=True)
        except OSError as error:
            raise RunError(f"{folder}: cannot write a run folder here: {error.strerror}") from error

    @classmethod
    def joined(cls, folder: Path) -> Run:
        """Return a folder that the leading rank has opened, without a lock of one's own."""
        run = cls.__new__(cls)
        run.folder, run._lock, run._made = folder, None, False
        return run

    def describe(self, recipe: Recipe, fingerprint: str) -> None:
        """Write the recipe and the environment of a new run."""
        environment = {**_environment(), "seed": recipe.seed, "data_fingerprint": fingerprint}
        write_atomically(self.folder / "environment.json", json.dumps(environment, indent=1))
        # Last, because its presence says that the folder holds a run.
        partial = self.folder / "config.yaml.partial"
        write_recipe(recipe, partial)
        partial.replace(self.folder / "config.yaml")

    def check_fingerprint(self, fingerprint: str) -> None:
        """Refuse to resume on other data.

        Raises:
            RunError: the data are not those that the run began with.
        """
        before = json.loads((self.folder / "environment.json").read_text())["data_fingerprint"]
        if before != fingerprint:
            raise RunError(
                f"{self.folder}: the data changed since the run began (fingerprint {before[:12]}, now "
                f"{fingerprint[:12]}); start a new run with `odonata train {self.folder}/config.yaml`"
            )

    def discard(self) -> None:
        """Remove what a run that never made a step has written; what else lies in the folder stays."""
        for name in _CONTENTS:
            path = self.folder / name
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        if self._made:
            with contextlib.suppress(OSError):  # not empty: someone put something there meanwhile
                self.folder.rmdir()

    def close(self) -> None:
        """Release the folder."""
        if self._lock:
            self._lock.close()


def _lock(folder: Path) -> IO[str]:
    handle = (folder / ".lock").open("a+")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.seek(0)
        owner = handle.read().strip() or "unknown"
        handle.close()
        raise RunError(f"{folder} is in use by process {owner}; wait for it, or choose another --out") from None
    handle.truncate(0)
    handle.write(str(os.getpid()))
    handle.flush()
    return handle


def write_atomically(path: Path, text: str) -> None:
    """Write a small file so that a reader sees the old content or the new, never a part."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    partial.replace(path)


def _environment() -> dict[str, Any]:
    import numpy
    import PIL

    return {
        "odonata": version("odonata"),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "pillow": PIL.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "world_size": int(os.environ.get("WORLD_SIZE", "1")),
        "command": sys.argv,
        "git": _git_state(),
    }


def _git_state() -> dict[str, Any] | None:
    def ask(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        return {"commit": ask("rev-parse", "HEAD"), "changed_files": ask("status", "--porcelain").splitlines()[:50]}
    except (OSError, subprocess.SubprocessError):
        return None
