"""Faster R-CNN beside torchvision's, in three forms, and what its papers say of it."""

from __future__ import annotations

import copy
import functools
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import nn

from detect.torchvision_records import Record, batch_of, gradients, relative
from fixtures.detector_numbers import outspoken, patchy_pictures
from odonata.backbones.fpn import FPNConfig
from odonata.data.framing import Framing
from odonata.data.object_batches import ObjectBatch
from odonata.data.objects import Category
from odonata.detect.assets import DetectorAssets
from odonata.detect.detector import with_preset
from odonata.detect.faster_rcnn import FasterRCNN, FasterRCNNConfig
from odonata.detect.predictor import DetectorPredictor, frame_batch, load
from odonata.detect.roi_head import RoIOptions
from odonata.detect.rpn import RPNOptions, propose
from odonata.errors import RecipeError, WeightsError
from odonata.ops.boxes import iou_matrix
from odonata.weights.detectors import within
from odonata.weights.maps import KeyMap, pair
from odonata.weights.resnet_torchvision import key_map

ALL = 10**6
"""So many samples that everything learns and nothing is drawn."""


class Recorded(Record):
    """A recording of `make_faster_rcnn.py`."""

    @functools.cache  # noqa: B019 - three of them, made once
    def state(self) -> dict[str, torch.Tensor]:
        return {key: outspoken(key, tuple(shape)) for key, shape in self.plain("shapes").items()}


FORMS = {name: Recorded(name) for name in ("faster_rcnn", "faster_rcnn_v2", "faster_rcnn_c4")}


def recorded_options(config: FasterRCNNConfig) -> FasterRCNNConfig:
    """The configuration with the numbers of the recording."""
    rpn = replace(config.rpn, samples=ALL, post_nms=100, post_nms_train=40)
    framing = replace(config.framing, size=192, max_size=320)
    return replace(config, framing=framing, rpn=rpn, roi=replace(config.roi, samples=ALL), score_threshold=0.3)


def from_torchvision(record: Recorded, folder: Path) -> DetectorPredictor:
    file = folder / "model.safetensors"
    safetensors.torch.save_file(record.state(), file)
    model = load(file, None, torch.device("cpu"))
    assets = replace(model.assets, config=recorded_options(model.assets.config))
    detector = assets.build()
    detector.load_state_dict(model.detector.state_dict())
    return DetectorPredictor(detector.eval(), assets, torch.device("cpu"), model.name, model.notes)


def single_map(record: Recorded) -> DetectorPredictor:
    """The recording of one map, RoIPool and the tower's last stage, with ours in its place."""
    tower = {"block": "basic", "depths": [2] * 4, "widths": [64, 128, 256, 512], "stem_width": 64, "shortcut": "conv"}
    body = key_map(tower, 0, num_batches=False).rules
    below = [rule for rule in body if not rule.theirs[0].startswith("layer4.")]
    last = [replace(r, theirs=(r.theirs[0][7:],)) for r in body if r.theirs[0].startswith("layer4.")]
    rules = within(below, "backbone.", "trunk.backbone.") + within(last, "roi_heads.box_head.0.", "trunk.backbone.")
    rules += pair("rpn.head.conv.0.0", "rpn.convs.0") + pair("rpn.head.cls_logits", "rpn.objectness")
    rules += pair("rpn.head.bbox_pred", "rpn.deltas") + pair(
        "roi_heads.box_predictor.cls_score", "roi_head.class_logits"
    )
    rules += pair("roi_heads.box_predictor.bbox_pred", "roi_head.box_deltas")
    config = FasterRCNNConfig(
        backbone="resnet18:norm=frozen_batch",
        pyramid=False,
        layers=(2,),
        rpn=RPNOptions(anchor_sizes=(32.0, 64.0, 128.0), stride_rule="picture", pre_nms_train=2000),
        roi=RoIOptions(op="pool", bins=8, head="tower", background="first", box_outputs="all"),
        framing=Framing(),
    )
    assets = DetectorAssets("faster-rcnn", recorded_options(config), ())
    detector = FasterRCNN(assets.config, 4)
    detector.load_state_dict(KeyMap(rules).to_ours(record.state())[0])
    return DetectorPredictor(detector.eval(), assets, torch.device("cpu"))


@pytest.fixture(scope="module", params=FORMS)
def form(request, tmp_path_factory):
    record = FORMS[request.param]
    if request.param == "faster_rcnn_c4":
        return record, single_map(record)
    return record, from_torchvision(record, tmp_path_factory.mktemp(request.param))


def labelled(model: DetectorPredictor) -> ObjectBatch:
    """The recorded batch; torchvision counts labels from 1, as 0 is the background."""
    batch = batch_of(model)
    images = frame_batch([picture * 255 for picture in patchy_pictures()], model.framing, torch.device("cpu"))[0].images
    return replace(batch, images=images, labels=[label - 1 for label in batch.labels])


