"""The run folder: who may write into it, what it says of the run, and what survives a full disk or a kill."""

import json
import os
import platform
import re
import resource
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
import toy
from safetensors.torch import load_file

import odonata
from odonata.engine.checkpoint import Checkpoints, latest_step, read_index, weights_file
from odonata.engine.config_file import read_recipe_name
from odonata.engine.distributed import World
from odonata.engine.fit import train
from odonata.engine.run import Run, check_writable, next_run_folder
from odonata.errors import RunError

WORLD = World(0, 1, torch.device("cpu"))
HERE = Path(toy.__file__).parent


def python(code: str, *arguments: object, **options) -> subprocess.Popen:
    """Start a process that knows the toy."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE)}
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


@pytest.fixture
def run(tmp_path) -> Path:
    """A finished run of 30 steps with checkpoints at 20 and 30."""
    recipe = toy.recipe(ema=0.9)
    train(recipe, toy.task(recipe), tmp_path / "run", WORLD)
    return tmp_path / "run"


def test_a_folder_in_use_names_the_process(run):
    holder = python(
        """
        import sys, pathlib
        from odonata.engine.run import Run
        run = Run(pathlib.Path(sys.argv[1]), resume=True)
        print("held", flush=True)
        sys.stdin.read()
        """,
        run,
        stdin=subprocess.PIPE,
    )
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RunError, match=rf"run is in use by process {holder.pid}; wait for it, or choose another"):
            Run(run, resume=True)
    finally:
        holder.communicate("")
    Run(run, resume=True).close()  # the lock goes with the process


def test_an_existing_run_is_not_overwritten(run):
    before = (run / "config.yaml").read_bytes()
    recipe = toy.recipe()
    with pytest.raises(RunError, match=r"run already holds a run; resume it with `odonata resume .*run` or choose"):
        train(recipe, toy.task(recipe), run, WORLD)
    assert (run / "config.yaml").read_bytes() == before and latest_step(run / "checkpoints") == 30


def test_only_a_run_can_be_resumed(tmp_path):
    with pytest.raises(RunError, match=r"is not a run folder: it has no config\.yaml"):
        Run(tmp_path, resume=True)
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_hold_a_folder(tmp_path):
    (tmp_path / "file").write_text("")
    for refuse in (Run, check_writable):
        with pytest.raises(RunError, match=r"file/run: cannot write a run folder here: "):
            refuse(tmp_path / "file/run")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_place_without_permission(tmp_path):
    (tmp_path / "shut").mkdir(mode=0o555)
    with pytest.raises(RunError, match=r"shut/run: cannot write a run folder here: no permission to write in "):
        check_writable(tmp_path / "shut/run")


def test_run_folders_are_numbered(tmp_path):
    assert next_run_folder("clip", tmp_path) == tmp_path / "clip-1"
    (tmp_path / "clip-1").mkdir()
    (tmp_path / "clip-3").mkdir()
    assert next_run_folder("clip", tmp_path) == tmp_path / "clip-2"


def test_the_environment_says_how_to_repeat_the_run(run):
    about = json.loads((run / "environment.json").read_text())
    assert about["seed"] == 0 and about["data_fingerprint"] == "toy-data" and about["world_size"] == 1
    assert about["odonata"] == odonata.__version__ and about["torch"] == torch.__version__
    assert about["python"] == platform.python_version() and about["command"] == sys.argv
    assert {"numpy", "pillow", "platform", "cpu_threads", "gpu", "git"} <= set(about)
    assert read_recipe_name(run / "config.yaml")[0] == "toy"
    assert not list(run.rglob("*.partial"))


DISK_FULL = """
import resource, sys, pathlib
import toy, torch
from odonata.engine.distributed import World
from odonata.engine.fit import train
from odonata.errors import RunError

class Filling(toy.Stream):
    def start(self, step=0, rank=0, world=1):
        for number, batch in enumerate(super().start(step, rank, world), step):
            if number == 15:  # files of more than so many bytes can no longer be written
                resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
            yield batch

recipe = toy.recipe()
try:
    train(recipe, toy.task(recipe, Filling()), pathlib.Path(sys.argv[1]), World(0, 1, torch.device("cpu")))
except RunError as error:
    print(error)
    sys.exit(2)
"""


# 3.8 kB: rank-0.pt is the first not to fit, and TensorBoard's events end before. 12 kB: the toy's weights fit, and
# training.pt with two moments does not.
@pytest.mark.parametrize(
    "limit", [pytest.param(3800, marks=pytest.mark.slow), pytest.param(6500, marks=pytest.mark.slow), 12000]
)
def test_a_full_disk_leaves_the_last_checkpoint(tmp_path, limit):
    process = python(DISK_FULL, tmp_path / "run", limit)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 2, err
    assert re.fullmatch(
        r".*run/checkpoints/step-00000020: cannot write the checkpoint: .+; the checkpoint of step 10 still stands\n",
        out,
    ), out
    folder = tmp_path / "run/checkpoints"
    assert sorted(p.name for p in folder.iterdir()) == ["index.json", "step-00000010"]
    assert read_index(folder)["last"] == 10
    recipe = toy.recipe()
    resumed, whole = toy.task(recipe), toy.task(recipe)
    train(recipe, resumed, tmp_path / "run", WORLD, resume=True)
    train(recipe, whole, tmp_path / "whole", WORLD)
    assert toy.digest(resumed.method) == toy.digest(whole.method), "nothing of the failed attempt was kept"


KILLED = """
import os, signal, sys, pathlib
import toy, torch
import odonata.engine.checkpoint as checkpoint
from odonata.engine.distributed import World
from odonata.engine.fit import train

