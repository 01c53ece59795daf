"""What the training loop promises: the arithmetic of an update, what it writes, and how it ends when all goes wrong."""

import copy
import dataclasses
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import toy
from torch import nn

from odonata.engine import tensors
from odonata.engine.checkpoint import read_index
from odonata.engine.distributed import World
from odonata.engine.ema import EMA
from odonata.engine.fit import Engine, train
from odonata.engine.param_groups import build_optimizer
from odonata.engine.recipe import SGD, AdamW, Clip, Schedule
from odonata.errors import RecipeError, RunError

WORLD = World(0, 1, torch.device("cpu"))
CONSTANT = Schedule("constant", warmup=0)


def engine_of(name="toy-plain", stream=None, **changes) -> Engine:
    recipe = toy.recipe(name, **changes)
    return Engine(recipe, toy.task(recipe, stream), None, WORLD)


def gradients(engine: Engine) -> dict[str, torch.Tensor]:
    """Gradients as they are when the optimiser would take them: after accumulation, before clipping matters."""
    seen = {}

    def update(name="main"):
        seen.update({n: p.grad.clone() for n, p in engine.method.named_parameters()})

    engine.update = update
    engine.minimise(engine.method, next(toy.Stream(size=10).start()))
    return seen


@pytest.mark.parametrize("parts", [2, 3, 4, 5, 10])
def test_accumulated_gradients_are_those_of_the_whole_batch(parts):
    """10 rows in 4 parts are 3, 3, 3 and 1: the mean must weigh them by their rows."""
    whole, accumulated = gradients(engine_of()), gradients(engine_of(accumulate=parts))
    for name, gradient in whole.items():
        assert torch.allclose(accumulated[name], gradient, rtol=1e-5, atol=1e-6), name


def test_split_keeps_rows_in_order_and_covers_all():
    batch = toy.Pairs(torch.arange(10.0)[:, None], torch.arange(10))
    parts = tensors.split(batch, 4)
    assert [tensors.rows(part) for part in parts] == [3, 3, 3, 1]
    assert torch.equal(torch.cat([part.y for part in parts]), batch.y)


@pytest.mark.parametrize("limit", [1e-3, 0.05, 100.0])
@pytest.mark.parametrize("policy", ["none", "norm", "value", "adaptive"])
def test_clipping_does_what_torch_does(policy, limit):
    """One SGD update at rate 1 shows the gradients that the optimiser was given."""
    engine = engine_of(clip=Clip(policy, limit), optim=SGD(lr=1.0, weight_decay=0, momentum=0), schedule=CONSTANT)
    oracle = copy.deepcopy(engine.method)
    batch = next(toy.Stream().start())
    oracle.loss(batch)["loss"].backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in oracle.parameters()])
    if policy == "norm":
        nn.utils.clip_grad_norm_(oracle.parameters(), limit)
    elif policy == "value":
        nn.utils.clip_grad_value_(oracle.parameters(), limit)
    elif policy == "adaptive":  # 2102.06171, eq. 3
        for p in oracle.parameters():
            p.grad *= min(1.0, limit * max(p.norm().item(), 1e-3) / max(p.grad.norm().item(), 1e-6))
    engine.method.step(batch, engine)
    for (name, ours), theirs in zip(engine.method.named_parameters(), oracle.parameters(), strict=True):
        assert torch.allclose(ours, theirs - theirs.grad, atol=1e-6), name
    assert engine.gradient_norms["main"] == pytest.approx(norm.item(), rel=1e-5), (
        "the log shows the norm before clipping"
    )


def test_the_average_of_weights_is_the_recurrence():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    ema = EMA(module, 0.7)
    average = {k: v.clone() for k, v in module.state_dict().items()}
    for n in range(1, 30):
        with torch.no_grad():
            for p in module.parameters():
                p.add_(torch.randn_like(p))
        module(torch.randn(4, 3))  # moves BatchNorm's statistics and counter
        ema.update(module)
        decay = min(0.7, (1 + n) / (10 + n))
        for key, value in module.state_dict().items():
            average[key] = decay * average[key] + (1 - decay) * value if value.is_floating_point() else value.clone()
    for key, value in average.items():
        assert torch.allclose(ema.average[key].double(), value.double(), atol=1e-5), key
    before = {k: v.clone() for k, v in module.state_dict().items()}
    with ema.applied(module):
        assert all(torch.equal(v, ema.average[k]) for k, v in module.state_dict().items())
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())


