"""SwAV against its authors' training loop and lightly, with the balance and without it, resumed, and on two ranks."""

import dataclasses
import math
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from fixtures.named_numbers import numbers
from odonata.backbones.create import create
from odonata.backbones.interface import Backbone
from odonata.errors import RecipeError
from odonata.represent.multicrop import by_size, target_figures
from odonata.represent.recipes import swav
from odonata.represent.swav import SwAV, SwAVConfig, share_used, swapped_prediction
from odonata.weights.swav import HEAD, read_head, write_head
from represent.self_distillation import (
    PREPROCESS,
    assert_close,
    batch,
    expected,
    gradients_of,
    published,
    resumed_and_whole,
    short_run,
    write_digits,
)  # fmt: skip

SMALL = {"hidden": 12, "dim": 8, "prototypes": 10, "small_crops": 3, "small_size": 8, "image_size": 16}


class Tower(Backbone):
    """One Linear on four averages: the record's stand-in for a tower."""

    family, num_features = "linear", 512

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(12, 512)
        self.head = torch.nn.Identity()

    taps = ()

    def forward_features(self, images):
        return self.linear(F.adaptive_avg_pool2d(images, 2).flatten(1)).tanh()

    def forward_head(self, features, pre_logits=False):
        return features

    def features(self, images, layers, format="native"):
        return []


@pytest.mark.shows("swav", "parity")
@pytest.mark.parametrize("case", ["swav", "swav_queue"])
def test_six_steps_of_the_authors_training_loop(case):
    """Losses of all steps and gradients of the last: frozen prototypes, queue and normalisation in the right order."""
    queue = 12 if case == "swav_queue" else 0
    method = SwAV(SwAVConfig(**SMALL, freeze_prototypes=2, queue=queue, queue_start=0), Tower(), PREPROCESS).double()
    theirs = {k: v.double() if v.is_floating_point() else v for k, v in published(case).items()}
    method.backbone.linear.load_state_dict({k: theirs.pop(f"tower.{k}") for k in ("weight", "bias")})
    assert "10 prototypes of the file" in method.load_published_rest(theirs)[0]
    optimizer = torch.optim.SGD(method.parameters(), lr=0.2, momentum=0.9)
    losses = []
    for step in range(6):
        method.begin_step(step, 6)
        optimizer.zero_grad()
        value = method.loss(batch(case, step))["loss"]
        value.backward()
        method.after_backward()
        if step < 5:
            optimizer.step()
        losses.append(value.detach())
    assert_close(torch.stack(losses), expected(f"{case}/losses"), 1e-10, "losses")
    named = {rule.ours[0]: rule.theirs[0] for rule in HEAD.rules} | {
        f"backbone.linear.{k}": f"tower.{k}" for k in ("weight", "bias")
    }
    found = gradients_of(method)
    assert len(found) == 9
    for name, gradient in found.items():
        reference = expected(f"{case}/grad/{named[name]}")
        if reference.norm() < 1e-12:  # a batch norm takes it out: only rounding is left
            assert gradient.norm() < 1e-12, name
        else:
            assert_close(gradient, reference, 1e-6, name)  # stored in float32


@pytest.mark.shows("swav", "parity")
def test_loss_and_gradients_equal_lightlys():
    from odonata.nn.sinkhorn import sinkhorn

    leaf = torch.stack([(0.7 * numbers(f"lightly/{i}", (6, 10)) * 10**0.5).double() for i in range(5)]).requires_grad_()
    codes = torch.stack([sinkhorn(leaf[i].detach(), 0.05) for i in range(2)])
    value = swapped_prediction(leaf, codes, 0.1)
    assert_close(value.detach(), expected("lightly/swav/loss"), 1e-10)
    assert_close(torch.autograd.grad(value, leaf)[0], expected("lightly/swav/grad"), 1e-10)


