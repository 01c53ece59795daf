"""What holds for each method alike: invariances, GradCache, resume to equal bits, and ranks that change nothing."""

import dataclasses

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from align.towers import (
    SIZE,
    TOWERS,
    WORLD,
    assert_gradients,
    batch_of,
    gradients,
    relative,
    run,
    small_vit,
    tiny,
)
from odonata.align.build import METHODS as BUILDERS
from odonata.align.build import build
from odonata.align.catlip import CatLIP, CatLIPConfig, NounBatch
from odonata.align.dual_encoder import DualEncoder
from odonata.app.api import read_run_recipe, train_recipe
from odonata.backbones.vit import VARIANTS
from odonata.engine.checkpoint import weights_file
from odonata.engine.distributed import World
from odonata.engine.fit import Engine, train
from odonata.engine.task import Task
from odonata.errors import RecipeError

TWO_TOWERS = ("clip", "siglip", "lit", "flip", "dfn")
ALL = (*TWO_TOWERS, "catlip")


def each(names, mark):
    return pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.shows(n, mark)) for n in names])


@pytest.fixture(autouse=True)
def _tiny_tower(monkeypatch):
    small_vit(monkeypatch)


def method_of(name, **fields):
    torch.manual_seed(1)
    return BUILDERS[name](dataclasses.replace(tiny(name).method, **fields), DualEncoder(TOWERS[name]))


def batch(rows=12):
    tokens = torch.randint(3, 290, (rows, 20))
    tokens[:, -1] = 299
    return batch_of(torch.randn(rows, 3, 32, 32), tokens)


def rows_of(given, order):
    return dataclasses.replace(
        given, images=given.images[order], tokens=given.tokens[order], groups=given.groups[order]
    )


@each(TWO_TOWERS, "manners")
@pytest.mark.parametrize("duplicates", ["positive", "ignore", "negative"])
def test_the_order_of_the_batch_changes_nothing(name, duplicates):
    more = {"mask_ratio": 0.0} if name == "flip" else {}
    method, given = method_of(name, duplicates=duplicates, **more), batch()
    given.groups[:6] = 3
    loss = method(given)["loss"]
    loss.backward()
    before = gradients(method)
    method.zero_grad()
    again = method(rows_of(given, torch.randperm(12)))["loss"]
    again.backward()
    assert relative(again, loss) < 1e-5
    assert_gradients(gradients(method), before, 1e-4)


@pytest.mark.shows("catlip", "manners")
def test_catlips_loss_is_the_mean_over_parts_of_the_batch():
    method = CatLIP(CatLIPConfig(), SIZE, 7)
    images, targets = torch.randn(8, 3, 32, 32), (torch.rand(8, 7) < 0.4).float()
    whole = method(NounBatch(images, targets))["loss"]
    parts = [method(NounBatch(images[i : i + 4], targets[i : i + 4]))["loss"] for i in (0, 4)]
    order = torch.randperm(8)
    assert relative(sum(parts) / 2, whole) < 1e-5
    assert relative(method(NounBatch(images[order], targets[order]))["loss"], whole) < 1e-5


@each(TWO_TOWERS, "manners")
def test_rows_of_equal_content_are_positives_ignored_or_negatives(name):
    """Written out over the N × N logits of the method's own embeddings."""
    method, given = method_of(name).eval(), batch(6)
    given.groups = torch.tensor([0, 1, 0, 2, 1, 0])
    model = method.model
    with torch.no_grad():
        image, text = model.encode_image(given.images), model.encode_text(given.tokens)
        logits = model.logits(image, text).double()
        eye, alike = torch.eye(6).bool(), given.groups[:, None] == given.groups[None]
        for duplicates in ("positive", "ignore", "negative"):
            positive = alike if duplicates == "positive" else eye
            kept = ~(alike & ~eye) if duplicates == "ignore" else torch.ones_like(eye)
            if model.logit_bias is not None:
                signs = torch.where(positive, 1.0, -1.0)
                expected = -(torch.nn.functional.logsigmoid(signs * logits) * kept).sum() / 6
            else:
                masked = logits.masked_fill(~kept, -torch.inf)
                logs = [masked.log_softmax(1), masked.T.log_softmax(1)]
                target = positive / positive.sum(1, keepdim=True)
                expected = -sum(torch.where(positive, log, 0).mul(target).sum() for log in logs) / 12
            chosen = type(method)(dataclasses.replace(method.config, duplicates=duplicates, init="kept"), model).eval()
            assert relative(chosen(given)["loss"], expected) < 1e-5, duplicates