save, calls = checkpoint.save_file, iter(range(10))
def save_and_die(state, path):
    save(state, path)
    if next(calls) == 1:  # the second checkpoint: weights are there, optimiser and index are not
        os.kill(os.getpid(), signal.SIGKILL)
checkpoint.save_file = save_and_die
recipe = toy.recipe()
train(recipe, toy.task(recipe), pathlib.Path(sys.argv[1]), World(0, 1, torch.device("cpu")))
"""


def test_a_kill_while_a_checkpoint_is_written_leaves_the_one_before(tmp_path):
    process = python(KILLED, tmp_path / "run")
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    folder = tmp_path / "run/checkpoints"
    assert sorted(p.name for p in folder.iterdir()) == ["index.json", "step-00000010", "step-00000020.partial"]
    assert latest_step(folder) == 10 and weights_file(tmp_path / "run").parent.name == "step-00000010"
    assert load_file(weights_file(tmp_path / "run"))
    recipe = toy.recipe()
    resumed, whole = toy.task(recipe), toy.task(recipe)
    train(recipe, resumed, tmp_path / "run", WORLD, resume=True)
    train(recipe, whole, tmp_path / "whole", WORLD)
    assert toy.digest(resumed.method) == toy.digest(whole.method)
    assert not list((tmp_path / "run").rglob("*.partial")), "leftovers go with the next checkpoint"


def test_a_run_killed_before_its_first_checkpoint_starts_anew(tmp_path):
    process = python(
        """
        import sys, pathlib, toy, torch
        from odonata.engine.distributed import World
        from odonata.engine.fit import train
        recipe = toy.recipe()
        world = World(0, 1, torch.device("cpu"))
        train(recipe, toy.task(recipe, toy.Stream(die_at=4)), pathlib.Path(sys.argv[1]), world)
        """,
        tmp_path / "run",
    )
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    with pytest.raises(RunError, match=r"run has no checkpoint yet; resume it with `odonata resume "):
        weights_file(tmp_path / "run")
    recipe = toy.recipe()
    resumed, whole = toy.task(recipe), toy.task(recipe)
    train(recipe, resumed, tmp_path / "run", WORLD, resume=True)
    train(recipe, whole, tmp_path / "whole", WORLD)
    assert toy.digest(resumed.method) == toy.digest(whole.method)
    assert len((tmp_path / "run/log.jsonl").read_text().splitlines()) == 30


@pytest.mark.parametrize("name", ["model.safetensors", "ema.safetensors", "training.pt", "rank-0.pt"])
@pytest.mark.parametrize("damage", ["truncated", "empty", "missing"])
def test_a_damaged_checkpoint_is_named(run, name, damage):
    file = run / "checkpoints/step-00000030" / name
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2 if damage == "truncated" else 0])
    recipe = toy.recipe(ema=0.9)
    task = toy.task(recipe)
    optimizers = task.method.optimizers(lambda module: torch.optim.AdamW(module.parameters()))
    from odonata.engine.ema import EMA

    if name == "rank-0.pt" and damage == "missing":
        pytest.skip("another number of ranks: random states start anew")
    with pytest.raises(RunError, match=r"step-00000030: cannot resume from this checkpoint: .+"):
        Checkpoints(run / "checkpoints", WORLD).load_latest(task.method, optimizers, EMA(task.method, 0.9))


def test_a_checkpoint_that_would_run_code_does_not(run, tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"step": 30, "extra": Trap()}, run / "checkpoints/step-00000030/training.pt")
    recipe = toy.recipe(ema=0.9)
    with pytest.raises(RunError, match="step-00000030: cannot resume from this checkpoint"):
        train(recipe, toy.task(recipe), run, WORLD, resume=True)
    assert not (tmp_path / "ran").exists()


def test_resuming_with_another_architecture_is_refused(run):
    recipe = toy.recipe(method=toy.ToyConfig(width=8), ema=0.9)
    with pytest.raises(RunError, match=r"step-00000030: cannot resume from this checkpoint: "):
        train(recipe, toy.task(recipe), run, WORLD, resume=True)


def test_a_finished_run_resumed_does_nothing(run):
    before = {p: p.stat().st_mtime_ns for p in (run / "checkpoints").rglob("*")}
    recipe = toy.recipe(ema=0.9)
    started = time.perf_counter()
    train(recipe, toy.task(recipe), run, WORLD, resume=True)
    assert {p: p.stat().st_mtime_ns for p in (run / "checkpoints").rglob("*")} == before
    assert time.perf_counter() - started < 30
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY  # limits stay in their processes