@pytest.mark.shows("swav", "weights")
def test_head_of_a_published_checkpoint_in_and_out(tmp_path):
    """A training checkpoint as main_swav.py writes it: tower, projector, prototypes under `state_dict`, `module.`."""
    from odonata.backbones.pretrained import load_backbone, published_files

    tower = create("resnet18-small")
    method = SwAV(SwAVConfig(**SMALL), tower, PREPROCESS)
    published_tower = published_files(tower, "torchvision").state
    file = {f"module.{k}": v for k, v in (published_tower | write_head(method)).items()}
    torch.save({"state_dict": file, "epoch": torch.tensor(3)}, tmp_path / "ckp-3.pth")
    found = load_backbone(tmp_path / "ckp-3.pth")
    for name, value in found.backbone.state_dict().items():
        assert torch.equal(value, tower.state_dict()[name]), name
    torch.manual_seed(5)
    fresh = SwAV(SwAVConfig(**SMALL), found.backbone, PREPROCESS)
    assert fresh.load_published_rest(found.published.rest) == ["head: projector and 10 prototypes of the file"]
    assert torch.equal(fresh.prototypes.weight, method.prototypes.weight)
    assert torch.equal(fresh.projector[3].weight, method.projector[3].weight)
    again = {k: v for k, v in write_head(fresh).items() if k != "prototypes.weight"}
    assert again.keys() <= {k.removeprefix("module.") for k in file}


def test_a_head_of_another_size_starts_anew_and_says_with_which_options_it_would_not():
    method = SwAV(SwAVConfig(**SMALL | {"prototypes": 11}), Tower(), PREPROCESS)
    note = method.load_published_rest(published("swav"))[0]
    assert "prototypes.weight is [10, 8], not [11, 8]" in note
    assert "--hidden 12 --dim 8 --prototypes 10" in note
    assert read_head(method, {"fc.weight": torch.zeros(1)}) == [
        "head: none in the file; projector and prototypes start anew"
    ]


def test_without_balance_all_pictures_fall_into_few_clusters_and_with_it_they_do_not():
    """Caron et al. 2020, sec. 3.1: the equipartition is what prevents the trivial solution."""
    used = {}
    for rounds in (3, 0):
        method = SwAV(SwAVConfig(**SMALL | {"prototypes": 16}, sinkhorn_iterations=rounds), Tower(), PREPROCESS)
        scores = 0.4 + 0.1 * torch.rand(2, 64, 16)
        scores[:, :, 3] += 0.3
        used[rounds] = share_used(method.codes(scores, torch.zeros(2, 64, 8)).flatten(0, 1))
    assert used[0] == 1 / 16
    assert used[3] == 1.0


def test_figures_tell_the_two_collapses_apart():
    flat, one = torch.full((6, 8), 1 / 8), F.one_hot(torch.zeros(6, dtype=torch.long), 8).float()
    spread = F.one_hot(torch.arange(6), 8).float()
    assert float(target_figures(flat)["teacher_entropy"]) == pytest.approx(math.log(8), abs=1e-6)
    assert float(target_figures(one)["marginal_entropy"]) == 0
    assert float(target_figures(spread)["marginal_entropy"]) == pytest.approx(math.log(6), abs=1e-6)
    assert float(share_used(one)) == pytest.approx(1 / 6)
    assert float(share_used(spread)) == 1.0


