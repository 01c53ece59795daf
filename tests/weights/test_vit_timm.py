"""Vision Transformers under timm's names: recorded outputs of the code that publishes them, and what files leave
open."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from odonata.backbones.pretrained import load_backbone, published_files
from odonata.backbones.vit import ViT, ViTConfig
from odonata.errors import WeightsError
from odonata.nn.positions import resize_positions, sincos_2d
from odonata.weights.towers import Hints, read_tower

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
sys.path.insert(0, str(FIXTURES))
from named_numbers import numbers  # noqa: E402

HEADS = Hints(num_heads=3)
SMALL = ViTConfig(image_size=32, patch_size=8, width=32, depth=2, num_heads=2, mlp_width=64)


@pytest.fixture(scope="module")
def recorded():
    return np.load(FIXTURES / "vit.npz")


def published(recorded, name):
    shapes = json.loads(recorded[f"{name}/json"].tobytes())
    state = {key: numbers(key, tuple(shape)) for key, shape in shapes.items()}
    if name == "mae":
        for key in ("pos_embed", "decoder_pos_embed"):
            state[key] = sincos_2d(shapes[key][2], (4, 4), 1)[None]
    return state


def relative(ours, theirs):
    theirs = torch.as_tensor(theirs)
    return ((ours - theirs).norm() / theirs.norm()).item()


@pytest.mark.parametrize(
    ("name", "entry"),
    [("timm", None), ("timm_mean", None), ("deit", "model"), ("timm_dinov2", None), ("torchvision", None),
     ("dino", None), ("mae", "model")],
)  # fmt: skip
def test_published_code_computes_the_same(recorded, tmp_path, name, entry):
    state = published(recorded, name)
    torch.save({entry: state} if entry else state, tmp_path / "tower.pth")
    tower = load_backbone(tmp_path / "tower.pth", HEADS).backbone
    sizes = [key.split("/")[1] for key in recorded.files if key.startswith(f"{name}/") and "x" in key.split("/")[1]]
    assert sizes
    for size in sizes:
        images = numbers("images", (2, 3, *map(int, size.split("x")))) * int(size.split("x")[0])
        tower.zero_grad()
        out = tower.forward_features(images) if name == "timm_dinov2" else tower(images)
        assert relative(out.detach(), recorded[f"{name}/{size}"]) < 1e-5
        out.square().sum().backward()
    gradient = tower.transformer.layers[0].norm1.weight.grad
    assert relative(gradient, recorded[f"{name}/gradient"]) < 1e-5


@pytest.mark.parametrize("name", ["timm", "timm_mean", "deit", "timm_dinov2", "torchvision", "dino", "mae"])
def test_round_trips_are_bit_equal(recorded, tmp_path, name):
    state = published(recorded, name)
    torch.save(state, tmp_path / "tower.pth")
    read = load_backbone(tmp_path / "tower.pth", HEADS)
    written = published_files(read.backbone, read.published.layout).state
    kept = {k: v for k, v in state.items() if k not in read.published.rest}
    assert written.keys() == kept.keys()
    assert all(torch.equal(written[k], kept[k]) for k in kept)


def test_mae_files_are_known_by_their_positions_and_their_decoder_is_kept_apart(recorded, tmp_path):
    torch.save({"model": published(recorded, "mae")}, tmp_path / "mae.pth")
    found = read_tower(tmp_path / "mae.pth", HEADS)
    assert found.source == "MAE ViT"
    assert "mask_token" in found.rest and "decoder_blocks.0.attn.qkv.weight" in found.rest
    assert found.preprocess is not None and found.preprocess["mean"] == [0.485, 0.456, 0.406]
    assert any("MAE's order" in note for note in found.notes)


def save(tmp_path, state, name="tower.pth", **beside):
    torch.save({**beside, **state} if beside else state, tmp_path / name)
    return tmp_path / name


def flat(width=384, **changes):
    tower = ViT(ViTConfig(**{"image_size": 32, "patch_size": 16, "width": width, "depth": 1, "num_heads": 1,
                             "mlp_width": 64, "init": "timm"} | changes))  # fmt: skip
    return published_files(tower, "timm").state


def test_width_384_is_refused_unless_the_file_or_the_caller_says_the_heads(tmp_path):
    file = save(tmp_path, flat())
    with pytest.raises(WeightsError, match=r"6 heads \(DeiT, DINO, timm\) and 12 \(MoCo v3\).*num_heads"):
        read_tower(file)
    assert read_tower(file, Hints(num_heads=6)).config["num_heads"] == 6
    moco = {f"module.base_encoder.{k}": v for k, v in flat(positions="sincos_2d_y").items()}
    moco["module.base_encoder.head.0.weight"] = torch.zeros(2, 2)
    found = read_tower(save(tmp_path, {"state_dict": moco}, "moco.pth"))
    assert (found.source, found.config["num_heads"], found.classes) == ("MoCo v3 ViT", 12, 0)
    assert "head.0.weight" in found.rest
    assert read_tower(save(tmp_path, flat(distilled=True), "deit.pth")).config["num_heads"] == 6
    dino = {"teacher": {f"backbone.{k}": v for k, v in flat().items()}}
    found = read_tower(save(tmp_path, dino, "dino.pth"))
    assert (found.config["num_heads"], found.config["position_convention"]) == (6, "dino")


# ViT-H and ViT-L do not differ by width / 64 alone: H has 16 heads of 80.
@pytest.mark.parametrize(("width", "heads"), [(192, 3), (768, 12), (1024, 16), (1280, 16), (1408, 16), (512, 8)])
def test_heads_of_other_widths(tmp_path, width, heads):
    found = read_tower(save(tmp_path, flat(width)))
    assert found.config["num_heads"] == heads
    assert any(note.startswith(f"heads: {heads}") for note in found.notes)


def test_timms_card_says_normalisation_and_model(tmp_path):
    card = {"architecture": "vit_small_patch16_224", "pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    (tmp_path / "config.json").write_text(json.dumps(card))
    safetensors.torch.save_file(flat(), tmp_path / "model.safetensors")
    found = read_tower(tmp_path)
    assert found.source == "timm vit_small_patch16_224" and found.config["num_heads"] == 6
    assert found.preprocess is not None and found.preprocess["mean"] == [0.5] * 3


def test_other_parts_are_refused_not_left_out(tmp_path):
    state = flat(64) | {"norm_pre.weight": torch.ones(64), "norm_pre.bias": torch.ones(64)}
    with pytest.raises(WeightsError, match="a norm before its blocks, as CLIP's"):
        read_tower(save(tmp_path, state))
    state = flat(64) | {"blocks.0.attn.extra": torch.ones(3)}
    with pytest.raises(WeightsError, match=r"blocks\.0\.attn\.extra"):
        read_tower(save(tmp_path, state))


@pytest.mark.parametrize(("changes", "layout", "message"), [
    ({"positions": "rope"}, "timm", "rotary towers"),
    ({"pre_norm": True}, "timm", "no norm before the blocks"),
    ({"pool": "class_mean"}, "timm", "no pooling 'class_mean'"),
    ({"registers": 2}, "torchvision", "registers is 0 there, here 2"),
    ({}, "dinov2", "has a layer scale"),
    ({}, "dinov3", "has rotary positions"),
    ({"qk_norm": True}, "hf", "none of queries and keys"),
])  # fmt: skip
def test_layouts_refuse_what_they_cannot_say(changes, layout, message):
    with pytest.raises(WeightsError, match=message):
        published_files(ViT(ViTConfig(image_size=32, width=64, depth=1, num_heads=4, mlp_width=64, **changes)), layout)


V2 = {"layer_scale": 1.0, "position_convention": "dino"}
V3 = {"positions": "rope", "registers": 4, "layer_scale": 1.0, "qkv_bias": "no_key", "norm_eps": 1e-5}


@pytest.mark.parametrize(("changes", "layout"), [
    (V2, "dinov2"), (V2 | {"registers": 4, "position_convention": "open_clip"}, "dinov2"),
    (V2 | {"mlp": "swiglu", "activation": "silu"}, "dinov2"),
    (V3, "dinov3"), (V3 | {"mlp": "swiglu", "activation": "silu", "qkv_bias": "none"}, "dinov3"),
])  # fmt: skip
def test_the_dinos_own_layouts_hold_everything(tmp_path, changes, layout):
    options = {"image_size": 32, "patch_size": 8, "width": 64, "depth": 3, "num_heads": 1, "mlp_width": 64}
    tower = ViT(ViTConfig(**options | changes)).eval()
    state = published_files(tower, layout).state
    read = load_backbone(save(tmp_path, state))
    assert read.published.layout == layout
    images = torch.randn(1, 3, 40, 24)
    assert torch.equal(read.backbone(images), tower(images))
    again = published_files(read.backbone, layout).state
    assert again.keys() == state.keys() and all(torch.equal(again[k], state[k]) for k in state)
    if layout == "dinov3" and changes["qkv_bias"] == "no_key":
        assert state["blocks.0.attn.qkv.bias_mask"].view(3, 64).mean(1).tolist() == [1, 0, 1]
    if layout == "dinov2":
        chunked = {k.replace("blocks.", "blocks.0.") if "blocks.0" in k else k.replace("blocks.", "blocks.1."): v
                   for k, v in state.items()}  # fmt: skip
        assert "blocks.0.0.norm1.weight" in chunked and "blocks.1.2.norm1.weight" in chunked
        read = load_backbone(
            save(tmp_path, {"teacher": {f"backbone.{k}": v for k, v in chunked.items()}}, "chunks.pth")
        )
        assert torch.equal(read.backbone(images), tower(images))


def test_towers_that_compute_their_positions_are_written_with_them():
    state = published_files(
        ViT(ViTConfig(image_size=32, width=64, depth=1, num_heads=1, positions="sincos_2d")), "timm"
    ).state
    assert torch.equal(state["pos_embed"][0], sincos_2d(64, (2, 2), 1))


def test_torchvision_and_timm_resize_positions_as_recorded(recorded):
    stored = numbers("encoder.pos_embedding", (1, 17, 96))[0]
    for theirs, ours in (("torchvision", "torchvision"), ("timm", "open_clip")):
        found = resize_positions(stored, (4, 4), (6, 6), convention=ours)
        assert relative(found, recorded[f"positions/{theirs}"][0]) < 1e-6