@each(TWO_TOWERS, "manners")
def test_micro_batches_give_the_gradients_of_the_whole_batch(name, tmp_path):
    more = {"mask_ratio": 0.0} if name == "flip" else {}
    given = batch()
    given.groups[:3] = 5

    def after(micro_batch):
        method = method_of(name, micro_batch=micro_batch, **more)
        engine = Engine(tiny(name), Task(method, None, 12, "none"), None, WORLD)
        found = {}
        engine.update = lambda: found.update({n: g.clone() for n, g in gradients(method).items()})
        engine.minimise = lambda m, b: engine.backward(m(b)["loss"]) or engine.update() or {"loss": torch.zeros(())}
        engine.method.train()
        method.step(given, engine)
        return found

    whole, parts = after(0), after(5)
    assert len(whole) > 20
    assert_gradients(parts, whole)
    if name == "lit":
        assert not any(n.startswith("model.visual") for n in parts)


def test_micro_batches_and_accumulation_exclude_each_other(tmp_path):
    with pytest.raises(RecipeError, match="--micro-batch does not go together with --accumulate"):
        run(tiny("clip", micro_batch=3, accumulate=2), tmp_path / "run")


class Killed(Exception):
    pass


class Dying:
    """Batches that end the process, as it were, when a step asks for them."""

    def __init__(self, batches, at):
        self.batches, self.at = batches, at

    def start(self, step=0, rank=0, world=1):
        for number, given in enumerate(self.batches.start(step, rank, world), step):
            if number == self.at:
                raise Killed
            yield given


@each(ALL, "trains")
def test_a_run_killed_at_any_step_goes_on_to_the_same_bits(name, tmp_path):
    """The first checkpoint is made at step 2: a run that died before starts over, from the same start."""
    chosen = tiny(name, steps=5, data__augment="crop", **({"unmasked": 0.3} if name == "flip" else {}))
    whole = train_recipe(dataclasses.replace(chosen, out=str(tmp_path / "whole")))
    for at in (1, 3, 4):
        folder = tmp_path / f"killed-{at}"
        torch.manual_seed(chosen.seed)
        task = build(chosen)
        task.batches = Dying(task.batches, at)
        with pytest.raises(Killed):
            train(chosen, task, folder, WORLD)
        torch.manual_seed(99)
        train_recipe(read_run_recipe(folder), resume_from=folder)
        ended = [weights_file(run, "last").read_bytes() for run in (whole, folder)]
        assert ended[0] == ended[1], f"killed at step {at}"


def ranked(name, **fields):
    """The recipe of the test of ranks: no mask, for each rank draws its own; an epsilon above rounding, for Adam would
    amplify the rounding in gradients that are zero in exact arithmetic (keys' biases)."""
    return tiny(
        name, steps=6, save_every=6, optim__eps=1e-6, **({"mask_ratio": 0.0} if name == "flip" else {}), **fields
    )


CASES = [(name, {}) for name in ALL] + [("clip", {"micro_batch": 3}), ("lit", {"micro_batch": 3})]


def work(rank, store, out):
    torch.set_num_threads(1)
    VARIANTS["vit-tiny16"] = SIZE
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    for number, (name, fields) in enumerate(CASES):
        chosen = ranked(name, **fields)
        torch.manual_seed(chosen.seed)
        task = build(chosen)
        train(chosen, task, out / f"run-{number}", World(rank, 2, torch.device("cpu")))
        if rank == 0:
            torch.save(task.method.state_dict(), out / f"{number}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """Every case trained on two ranks, in one start of two processes."""
    out = tmp_path_factory.mktemp("ranks")
    mp.spawn(work, args=(out / "store", out), nprocs=2)
    return out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "name", "fields"),
    [
        pytest.param(i, n, f, marks=pytest.mark.shows(n, "manners"), id=f"{n}{f or ''}")
        for i, (n, f) in enumerate(CASES)
    ],
)
def test_two_ranks_learn_what_one_process_learns(two_ranks, tmp_path, number, name, fields):
    alone, folder = run(ranked(name, **fields), tmp_path / "alone")
    shared = torch.load(two_ranks / f"{number}.pt")
    for key, value in alone.method.state_dict().items():
        torch.testing.assert_close(shared[key], value, atol=1e-4, rtol=0, msg=lambda text, key=key: f"{key}: {text}")
    if name == "dfn":
        kept = [(place / "assets" / "kept.json").read_text() for place in (folder, two_ranks / f"run-{number}")]
        assert kept[0] == kept[1], "the ranks' filter keeps the pairs of the single process's"