@pytest.mark.parametrize(
    ("schedule", "closed"),
    [
        (Schedule("cosine", warmup=0), lambda t: 0.5 * (1 + math.cos(math.pi * t / 100))),
        (Schedule("cosine", warmup=0, final=0.1), lambda t: 0.1 + 0.45 * (1 + math.cos(math.pi * t / 100))),
        (Schedule("linear", warmup=0), lambda t: 1 - t / 100),
        (Schedule("poly", warmup=0), lambda t: (1 - t / 100) ** 0.9),
        (Schedule("poly", warmup=0, power=2.0, final=0.1), lambda t: 0.1 + 0.9 * (1 - t / 100) ** 2),
        (Schedule("constant", warmup=0), lambda t: 1.0),
        (Schedule("constant", warmup=0, cooldown=0.2), lambda t: min(1.0, (100 - t) / 20)),
        (Schedule("rsqrt", warmup=0), lambda t: (t + 1) ** -0.5),
        (Schedule("rsqrt", warmup=16), lambda t: (t + 1) / 16 if t < 16 else (16 / (t + 1)) ** 0.5),
        (Schedule("steps", warmup=0, milestones=(0.3, 0.6)), lambda t: 0.1 ** ((t >= 30) + (t >= 60))),
        (
            Schedule("cosine", warmup=0.1),
            lambda t: (t + 1) / 10 if t < 10 else 0.5 * (1 + math.cos(math.pi * (t - 10) / 90)),
        ),
    ],
)
def test_schedules_are_their_closed_forms(schedule, closed):
    for step in range(100):
        assert schedule.factor(step, 100) == pytest.approx(closed(step), abs=1e-12), step


def test_schedules_agree_with_torch():
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50)
    for step in range(50):
        assert Schedule(warmup=0).factor(step, 50) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9)
        optimizer.step()
        theirs.step()


class Towers(nn.Module):
    """Names as the rooms' models have them."""

    def __init__(self):
        super().__init__()
        self.visual = nn.Module()
        self.visual.patch_embed = nn.Conv2d(3, 4, 2)
        self.visual.class_token = nn.Parameter(torch.zeros(1, 1, 4))
        self.visual.position = nn.Parameter(torch.zeros(5, 4))
        self.visual.layers = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)) for _ in range(3))
        self.visual.norm = nn.LayerNorm(4)
        self.visual.head = nn.Linear(4, 2)
        self.text = nn.Linear(4, 2)
        self.logit_scale = nn.Parameter(torch.zeros(()))


def groups_by_name(optim):
    optimizer = build_optimizer(Towers(), optim)
    return {name: group for group in optimizer.param_groups for name in group["names"]}


def test_only_matrices_decay():
    found = groups_by_name(AdamW(weight_decay=0.1))
    decayed = {name for name, group in found.items() if group["weight_decay"] == 0.1}
    matrices = {f"visual.layers.{i}.0.weight" for i in range(3)}
    assert decayed == matrices | {"visual.patch_embed.weight", "visual.head.weight", "text.weight"}
    assert {name for name, group in found.items() if group["weight_decay"] == 0} == set(found) - decayed
    assert "visual.position" in found and "logit_scale" in found and "visual.class_token" in found


def test_layers_learn_slower_the_deeper_they_lie():
    """BEiT: the factor of layer i of n is decay^(n + 1 − i); the embedding is layer 0, the head layer n + 1."""
    found = groups_by_name(AdamW(lr=2.0, layer_decay=0.5))
    wanted = {"visual.patch_embed.weight": 0.5**4, "visual.class_token": 0.5**4, "visual.position": 0.5**4}
    wanted |= {f"visual.layers.{i}.0.weight": 0.5 ** (3 - i) for i in range(3)}
    wanted |= {"visual.norm.weight": 1.0, "visual.head.weight": 1.0, "text.weight": 1.0, "logit_scale": 1.0}
    for name, scale in wanted.items():
        assert found[name]["scale"] == scale and found[name]["lr"] == 2.0 * scale, name


