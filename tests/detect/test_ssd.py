"""SSD beside torchvision's, under the names of two ports, and what its paper says of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from detect.torchvision_records import BOXES, LABELS, Record, double_of, gradients, pictures, relative
from fixtures.detector_numbers import anchored
from odonata.data.framing import Framing
from odonata.data.object_batches import ObjectBatch
from odonata.detect.default_boxes import box_sizes, boxes_a_cell, default_boxes
from odonata.detect.detector import with_preset
from odonata.detect.predictor import frame_batch, load
from odonata.detect.ssd import SCALES_COCO_300, SSD, STEPS_300, SSDConfig
from odonata.engine.config_file import from_plain
from odonata.errors import RecipeError, WeightsError
from odonata.weights.read import Raw, read_state
from odonata.weights.ssd_layouts import MODEL


class AnchoredRecord(Record):
    def state(self) -> dict[str, Tensor]:
        return {key: anchored(key, tuple(shape)) for key, shape in self.plain("shapes").items()}


RECORD = AnchoredRecord("ssd")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ssd")
    safetensors.torch.save_file(RECORD.state(), folder / "model.safetensors")
    found = load(folder / "model.safetensors", None, torch.device("cpu"))
    found.detector.options = replace(found.detector.options, score_threshold=0.2, max_detections=30)
    found.detector.tower.stages.requires_grad_(False)
    return found


@pytest.fixture(scope="module")
def framed(model):
    """The two pictures with their objects in their frames, and where they lie there."""
    batch, places = frame_batch([picture * 255 for picture in pictures()], model.framing, torch.device("cpu"))
    boxes = [place.to_frame(torch.tensor(rows)) for place, rows in zip(places, BOXES, strict=True)]
    # torchvision's label 0 is the background.
    labels = [torch.tensor(rows) - 1 for rows in LABELS]
    ignore = [torch.zeros(len(rows), dtype=torch.bool) for rows in LABELS]
    return replace(batch, boxes=boxes, labels=labels, ignore=ignore), places


@pytest.fixture(scope="module")
def spoken(model, framed):
    """What the network says of them."""
    return model.detector.forward_head(model.detector.pixels(framed[0]))


@pytest.mark.shows("ssd", "parity")
def test_boxes_scores_and_labels_are_torchvisions(model, framed, spoken):
    batch, places = framed
    with torch.no_grad():
        answers = model.detector.answers(spoken, batch)
    for number, (answer, place) in enumerate(zip(answers, places, strict=True)):
        theirs = {key: RECORD.arrays[f"{number}/{key}"] for key in ("boxes", "scores", "labels")}
        assert len(answer) == 30
        # torchvision's label 0 is the background.
        assert (answer.labels + 1).tolist() == theirs["labels"].tolist()
        assert relative(answer.scores, theirs["scores"]) < 1e-5
        assert relative(place.to_picture(answer.boxes), theirs["boxes"]) < 1e-5


@pytest.mark.shows("ssd", "parity")
def test_losses_and_gradients_are_torchvisions(model, framed, spoken):
    check_losses(model.detector, model.detector.losses(spoken, framed[0]), ABOVE_THE_TOWER)


@pytest.mark.slow
@pytest.mark.shows("ssd", "parity")
def test_gradients_in_the_tower_are_torchvisions(model, framed):
    detector, batch = double_of(model).eval(), framed[0]
    detector.tower.stages[3:].requires_grad_(True)
    out = detector.forward_head(detector.pixels(batch))
    check_losses(detector, detector.losses(out, batch), {**ABOVE_THE_TOWER, **IN_THE_TOWER})


ABOVE_THE_TOWER = {
    "head.class_logits.0.weight": "head.classification_head.module_list.0.weight",
    "head.box_deltas.5.weight": "head.regression_head.module_list.5.weight",
    "trunk.length": "backbone.scale_weight",
    "trunk.extras.3.conv.weight": "backbone.extra.4.2.weight",
    "trunk.extras.0.reduce.weight": "backbone.extra.1.0.weight",
    "trunk.backbone.fc6.weight": "backbone.extra.0.7.1.weight",
}
IN_THE_TOWER = {
    "trunk.backbone.stages.4.layers.2.conv.weight": "backbone.extra.0.5.weight",
    "trunk.backbone.stages.3.layers.0.conv.weight": "backbone.features.17.weight",
}


def check_losses(detector: SSD, losses: dict[str, Tensor], pairs: dict[str, str]) -> None:
    """Losses, and gradients of these pairs of names, are torchvision's."""
    theirs = RECORD.plain("losses")
    for ours, name in (("class", "classification"), ("box", "bbox_regression")):
        assert relative(losses[ours].item(), theirs[name]) < 1e-5
    losses["loss"].backward()
    own, recorded = gradients(detector), RECORD.plain("gradients")
    for ours, name in pairs.items():
        assert relative(own[ours], recorded[name]) < 1e-5, ours