def test_crops_of_one_size_are_encoded_together():
    sizes = []

    def encode(pictures):
        sizes.append(tuple(pictures.shape))
        return pictures.mean((2, 3))

    views = [torch.full((2, 3, size, size), float(i)) for i, size in enumerate((16, 16, 8, 8, 8))]
    rows = by_size(views, encode)
    assert sizes == [(4, 3, 16, 16), (6, 3, 8, 8)]
    assert rows[:, 0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_prototypes_have_unit_length_and_stay_while_frozen():
    method = SwAV(SwAVConfig(**SMALL, freeze_prototypes=0.5), Tower(), PREPROCESS)
    method.begin_step(0, 4)
    assert torch.allclose(method.prototypes.weight.norm(dim=1), torch.ones(10))
    for step, frozen in ((0, True), (1, True), (2, False)):
        method.begin_step(step, 4)
        method.loss(batch("swav", 0))["loss"].backward()
        method.after_backward()
        assert (method.prototypes.weight.grad is None) is frozen


def test_resumed_run_is_bit_equal_queue_and_all(tmp_path):
    recipe = swav()
    recipe = dataclasses.replace(
        recipe, data=dataclasses.replace(recipe.data, path="scenes-digits:n=60,size=32", batch_size=8),
        steps=7, save_every=3, log_every=1, evaluation=dataclasses.replace(recipe.evaluation, pictures=0),
    )  # fmt: skip
    options = SMALL | {"backbone": "resnet8", "queue": 16, "queue_start": 1, "freeze_prototypes": 2}
    resumed, whole = resumed_and_whole(recipe, tmp_path, 5, **options)
    assert int(whole["filled"]) == 48
    for name, value in whole.items():
        assert torch.equal(resumed[name], value), name


RANKS = """
import sys, torch, torch.distributed as dist
import torch.nn.functional as F
from odonata.backbones.create import create
from odonata.data.preprocess import IMAGENET
from odonata.represent.swav import SwAV, SwAVConfig
def codes(rows):
    torch.manual_seed(0)
    config = SwAVConfig(hidden=6, dim=8, prototypes=5, queue=8, queue_start=0)
    method = SwAV(config, create("resnet8"), IMAGENET)
    method.begin_step(0, 10)
    found = []
    for step in range(3):
        z = F.normalize(torch.randn(2, 8, 8, generator=torch.Generator().manual_seed(step)), dim=2)[:, rows]
        found.append(method.codes(method.prototypes(z), z))
    return torch.stack(found).detach(), method.queues[1]().clone()
whole, queue = codes(slice(0, 8))
dist.init_process_group("gloo")
own = slice(0, 4) if dist.get_rank() == 0 else slice(4, 8)
mine, same = codes(own)
dist.barrier()
rank = dist.get_rank()
dist.destroy_process_group()
assert torch.allclose(mine, whole[:, :, own], atol=1e-6), (mine - whole[:, :, own]).abs().max()
assert torch.equal(same, queue)
print("AGREES", rank, flush=True)
"""


@pytest.mark.slow
def test_codes_and_queue_of_two_ranks_are_those_of_one_process(tmp_path):
    (tmp_path / "ranks.py").write_text(RANKS)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    done = subprocess.run(
        [*command, str(tmp_path / "ranks.py")], env=env, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("AGREES") == 2


@pytest.mark.shows("swav", "manners")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prototypes": 1}, "--prototypes is 1; clustering needs 2 or more"),
        ({"epsilon": 0.0}, "both must be positive"),
        ({"dim": 0}, "--dim is 0"),
    ],
)
def test_options_that_cannot_be_are_refused(change, message):
    with pytest.raises(RecipeError, match=message):
        SwAV(SwAVConfig(**change), Tower(), PREPROCESS)


@pytest.mark.shows("swav", "trains")
def test_crops_of_a_few_pictures_are_learned_by_heart_with_many_clusters_in_use():
    method = SwAV(SwAVConfig(**SMALL | {"prototypes": 6}, freeze_prototypes=0), create("resnet8"), PREPROCESS)
    optimizer = torch.optim.Adam(method.parameters(), lr=3e-3)
    for step in range(60):
        method.begin_step(step, 60)
        optimizer.zero_grad()
        out = method.loss(batch("swav", 0))
        out["loss"].backward()
        optimizer.step()
    assert float(out["loss"]) < 0.5 * math.log(6)
    assert float(out["prototypes_used"]) > 0.8
    assert float(out["teacher_entropy"]) < 0.5 * math.log(6)


@pytest.mark.slow
def test_short_runs_on_digits_do_not_collapse(tmp_path):
    folder = write_digits(tmp_path)
    for seed in (0, 1):
        _, after, said = short_run(swav(), folder, seed)
        assert said == []
        assert after["knn"] > 0.8