def exact_pixels(model: DetectorPredictor, batch: ObjectBatch) -> torch.Tensor:
    """The recorded pictures as the network takes them, in float64 from the start: float32 costs gradients digits."""
    mean, std = (torch.tensor(values).double()[:, None, None] for values in (model.framing.mean, model.framing.std))
    made = torch.zeros(batch.images.shape, dtype=torch.float64)
    for number, (picture, size) in enumerate(zip(patchy_pictures(), batch.sizes.tolist(), strict=True)):
        scaled = F.interpolate(((picture.double() - mean) / std)[None], size, mode="bilinear")[0]
        made[number, :, : size[0], : size[1]] = scaled
    return made


@pytest.mark.shows("faster-rcnn", "parity")
def test_proposals_are_torchvisions(form):
    record, model = form
    batch, detector = labelled(model), model.detector
    with torch.no_grad():
        seen = detector.see(batch)
        out = detector.rpn(seen.maps, seen.frame)
    options = model.assets.config.rpn
    for number, boxes in enumerate(propose(out, seen.sizes, options, model.assets.config.pre_nms, options.post_nms)):
        assert relative(boxes, record.arrays[f"{number}/proposals"]) < 1e-5


@pytest.mark.shows("faster-rcnn", "parity")
def test_boxes_scores_and_labels_are_torchvisions(form):
    record, model = form
    with torch.no_grad():
        answers = model.detector.predict(labelled(model))
    _, places = frame_batch([picture * 255 for picture in patchy_pictures()], model.framing, torch.device("cpu"))
    for number, (answer, place) in enumerate(zip(answers, places, strict=True)):
        assert len(answer) > 40
        assert (answer.labels + 1).tolist() == record.arrays[f"{number}/labels"].tolist()
        assert relative(answer.scores, record.arrays[f"{number}/scores"]) < 1e-5
        assert relative(place.to_picture(answer.boxes), record.arrays[f"{number}/boxes"]) < 1e-5


NAMES = {
    "class": "loss_classifier",
    "box": "loss_box_reg",
    "objectness": "loss_objectness",
    "proposal_box": "loss_rpn_box_reg",
}
PYRAMID = {
    "trunk.backbone.stages.3.layers.1.conv2.weight": "backbone.body.layer4.1.conv2.weight",
    "trunk.backbone.stem.convs.0.weight": "backbone.body.conv1.weight",
    "trunk.fpn.laterals.0.conv.weight": "backbone.fpn.inner_blocks.0.0.weight",
}
GRADIENTS = {
    "faster_rcnn": {**PYRAMID, "roi_head.fcs.0.weight": "roi_heads.box_head.fc6.weight"},
    "faster_rcnn_v2": {**PYRAMID, "roi_head.convs.0.conv.weight": "roi_heads.box_head.0.0.weight"},
    "faster_rcnn_c4": {
        "trunk.backbone.stages.3.layers.1.conv2.weight": "roi_heads.box_head.0.1.conv2.weight",
        "trunk.backbone.stem.convs.0.weight": "backbone.conv1.weight",
    },
}
BOTH = {
    "rpn.convs.0.weight": "rpn.head.conv.0.0.weight",
    "rpn.objectness.weight": "rpn.head.cls_logits.weight",
    "rpn.deltas.weight": "rpn.head.bbox_pred.weight",
    "roi_head.class_logits.weight": "roi_heads.box_predictor.cls_score.weight",
    "roi_head.box_deltas.weight": "roi_heads.box_predictor.bbox_pred.weight",
}


@pytest.mark.shows("faster-rcnn", "parity")
def test_all_four_losses_and_their_gradients_are_torchvisions(form):
    record, model = form
    name = next(name for name, found in FORMS.items() if found is record)
    detector, batch = copy.deepcopy(model.detector).double().train(), labelled(model)
    detector.pixels = lambda batch: exact_pixels(model, batch)
    for module in detector.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()  # as in the recording
    losses, theirs = detector.loss(batch), record.plain("losses")
    for ours, their in NAMES.items():
        assert relative(losses[ours].item(), theirs[their]) < 1e-6, ours
    losses["loss"].backward()
    own, recorded = gradients(detector), record.plain("gradients")
    for ours, their in {**BOTH, **GRADIENTS[name]}.items():
        assert relative(own[ours], recorded[their]) < 1e-6, ours
    assert own.keys() == {key for key, p in detector.named_parameters() if p.requires_grad}


