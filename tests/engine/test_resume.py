"""A run that is killed at any step and resumed ends with the same bits as one that was not."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import toy

from odonata.engine.distributed import World
from odonata.engine.fit import train
from odonata.errors import RunError

WORLD = World(0, 1, torch.device("cpu"))
TOY = Path(toy.__file__)


def run_toy(folder: Path, *arguments: str, ranks: int = 1) -> subprocess.CompletedProcess[str]:
    launcher = [] if ranks == 1 else ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    command = [sys.executable, *launcher, str(TOY), str(folder), *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)


def digest_of(done: subprocess.CompletedProcess[str]) -> str:
    found = re.search(r"DIGEST (\w+)", done.stdout)
    assert found, done.stdout + done.stderr
    return found[1]


@pytest.mark.parametrize("name", ["toy", "gan"])
@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_stopping_between_checkpoints_changes_no_bit(tmp_path, name, ema):
    whole = toy.recipe(name, ema=ema)
    uninterrupted = toy.task(whole)
    train(whole, uninterrupted, tmp_path / "a", WORLD)

    class Killed(Exception):
        pass

    class Stopping(toy.Stream):
        def start(self, step=0, rank=0, world=1):
            for number, batch in enumerate(super().start(step, rank, world), step):
                if number == 17:
                    raise Killed
                yield batch

    with pytest.raises(Killed):
        train(whole, toy.task(whole, Stopping()), tmp_path / "b", WORLD)
    torch.manual_seed(99)  # whatever the process did in between must not matter
    resumed = toy.task(whole)
    train(whole, resumed, tmp_path / "b", WORLD, resume=True)
    assert toy.digest(resumed.method) == toy.digest(uninterrupted.method)
    losses = [(p / "log.jsonl").read_text().count('"step"') for p in (tmp_path / "a", tmp_path / "b")]
    assert losses == [30, 30], "the resumed log must hold each step once"


@pytest.mark.slow
def test_kill_9_of_one_of_two_ranks_resumes_to_the_same_bits(tmp_path):
    whole = run_toy(tmp_path / "a", "--ema", "0.9", ranks=2)
    killed = run_toy(tmp_path / "b", "--ema", "0.9", "--die-at", "17", ranks=2)
    assert killed.returncode != 0
    assert sorted(p.name for p in (tmp_path / "b/checkpoints").glob("step-*")) == ["step-00000010"]
    resumed = run_toy(tmp_path / "b", "--ema", "0.9", "--resume", ranks=2)
    assert digest_of(resumed) == digest_of(whole)


@pytest.mark.slow
def test_sharded_run_resumes_to_the_same_bits_and_reloads_on_other_numbers_of_ranks(tmp_path):
    common = ("--parallel", "fsdp", "--name", "toy-plain", "--ema", "0.9")
    whole = run_toy(tmp_path / "a", *common, ranks=2)
    run_toy(tmp_path / "b", *common, "--die-at", "17", ranks=2)
    import shutil

    for copy in ("c", "d"):
        shutil.copytree(tmp_path / "b", tmp_path / copy)
    assert digest_of(run_toy(tmp_path / "b", *common, "--resume", ranks=2)) == digest_of(whole)
    from safetensors.torch import load_file

    reference = load_file(tmp_path / "a/checkpoints/step-00000030/model.safetensors")
    done = run_toy(tmp_path / "d", *common, "--resume", ranks=4)
    assert done.returncode == 0, done.stderr
    weights = load_file(tmp_path / "d/checkpoints/step-00000030/model.safetensors")
    for key, value in reference.items():  # the sum over ranks is rounded in another order
        assert torch.allclose(weights[key], value, atol=1e-4), key


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_ranks_do_not_change_what_is_learned(tmp_path, parallel):
    from safetensors.torch import load_file

    found = []
    for ranks in (1, 2):
        done = run_toy(tmp_path / str(ranks), "--name", "toy-plain", "--parallel", parallel, ranks=ranks)
        assert done.returncode == 0, done.stderr
        found.append(load_file(tmp_path / str(ranks) / "checkpoints/step-00000030/model.safetensors"))
    for key, value in found[0].items():
        assert torch.allclose(found[1][key], value, atol=1e-4), key


def test_sigterm_saves_and_says_how_to_go_on(tmp_path):
    recipe = toy.recipe(steps=1000, save_every=1000)

    class Terminating(toy.Stream):
        def start(self, step=0, rank=0, world=1):
            for number, batch in enumerate(super().start(step, rank, world), step):
                if number == 5:
                    os.kill(os.getpid(), signal.SIGTERM)
                    time.sleep(0.05)
                yield batch

    with pytest.raises(RunError, match=r"stopped by SIGTERM: saved at step 6; go on with `odonata resume "):
        train(recipe, toy.task(recipe, Terminating()), tmp_path / "a", WORLD)
    assert (tmp_path / "a/checkpoints/step-00000006/model.safetensors").is_file()


def test_resume_on_other_data_is_refused(tmp_path):
    recipe = toy.recipe()
    train(recipe, toy.task(recipe), tmp_path / "a", WORLD)
    other = toy.task(recipe)
    other.fingerprint = "other-data"
    with pytest.raises(RunError, match="the data changed since the run began"):
        train(recipe, other, tmp_path / "a", WORLD, resume=True)
