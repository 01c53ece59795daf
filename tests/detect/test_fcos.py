"""FCOS beside torchvision's, and what its paper says of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from detect.torchvision_records import Record, batch_of, check_detections, double_of, gradients, relative
from odonata.backbones.fpn import FPNConfig
from odonata.data.framing import Framing
from odonata.data.item import Item
from odonata.data.object_batches import to_batch
from odonata.data.objects import Category
from odonata.detect.assets import DetectorAssets
from odonata.detect.detector import with_preset
from odonata.detect.fcos import FCOS, FCOSConfig, box_loss, centerness_of
from odonata.detect.predictor import DetectorPredictor, load
from odonata.errors import RecipeError

RECORD = Record("fcos")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return RECORD.predictor(tmp_path_factory.mktemp("fcos"), score_threshold=0.3)


@pytest.mark.shows("fcos", "parity")
def test_boxes_scores_and_labels_are_torchvisions(model):
    check_detections(model, RECORD)


@pytest.mark.shows("fcos", "parity")
def test_losses_and_gradients_are_torchvisions(model):
    detector = double_of(model)
    losses = detector.loss(batch_of(model))
    theirs = RECORD.plain("losses")
    for ours, name in (("class", "classification"), ("box", "bbox_regression"), ("centerness", "bbox_ctrness")):
        assert relative(losses[ours].item(), theirs[name]) < 1e-5
    losses["loss"].backward()
    own = gradients(detector)
    recorded = RECORD.plain("gradients")
    pairs = {
        "head.class_logits.weight": "head.classification_head.cls_logits.weight",
        "head.box_distances.weight": "head.regression_head.bbox_reg.weight",
        "trunk.fpn.p6.weight": "backbone.fpn.extra_blocks.p6.weight",
        "trunk.fpn.laterals.0.conv.weight": "backbone.fpn.inner_blocks.0.0.weight",
        "trunk.backbone.stem.convs.0.weight": "backbone.body.conv1.weight",
        "trunk.backbone.stages.3.layers.1.conv2.weight": "backbone.body.layer4.1.conv2.weight",
    }
    for ours, name in pairs.items():
        assert relative(own[ours], recorded[name]) < 1e-5, ours


@pytest.mark.shows("fcos", "weights")
def test_torchvisions_file_comes_back_bit_equal(model, tmp_path: Path):
    model.convert(tmp_path / "out", "torchvision")
    again = load(tmp_path / "out/model.safetensors", None, torch.device("cpu"))
    from odonata.weights.read import read_state

    theirs, written = RECORD.state(), read_state(tmp_path / "out/model.safetensors").state
    assert theirs.keys() == written.keys()
    assert all(torch.equal(theirs[key], written[key]) for key in theirs)
    assert again.assets.config.threshold_on == "score"


def test_a_call_may_have_a_threshold_of_its_own(model):
    many = model.predict(torch.randint(0, 256, (3, 100, 120), dtype=torch.uint8), score=0.0)
    few = model.predict(torch.randint(0, 256, (3, 100, 120), dtype=torch.uint8), score=1.0)
    assert len(many) == 100 and len(few) == 0


def test_centerness_is_one_in_the_middle_and_zero_at_an_edge():
    sides = torch.tensor([[5.0, 5, 5, 5], [0.0, 5, 10, 5], [1.0, 4, 4, 4]])
    assert centerness_of(sides).tolist() == pytest.approx([1.0, 0.0, 0.5])


def test_the_log_iou_loss_is_zero_for_the_target_itself():
    target = torch.tensor([[3.0, 4, 5, 6]])
    assert box_loss(target, target, "log-iou").item() == pytest.approx(0, abs=1e-6)
    assert box_loss(target, target, "giou").item() == pytest.approx(0, abs=1e-6)


def small(**changes):
    config = FCOSConfig(framing=Framing(size=64, max_size=128), fpn=FPNConfig(16), tower_depth=1)
    torch.manual_seed(0)
    return FCOS(replace(config, **changes), 3)


def test_levels_are_for_sizes_that_double():
    assert [high for _, high in small().ranges()[:-1]] == [32, 64, 128]  # strides 4 to 32
    assert FCOSConfig.presets["v1-r50"]["radius"] == 0


def test_the_first_loss_of_every_class_is_that_of_a_rare_object(model):
    # With prior 0.01 every logit begins at −4.6: sigmoid 0.01 (focal loss, sec. 4.1).
    with torch.no_grad():
        out = small().eval().forward_head(torch.zeros(1, 3, 64, 64))
    assert out.classes[0].sigmoid().mean().item() == pytest.approx(0.01, rel=0.1)


@pytest.mark.shows("fcos", "trains")
@pytest.mark.slow
def test_eight_pictures_are_learned_by_heart():
    from detect.overfitting import recall_after

    config = FCOSConfig(framing=Framing(size=128, max_size=128), fpn=FPNConfig(48), tower_depth=1)
    assert recall_after(config, 120, rate=5e-3) > 0.9


def test_what_a_crowd_covers_teaches_nothing(model):
    config = FCOSConfig(framing=Framing(size=64, max_size=128), fpn=FPNConfig(16), tower_depth=1)
    torch.manual_seed(0)
    detector = FCOS(config, 3)
    image = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    boxes, labels = torch.tensor([[0.0, 0, 64, 64]]), torch.tensor([1])
    empty = to_batch([Item(image)], 32)
    crowd = to_batch([Item(image, boxes, labels, ignore=torch.tensor([True]))], 32)
    assert detector.loss(crowd)["class"].item() == 0.0
    assert detector.loss(crowd)["positives"].item() == 1.0  # the least that a sum is divided by
    assert detector.loss(empty)["class"].item() > 0


def test_the_batchs_order_does_not_matter(model):
    batch = batch_of(model)
    with torch.no_grad():
        straight = model.detector.predict(batch)
        turned = model.detector.predict(
            replace(batch, images=batch.images.flip(0), sizes=batch.sizes.flip(0), boxes=batch.boxes[::-1])
        )
    for one, other in zip(straight, turned[::-1], strict=True):
        assert torch.allclose(one.boxes, other.boxes, atol=1e-3)


@pytest.mark.shows("fcos", "manners")
def test_unknown_presets_and_towers_are_named():
    with pytest.raises(RecipeError, match="--preset 'v3' is unknown; there are v1"):
        with_preset(FCOSConfig(preset="v3"))
    with pytest.raises(RecipeError, match="did you mean"):
        FCOS(FCOSConfig(backbone="resnet51"), 2)


def test_a_preset_fills_in_what_was_not_said_by_hand():
    config = with_preset(FCOSConfig(preset="v1-r50", score_threshold=0.3, radius=0.5))
    assert (config.distance, config.centerness_on, config.radius, config.score_threshold) == ("exp", "class", 0.5, 0.3)
    assert config.backbone.startswith("resnet50")


@pytest.mark.shows("fcos", "weights")
@pytest.mark.parametrize("recipe", ["imprv", "paper"])
def test_the_authors_layout_comes_back_bit_equal_with_its_conventions(recipe, tmp_path: Path):
    preset = "improved-r50" if recipe == "imprv" else "v1-r50"
    config = with_preset(FCOSConfig(preset=preset, backbone="resnet18:norm=frozen_batch,stride_in=1x1,norm_eps=0.0"))
    assets = DetectorAssets("fcos", config, tuple(Category(i, str(i)) for i in range(80)))
    torch.manual_seed(0)
    model = DetectorPredictor(assets.build().eval(), assets, torch.device("cpu"))
    with torch.no_grad():
        model.detector.head.scales.copy_(torch.arange(5.0) + 1)
    folder = tmp_path / f"FCOS_{recipe}_R_18"
    model.convert(folder, "official")
    written = torch.load(folder / "model.pth", weights_only=True)["model"]
    names = ("backbone.body.stem.conv1.weight", "backbone.body.layer2.0.downsample.1.running_var",
             "backbone.fpn.fpn_inner2.weight", "backbone.fpn.fpn_layer4.bias", "backbone.fpn.top_blocks.p7.weight",
             "rpn.head.cls_tower.10.weight", "rpn.head.bbox_pred.bias", "rpn.head.centerness.weight")  # fmt: skip
    assert {f"module.{name}" for name in names} <= written.keys()
    assert [written[f"module.rpn.head.scales.{i}.scale"].tolist() for i in range(5)] == [[1], [2], [3], [4], [5]]
    again = load(folder / "model.pth", None, torch.device("cpu"))
    own = model.detector.state_dict()
    assert all(torch.equal(value, own[key]) for key, value in again.detector.state_dict().items())
    read = again.assets.config
    assert (read.distance, read.iou, read.centerness_on) == (config.distance, config.iou, config.centerness_on)
    assert read.framing.order == "bgr" and read.backbone == config.backbone
    assert again.categories[0].name == "person" and again.categories[79].id == 90


def test_the_authors_head_says_what_its_own_arithmetic_says():
    # Their forward in their words: scale · output, rectified, times the stride; or exp of it.
    for changes, positive in (({}, lambda x, s: (x * 2).relu() * s), ({"distance": "exp", "unit": "pixels"}, None)):
        detector = small(**changes).eval()
        with torch.no_grad():
            detector.head.scales.fill_(2.0)
            maps = detector.trunk(torch.rand(1, 3, 64, 64))
            out = detector.forward_head(torch.zeros(1, 3, 64, 64))
            raw = detector.head.box_distances(detector.head.box_tower(maps[0])).flatten(2).transpose(1, 2)
            strides = detector.trunk.strides if not changes else None
            said = detector.head(maps, strides)[1][0]
        wanted = positive(raw, 4) if positive else (raw * 2).exp()
        assert torch.allclose(said, wanted, atol=1e-6) and out.strides == [4, 8, 16, 32]