def test_rates_by_prefix():
    found = groups_by_name(AdamW(lr_scales={"visual": 0.1, "visual.head": 3.0, "logit_scale": 10.0}))
    assert found["visual.head.weight"]["scale"] == 3.0, "the longest prefix counts"
    assert found["visual.position"]["scale"] == 0.1 and found["logit_scale"]["scale"] == 10.0
    assert found["text.weight"]["scale"] == 1.0
    assert "text.weight" not in groups_by_name(AdamW(lr_scales={"text": 0.0})), "0 freezes"
    with pytest.raises(RecipeError, match=r"--optim.lr-scales 'vizual' begins no parameter's name; they begin with"):
        groups_by_name(AdamW(lr_scales={"vizual": 0.1}))
    with pytest.raises(RecipeError, match="nothing is left to train"):
        build_optimizer(nn.Linear(2, 2).requires_grad_(False), AdamW())


def scripted(values):
    """An evaluation that returns the values of a list in turn, and draws random numbers as real ones may."""
    turn = iter(values)

    def evaluate(method):
        torch.rand(7)
        assert not method.training
        return {"score": next(turn)}

    return evaluate


def test_stopping_early_keeps_the_best(tmp_path):
    recipe = toy.recipe(steps=30, eval_every=3, save_every=100, early_stop=3)
    values = [0.1, 0.5, 0.4, 0.5, 0.3, 0.9]
    train(recipe, toy.task(recipe, evaluate=scripted(values), goal="score"), tmp_path / "a", WORLD)
    index = read_index(tmp_path / "a/checkpoints")
    assert index == {"last": 15, "best": {"step": 6, "value": 0.5}}, "an equal value is no improvement"


def test_lower_may_be_better(tmp_path):
    recipe = toy.recipe(steps=9, eval_every=3)
    task = toy.task(recipe, evaluate=scripted([0.5, 0.2, 0.3]), goal="score", better="lower")
    train(recipe, task, tmp_path / "a", WORLD)
    assert read_index(tmp_path / "a/checkpoints")["best"] == {"step": 6, "value": 0.2}


def test_old_checkpoints_go_and_the_best_stays(tmp_path):
    recipe = toy.recipe(steps=20, eval_every=4, save_every=2, keep_checkpoints=2)
    values = [0.1, 0.9, 0.3, 0.2, 0.1]
    train(recipe, toy.task(recipe, evaluate=scripted(values), goal="score"), tmp_path / "a", WORLD)
    kept = sorted(int(p.name[-8:]) for p in (tmp_path / "a/checkpoints").glob("step-*"))
    assert kept == [8, 18, 20]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_stays_finite_and_learns(tmp_path, precision):
    recipe = toy.recipe(steps=60, precision=precision)
    task = toy.task(recipe)
    train(recipe, task, tmp_path / "a", WORLD)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "a/log.jsonl").read_text().splitlines()]
    assert all(map(math.isfinite, losses)) and sum(losses[-10:]) < sum(losses[:10])
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in task.method.parameters())


def test_autocast_is_on(tmp_path):
    engine = engine_of(precision="bf16")
    with engine.autocast():
        assert engine.method.embed(torch.zeros(1, 8)).dtype == torch.bfloat16


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_evaluating_on_the_way_changes_no_bit(tmp_path, ema):
    """Dropout draws from the global generator, and so does the evaluation: the two must not meet."""
    digests = []
    for every in (0, 1, 7):
        recipe = toy.recipe("toy", eval_every=every, ema=ema)
        task = toy.task(recipe, evaluate=scripted([0.0] * 99), goal="score")
        train(recipe, task, tmp_path / str(every), WORLD)
        digests.append(toy.digest(task.method))
    assert len(set(digests)) == 1


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path):
    recipe = toy.recipe(save_every=5)
    task = toy.task(recipe, toy.Stream(poison_at=12))
    with pytest.raises(RunError, match=r"^step 13: the loss is nan; the checkpoint of step 10 is kept\. Try a lower"):
        train(recipe, task, tmp_path / "a", WORLD)
    reference = toy.recipe(save_every=5, steps=30)
    clean = toy.task(reference)
    twelve = iter(range(12))

    class Twelve(toy.Stream):
        def start(self, step=0, rank=0, world=1):
            for batch in super().start(step, rank, world):
                if next(twelve, None) is None:
                    raise StopIteration
                yield batch

    clean.batches = Twelve()
    with pytest.raises(RuntimeError):
        train(reference, clean, tmp_path / "b", WORLD)
    assert all(torch.equal(a, b) for a, b in zip(task.method.parameters(), clean.method.parameters(), strict=True)), (
        "parameters are those after 12 updates"
    )
    assert (tmp_path / "a/checkpoints/step-00000010/model.safetensors").is_file()


