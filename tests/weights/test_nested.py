"""Training checkpoints: which network is taken, what may stand beside it, and what is never read."""

import argparse
import pathlib

import pytest
import torch

from odonata.backbones.pretrained import published_files
from odonata.backbones.vit import ViT, ViTConfig
from odonata.errors import WeightsError
from odonata.weights.nested import choose_entry
from odonata.weights.read import read_state
from odonata.weights.towers import Hints, read_tower


@pytest.fixture(scope="module")
def tower():
    return published_files(ViT(ViTConfig(image_size=32, width=64, depth=1, num_heads=1, mlp_width=64)), "timm").state


def under(prefix, state, scale=1.0):
    return {f"{prefix}{name}": value * scale for name, value in state.items()}


def save(folder, content):
    torch.save(content, folder / "checkpoint.pth")
    return folder / "checkpoint.pth"


def scale_of(found, tower):
    return (found.state["patch_embed.proj.weight"] / tower["patch_embed.proj.weight"]).mean().item()


def test_dino_takes_the_teacher_and_the_student_on_demand(tmp_path, tower):
    head = {"head.last_layer.weight_g": torch.ones(4, 1)}
    file = save(tmp_path, {
        "student": under("module.backbone.", tower) | under("module.", head),
        "teacher": under("backbone.", tower, 2.0) | head,
        "optimizer": {"state": {}}, "epoch": 3, "args": argparse.Namespace(arch="vit_small", lr=0.1),
    })  # fmt: skip
    assert scale_of(read_tower(file), tower) == pytest.approx(2)
    student = read_tower(file, Hints(part="student"))
    assert scale_of(student, tower) == pytest.approx(1)
    assert "head.last_layer.weight_g" in student.rest
    assert any("entry 'student'" in note for note in student.notes)


@pytest.mark.parametrize(("usual", "average"), [("encoder_q", "encoder_k"), ("base_encoder", "momentum_encoder"),
                                                ("encoder", "encoder_k")])  # fmt: skip
def test_moco_and_moby_take_what_learned_by_gradients(tmp_path, tower, usual, average):
    state = under(f"module.{average}.", tower, 2.0) | under(f"module.{usual}.", tower) | {"module.queue": torch.ones(2)}
    file = save(tmp_path, {"state_dict": state, "arch": "vit", "epoch": 1})
    found = read_tower(file)
    assert scale_of(found, tower) == pytest.approx(1)
    assert "queue" in found.rest
    assert scale_of(read_tower(file, Hints(part=average)), tower) == pytest.approx(2)


def test_weights_and_their_average_stand_side_by_side(tmp_path, tower):
    file = save(tmp_path, {"model_ema": under("", tower, 3.0), "model": tower})
    assert scale_of(read_tower(file), tower) == pytest.approx(1)
    assert scale_of(read_tower(file, Hints(part="model_ema")), tower) == pytest.approx(3)


def test_vissl_nests_deeply(tmp_path, tower):
    trunk = under("_feature_blocks.", tower)
    file = save(
        tmp_path, {"classy_state_dict": {"base_model": {"model": {"trunk": trunk, "heads": {}}}}, "phase_idx": 1}
    )
    assert scale_of(read_tower(file), tower) == pytest.approx(1)


def test_a_part_that_is_not_there_is_named_with_those_that_are(tmp_path, tower):
    file = save(tmp_path, {"teacher": under("backbone.", tower), "student": under("module.backbone.", tower)})
    with pytest.raises(WeightsError, match=r"no part 'encoder_q'; there are backbone, teacher \(taken\)"):
        read_tower(file, Hints(part="encoder_q"))


def test_arguments_of_a_script_are_read_and_no_other_object(tmp_path, tower):
    assert read_state(save(tmp_path, {"model": tower, "args": argparse.Namespace(lr=0.1)})).entry == "model"
    with pytest.raises(WeightsError, match="could run code when read"):
        read_state(save(tmp_path, {"model": tower, "args": pathlib.PurePosixPath("here")}))
    with pytest.raises(WeightsError, match="could run code when read"):
        read_state(save(tmp_path, {"model": tower, "args": argparse.Namespace(path=pathlib.PurePosixPath("here"))}))
    assert argparse.Namespace not in torch.serialization.get_safe_globals()


def test_a_plain_state_is_its_own_entry():
    state = {"a": torch.ones(1)}
    assert choose_entry(state, "teacher") == (state, None)
