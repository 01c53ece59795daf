"""MoCo v3 against its original code, on ranks, and on handwritten digits."""

import dataclasses
import math
import re

import pytest
import torch

from odonata.backbones.create import build, create
from odonata.backbones.pretrained import load_backbone, published_files
from odonata.backbones.vit_variants import VARIANTS
from odonata.data.preprocess import IMAGENET
from odonata.errors import RecipeError
from odonata.nn.momentum import cosine_momentum
from odonata.represent.moco_v3 import MoCoV3, MoCoV3Config, contrast_in_batch, mlp
from odonata.weights import resnet_torchvision, vit_timm
from odonata.weights.towers import Hints
from represent.originals import batch_of, follow_original, official_state
from represent.short_runs import overfits_eight_pictures, report_of_ranks, resumes_to_the_same_bits

SMALL = MoCoV3Config(dim=16, hidden=32, momentum=0.9)


def saved(tmp_path, name):
    path = tmp_path / f"{name}.pth.tar"
    torch.save({"epoch": 1, "state_dict": {f"module.{k}": v for k, v in official_state(name).items()}}, path)
    return path


def original(tmp_path, name):
    """Our method with the original's first weights, read from a file of its layout."""
    found = load_backbone(saved(tmp_path, name), Hints(num_heads=12))
    backbone, state = found.backbone, found.backbone.state_dict()
    if name == "v3_vit":
        fixed = dataclasses.replace(backbone.config, positions="sincos_2d_y", frozen_patch_embed=True)
        backbone = build(fixed)
        backbone.load_state_dict({k: v for k, v in state.items() if k != "positions"})
    method = MoCoV3(SMALL, backbone, IMAGENET)
    notes = method.load_published_rest(found.published.rest)
    predictor = {k[10:]: v for k, v in official_state(name).items() if k.startswith("predictor.")}
    method.predictor.load_state_dict(predictor)
    return method, found, notes


def tower_in_their_names(method, state, family):
    tower = {k: state.get(k, torch.zeros_like(v)) for k, v in method.backbone.state_dict().items()}
    plain = published_config(method)
    if family == "resnet":
        return resnet_torchvision.key_map(plain, 0).from_ours(tower)
    return vit_timm.key_map(plain, 0).from_ours(vit_timm.plain_state(tower, plain))


def published_config(method):
    from odonata.backbones.create import to_plain

    return to_plain(method.backbone.config)


def names_of(method, name):
    """Two functions: our gradients, and our slow state, under the original's names."""
    family, head = ("resnet", "fc") if name == "v3_resnet" else ("vit", "head")

    def theirs(gradients):
        tower = {k[9:]: v for k, v in gradients.items() if k.startswith("backbone.")}
        named = tower_in_their_names(method, tower, family)
        learns = {k for k in named if "running" not in k and "num_batches" not in k}
        learns -= {"pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"}
        out = {f"base_encoder.{k}": named[k] for k in learns}
        out |= {f"base_encoder.{head}.{k[10:]}": v for k, v in gradients.items() if k.startswith("projector.")}
        return out | {k: v for k, v in gradients.items() if k.startswith("predictor.")}

    def slow():
        named = tower_in_their_names(method, method.slow_backbone.state_dict(), family)
        heads = {f"{head}.{k}": v for k, v in method.slow_projector.state_dict().items()}
        return {f"momentum_encoder.{k}": v for k, v in (named | heads).items()}

    return theirs, slow


@pytest.mark.shows("moco-v3", "parity")
@pytest.mark.parametrize("name", ["v3_resnet", "v3_vit"])
def test_loss_gradients_and_slow_encoder_are_the_originals_over_several_steps(tmp_path, name):
    method, _, _ = original(tmp_path, name)
    assert follow_original(name, method, *names_of(method, name), {}) < 1e-5


