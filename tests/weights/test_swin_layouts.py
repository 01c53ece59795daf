"""Swin in and out; transformers and recorded microsoft, timm, torchvision (make_swin_convnext.py) are the oracles."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import SwinConfig as HFConfig
from transformers import SwinForImageClassification, SwinForMaskedImageModeling, SwinModel

from fixtures.named_numbers import numbers
from odonata.backbones.pretrained import load_backbone, published_files
from odonata.backbones.swin import SwinConfig, build
from odonata.errors import WeightsError
from odonata.weights.towers import Hints, layouts, read_tower

RECORDED = np.load(Path(__file__).parents[1] / "fixtures" / "swin_convnext.npz")
CASES = [f"swin_{source}/{size}" for source in ("torchvision", "timm") for size in ("native", "other", "odd")]
CASES += [f"swin_official/{size}" for size in ("native", "other", "small")]
TINY = SwinConfig(12, (2, 2, 2), (1, 2, 4), (4, 4, 4))


def relative(ours, theirs):
    return ((ours - theirs).norm() / theirs.norm()).item()


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) and a[key].dtype == b[key].dtype for key in a)


def described(case):
    description = json.loads(RECORDED[f"{case}/json"].tobytes())
    return description, {key: numbers(key, tuple(shape)) for key, shape in description["shapes"].items()}


def written(tower, layout, folder):
    files = published_files(tower, layout)
    folder.mkdir(exist_ok=True)
    save_file(files.state, folder / files.weights_name)
    for name, content in files.texts.items():
        (folder / name).write_text(json.dumps(content))
    return files.state


@pytest.mark.parametrize("case", CASES)
def test_outputs_and_gradients_equal_the_source(case, tmp_path):
    description, state = described(case)
    save_file(state, tmp_path / "model.safetensors")
    loaded = load_backbone(tmp_path / "model.safetensors")
    layout = case.split("/")[0].removeprefix("swin_")
    assert loaded.published.layout == layout and loaded.published.classes == 5
    tower = loaded.backbone.double()
    images = numbers("images", (2, 3, *description["size"])).double() * description["size"][0]
    images.requires_grad_(True)
    logits = tower(images)
    (logits * numbers("direction", (2, 5))).sum().backward()
    assert relative(logits, torch.from_numpy(RECORDED[f"{case}/logits"])) < 1e-9
    assert relative(images.grad[:, :, ::4, ::4], torch.from_numpy(RECORDED[f"{case}/image_gradient"])) < 1e-6
    layout_of = {known.name: known for known in layouts() if known.family == "swin"}
    gradients = {key: value.grad for key, value in tower.named_parameters()}
    theirs = layout_of[layout].write(gradients, loaded.published.config, 5, None).state
    for key, norm in description["gradient_norms"].items():
        assert theirs[key].norm().item() == pytest.approx(norm, rel=1e-6, abs=1e-9), key


@pytest.mark.parametrize("case", CASES)
def test_their_state_comes_back_bit_equal(case, tmp_path):
    _, state = described(case)
    save_file(state, tmp_path / "model.safetensors")
    loaded = load_backbone(tmp_path / "model.safetensors")
    back = published_files(loaded.backbone, loaded.published.layout).state
    assert equal({key: value for key, value in back.items() if not key.endswith("relative_position_index")}, state)


def hf_model(kind=SwinForImageClassification, **options):
    torch.manual_seed(0)
    config = HFConfig(
        image_size=64, embed_dim=12, depths=[2, 2, 2], num_heads=[1, 2, 4], window_size=4, num_labels=5, **options
    )
    model = kind(config).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.copy_(numbers(name, tuple(value.shape)))
    return model


@pytest.mark.parametrize("size", [(64, 64), (96, 64), (90, 71)])
def test_transformers_gives_the_same_numbers(size, tmp_path):
    model = hf_model()
    model.save_pretrained(tmp_path)
    tower = load_backbone(tmp_path).backbone.double()
    images = numbers("images", (2, 3, *size)).double() * size[0]
    theirs_in, ours_in = (images.clone().requires_grad_(True) for _ in range(2))
    theirs, ours = model.double()(theirs_in).logits, tower(ours_in)
    assert relative(ours, theirs) < 1e-9
    direction = numbers("direction", (2, 5)).double()
    (theirs * direction).sum().backward()
    (ours * direction).sum().backward()
    assert relative(ours_in.grad, theirs_in.grad) < 1e-9
    blocks = model.swin.encoder.layers[1].blocks[1]
    table = tower.stages[1].layers[1].attn.relative_position_bias_table.grad
    assert relative(table, blocks.attention.relative_position_bias.relative_position_bias_table.grad) < 1e-9
    assert relative(tower.stages[1].layers[1].attn.k.weight.grad, blocks.attention.k_proj.weight.grad) < 1e-9


def test_stages_and_pooled_features_are_those_of_transformers(tmp_path):
    model = hf_model(SwinModel)
    model.save_pretrained(tmp_path)
    tower = load_backbone(tmp_path).backbone
    images = numbers("images", (2, 3, 64, 64)) * 64
    with torch.no_grad():
        out = model(images)
        assert relative(tower.forward_features(images).flatten(2).transpose(1, 2), out.last_hidden_state) < 1e-5
        assert relative(tower(images), out.pooler_output) < 1e-5
    assert read_tower(tmp_path).classes == 0


@pytest.mark.parametrize("layout_version", [4, 5])
def test_names_of_both_versions_of_transformers_are_read(layout_version, tmp_path):
    model = hf_model()
    model.save_pretrained(tmp_path)
    state = read_tower(tmp_path).state
    if layout_version == 5:
        save_file(model.state_dict(), tmp_path / "model.safetensors")
    published = read_tower(tmp_path)
    assert f"names of transformers {layout_version}" in published.notes
    assert equal(published.state, state)


def test_transformers_reads_what_is_written(tmp_path):
    tower = build(TINY)
    tower.reset_head(5)
    written(tower.eval(), "hf", tmp_path / "out")
    model, report = SwinForImageClassification.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert relative(tower(images), model.eval()(images).logits) < 1e-5
    again = load_backbone(tmp_path / "out")
    assert again.backbone.config == tower.config and equal(again.backbone.state_dict(), tower.state_dict())


def test_masked_image_models_lend_their_tower(tmp_path):
    model = hf_model(SwinForMaskedImageModeling, encoder_stride=16)
    model.save_pretrained(tmp_path)
    published = read_tower(tmp_path)
    assert published.classes == 0
    assert sorted(published.rest) == ["decoder.0.bias", "decoder.0.weight", "swin.embeddings.mask_token"]


@pytest.mark.parametrize("layout", ["official", "timm", "torchvision"])
def test_our_tower_survives_every_layout(layout, tmp_path):
    tower = build(replace(TINY, convention="official" if layout == "official" else layout))
    tower.reset_head(3)
    state = written(tower, layout, tmp_path / "out")
    again = load_backbone(tmp_path / "out")
    assert again.backbone.config == tower.config and equal(again.backbone.state_dict(), tower.state_dict())
    # timm's stage 1 begins with the merging that ends stage 0 in the original.
    names = {key for key in state if "downsample.reduction" in key}
    first = {"official": 0, "timm": 1}.get(layout)
    assert names == (set() if first is None else {f"layers.{first + i}.downsample.reduction.weight" for i in range(2)})


def test_mobys_online_network_is_taken_from_its_training_checkpoint(tmp_path):
    online, slow = build(TINY), build(TINY)
    state = {f"encoder.{key}": value for key, value in published_files(online, "official").state.items()}
    state |= {f"encoder_k.{key}": value for key, value in published_files(slow, "official").state.items()}
    state["encoder.layers.0.blocks.1.attn_mask"] = torch.zeros(16, 16, 16)
    state |= {"queue1": torch.zeros(256, 8), "projector.linear_out.weight": torch.zeros(4, 4)}
    torch.save({"model": state, "epoch": 299}, tmp_path / "moby.pth")
    assert equal(read_tower(tmp_path / "moby.pth").state, dict(online.state_dict()))
    assert equal(read_tower(tmp_path / "moby.pth", Hints(part="encoder_k")).state, dict(slow.state_dict()))


def test_each_source_says_its_preprocessing(tmp_path):
    config = SwinConfig(96, (1, 1, 6, 1))
    expected = {"official": (224, 256), "timm": (224, 248), "torchvision": (224, 232)}
    for layout, (size, resize) in expected.items():
        written(build(config), layout, tmp_path / layout)
        preprocess = load_backbone(tmp_path / layout).preprocess
        assert (preprocess.size, preprocess.resize_size, preprocess.interpolation) == (size, resize, "bicubic")
        assert preprocess.mean == (0.485, 0.456, 0.406)
    large = replace(TINY, windows=(12, 12, 12))
    written(build(large), "official", tmp_path / "large")
    assert load_backbone(tmp_path / "large").preprocess.size == 384


def test_what_the_tower_cannot_be_is_said(tmp_path):
    model = hf_model(use_absolute_embeddings=True)
    model.save_pretrained(tmp_path / "absolute")
    with pytest.raises(WeightsError, match="use_absolute_embeddings is true"):
        read_tower(tmp_path / "absolute")
    hf_model(layer_norm_eps=1e-6).save_pretrained(tmp_path / "eps")
    with pytest.raises(WeightsError, match="layer_norm_eps is 1e-06"):
        read_tower(tmp_path / "eps")
    state = published_files(build(TINY), "official").state
    save_file(state | {"layers.0.blocks.0.attn.logit_scale": torch.zeros(1)}, tmp_path / "v2.safetensors")
    with pytest.raises(WeightsError, match="a Swin Transformer V2"):
        read_tower(tmp_path / "v2.safetensors")
    save_file(state | {"absolute_pos_embed": torch.zeros(1, 256, 12)}, tmp_path / "ape.safetensors")
    with pytest.raises(WeightsError, match="absolute_pos_embed"):
        read_tower(tmp_path / "ape.safetensors")
    with pytest.raises(WeightsError, match="one size of windows"):
        published_files(build(replace(TINY, windows=(4, 4, 2))), "hf")
