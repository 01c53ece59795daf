"""Rotation: Pillow turns pictures alike, transformers' network has the same loss and gradients."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ResNetConfig, ResNetForImageClassification

import odonata
from odonata.backbones.create import create, to_plain
from odonata.backbones.pretrained import load_backbone
from odonata.data.preprocess import IMAGENET
from odonata.errors import OdonataError, RecipeError
from odonata.represent.rotation import Rotation, RotationConfig, first_stages, quarter_turns
from odonata.weights.resnet_hf import key_map
from represent.pretext import (
    assert_resumes,
    assert_torchvision_file,
    digest,
    pixels64,
    relative,
    run,
    started,
    tiny,
    views,
)


def as_pillow(picture):
    return Image.fromarray(picture.permute(1, 2, 0).numpy())


def turned_by_pillow(pictures):
    """The four turns in the order of the batch: all upright, all by 90°, …"""
    ways = (None, Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)
    turned = [as_pillow(p) if way is None else as_pillow(p).transpose(way) for way in ways for p in pictures]
    return torch.from_numpy(np.stack([np.asarray(image) for image in turned])).permute(0, 3, 1, 2)


@pytest.mark.shows("rotation", "parity")
def test_turns_are_those_of_pillow():
    pictures = views(5, 17).views[0]
    turned, turns = quarter_turns(pictures)
    assert torch.equal(turned, turned_by_pillow(pictures))
    assert turns.tolist() == [0] * 5 + [1] * 5 + [2] * 5 + [3] * 5


def test_turns_are_the_flips_and_transposes_of_the_paper():
    """Sec. 2.2: 90° is a transpose, then a vertical flip; 180° both flips; 270° a vertical flip, then a transpose."""
    picture = views(1, 8).views[0]
    turned, _ = quarter_turns(picture)
    assert torch.equal(turned[1:2], picture.transpose(2, 3).flip(2))
    assert torch.equal(turned[2:3], picture.flip(2).flip(3))
    assert torch.equal(turned[3:4], picture.flip(2).transpose(2, 3))
    again, _ = quarter_turns(turned[3:4])
    assert torch.equal(again[1:2], picture), "270° and 90° make a full turn"


@pytest.mark.shows("rotation", "parity")
def test_loss_and_gradients_equal_transformers(tmp_path):
    """transformers' classifier of four, in float64 and training mode, on the pictures that Pillow turned."""
    torch.manual_seed(1)
    config = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 24], depths=[1, 2, 1], layer_type="basic", num_labels=4
    )
    theirs = ResNetForImageClassification(config)
    theirs.save_pretrained(tmp_path)
    tower = load_backbone(tmp_path).backbone
    tower.reset_head(0)
    method = Rotation(RotationConfig(), tower, IMAGENET)
    method.classifier.load_state_dict(theirs.classifier[1].state_dict())
    method, theirs = method.double().train(), theirs.double().train()
    batch = views(4, 40)
    ours = method.loss(batch)["loss"]
    labels = torch.arange(4).repeat_interleave(4)
    reference = theirs(pixel_values=pixels64(turned_by_pillow(batch.views[0])), labels=labels).loss
    ours.backward()
    reference.backward()
    assert relative(ours, reference) < 1e-7
    grads = {
        name.removeprefix("backbone."): p.grad for name, p in method.named_parameters() if "classifier" not in name
    }
    grads |= {f"head.{name}": p.grad for name, p in method.classifier.named_parameters()}
    grads |= {name: value for name, value in tower.state_dict().items() if name not in grads}
    named = key_map(to_plain(tower.config), 4).from_ours(grads)
    wanted = {name: p.grad for name, p in theirs.named_parameters()}
    assert len(wanted) > 20
    assert max(relative(named[name], value) for name, value in wanted.items()) < 1e-5


def test_a_model_that_knows_nothing_has_the_loss_ln_4():
    method = Rotation(RotationConfig(), create("resnet8"), IMAGENET)
    torch.nn.init.zeros_(method.classifier.weight)
    torch.nn.init.zeros_(method.classifier.bias)
    assert float(method.loss(views(4))["loss"].detach()) == pytest.approx(math.log(4), abs=1e-6)
    assert method.chance == math.log(4)


