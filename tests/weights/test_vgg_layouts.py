"""VGGs in published layouts: in and out."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fixtures.named_numbers import numbers
from odonata.backbones.create import create
from odonata.backbones.pretrained import load_backbone, published_files
from odonata.errors import WeightsError

RECORDED = np.load(Path(__file__).parents[1] / "fixtures/detector_towers.npz")
WIDTHS = (8, 12, 16, 24, 24)


def recorded(name: str) -> dict[str, torch.Tensor]:
    shapes = json.loads(RECORDED[f"{name}/shapes"].tobytes())
    return {key: numbers(key, tuple(shape)) for key, shape in shapes.items()}


@pytest.mark.parametrize(("name", "variant"), [("vgg", "vgg11"), ("vgg_bn", "vgg11_bn")])
def test_torchvisions_file_comes_in_and_goes_out_bit_for_bit(tmp_path, name, variant):
    theirs = recorded(name)
    save_file(theirs, tmp_path / "w.safetensors")
    loaded = load_backbone(tmp_path / "w.safetensors")
    assert loaded.backbone.config == create(variant, widths=WIDTHS, fc_width=40).config
    assert loaded.published.classes == 10
    back = published_files(loaded.backbone, "torchvision").state
    assert list(back) == list(theirs)
    assert all(torch.equal(back[key], value) for key, value in theirs.items())


def test_old_files_count_no_batches(tmp_path):
    theirs = {key: value for key, value in recorded("vgg_bn").items() if not key.endswith("num_batches_tracked")}
    save_file(theirs, tmp_path / "w.safetensors")
    assert load_backbone(tmp_path / "w.safetensors").backbone.config.norm == "batch"


@pytest.mark.parametrize("depth", [11, 13, 16, 19])
def test_stacks_are_told_from_gaps_between_the_numbers(tmp_path, depth):
    for suffix in ("", "_bn"):
        tower = create(f"vgg{depth}{suffix}", widths=(2, 2, 2, 2, 3), fc_width=4)
        tower.reset_head(2)
        save_file(published_files(tower, "torchvision").state, tmp_path / "w.safetensors")
        assert load_backbone(tmp_path / "w.safetensors").backbone.config == tower.config


def test_torchvisions_weights_for_ssd_have_caffes_preprocessing_and_no_classifier(tmp_path):
    theirs = recorded("vgg")
    for key, value in theirs.items():
        if key.startswith("classifier"):
            value.fill_(float("nan"))
    save_file(theirs, tmp_path / "w.safetensors")
    loaded = load_backbone(tmp_path / "w.safetensors")
    assert loaded.backbone.config.top == "none"
    assert loaded.backbone(torch.randn(1, 3, 64, 64)).isfinite().all()
    grey = loaded.preprocess.normalize(torch.full((3, 1, 1), 128, dtype=torch.uint8)).flatten()
    assert grey.tolist() == pytest.approx([128 - 123, 128 - 117, 128 - 104], abs=0.01)
    assert any("Caffe's preprocessing" in note for note in loaded.published.notes)


def test_fcns_file_comes_in_with_its_padding_and_goes_out_bit_for_bit(tmp_path):
    tower = create("vgg16-fcn", widths=WIDTHS, fc_width=20, fc6_kernel=3).eval()
    theirs = published_files(tower, "pytorch-fcn").state
    assert list(theirs)[:3] == ["conv1_1.weight", "conv1_1.bias", "conv1_2.weight"]
    assert list(theirs)[-4:] == ["fc6.weight", "fc6.bias", "fc7.weight", "fc7.bias"]
    scores = {"score_fr.weight": torch.ones(21, 20, 1, 1), "upscore.weight": torch.ones(21, 21, 64, 64)}
    save_file(theirs | scores, tmp_path / "w.safetensors")
    loaded = load_backbone(tmp_path / "w.safetensors")
    assert loaded.backbone.config == tower.config
    assert sorted(loaded.published.rest) == sorted(scores)
    again = published_files(loaded.backbone, "pytorch-fcn").state
    assert all(torch.equal(again[key], value) for key, value in theirs.items())
    # Their pictures are BGR: turned round, the first convolution of theirs gives what ours gives.
    x = torch.randn(1, 3, 8, 8)
    expected = torch.nn.functional.conv2d(x.flip(1), theirs["conv1_1.weight"], theirs["conv1_1.bias"], padding=100)
    torch.testing.assert_close(tower.stages[0].layers[0].conv(x), expected)


def test_what_a_layout_cannot_say_is_refused():
    small = create("vgg-small")
    for layout, message in (("torchvision", "VGGs have dense layers"), ("pytorch-fcn", "fc6 and fc7 are convolutions")):
        with pytest.raises(WeightsError, match=message):
            published_files(small, layout)
    padded = create("vgg11", widths=WIDTHS, fc_width=8, first_padding=100)
    padded.reset_head(2)
    with pytest.raises(WeightsError, match="padding and poolings of this tower are not torchvision's"):
        published_files(padded, "torchvision")
