"""YOLO's files as darknet keeps them, beside real weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import odonata
from detect.test_yolo import CPU, model_of, shown, small
from odonata.data.objects import Category
from odonata.data.open_objects import open_objects
from odonata.detect.assets import DetectorAssets
from odonata.detect.build import start_from
from odonata.detect.evaluation import detections_of, founds, truths
from odonata.detect.predictor import DetectorPredictor, load
from odonata.detect.yolo import YOLO
from odonata.errors import WeightsError
from odonata.metrics.coco import coco_figures
from odonata.weights.darknet import to_bytes
from odonata.weights.darknet_cfg import parse_cfg
from odonata.weights.darknet_edit import with_classes, with_options
from odonata.weights.yolo_darknet import framing_of, method_of


@pytest.mark.parametrize("name", shown("weights"))
def test_darknets_files_come_back_bit_equal_and_answer_the_same(name, tmp_path: Path):
    source = replace(open_objects("objects:n=40"), categories=tuple(Category(i, f"digit {i}") for i in range(10)))
    config = small(name, score_threshold=0.0, max_detections=10).fitted(source)
    detector = YOLO(config, 10).eval()
    detector.seen += 640
    model = DetectorPredictor(detector, DetectorAssets(name, config, source.categories), CPU)
    model.convert(tmp_path / "one", "darknet")
    again = load(tmp_path / "one/model.weights", None, CPU)
    assert again.assets.method == name and int(again.detector.seen) == 640
    assert [category.name for category in again.categories] == [f"digit {i}" for i in range(10)]
    again.convert(tmp_path / "two", "darknet")
    for file in ("model.weights", "model.cfg", "model.names"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    pixels = torch.rand(1, 3, config.framing.size, config.framing.size)
    with torch.no_grad():
        for one, other in zip(detector.dense(pixels), again.detector.dense(pixels), strict=True):
            assert torch.equal(one, other)


def test_which_program_a_cfg_is_for_decides_how_pictures_come_into_the_frame():
    text = "[net]\nwidth=64\nheight=96\n[convolutional]\nfilters=18\n[yolo]\nmask=0,1,2\nnum=3\nclasses=1\n"
    cfg = parse_cfg(text)
    assert framing_of(cfg)["resize"] == "letterbox" and framing_of(cfg)["size"] == 96
    head = cfg.layers[1].index
    assert framing_of(with_options(cfg, {(head, "scale_x_y"): "1.05"}))["resize"] == "squash"
    boxed = with_options(cfg, {(head, "scale_x_y"): "1.05", (-1, "letter_box"): "1"})
    assert framing_of(boxed)["resize"] == "letterbox"
    assert method_of(cfg) == "yolo-v3" and method_of(parse_cfg(text.split("[yolo]")[0])) is None
    assert with_classes(cfg, 7).layers[0].integer("filters", 0) == 36


def test_names_beside_the_cfg_are_the_classes_and_have_to_be_as_many(tmp_path: Path):
    config = small("yolo-v3")
    detector = YOLO(config, 3)
    state = {key: value for key, value in detector.network.state_dict().items() if "batches" not in key}
    (tmp_path / "net.weights").write_bytes(to_bytes(detector.network.cfg, state))
    (tmp_path / "net.cfg").write_text(detector.network.cfg.text)
    model = load(tmp_path / "net.weights", None, CPU)
    assert [category.name for category in model.categories] == ["class 0", "class 1", "class 2"]
    (tmp_path / "obj.names").write_text("ant\nbee\nfly\n")
    assert [c.name for c in load(tmp_path / "net.weights", None, CPU).categories] == ["ant", "bee", "fly"]
    (tmp_path / "net.names").write_text("ant\nbee\n")
    with pytest.raises(WeightsError, match="2 names for 3 classes"):
        load(tmp_path / "net.weights", None, CPU)


def test_the_first_layers_of_a_network_begin_another(tmp_path: Path):
    trained = model_of("yolo-v3", classes=20)
    state = {key: value + 1 for key, value in trained.network.state_dict().items() if "batches" not in key}
    (tmp_path / "net.cfg").write_text(trained.network.cfg.text)
    (tmp_path / "net.conv.10").write_bytes(to_bytes(trained.network.cfg, state, layers=10))
    config = small("yolo-v3", init=str(tmp_path / "net.conv.10"))
    detector = YOLO(config, 3)
    notes = start_from(detector, config, ())
    own = detector.network.state_dict()
    assert torch.equal(own["layers.9.conv.weight"], state["layers.9.conv.weight"])
    assert not torch.equal(own["layers.10.conv.weight"], state["layers.10.conv.weight"])
    assert "layers.10.conv.weight" in " ".join(notes)


@pytest.mark.shows("yolo-v3-spp", "weights")
def test_original_weights_come_back_bit_equal(shared_data: Path, tmp_path: Path):
    folder = shared_data / "weights/yolo-fastest"
    model = odonata.load(folder / "yolo-fastest-1.1.weights")
    model.convert(tmp_path / "out", "darknet")
    for suffix in ("weights", "cfg"):
        assert (tmp_path / f"out/model.{suffix}").read_bytes() == (folder / f"yolo-fastest-1.1.{suffix}").read_bytes()
    assert model.assets.config.version == (0, 2, 5) and model.assets.config.nms_power == 0.6


@pytest.mark.slow
def test_original_weights_detect_on_coco_pictures(shared_data: Path, capsys):
    """Their repository states an AP50 of 23.65 on all of val2017 for the version before; these are 147 pictures."""
    model = odonata.load(shared_data / "weights/yolo-fastest/yolo-fastest-1.1.weights")
    coco = shared_data / "image-text/coco-mini"
    source = open_objects(str(coco / "annotations/boxes_val2017.json"), images=str(coco / "val2017"))
    source = source.with_categories(model.categories)
    answers = detections_of(model, list(source), 8, score=0.005)
    figures = coco_figures(truths(source), founds(answers), [c.name for c in model.categories]).flat()
    with capsys.disabled():
        print(f"\nYolo-Fastest 1.1 on {len(source)} COCO pictures: AP {figures['AP']:.4f}, AP50 {figures['AP50']:.4f}")
    assert figures["AP50"] > 0.30  # 0.323 when written
    assert figures["AP"] > 0.14