@pytest.mark.shows("moco-v3", "weights")
@pytest.mark.parametrize("name", ["v3_resnet", "v3_vit"])
def test_the_originals_checkpoint_is_read_with_its_projector_and_written_back(tmp_path, name):
    method, found, notes = original(tmp_path, name)
    assert found.published.classes == 0
    assert notes[0].startswith("projector: ")
    head = "fc" if name == "v3_resnet" else "head"
    state = official_state(name)
    for key, value in method.slow_projector.state_dict().items():
        assert torch.equal(value, state[f"momentum_encoder.{head}.{key}"]), key
    files = published_files(method.encoder, "torchvision" if name == "v3_resnet" else "timm")
    for key, value in files.state.items():
        assert torch.allclose(value, state[f"base_encoder.{key}"], atol=1e-5), key
    slow = load_backbone(saved(tmp_path, name), Hints(num_heads=12, part="momentum_encoder"))
    assert any("momentum_encoder" in note for note in slow.published.notes)


def test_heads_are_those_of_the_tower():
    resnet = MoCoV3(SMALL, create("resnet8"), IMAGENET)
    vit = MoCoV3(SMALL, create("vit-tiny8", image_size=32), IMAGENET)
    linears = [sum(isinstance(m, torch.nn.Linear) for m in x.projector) for x in (resnet, vit)]
    assert linears == [2, 3]
    assert isinstance(resnet.predictor[-1], torch.nn.Linear)
    assert not vit.predictor[-1].affine
    assert (resnet.temperature, vit.temperature) == (1.0, 0.2)
    assert all(m.bias is None for x in (resnet, vit) for m in x.projector if isinstance(m, torch.nn.Linear))


def test_a_frozen_patch_projection_never_moves():
    config = dataclasses.replace(SMALL, freeze_patch_embed=True)
    method = MoCoV3(config, create("vit-tiny16", image_size=32, depth=1), IMAGENET).train()
    before = method.backbone.patch_embed.proj.weight.clone()
    free = MoCoV3(dataclasses.replace(config, freeze_patch_embed=False), create("vit-tiny16", image_size=32), IMAGENET)
    method.pixels = lambda view: view.float()
    method.loss(batch_of(0))["loss"].backward()
    torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=1.0).step()
    method.after_update()
    assert torch.equal(method.backbone.patch_embed.proj.weight, before)
    assert torch.equal(method.slow_backbone.patch_embed.proj.weight, before)
    assert free.backbone.patch_embed.proj.weight.requires_grad


def test_the_loss_of_equal_embeddings_is_the_named_constant():
    one = torch.ones(16, 8)
    loss, _ = contrast_in_batch(one, one, 0.2)
    assert loss.item() == pytest.approx(2 * 0.2 * math.log(16))


def test_momentum_goes_from_its_start_to_one():
    method = MoCoV3(MoCoV3Config(momentum=0.99), create("resnet8"), IMAGENET)
    method.begin_step(0, 100)
    assert method.momentum == cosine_momentum(1, 100, 0.99)
    method.begin_step(99, 100)
    assert method.momentum == 1.0


def test_vit_s_of_moco_v3_has_twelve_heads():
    assert VARIANTS["moco-v3-s16"].num_heads == 12
    assert mlp(3, 8, 4, 2, True)[-1].affine is False


@pytest.mark.slow
def test_two_ranks_compute_what_one_does(tmp_path):
    one, two = (report_of_ranks("moco-v3", ranks, tmp_path) for ranks in (1, 2))
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
    for key, value in one["gradients"].items():
        assert torch.allclose(two["gradients"][key], value, rtol=1e-3, atol=1e-5), key
    for key, value in one["statistics"].items():
        assert torch.allclose(two["statistics"][key], value, rtol=1e-4, atol=1e-6), key


def test_a_run_that_stops_and_goes_on_ends_with_the_same_bits(tmp_path):
    assert resumes_to_the_same_bits("moco-v3", tmp_path)


@pytest.mark.slow
@pytest.mark.shows("moco-v3", "trains")
def test_overfits_eight_pictures():
    for seed in range(3):
        before, after = overfits_eight_pictures("moco-v3", seed, 250, lr=4e-3)
        assert after > before + 0.1, (seed, before, after)


@pytest.mark.shows("moco-v3", "manners")
@pytest.mark.parametrize(("field", "value"), [("momentum", 1.5), ("temperature", -1.0)])
def test_bad_options_are_named(field, value):
    with pytest.raises(RecipeError, match=re.escape(f"--{field} is {value}")):
        MoCoV3Config(**{field: value})