@pytest.mark.parametrize("policy", ["none", "norm", "value", "adaptive"])
def test_a_gradient_that_is_not_finite_is_named(tmp_path, policy):
    """Clipping by the norm would spread it to every gradient, and the first would be blamed."""
    recipe = toy.recipe(clip=Clip(policy, 1.0))
    task = toy.task(recipe)
    name = "layers.1.0.weight"
    calls = iter(range(100))
    weight = task.method.get_parameter(name)
    weight.register_hook(lambda g: g * float("nan") if next(calls) == 4 else g)
    before = []
    task.method.after_update = lambda: before.append(toy.digest_of_parameters(task.method))
    with pytest.raises(RunError, match=rf"^step 5: the gradient of {re.escape(name)} is not finite; no checkpoint"):
        train(recipe, task, tmp_path / "a", WORLD)
    assert toy.digest_of_parameters(task.method) == before[-1] and len(before) == 4


def test_a_run_that_ends_before_its_first_update_leaves_no_folder(tmp_path):
    recipe = toy.recipe()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("keep")
    for folder in ("new", "deep/new", "mine"):
        with pytest.raises(RunError, match="step 1: the loss is nan; no checkpoint was made before"):
            train(recipe, toy.task(recipe, toy.Stream(poison_at=0)), tmp_path / folder, WORLD)
    assert not (tmp_path / "new").exists() and not (tmp_path / "deep/new").exists()
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["notes.txt"], "what was there before stays"


def test_the_log_and_tensorboard_hold_the_figures(tmp_path):
    recipe = toy.recipe(steps=10, log_every=2, eval_every=5, clip=Clip("norm", 1.0))
    train(recipe, toy.task(recipe, evaluate=scripted([0.1, 0.2]), goal="score"), tmp_path / "a", WORLD)
    rows = [json.loads(line) for line in (tmp_path / "a/log.jsonl").read_text().splitlines()]
    trained = [row for row in rows if "loss" in row]
    assert [row["step"] for row in trained] == [2, 4, 6, 8, 10]
    assert set(trained[0]) == {"step", "loss", "grad_norm", "lr", "samples_per_s", "wait"}
    assert [row["lr"] for row in trained] == [
        pytest.approx(1e-2 * recipe.schedule.factor(step - 1, 10)) for step in (2, 4, 6, 8, 10)
    ], "the rate is that of the update logged"
    assert [row for row in rows if "score" in row] == [{"step": 5, "score": 0.1}, {"step": 10, "score": 0.2}]
    assert all(0 <= row["wait"] <= 1 and row["samples_per_s"] > 0 for row in trained)
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(tmp_path / "a/tensorboard"))
    events.Reload()
    assert [e.step for e in events.Scalars("loss")] == [2, 4, 6, 8, 10]
    assert [e.value for e in events.Scalars("score")] == pytest.approx([0.1, 0.2])


def test_nothing_is_written_without_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = toy.recipe(steps=3)
    train(recipe, toy.task(recipe), None, WORLD)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": 0}, "--steps is 0; it must be at least 1"),
        ({"seed": -1}, "--seed is -1; it must not be negative"),
        ({"ema": 1.0}, "--ema is 1.0; a decay lies in"),
        ({"optim": AdamW(lr=0.0)}, "--optim.lr is 0.0; it must be positive"),
        ({"optim": AdamW(lr=float("nan"))}, "--optim.lr is nan"),
        ({"clip": Clip("norm", 0.0)}, "--clip.limit is 0.0"),
        ({"early_stop": 2}, "set --eval-every as well"),
    ],
)
def test_recipes_that_no_run_can_have(changes, words):
    with pytest.raises(RecipeError, match=re.escape(words)):
        dataclasses.replace(toy.recipe(), **changes).check()


@pytest.mark.slow
def test_nan_on_one_of_two_ranks_ends_both(tmp_path):
    """The poisoned row lies in rank 0's slice; rank 1 must not wait for it for ever."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(toy.__file__)]
    done = subprocess.run(
        [*command, str(tmp_path / "a"), "--poison-at", "12"],
        env=env, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "step 13: the loss is nan; the checkpoint of step 10 is kept" in done.stdout
    assert "step 13: the loss is not finite on another process; the checkpoint of step 10 is kept" in done.stdout
    assert sorted(p.name for p in Path(tmp_path / "a/checkpoints").glob("step-*")) == ["step-00000010"]
