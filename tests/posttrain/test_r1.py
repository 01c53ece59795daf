"""R1's stages: each an ordinary run, in order, from what stood before, and again after a kill."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import odonata
from odonata.app.cli import main
from odonata.engine.checkpoint import latest_step
from odonata.engine.distributed import World
from odonata.errors import RecipeError, RunError
from odonata.language.language_model import open_model, published_files
from odonata.posttrain import recipes
from odonata.posttrain.build import build
from odonata.posttrain.r1 import R1Options, run
from odonata.posttrain.start import make_base
from odonata.posttrain.tasks import task_named
from odonata.weights.published import write_folder

TASK = "digits-sum:digits=4,worked=0.8,base_steps=500"
"""Four digits: a base that learns the steps in seconds."""
SHORT = {
    "task": TASK, "cold_texts": 128, "cold_steps": 4, "rl_steps": 4, "sample_prompts": 128, "sample_group": 2,
    "sft_steps": 4, "final_steps": 2, "distil_prompts": 192, "distil_steps": 6,
}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    decoder, assets, _ = make_base(task_named(TASK), 0)
    folder = tmp_path_factory.mktemp("base") / "model"
    write_folder(folder, published_files(decoder.state_dict(), assets))
    return folder


def short(base: Path, **fields: object):
    return dataclasses.replace(recipes.r1(), method=R1Options(**{**SHORT, "model": str(base), **fields}))  # pyright: ignore[reportArgumentType]


@pytest.mark.slow
@pytest.mark.shows("r1", "trains")
@pytest.mark.shows("r1", "weights")
def test_the_line_ends_with_a_better_model_and_both_results_are_directories(base: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    longer = short(base, cold_steps=40, rl_steps=15, sft_steps=30, distil_steps=20)
    lines = run(longer, tmp_path / "r1", World(0, 1, torch.device("cpu")))
    table = json.loads((tmp_path / "r1" / "stages.json").read_text())
    assert [line.split("  ")[0] for line in lines[1:]] == list(table)
    assert list(table) == ["base", "1-cold-start", "2-rl", "4-sft", "5-rl", "student before", "6-distil"]
    assert table["5-rl"]["right"] > table["base"]["right"] + 0.1
    for name, stage in (("model", "5-rl"), ("student", "6-distil")):
        ids = torch.tensor([[3, 4, 12], [5, 6, 12]])
        ours, _, _ = open_model(tmp_path / "r1" / name)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "r1" / name)
        torch.testing.assert_close(theirs(ids).logits, ours.eval()(ids), rtol=0, atol=0)
        checkpoint = tmp_path / "r1" / stage / "checkpoints"
        last = load_file(checkpoint / f"step-{latest_step(checkpoint):08d}" / "model.safetensors")
        assert all(torch.equal(value, last[f"decoder.{key}"]) for key, value in ours.state_dict().items())


@pytest.mark.shows("r1", "parity")
def test_a_stage_learns_by_the_loss_and_gradients_that_transformers_finds(base: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "".join(json.dumps({"prompt": f"{i}5=", "completion": f"#{(i + 5) % 10}"}) + "\n" for i in range(9))
    )
    plain = recipes.sft()
    recipe = dataclasses.replace(
        plain,
        method=dataclasses.replace(plain.method, model=str(base)),
        data=dataclasses.replace(plain.data, path=str(rows), heldout=0.0, batch_size=9),
    )
    task = build(recipe)
    batch = next(task.batches.start())
    loss = task.method.loss(batch)["loss"]
    loss.backward()
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    labels = batch.ids.masked_fill(~batch.scored, -100)
    theirs = model(batch.ids, labels=labels).loss
    theirs.backward()
    torch.testing.assert_close(loss, theirs, rtol=1e-5, atol=0)
    ours = dict(task.method.named_parameters())
    for name, parameter in model.named_parameters():
        own = ours["decoder." + name.removeprefix("model.")].grad
        assert own is not None and parameter.grad is not None
        assert (own - parameter.grad).norm() <= 1e-5 * parameter.grad.norm().clamp(min=1e-4)


@pytest.mark.slow
def test_a_pipeline_that_was_killed_goes_on_to_the_same_bits(base: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run(short(base, rl_steps=30), whole, World(0, 1, torch.device("cpu")))
    options = [f"--{name.replace('_', '-')}={value}" for name, value in {**SHORT, "rl_steps": 30}.items()]
    command = [sys.executable, "-m", "odonata.app.cli", "train", "r1", f"--model={base}", *options, f"--out={killed}"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    stage = killed / "2-rl" / "checkpoints"
    while process.poll() is None and not (stage.is_dir() and (latest_step(stage) or 0) >= 3):
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (killed / "model").exists()
    assert main(["resume", str(killed)]) == 0
    assert json.loads((killed / "stages.json").read_text()) == json.loads((whole / "stages.json").read_text())
    for name in ("model", "student"):
        ours, theirs = (load_file(folder / name / "model.safetensors") for folder in (whole, killed))
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.shows("r1", "manners")
def test_options_that_no_stage_can_use_are_refused(base: Path, tmp_path: Path) -> None:
    world = World(0, 1, torch.device("cpu"))
    for fields, message in (
        ({"student": "huge"}, "--student 'huge' is unknown"),
        ({"cold_texts": 8}, "--cold-texts is 8"),
        ({"rl_steps": 0}, "--rl-steps is 0"),
        ({"task": "chess"}, "--task 'chess' is unknown"),
    ):
        with pytest.raises(RecipeError, match=message):
            run(short(base, **fields), tmp_path / "refused", world)
        assert not (tmp_path / "refused").exists()
    changed = dataclasses.replace(short(base), optim=odonata.recipe("sft").optim)
    with pytest.raises(RecipeError, match="--optim does nothing for r1"):
        run(dataclasses.replace(changed, optim=dataclasses.replace(changed.optim, lr=0.5)), tmp_path / "refused", world)


def test_a_model_that_gets_too_little_right_stops_the_line_and_says_where(tmp_path: Path) -> None:
    decoder, assets, _ = make_base(task_named("digits-sum:base_steps=2"), 0)
    write_folder(tmp_path / "raw", published_files(decoder.state_dict(), assets))
    lost = short(tmp_path / "raw", task="digits-sum:base_steps=2", cold_steps=1, rl_steps=1)
    with pytest.raises(RunError, match=r"3-samples.jsonl: only \d+ right answers"):
        run(lost, tmp_path / "r1", World(0, 1, torch.device("cpu")))
    assert not (tmp_path / "r1" / "3-samples.jsonl").exists()


def test_texts_of_the_cold_start_think_and_are_right() -> None:
    from odonata.posttrain.r1 import right_texts

    for row in right_texts(task_named("digits-sum"), 20):
        numbers = [int(character) for character in row["prompt"][:-1]]
        sums, _, answer = row["completion"].partition("#")
        assert sums == "".join(str(sum(numbers[: i + 1]) % 10) for i in range(len(numbers)))
        assert answer == sums[-1]
