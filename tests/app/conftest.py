"""Tiny trained runs that the tests of the commands share, and a way to call a command as a person does."""

import contextlib
import io
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from odonata.app.cli import main

TINY = (
    "--data.path", "scenes:n=48,size=32", "--image-size", "32", "--data.batch-size", "8", "--steps", "3",
    "--evaluation.pairs", "6", "--evaluation.zeroshot", "none", "--device", "cpu", "--log-every", "1",
)  # fmt: skip
"""Options of a run that takes a second."""


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    status: int
    out: str
    err: str

    @property
    def json(self):
        return json.loads(self.out)


def odonata(*arguments: object) -> Done:
    """Run a command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as end:  # the option parser ends so
            status = int(end.code or 0)
    return Done(status, out.getvalue(), err.getvalue())


def refused(*arguments: object) -> str:
    """Run a command that must end with status 2, no traceback and a message, and return the message."""
    done = odonata(*arguments)
    assert done.status == 2, done
    assert done.err.strip() and "Traceback" not in done.err, done
    return done.err


def contents(folder: Path) -> set[str]:
    """Everything in a folder, hidden files too."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def picture(path: Path, seed: int = 0, size: tuple[int, int] = (40, 30)) -> Path:
    """Write a picture of noise."""
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise).save(path)
    return path


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    """A folder with a `siglip` and a `clip` run. Copy what a test changes."""
    root = tmp_path_factory.mktemp("trained")
    for name in ("siglip", "clip"):
        done = odonata("train", name, *TINY, "--out", root / name)
        assert done.status == 0, done.err
    return root


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> Path:
    """A folder with five pictures in two formats, one of them in a subfolder."""
    root = tmp_path_factory.mktemp("photos")
    for number, name in enumerate(("a.jpg", "b.png", "c.jpg", "d [x].png", "more/e.jpg")):
        picture(root / name, number)
    return root


@pytest.fixture
def pairs(tmp_path) -> Path:
    """A manifest of sixteen pictures with captions."""
    lines = ["image,caption"]
    for number in range(16):
        picture(tmp_path / f"set/{number}.png", number)
        lines.append(f"{number}.png,picture number {number} of a set")
    (tmp_path / "set/captions.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "set/captions.csv"


@pytest.fixture
def copy(trained, tmp_path):
    """A function that copies a run to change it."""

    def of(name: str) -> Path:
        return Path(
            shutil.copytree(trained / name, tmp_path / f"copy-{name}", ignore=shutil.ignore_patterns("evaluation.json"))
        )

    return of
