"""ConvNeXt in and out; transformers and recorded timm and torchvision (make_swin_convnext.py) are the oracles."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    ConvNextModel,
    ConvNextV2Config,
    ConvNextV2ForImageClassification,
    ConvNextV2Model,
)

from fixtures.named_numbers import numbers
from odonata.backbones.convnext import ConvNeXtConfig, build
from odonata.backbones.pretrained import load_backbone, published_files
from odonata.errors import WeightsError
from odonata.weights.towers import layouts, read_tower

RECORDED = np.load(Path(__file__).parents[1] / "fixtures" / "swin_convnext.npz")
SOURCES = ("convnext_torchvision", "convnext_timm", "convnextv2_timm")
CASES = [f"{source}/{size}" for source in SOURCES for size in ("native", "other", "odd")]
V1 = ConvNeXtConfig((1, 2, 1, 1), (8, 12, 16, 20))
V2 = replace(V1, layer_scale=None, response_norm=True)


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


def filled(tower):
    with torch.no_grad():
        for name, value in tower.named_parameters():
            value.copy_(numbers(name, tuple(value.shape)))
    return tower.eval()


@pytest.mark.parametrize("case", CASES)
def test_outputs_and_gradients_equal_the_source(case, tmp_path):
    description, state = described(case)
    save_file(state, tmp_path / "model.safetensors")
    loaded = load_backbone(tmp_path / "model.safetensors")
    layout = case.split("/")[0].partition("_")[2]
    assert loaded.published.layout == layout and loaded.published.classes == 5
    tower = loaded.backbone.double()
    images = numbers("images", (2, 3, *description["size"])).double() * description["size"][0]
    images.requires_grad_(True)
    logits = tower(images)
    (logits * numbers("direction", (2, 5))).sum().backward()
    assert relative(logits, torch.from_numpy(RECORDED[f"{case}/logits"])) < 1e-9
    assert relative(images.grad[:, :, ::4, ::4], torch.from_numpy(RECORDED[f"{case}/image_gradient"])) < 1e-6
    layout_of = {known.name: known for known in layouts() if known.family == "convnext"}
    gradients = {key: value.grad for key, value in tower.named_parameters()}
    theirs = layout_of[layout].write(gradients, loaded.published.config, 5, None).state
    for key, norm in description["gradient_norms"].items():
        assert theirs[key].norm().item() == pytest.approx(norm, rel=1e-6, abs=1e-9), key
    assert equal(published_files(loaded.backbone.float(), layout).state, state)


@pytest.mark.parametrize("size", [(64, 64), (96, 64), (75, 50)])
@pytest.mark.parametrize("second", [False, True], ids=["v1", "v2"])
def test_transformers_gives_the_same_numbers(second, size, tmp_path):
    kind, config = (
        (ConvNextV2ForImageClassification, ConvNextV2Config)
        if second
        else (ConvNextForImageClassification, ConvNextConfig)
    )
    model = filled(kind(config(depths=[1, 2, 1], hidden_sizes=[8, 12, 16], num_stages=3, num_labels=5)))
    model.save_pretrained(tmp_path)
    tower = load_backbone(tmp_path).backbone.double()
    assert tower.norm.eps == 1e-12
    images = numbers("images", (2, 3, *size)).double() * size[0]
    theirs_in, ours_in = (images.clone().requires_grad_(True) for _ in range(2))
    theirs, ours = model.double()(theirs_in).logits, tower(ours_in)
    assert relative(ours, theirs) < 1e-9
    direction = numbers("direction", (2, 5)).double()
    (theirs * direction).sum().backward()
    (ours * direction).sum().backward()
    assert relative(ours_in.grad, theirs_in.grad) < 1e-9
    trunk = model.convnextv2 if second else model.convnext
    assert (
        relative(tower.stages[1].layers[1].fc1.weight.grad, trunk.encoder.stages[1].layers[1].pwconv1.weight.grad)
        < 1e-9
    )


@pytest.mark.parametrize("config", [V1, V2], ids=["v1", "v2"])
def test_transformers_reads_what_is_written(config, tmp_path):
    kinds = (
        (ConvNextV2ForImageClassification, ConvNextV2Model)
        if config is V2
        else (ConvNextForImageClassification, ConvNextModel)
    )
    images = torch.randn(2, 3, 64, 64)
    for kind, classes in zip(kinds, (5, 0), strict=True):
        tower = build(config)
        tower.reset_head(classes)
        written(filled(tower), "hf", tmp_path / f"{classes}")
        model, report = kind.from_pretrained(tmp_path / f"{classes}", output_loading_info=True)
        assert not report["missing_keys"] and not report["unexpected_keys"]
        with torch.no_grad():
            out = model.eval()(images)
            assert relative(tower(images), out.logits if classes else out.pooler_output) < 1e-5
        again = load_backbone(tmp_path / f"{classes}")
        assert again.backbone.config == tower.config and equal(again.backbone.state_dict(), tower.state_dict())


@pytest.mark.parametrize("layout", ["official", "timm", "torchvision"])
@pytest.mark.parametrize("config", [V1, V2, replace(V2, widths=(88, 96, 104, 112))], ids=["v1", "v2", "v2-wide"])
def test_our_tower_survives_every_layout(config, layout, tmp_path):
    tower = build(config)
    tower.reset_head(3)
    if layout == "torchvision" and config.response_norm:
        with pytest.raises(WeightsError, match="torchvision's ConvNeXt is the first version"):
            published_files(tower, layout)
        return
    state = written(filled(tower), layout, tmp_path / "out")
    again = load_backbone(tmp_path / "out")
    assert again.backbone.config == tower.config and equal(again.backbone.state_dict(), tower.state_dict())
    if layout == "timm":  # atto to nano have convolutions for MLPs there
        small = config.response_norm and config.widths[0] <= 80
        assert state["stages.0.blocks.0.mlp.fc1.weight"].ndim == (4 if small else 2)
    if layout == "official" and config.response_norm:
        assert state["stages.0.0.grn.gamma"].shape == (1, 1, 1, 4 * config.widths[0])


def test_facebooks_checkpoints_hold_the_network_under_model(tmp_path):
    tower = build(V1)
    torch.save({"model": published_files(tower, "official").state}, tmp_path / "convnext.pth")
    published = read_tower(tmp_path / "convnext.pth")
    assert published.layout == "official" and equal(published.state, dict(tower.state_dict()))


def test_each_source_says_its_preprocessing(tmp_path):
    config = ConvNeXtConfig((1, 1, 9, 1), (96, 100, 104, 108))
    expected = {"official": (256, "bicubic"), "timm": (256, "bicubic"), "hf": (256, "bicubic")}
    for layout, (resize, interpolation) in (expected | {"torchvision": (236, "bilinear")}).items():
        written(build(config), layout, tmp_path / layout)
        preprocess = load_backbone(tmp_path / layout).preprocess
        assert (preprocess.size, preprocess.resize_size, preprocess.interpolation) == (224, resize, interpolation)
        assert preprocess.std == (0.229, 0.224, 0.225)


def test_what_the_tower_cannot_be_is_said(tmp_path):
    state = published_files(build(V1), "official").state
    save_file(state | {"stages.0.0.dwconv.weight": torch.zeros(8, 1, 5, 5)}, tmp_path / "small.safetensors")
    with pytest.raises(WeightsError, match=r"the tower here has 7 × 7"):
        load_backbone(tmp_path / "small.safetensors")
    partial = {key: value for key, value in state.items() if "stages.0.0" not in key}
    save_file(partial, tmp_path / "partial.safetensors")
    with pytest.raises(WeightsError, match="no published backbone that is known"):
        read_tower(tmp_path / "partial.safetensors")
    with pytest.raises(WeightsError, match="four stages, not 3"):
        published_files(build(ConvNeXtConfig((1, 1, 1), (8, 8, 8))), "timm")