@pytest.mark.shows("ssd", "weights")
def test_torchvisions_file_comes_back_bit_equal(model, tmp_path: Path):
    model.convert(tmp_path / "out", "torchvision")
    theirs, written = RECORD.state(), read_state(tmp_path / "out/model.safetensors").state
    assert theirs.keys() == written.keys()
    assert all(torch.equal(theirs[key], written[key]) for key in theirs)


def check_published(shapes: dict[str, tuple[int, ...]], preset: str, **changes):
    """Names and shapes are read as this preset's network, and written again; returns the table of categories."""
    raw = Raw(Path("ssd.pth"), {k: torch.empty(s, device="meta") for k, s in shapes.items()})
    (layout,) = (layout for layout in MODEL if layout.recognises(raw))
    plan = layout.plan(raw)
    config = from_plain(plan.config, SSDConfig(), "plan")
    assert config == replace(with_preset(SSDConfig(preset=preset)), **changes)
    with torch.device("meta"):
        wanted = {k: v.shape for k, v in SSD(config, plan.classes).state_dict().items()}
    ours, unused = plan.key_map.to_ours(raw.state)
    assert not unused
    assert {k: v.shape for k, v in ours.items()} == wanted
    back = layout.write(ours, config, []).state
    assert {k: tuple(v.shape) for k, v in back.items()} == {k: tuple(s) for k, s in shapes.items()}
    return plan.categories


@pytest.mark.shows("ssd", "weights")
def test_the_published_network_of_torchvision_is_the_preset():
    categories = check_published(RECORD.plain("published"), "torchvision-300")
    assert len(categories) == 90 and categories[0] == (1, "person")


@pytest.mark.shows("ssd", "weights")
@pytest.mark.parametrize(("size", "outputs"), [(300, 21), (300, 81), (512, 21)])
def test_files_of_ssd_pytorch_are_read_and_written(size: int, outputs: int):
    kind = "coco" if outputs == 81 else "voc"
    # Its middle is cut too; Caffe's, which the preset has, is not.
    categories = check_published(ssd_pytorch(size, outputs), f"ssd{size}-{kind}", clip_boxes="all")
    assert len(categories) == outputs - 1
    assert categories[0] == ((1, "person") if kind == "coco" else (1, "aeroplane"))