def test_turning_every_picture_changes_the_loss_only_by_the_names_of_the_turns():
    """The batch holds the same pictures; with the classifier's rows turned along, the loss is equal."""
    method = Rotation(RotationConfig(), create("resnet8"), IMAGENET).eval()
    batch, turned = views(3), views(3)
    turned.views = [torch.rot90(turned.views[0], 1, (2, 3))]
    before = method.loss(batch)["loss"]
    with torch.no_grad():
        for p in method.classifier.parameters():
            p.copy_(p.roll(-1, 0))
        assert relative(method.loss(turned)["loss"], before) < 1e-5


@pytest.mark.shows("rotation", "weights")
def test_the_tower_goes_out_in_torchvisions_layout_and_comes_back(tmp_path):
    task, _ = run(tiny("rotation", backbone="resnet18-small", steps=2), tmp_path / "run")
    model = odonata.load(tmp_path / "run", device="cpu")
    model.convert(tmp_path / "out", "torchvision")
    assert_torchvision_file(tmp_path / "out", model.backbone)
    back = load_backbone(tmp_path / "out").backbone
    assert digest(back) == digest(task.method.backbone)
    begun = started(tiny("rotation", backbone="resnet18-small", init=str(tmp_path / "out")))
    assert digest(begun.method.backbone) == digest(back)


@pytest.mark.shows("rotation", "weights")
def test_the_lower_stages_are_a_tower_that_is_measured_exported_and_begun_from(tmp_path):
    chosen = tiny("rotation", backbone="resnet8x4", steps=1, measured_stages=2)
    task, _ = run(chosen, tmp_path / "run")
    tower, part = task.method.backbone, task.method.encoder
    images = torch.randn(2, 3, 32, 32)
    tower.eval()
    part.eval()
    assert torch.equal(part.forward_features(images), tower.features(images, [1])[0])
    assert part.num_features == part(images).shape[1] == 128
    model = odonata.load(tmp_path / "run", device="cpu")
    model.convert(tmp_path / "out", "odonata")
    assert torch.equal(odonata.load(tmp_path / "out", device="cpu").pooled(images), part(images))
    whole = tiny("rotation", backbone="resnet8x4", init=str(tmp_path / "run"), init_part="backbone")
    assert digest(started(whole).method.backbone) == digest(tower)


@pytest.mark.shows("rotation", "trains")
@pytest.mark.slow
def test_eight_pictures_are_learned_by_heart(tmp_path):
    chosen = tiny(
        "rotation", data__path="scenes-digits:n=8,size=32", data__batch_size=8, crop_scale=(1.0, 1.0), steps=60,
        optim__lr=5e-3, lr_per=0,
    )  # fmt: skip
    task, _ = run(chosen, tmp_path / "run")
    batch = next(iter(task.batches.start()))
    found = task.method.eval().loss(batch)
    assert float(found["loss"]) < math.log(4) / 20
    assert float(found["rotation_top1"]) == 1


def test_a_killed_run_resumes_to_the_same_bits(tmp_path):
    assert_resumes(tiny("rotation"), tmp_path)


@pytest.mark.shows("rotation", "manners")
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"measured_stages": 4}, "--measured-stages is 4; the tower has 3 stages"),
        ({"measured_stages": -1}, "--measured-stages is -1"),
        ({"backbone": "vit-tiny8", "measured_stages": 1}, "is for residual networks, and the tower is a vit"),
        ({"data__path": "/nowhere"}, "/nowhere"),
    ],
)
def test_wrong_options_are_named(tmp_path, fields, message):
    with pytest.raises(OdonataError, match=message):
        run(tiny("rotation", **fields), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.shows("rotation", "manners")
def test_pictures_that_do_not_turn_into_themselves_are_refused():
    with pytest.raises(ValueError, match="square pictures; got 32 × 24"):
        quarter_turns(torch.zeros(2, 3, 32, 24))
    with pytest.raises(RecipeError, match="--measured-stages is 0"):
        first_stages(create("resnet8"), 0)
