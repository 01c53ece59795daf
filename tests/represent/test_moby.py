"""MoBY against its original code, on ranks, and on handwritten digits."""

import dataclasses
import re

import pytest
import torch

from odonata.backbones.create import create, to_plain
from odonata.data.preprocess import IMAGENET
from odonata.errors import RecipeError
from odonata.nn.transformer import DropPath
from odonata.represent.moby import MoBY, MoBYConfig
from odonata.weights import resnet_torchvision
from represent.originals import follow_original, official_state
from represent.short_runs import overfits_eight_pictures, report_of_ranks, resumes_to_the_same_bits

SMALL = MoBYConfig(dim=16, hidden=32, queue=24, momentum=0.9)
HEAD = {"linear_hidden.1.": "0.", "linear_hidden.2.": "1.", "linear_out.": "3."}


def heads_of(state, start):
    """A head of the original's under our names."""
    own = {k.removeprefix(start): v for k, v in state.items() if k.startswith(start)}
    return {
        ours + k.removeprefix(theirs): v
        for theirs, ours in HEAD.items()
        for k, v in own.items()
        if k.startswith(theirs)
    }


def in_their_names(state, start):
    return {
        f"{start}{theirs}{k.removeprefix(ours)}": v
        for theirs, ours in HEAD.items()
        for k, v in state.items()
        if k.startswith(ours)
    }


def original():
    state = official_state("moby")
    tower = create("resnet18")
    plain = to_plain(tower.config)
    theirs = {k.removeprefix("encoder."): v for k, v in state.items() if k.startswith("encoder.")}
    tower.load_state_dict(resnet_torchvision.key_map(plain, 0).to_ours(theirs, "moby")[0])
    method = MoBY(SMALL, tower, IMAGENET)
    for name in ("projector", "predictor"):
        getattr(method, name).load_state_dict(heads_of(state, f"{name}."))
    method.slow_projector.load_state_dict(method.projector.state_dict())
    return method, resnet_torchvision.key_map(plain, 0)


@pytest.mark.shows("moby", "parity")
def test_loss_gradients_queues_and_target_are_the_originals_over_several_steps():
    method, key_map = original()

    def theirs(gradients):
        full = {k: gradients.get(f"backbone.{k}", v) for k, v in method.backbone.state_dict().items()}
        tower = {k: v for k, v in key_map.from_ours(full).items() if "running" not in k and "num_batches" not in k}
        out = {f"encoder.{k}": v for k, v in tower.items()}
        for name in ("projector", "predictor"):
            own = {k.removeprefix(f"{name}."): v for k, v in gradients.items() if k.startswith(f"{name}.")}
            out |= in_their_names(own, f"{name}.")
        return out

    def slow():
        tower = key_map.from_ours(method.slow_backbone.state_dict())
        heads = in_their_names(method.slow_projector.state_dict(), "projector_k.")
        return {f"encoder_k.{k}": v for k, v in tower.items()} | heads

    queues = {"queue1": method.queue1, "queue2": method.queue2}
    assert follow_original("moby", method, theirs, slow, queues) < 1e-6


@pytest.mark.shows("moby", "weights")
def test_swin_of_a_training_checkpoint_is_read_and_written_back(tmp_path):
    from odonata.backbones.pretrained import load_backbone, published_files

    tower = create("swin-t", embed_dim=24, depths=(2, 2), num_heads=(3, 6), windows=(4, 4))
    names = published_files(tower, "official").state
    state = {f"encoder.{k}": torch.randn_like(v) for k, v in names.items() if v.is_floating_point()}
    slow = {k.replace("encoder.", "encoder_k."): torch.randn_like(v) for k, v in state.items()}
    projector = {k: v for k, v in official_state("moby").items() if k.startswith(("pro", "pred"))}
    queues = {"queue1": torch.randn(16, 24), "queue_ptr": torch.zeros(1, dtype=torch.long)}
    path = tmp_path / "moby_swin_t_300ep_pretrained.pth"
    torch.save({"model": state | slow | projector | queues, "epoch": 299}, path)
    found = load_backbone(path)
    assert found.published.config["family"] == "swin"
    assert found.published.classes == 0
    assert any("'encoder'" in note for note in found.published.notes)
    written = published_files(found.backbone, "official").state
    assert all(torch.equal(written[k[8:]], v) for k, v in state.items())
    MoBY(SMALL, found.backbone, IMAGENET)


@pytest.mark.parametrize("name", ["vit-tiny16", "resnet8", "swin-t"])
def test_stochastic_depth_acts_online_only(name):
    changes = {
        "vit-tiny16": {"image_size": 32, "drop_path": 0.3},
        "resnet8": {},
        "swin-t": {"embed_dim": 24, "depths": (2, 2), "num_heads": (3, 6), "windows": (4, 4), "drop_path": 0.3},
    }[name]
    method = MoBY(SMALL, create(name, **changes), IMAGENET).train()
    rates = [
        [m.rate for m in tower.modules() if isinstance(m, DropPath)]
        for tower in (method.backbone, method.slow_backbone)
    ]
    if name != "resnet8":
        assert max(rates[0]) == pytest.approx(0.3)
    assert max(rates[1], default=0.0) == 0
    images = torch.randn(4, 3, 32, 32)
    assert torch.equal(method.slow_backbone(images), method.slow_backbone(images)) or name == "resnet8"
    assert not next(method.slow_projector.parameters()).requires_grad


def test_the_rate_is_meant_for_512_pictures():
    from odonata.represent import recipes

    recipe = recipes.moby()
    assert recipe.method.lr_per == 512
    assert (recipe.clip.policy, recipe.clip.limit) == ("norm", 5.0)


@pytest.mark.slow
def test_two_ranks_fill_the_same_queues_and_learn_what_one_does(tmp_path):
    one, two = (report_of_ranks("moby", ranks, tmp_path) for ranks in (1, 2))
    first, second = two["queues"]
    for key, value in first.items():
        assert torch.equal(value, second[key]), key
    assert first["queue1.position"] == one["queues"][0]["queue1.position"] == 3 * 8 % 20
    assert two["losses"][0] == pytest.approx(one["losses"][0], rel=0.2)  # the tower's BN stays each rank's own


def test_a_run_that_stops_and_goes_on_ends_with_the_same_bits(tmp_path):
    assert resumes_to_the_same_bits("moby", tmp_path, queue=20)


@pytest.mark.slow
@pytest.mark.shows("moby", "trains")
def test_overfits_eight_pictures():
    for seed in range(3):
        before, after = overfits_eight_pictures("moby", seed, 250, lr=4e-3)
        assert after > before + 0.1, (seed, before, after)


@pytest.mark.shows("moby", "manners")
@pytest.mark.parametrize(("field", "value"), [("momentum", -0.5), ("temperature", 0.0), ("queue", 0)])
def test_bad_options_are_named(field, value):
    with pytest.raises(RecipeError, match=re.escape(f"--{field} is {value}")):
        dataclasses.replace(SMALL, **{field: value})
