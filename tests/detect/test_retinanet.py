"""RetinaNet beside torchvision's two, mmdet's names, and what the focal loss paper says of it."""

from __future__ import annotations

import fractions
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from detect.torchvision_records import Record, batch_of, check_detections, double_of, gradients, relative
from fixtures.detector_numbers import anchored
from odonata.backbones.fpn import FPNConfig
from odonata.data.framing import Framing
from odonata.data.object_batches import ObjectBatch
from odonata.detect.assets import DetectorAssets
from odonata.detect.dense_anchors import octave_sizes
from odonata.detect.detector import with_preset
from odonata.detect.methods import CONFIG_OF
from odonata.detect.predictor import load
from odonata.detect.retinanet import RetinaNet, RetinaNetConfig, box_loss, per_positive
from odonata.engine.config_file import from_plain
from odonata.errors import RecipeError, WeightsError
from odonata.weights.detectors import model_layouts, read_model
from odonata.weights.read import Raw, read_state


class AnchoredRecord(Record):
    def state(self) -> dict[str, Tensor]:
        return {key: anchored(key, tuple(shape)) for key, shape in self.plain("shapes").items()}


RECORDS = {name: AnchoredRecord(name) for name in ("retinanet", "retinanet_v2")}
GRADIENTS = {
    "head.class_logits.weight": "head.classification_head.cls_logits.weight",
    "head.box_deltas.bias": "head.regression_head.bbox_reg.bias",
    "head.class_tower.0.weight": "head.classification_head.conv.0.0.weight",
    "trunk.fpn.p6.weight": "backbone.fpn.extra_blocks.p6.weight",
    "trunk.fpn.p7.weight": "backbone.fpn.extra_blocks.p7.weight",
    "trunk.fpn.laterals.0.conv.weight": "backbone.fpn.inner_blocks.0.0.weight",
    "trunk.backbone.stem.convs.0.weight": "backbone.body.conv1.weight",
    "trunk.backbone.stages.3.layers.1.conv2.weight": "backbone.body.layer4.1.conv2.weight",
}


@pytest.fixture(scope="module", params=list(RECORDS))
def both(request, tmp_path_factory):
    record = RECORDS[request.param]
    return record.predictor(tmp_path_factory.mktemp(request.param), max_detections=50), record


@pytest.mark.shows("retinanet", "parity")
def test_boxes_scores_and_labels_are_torchvisions(both):
    check_detections(*both)


@pytest.mark.shows("retinanet", "parity")
def test_losses_and_gradients_are_torchvisions(both):
    model, record = both
    detector = double_of(model)
    losses = detector.loss(batch_of(model))
    theirs = record.plain("losses")
    for ours, name in (("class", "classification"), ("box", "bbox_regression")):
        assert relative(losses[ours].item(), theirs[name]) < 1e-5
    losses["loss"].backward()
    own, recorded = gradients(detector), record.plain("gradients")
    for ours, name in GRADIENTS.items():
        assert relative(own[ours], recorded[name]) < 1e-5, ours


@pytest.mark.shows("retinanet", "weights")
def test_torchvisions_file_comes_back_bit_equal(both, tmp_path: Path):
    model, record = both
    model.convert(tmp_path / "out", "torchvision")
    theirs, written = record.state(), read_state(tmp_path / "out/model.safetensors").state
    assert theirs.keys() == written.keys()
    assert all(torch.equal(theirs[key], written[key]) for key in theirs)


def published(state: dict[str, Tensor], tmp_path: Path):
    """The configuration and the network, on no device, that tensors of these names and shapes are read as."""
    raw = Raw(tmp_path / "published.pth", state)
    layout = next(layout for layout in model_layouts("detect") if layout.recognises(raw))
    plan = layout.plan(raw)
    config = from_plain(plan.config, CONFIG_OF[layout.method](), "plan")
    with torch.device("meta"):
        return plan, config, RetinaNet(config, plan.classes)


@pytest.mark.shows("retinanet", "weights")
@pytest.mark.parametrize(("name", "preset"), [("retinanet", "torchvision-r50"), ("retinanet_v2", "torchvision-r50-v2")])
def test_the_published_resnet50_is_the_preset(name, preset, tmp_path: Path):
    state = {k: torch.empty(s, device="meta") for k, s in RECORDS[name].plain("published").items()}
    plan, config, model = published(state, tmp_path)
    wanted = with_preset(RetinaNetConfig(preset=preset))
    if name == "retinanet":  # built without weights, torchvision's first has live norms; its published file has not
        wanted = replace(wanted, backbone="resnet50")
    assert config == wanted
    assert plan.classes == 91 and plan.categories[1] == (1, "person")
    ours, unused = plan.key_map.to_ours(state)
    assert not unused
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in model.state_dict().items()}