@pytest.mark.shows("faster-rcnn", "weights")
@pytest.mark.parametrize("name", ["faster_rcnn", "faster_rcnn_v2"])
def test_torchvisions_file_comes_back_bit_equal(name, tmp_path: Path):
    model = from_torchvision(FORMS[name], tmp_path)
    model.convert(tmp_path / "out", "torchvision")
    theirs = FORMS[name].state()
    written = safetensors.torch.load_file(tmp_path / "out/model.safetensors")
    assert theirs.keys() == written.keys()
    assert all(torch.equal(theirs[key], written[key]) for key in theirs)
    again = load(tmp_path / "out/model.safetensors", None, torch.device("cpu"))
    config = again.assets.config
    assert (config.roi.background, config.roi.box_outputs, config.roi.aligned) == ("first", "all", False)
    assert config.rpn == with_preset(FasterRCNNConfig(preset="torchvision-r50" + "-v2" * (name[-2:] == "v2"))).rpn


@pytest.mark.shows("faster-rcnn", "weights")
def test_names_from_before_the_convolution_had_a_block_of_its_own_are_read(tmp_path: Path):
    old = {
        key.replace("rpn.head.conv.0.0", "rpn.head.conv"): value for key, value in FORMS["faster_rcnn"].state().items()
    }
    safetensors.torch.save_file(old, tmp_path / "old.safetensors")
    model = load(tmp_path / "old.safetensors", None, torch.device("cpu"))
    assert torch.equal(model.detector.state_dict()["rpn.convs.0.weight"], old["rpn.head.conv.weight"])
    assert len(model.categories) == 4


@pytest.mark.shows("faster-rcnn", "weights")
def test_mmdets_names_come_back_bit_equal_and_bring_its_conventions(tmp_path: Path):
    config = with_preset(FasterRCNNConfig(preset="mmdet-r50", backbone="resnet18:norm=frozen_batch"))
    assets = DetectorAssets("faster-rcnn", config, tuple(Category(i, str(i)) for i in range(7)))
    model = DetectorPredictor(assets.build(), assets, torch.device("cpu"))
    model.convert(tmp_path / "mmdet", "mmdet")
    again = load(tmp_path / "mmdet/model.safetensors", None, torch.device("cpu"))
    written = safetensors.torch.load_file(tmp_path / "mmdet/model.safetensors")
    assert {
        "neck.fpn_convs.3.conv.bias",
        "rpn_head.rpn_reg.weight",
        "roi_head.bbox_head.fc_cls.weight",
    } <= written.keys()
    assert written["roi_head.bbox_head.fc_reg.weight"].shape == (28, 1024)
    assert again.assets.config == config and len(again.categories) == 7
    own = model.detector.state_dict()
    assert all(torch.equal(own[key], value) for key, value in again.detector.state_dict().items())
    with pytest.raises(WeightsError, match=r"--roi.background first"):
        again.convert(tmp_path / "out", "torchvision")


def test_the_table_of_ninety_classes_is_cocos_without_the_background():
    from odonata.weights.coco_names import COCO_91

    assert COCO_91[1] == (1, "person") and len(COCO_91[1:]) == 90


def small(**changes) -> FasterRCNN:
    config = FasterRCNNConfig(
        framing=Framing(size=64, max_size=128),
        fpn=FPNConfig(16),
        roi=RoIOptions(bins=3, width=16, samples=16),
        rpn=RPNOptions(samples=32, post_nms=20, post_nms_train=20),
    )
    torch.manual_seed(0)
    return FasterRCNN(replace(config, **changes), 3)


def scenes(count: int = 2, seed: int = 0) -> ObjectBatch:
    """Pictures of noise with a bright square each."""
    torch.manual_seed(seed)
    images = torch.rand(count, 3, 64, 64) * 60
    boxes, labels = [], []
    for number in range(count):
        x, y, side = 4 + 5 * (number % 4), 6 + 3 * (number % 5), 16 + 5 * (number % 4)
        images[number, number % 3, y : y + side, x : x + side] += 180
        boxes.append(torch.tensor([[x, y, x + side, y + side]]).float())
        labels.append(torch.tensor([number % 3]))
    none = [torch.zeros(1, dtype=torch.bool)] * count
    sizes = torch.tensor([[64, 64]] * count)
    return ObjectBatch(images, sizes, boxes, labels, none, torch.ones(count), torch.arange(count))


def test_the_order_of_the_pictures_does_not_matter():
    model = small().eval()
    batch = scenes(3)
    back = torch.tensor([2, 0, 1])
    turned = replace(batch, images=batch.images[back], sizes=batch.sizes[back])
    with torch.no_grad():
        plain, other = model.predict(batch), model.predict(turned)
    for place, number in enumerate(back.tolist()):
        torch.testing.assert_close(other[place].boxes, plain[number].boxes, rtol=1e-4, atol=1e-3)