def ssd_pytorch(size: int, outputs: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of ssd.pytorch's network: `vgg`, `L2Norm`, `extras`, `loc`, `conf`."""
    shapes: dict[str, tuple[int, ...]] = {"L2Norm.weight": (512,)}

    def conv(name: str, out: int, channels: int, kernel: int) -> None:
        shapes.update({f"{name}.weight": (out, channels, kernel, kernel), f"{name}.bias": (out,)})

    before = 3
    widths = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
    for number, width in zip((0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28), widths, strict=True):
        conv(f"vgg.{number}", width, before, 3)
        before = width
    conv("vgg.31", 1024, 512, 3)
    conv("vgg.33", 1024, 1024, 1)
    channels, levels = 1024, [512, 1024]
    extras = [(256, 512, 3), *[(128, 256, 3)] * 3] + ([(128, 256, 4)] if size == 512 else [])
    for number, (middle, out, kernel) in enumerate(extras):
        conv(f"extras.{2 * number}", middle, channels, 1)
        conv(f"extras.{2 * number + 1}", out, middle, kernel)
        channels = out
        levels.append(out)
    each = [4, 6, 6, 6, *([6] if size == 512 else []), 4, 4]
    for level, (width, count) in enumerate(zip(levels, each, strict=True)):
        conv(f"loc.{level}", 4 * count, width, 3)
        conv(f"conf.{level}", outputs * count, width, 3)
    return shapes


def test_ssd300_has_8732_boxes_and_ssd512_24564():
    # Table 7 of the paper.
    for preset, count in (("ssd300-voc", 8732), ("ssd512-coco", 24564)):
        config = with_preset(SSDConfig(preset=preset))
        with torch.device("meta"), torch.no_grad():
            maps = SSD(config, 20).trunk(torch.empty(1, 3, config.framing.size, config.framing.size))
        assert (
            sum(x.shape[-2] * x.shape[-1] * boxes_a_cell(r) for x, r in zip(maps, config.ratios, strict=True)) == count
        )


def test_default_boxes_of_the_first_cell():
    # conv4_3 for COCO at 300 px: s = 21 px, s' = √(21 · 45) px, ratios 2 and 1/2, around (4, 4).
    first = default_boxes([(38, 38)], (300, 300), SCALES_COCO_300[:2], [[2.0]], STEPS_300[:1])[0][:4]
    assert ((first[:, :2] + first[:, 2:]) / 2).flatten().tolist() == pytest.approx([4.0] * 8, abs=1e-4)
    sides = (first[:, 2:] - first[:, :2]).tolist()
    assert sides[0] == pytest.approx([21, 21], rel=1e-5)
    assert sides[1] == pytest.approx([(21 * 45) ** 0.5] * 2, rel=1e-5)
    assert sides[2] == pytest.approx([21 * 2**0.5, 21 / 2**0.5], rel=1e-5)
    assert sides[3] == pytest.approx([21 / 2**0.5, 21 * 2**0.5], rel=1e-5)
    assert box_sizes(0.5, 0.5, [2.0, 3.0])[-1] == pytest.approx((0.5 / 3**0.5, 0.5 * 3**0.5))


def test_what_is_cut_to_the_picture():
    def of(clip):
        return default_boxes([(10, 10)], (300, 300), (0.88, 1.05), [[2.0]], (32,), clip)[0]

    none, sizes, everything = of("none"), of("sizes"), of("all")
    assert (none[:, 2] - none[:, 0]).max() > 300  # 0.88 · √2 of the picture
    assert (sizes[:, 2] - sizes[:, 0]).max().item() == pytest.approx(300, rel=1e-5)
    assert ((sizes[:, 0] + sizes[:, 2]) / 2).max().item() == pytest.approx(304, rel=1e-5)  # the tenth cell's middle
    assert ((everything[:, 0] + everything[:, 2]) / 2).max().item() == pytest.approx(300, rel=1e-5)


def small(**changes) -> SSD:
    torch.manual_seed(0)
    return SSD(SSDConfig(framing=Framing("squash", size=64, divisor=1), **changes), 3)


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


def test_each_object_has_its_best_box_and_those_from_half_on():
    anchors = torch.tensor([[0.0, 0, 10, 10], [0.0, 0, 10, 20], [30.0, 30, 40, 40], [50.0, 50, 60, 60]])
    labels, _ = small().assign(anchors, batch([[[0.0, 0, 10, 10], [30.0, 30, 34, 34]]]))
    assert labels.tolist() == [[1, 1, 2, 0]]
    labels, _ = small().assign(anchors, batch([[]]))
    assert labels.tolist() == [[0, 0, 0, 0]]


def test_what_is_ignored_is_neither_positive_nor_negative():
    anchors = torch.tensor([[0.0, 0, 10, 10], [0.0, 0, 12, 10], [40.0, 40, 50, 50]])
    labels, _ = small().assign(anchors, batch([[[0.0, 0, 30, 30]]], [[True]]))
    assert labels.tolist() == [[-2, -2, 0]]


def test_three_negatives_for_each_positive():
    model, objects = small(l2_scale=0.0), batch([[[8.0, 8, 40, 40]], []])
    model.eval()
    with torch.no_grad():
        out = model.forward_head(model.pixels(objects))
        out.logits = torch.zeros_like(out.logits)
        losses = model.losses(out, objects)
    # Every decision costs ln 4; the picture without an object has no negatives.
    assert losses["class"].item() == pytest.approx(4 * np.log(4), rel=1e-5)


def test_pictures_without_objects_teach_nothing():
    losses = small().loss(batch([[], []]))
    assert losses["loss"].item() == 0
    losses["loss"].backward()


def test_the_background_is_no_detection():
    model, objects = small().eval(), batch([[]])
    with torch.no_grad():
        out = model.forward_head(model.pixels(objects))
        out.logits = torch.zeros_like(out.logits)
        out.logits[..., 0] = 20.0
        assert len(model.answers(out, objects)[0]) == 0
        out.logits[0, 5, 2] = 30.0
        (answer,) = model.answers(out, objects)
    assert answer.labels.tolist() == [1]
    assert answer.scores[0].item() == pytest.approx(1, abs=1e-4)


def test_the_first_maps_length_is_the_learned_scale():
    model = small().eval()
    with torch.no_grad():
        maps = model.trunk(torch.randn(1, 3, 64, 64))
        lengths = maps[0].norm(dim=1)
    assert torch.allclose(lengths[lengths > 0], torch.tensor(20.0))
    assert small(l2_scale=0.0).trunk.length is None


def test_what_dense_gives_is_what_predict_chooses_from():
    model, objects = small().eval(), batch([[]])
    with torch.no_grad():
        (answer,), (boxes, scores) = model.predict(objects), model.dense(model.pixels(objects))
    assert answer.scores[0] == scores.max()
    best = boxes[0, scores[0].amax(1).argmax()].clamp(0, 64)
    assert torch.allclose(answer.boxes[0], best, atol=1e-4)


def test_steps_hold_at_the_framings_size_only():
    model = small(box_steps=(4, 16, 32, 64)).eval()
    with torch.no_grad():
        own, larger = (model.forward_head(torch.zeros(1, 3, side, side)).anchors for side in (64, 128))
    assert ((own[0, :2] + own[0, 2:]) / 2).tolist() == pytest.approx([2, 2], abs=1e-4)
    assert ((larger[0, :2] + larger[0, 2:]) / 2).tolist() == pytest.approx([4, 4], abs=1e-4)


@pytest.mark.shows("ssd", "manners")
def test_options_that_do_not_fit_together_are_named():
    with pytest.raises(RecipeError, match=r"4 levels .* want 5 --scales, 4 --ratios"):
        small(scales=(0.1, 0.2))
    with pytest.raises(RecipeError, match="has the layers 0 to 9"):
        small(layers=(6, 11))
    with pytest.raises(RecipeError, match=r"take a larger --framing.size"):
        small(extras=((8, 8, 3, 2, 1), (8, 8, 3, 1, 0))).loss(batch([[]]))


@pytest.mark.shows("ssd", "manners")
def test_what_a_layout_cannot_say_is_refused_with_the_reason(tmp_path: Path):
    shapes = ssd_pytorch(300, 21)
    state = {k: torch.empty(s, device="meta") for k, s in shapes.items() if not k.startswith("extras.6")}
    with pytest.raises(WeightsError, match="3 further levels; SSD300 has 4 and SSD512 has 5"):
        MODEL[1].plan(Raw(Path("a.pth"), state))
    config = SSDConfig()
    with pytest.raises(WeightsError, match=r"the tower is VGG16 .* this is vgg-small"):
        MODEL[0].write({}, config, [])


@pytest.mark.slow
@pytest.mark.shows("ssd", "trains")
def test_it_learns_eight_pictures_by_heart():
    from detect.overfitting import recall_after

    config = SSDConfig(framing=Framing("squash", size=128, divisor=1), scales=(0.1, 0.2, 0.34, 0.5, 0.7))
    assert recall_after(config, steps=80) > 0.9