def test_old_names_with_91_outputs_are_the_coco_weights_with_epsilon_zero(tmp_path: Path):
    fresh = {k: v for k, v in RECORDS["retinanet"].plain("published").items() if not k.endswith("num_batches_tracked")}
    old = {}
    for key, shape in fresh.items():
        for block in ("inner_blocks", "layer_blocks"):
            key = key if block not in key else key.replace(".0.weight", ".weight").replace(".0.bias", ".bias")
        if "_head.conv." in key:
            start, number, _, part = key.rsplit(".", 3)
            key = f"{start}.{2 * int(number)}.{part}"
        old[key] = torch.empty(shape, device="meta")
    assert "backbone.fpn.inner_blocks.2.weight" in old and "head.regression_head.conv.6.bias" in old
    plan, config, model = published(old, tmp_path)
    assert config.backbone == "resnet50:norm=frozen_batch,norm_eps=0.0"
    ours, unused = plan.key_map.to_ours(old)
    assert not unused and ours.keys() == model.state_dict().keys()


def mmdet_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of mmdet's RetinaNet on ResNet-18, from its modules: ConvModule `.conv`, `fpn_convs` 3 and 4 for
    P6 (from C5) and P7."""
    shapes: dict[str, tuple[int, ...]] = {"backbone.conv1.weight": (64, 3, 7, 7)}

    def norm(name: str, width: int) -> None:
        shapes.update({f"{name}.{part}": (width,) for part in ("weight", "bias", "running_mean", "running_var")})
        shapes[f"{name}.num_batches_tracked"] = ()

    def conv(name: str, out: int, channels: int, kernel: int) -> None:
        shapes.update({f"{name}.weight": (out, channels, kernel, kernel), f"{name}.bias": (out,)})

    norm("backbone.bn1", 64)
    before = 64
    for stage, width in enumerate((64, 128, 256, 512), 1):
        for block in range(2):
            name = f"backbone.layer{stage}.{block}"
            shapes[f"{name}.conv1.weight"] = (width, before, 3, 3)
            shapes[f"{name}.conv2.weight"] = (width, width, 3, 3)
            norm(f"{name}.bn1", width)
            norm(f"{name}.bn2", width)
            if before != width:
                shapes[f"{name}.downsample.0.weight"] = (width, before, 1, 1)
                norm(f"{name}.downsample.1", width)
            before = width
    for level, width in enumerate((128, 256, 512)):
        conv(f"neck.lateral_convs.{level}.conv", 256, width, 1)
        conv(f"neck.fpn_convs.{level}.conv", 256, 256, 3)
    conv("neck.fpn_convs.3.conv", 256, 512, 3)
    conv("neck.fpn_convs.4.conv", 256, 256, 3)
    for layer in range(4):
        conv(f"bbox_head.cls_convs.{layer}.conv", 256, 256, 3)
        conv(f"bbox_head.reg_convs.{layer}.conv", 256, 256, 3)
    conv("bbox_head.retina_cls", 9 * 80, 256, 3)
    conv("bbox_head.retina_reg", 9 * 4, 256, 3)
    return shapes


@pytest.mark.shows("retinanet", "weights")
def test_mmdets_file_is_read_and_comes_back_bit_equal(tmp_path: Path):
    state = {name: anchored(name, shape) for name, shape in mmdet_shapes().items()}
    meta = {"mmdet_version": "3.3.0", "epoch": 12, "dataset_meta": {"CLASSES": ("person", "bicycle")}}
    torch.save({"meta": meta, "state_dict": state}, tmp_path / "retinanet_r18_fpn_1x_coco.pth")
    model = load(tmp_path / "retinanet_r18_fpn_1x_coco.pth", None, torch.device("cpu"))
    config = model.assets.config
    preset = with_preset(RetinaNetConfig(preset="mmdet-r50"))
    assert config == replace(preset, backbone="resnet18")
    assert len(model.categories) == 80 and (model.categories[0].id, model.categories[79].name) == (1, "toothbrush")
    assert any("meta" in note or "state_dict" in note for note in model.notes)
    model.convert(tmp_path / "out", "mmdet")
    written = read_state(tmp_path / "out/model.safetensors").state
    assert state.keys() == written.keys()
    assert all(torch.equal(state[key], written[key]) for key in state)


def test_p7_of_mmdet_hears_of_negative_numbers():
    from odonata.backbones.fpn import FPN

    torch.manual_seed(0)
    plain, rectified = FPN([8], FPNConfig(8, "p6p7-c5", rectified_p6=False)), FPN([8], FPNConfig(8, "p6p7-c5"))
    rectified.load_state_dict(plain.state_dict())
    x = torch.randn(1, 8, 16, 16)
    p6 = plain([x])[1]
    assert torch.equal(plain([x])[2], plain.p7(p6))
    assert torch.equal(rectified([x])[2], plain.p7(p6.relu()))


def small(classes: int = 3, **changes) -> RetinaNet:
    options = {"framing": Framing(size=64, max_size=128), "fpn": FPNConfig(16), "tower_depth": 1, **changes}
    torch.manual_seed(0)
    return RetinaNet(RetinaNetConfig(**options), classes)


def batch(boxes: list[list[list[float]]], ignore: list[list[bool]] | None = None, side: int = 64) -> ObjectBatch:
    generator = torch.Generator().manual_seed(1)
    count = len(boxes)
    return ObjectBatch(
        images=torch.rand(count, 3, side, side, generator=generator) * 255,
        sizes=torch.full((count, 2), side),
        boxes=[torch.tensor(rows).reshape(-1, 4) for rows in boxes],
        labels=[torch.arange(len(rows)) % 3 for rows in boxes],
        ignore=[torch.tensor(flags, dtype=torch.bool) for flags in (ignore or [[False] * len(r) for r in boxes])],
        scales=torch.ones(count),
        indices=torch.arange(count),
    )


def test_anchors_of_the_paper():
    # Sec. 4: areas 32² to 512² on P3 to P7, each at 2^0, 2^(1/3), 2^(2/3).
    assert [octave_sizes(4, 8 * 2**i, 3, True)[0] for i in range(5)] == [32, 64, 128, 256, 512]
    assert octave_sizes(4, 8, 3, False) == pytest.approx([32, 40.317, 50.797], abs=1e-3)
    with torch.no_grad():
        out = small(anchor_scale=4.0).eval().forward_head(torch.zeros(1, 3, 64, 64))
    assert [len(level) for level in out.anchors] == [9 * 8 * 8, 9 * 4 * 4, 9 * 2 * 2]
    sides = out.anchors[0][:, 2:] - out.anchors[0][:, :2]
    assert sides.prod(1).sqrt()[:3].tolist() == pytest.approx([32, 40.317, 50.797], rel=1e-4)
    assert (sides[:9, 1] / sides[:9, 0]).tolist() == pytest.approx([0.5] * 3 + [1] * 3 + [2] * 3, rel=1e-4)
    assert ((out.anchors[0][0, :2] + out.anchors[0][0, 2:]) / 2).tolist() == pytest.approx([4, 4])


def test_every_anchor_begins_with_the_prior():
    with torch.no_grad():
        out = small().eval().forward_head(torch.zeros(1, 3, 64, 64))
    assert torch.cat(out.classes, 1).sigmoid().mean().item() == pytest.approx(0.01, rel=0.1)


def test_with_the_prior_the_first_loss_is_a_fraction_of_that_without():
    # Sec. 3.3: without it the many negatives decide the first steps.
    objects = batch([[[10.0, 10, 40, 40]]])
    with torch.no_grad():
        with_prior = small(gamma=0.0, alpha=-1.0).loss(objects)["class"]
        without = small(gamma=0.0, alpha=-1.0, prior=0.0).loss(objects)["class"]
    # ln 2 an answer without; −ln 0.99 with it, and the few positives, which it costs more.
    assert without / with_prior > 10


def test_positives_are_those_above_half_and_each_objects_best():
    model = small(low_quality=True)
    anchors = torch.tensor([[0.0, 0, 10, 10], [0.0, 0, 10, 22], [30.0, 30, 40, 40], [50.0, 50, 60, 60]])
    objects = batch([[[0.0, 0, 10, 11], [30.0, 30, 34, 34]]])
    labels, goals = model.assign(anchors, objects)
    assert labels.tolist() == [[0, 0, 1, -1]]  # IoU 10/11; 11/22 = 0.5; 0.16, but its best; nothing
    assert goals[0, 2].tolist() == [30, 30, 34, 34]
    strict, _ = small(low_quality=False).assign(anchors, objects)
    assert strict.tolist() == [[0, 0, -1, -1]]
    between, _ = small(positive_iou=0.6).assign(anchors, objects)
    assert between.tolist() == [[0, -2, 1, -1]]


def test_an_object_that_touches_no_anchor_takes_none():
    labels, _ = small().assign(torch.tensor([[0.0, 0, 10, 10], [5.0, 5, 20, 20]]), batch([[[40.0, 40, 50, 50]]]))
    assert labels.tolist() == [[-1, -1]]


def test_what_is_ignored_is_neither_positive_nor_negative():
    model = small()
    anchors = torch.tensor([[0.0, 0, 10, 10], [0.0, 0, 12, 10], [40.0, 40, 50, 50]])
    labels, _ = model.assign(anchors, batch([[[0.0, 0, 30, 30], [0.0, 0, 10, 10]]], [[True, True]]))
    assert labels.tolist() == [[-2, -2, -1]]
    smaller, _ = model.assign(anchors, batch([[[0.0, 0, 6, 10]]], [[True]]))
    assert smaller.tolist() == [[-2, -2, -1]]  # 0.6 of it lies there; and an IoU of 0.5 with an object out of range


def test_pictures_without_objects_teach_the_background_only():
    losses = small().loss(batch([[], []]))
    assert losses["box"].item() == 0 and losses["positives"].item() == 0
    assert 0 < losses["class"].item() < 10
    losses["loss"].backward()


def test_the_two_normalisers():
    counted = torch.tensor([[True, True, False], [True, True, True]])
    positive = torch.tensor([[True, False, False], [True, True, True]])
    losses = torch.tensor([1.0, 3.0, 2.0, 2.0, 2.0])
    assert per_positive(losses, counted, positive, "batch").item() == pytest.approx(10 / 4)
    assert per_positive(losses, counted, positive, "picture").item() == pytest.approx((4 / 1 + 6 / 3) / 2)


def test_box_losses():
    anchors = torch.tensor([[0.0, 0, 10, 10]])
    boxes = torch.tensor([[1.0, 0, 11, 10]])  # dx = 0.1
    nothing = torch.zeros(1, 4)
    assert box_loss(nothing, anchors, boxes, "l1", 0).item() == pytest.approx(0.1)
    assert box_loss(nothing, anchors, boxes, "smooth-l1", 0.11).item() == pytest.approx(0.01 / 0.22)
    assert box_loss(nothing, anchors, boxes, "smooth-l1", 0.05).item() == pytest.approx(0.1 - 0.025)
    assert box_loss(nothing, anchors, boxes, "giou", 0).item() == pytest.approx(1 - 90 / 110)


def test_the_order_of_pictures_does_not_matter():
    boxes = [[[4.0, 4, 30, 34]], [[20.0, 8, 60, 50], [2.0, 30, 18, 60]]]
    one, other = batch(boxes), batch(boxes[::-1])
    other.images = one.images.flip(0)
    other.labels = one.labels[::-1]
    model = small().eval()
    with torch.no_grad():
        assert model.loss(one)["loss"].item() == pytest.approx(model.loss(other)["loss"].item(), rel=1e-5)
        dense, turned = model.dense(model.pixels(one)), model.dense(model.pixels(other))
    assert all(torch.allclose(a, b.flip(0), atol=1e-5) for a, b in zip(dense, turned, strict=True))


def test_what_dense_gives_is_what_predict_chooses_from():
    model, objects = small().eval(), batch([[]])
    model.options = replace(model.options, score_threshold=0.0)
    with torch.no_grad():
        (answer,), (boxes, scores) = model.predict(objects), model.dense(model.pixels(objects))
    assert answer.scores[0] == scores.max()
    best = boxes[0, scores[0].amax(1).argmax()].clamp(0, 64)
    assert torch.allclose(answer.boxes[0], best)


@pytest.mark.shows("retinanet", "manners")
def test_impossible_options_are_named():
    with pytest.raises(RecipeError, match=r"--negative-iou 0.6 and --positive-iou 0.5"):
        RetinaNetConfig(negative_iou=0.6)
    with pytest.raises(RecipeError, match="--octaves 0"):
        RetinaNetConfig(octaves=0)
    with pytest.raises(RecipeError, match="'v9' is unknown; there are paper-r50"):
        with_preset(RetinaNetConfig(preset="v9"))


@pytest.mark.shows("retinanet", "manners")
def test_weights_of_another_kind_are_refused_with_the_reason(tmp_path: Path):
    state = {name: torch.zeros(shape) for name, shape in mmdet_shapes().items()}
    state["bbox_head.retina_reg.weight"] = torch.zeros(12, 256, 3, 3)
    torch.save({"meta": {}, "state_dict": state}, tmp_path / "three.pth")
    with pytest.raises(WeightsError, match="3 anchors a cell; 9 are known"):
        read_model(tmp_path / "three.pth", "detect")
    torch.save({"meta": fractions.Fraction(1, 3), "state_dict": state}, tmp_path / "code.pth")
    with pytest.raises(WeightsError, match="could run code"):
        read_model(tmp_path / "code.pth", "detect")
    config = RetinaNetConfig(backbone="resnet18", octaves=2)
    assets = DetectorAssets("retinanet", config, ())
    from odonata.detect.predictor import DetectorPredictor

    model = DetectorPredictor(RetinaNet(config, 1), assets, torch.device("cpu"))
    with pytest.raises(WeightsError, match="9 anchors a cell"):
        model.convert(tmp_path / "out", "torchvision")


@pytest.mark.slow
@pytest.mark.shows("retinanet", "trains")
def test_it_learns_eight_pictures_by_heart():
    from detect.overfitting import recall_after

    # 8 pictures of the embedded objects, 60 steps.
    assert recall_after(RetinaNetConfig(framing=Framing(size=128, max_size=192)), steps=60) > 0.9