def test_pictures_without_objects_teach_both_stages_that_there_is_nothing():
    model = small()
    batch = scenes(2)
    empty = replace(
        batch, boxes=[torch.zeros(0, 4)] * 2, labels=[torch.zeros(0).long()] * 2, ignore=[torch.zeros(0).bool()] * 2
    )
    losses = model.loss(empty)
    losses["loss"].backward()
    assert losses["box"] == 0 and losses["proposal_box"] == 0 and losses["class"] > 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_ignored_objects_change_no_loss_when_everything_lies_on_them():
    batch = scenes(2)
    whole = replace(batch, boxes=[torch.tensor([[0.0, 0, 64, 64]])] * 2, ignore=[torch.ones(1).bool()] * 2)
    losses = small(rpn=RPNOptions(samples=32, post_nms_train=20, inside_only=True)).loss(whole)
    assert losses["loss"] == 0


def test_vgg16_is_the_first_papers_with_its_dense_layers_as_head():
    config = with_preset(FasterRCNNConfig(preset="vgg16"))
    with torch.device("meta"):
        model = FasterRCNN(config, 20)
    assert model.trunk.strides == (16,) and model.trunk.channels == 512
    assert model.rpn.objectness.out_channels == 9  # 3 sizes, 3 ratios
    assert model.roi_head.class_logits.weight.shape == (21, 4096)
    assert model.roi_head.box_deltas.weight.shape == (84, 4096)
    assert sum(p.numel() for p in model.trunk.backbone.parameters()) == 134_260_544  # VGG16 without its last layer


@pytest.mark.parametrize("preset", [name for name in FasterRCNNConfig.presets if name != "vgg16"])
def test_every_preset_builds(preset):
    with torch.device("meta"):
        model = FasterRCNN(with_preset(FasterRCNNConfig(preset=preset)), 80)
    assert model.rpn.objectness.out_channels == (3 if model.config.pyramid else 15)


def test_torchvisions_first_model_has_its_number_of_parameters():
    with torch.device("meta"):
        model = FasterRCNN(with_preset(FasterRCNNConfig(preset="torchvision-r50")), 90)
    assert sum(p.numel() for p in model.parameters()) == 41_755_286


@pytest.mark.shows("faster-rcnn", "manners")
def test_options_that_do_not_go_together_are_named():
    with pytest.raises(RecipeError, match=r"--rpn.anchor-sizes has 2 sizes for the 4 levels"):
        small(rpn=RPNOptions(anchor_sizes=(16.0, 32.0)))
    with pytest.raises(RecipeError, match=r"--roi.op pool is for a single map"):
        small(roi=RoIOptions(op="pool"))
    with pytest.raises(RecipeError, match=r"--roi.head tower is for a single map"):
        small(roi=RoIOptions(head="tower"))
    with pytest.raises(RecipeError, match="leaves nothing to be the head"):
        small(pyramid=False, layers=(3,), roi=RoIOptions(head="tower"))
    with pytest.raises(RecipeError, match="without a pyramid it names one layer"):
        small(pyramid=False)
    with pytest.raises(RecipeError, match=r"--rpn.negative-iou 0.8"):
        RPNOptions(negative_iou=0.8)


@pytest.mark.shows("faster-rcnn", "manners")
def test_what_torchvision_cannot_say_is_refused(tmp_path: Path):
    model = small(fpn=FPNConfig(16, "pool"), rpn=RPNOptions(anchor_sizes=(8.0, 16.0, 32.0, 64.0, 128.0)))
    predictor = DetectorPredictor(model, DetectorAssets("faster-rcnn", model.config, ()), torch.device("cpu"))
    with pytest.raises(WeightsError, match=r"--roi.background first"):
        predictor.convert(tmp_path / "out", "torchvision")


def test_losses_are_computed_in_full_precision_under_autocast():
    model = small()
    with torch.autocast("cpu", torch.bfloat16):
        losses = model.loss(scenes(2))
    assert all(value.dtype == torch.float32 and value.isfinite() for value in losses.values())


@pytest.mark.slow
@pytest.mark.shows("faster-rcnn", "trains")
@pytest.mark.parametrize("form", ["pyramid", "one map"])
def test_eight_pictures_are_learned_by_heart(form):
    one_map = {
        "pyramid": False,
        "layers": (1,),
        "roi": RoIOptions(op="pool", head="tower", bins=4, samples=32),
        "rpn": RPNOptions(anchor_sizes=(16.0, 32.0), samples=64, post_nms=20, post_nms_train=40),
    }
    model = small(**one_map) if form == "one map" else small()
    batch = scenes(8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(150):
        optimizer.zero_grad()
        model.loss(batch)["loss"].backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        answers = model.predict(batch)
    least = 0.5 if form == "one map" else 0.6  # RoIPool rounds
    for answer, box, label in zip(answers, batch.boxes, batch.labels, strict=True):
        assert answer.labels[0] == label and iou_matrix(answer.boxes[:1], box).item() > least
