"""The commands on segmenters, end to end."""

import json

import numpy as np
import pytest
from PIL import Image

import odonata as package
from app.conftest import contents, odonata, picture, refused

SET = ("--data.path", "objects:n=40,size=48,sides=8-32", "--data.batch-size", "4", "--steps", "3",
       "--evaluation.pictures", "6", "--device", "cpu", "--log-every", "1")  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A PSPNet run and an FCN-32s run of three steps, and an FCN-16s that begins at the latter."""
    root = tmp_path_factory.mktemp("segment")
    for name, more in (("pspnet", ()), ("fcn-32s", ()), ("fcn-16s", ("--init", root / "fcn-32s"))):
        done = odonata("train", name, *SET, *more, "--out", root / name)
        assert done.status == 0, done.err
    assert "init: anew: network.skip_scores.0.weight" in done.err
    return root


@pytest.fixture(scope="module")
def street(tmp_path_factory):
    """A set of CamVid's form with three classes, of which one is void."""
    root = tmp_path_factory.mktemp("street")
    generator = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 4)):
        for number in range(count):
            picture(root / split / f"{number}.png", number, (40, 32))
            labels = generator.integers(0, 3, (32, 40)).astype(np.uint8)
            (root / f"{split}annot").mkdir(exist_ok=True)
            Image.fromarray(labels).save(root / f"{split}annot" / f"{number}.png")
    (root / "classes.txt").write_text("background\n0\nvoid\n")
    return root


def test_a_run_keeps_its_conventions_and_its_table_of_classes(runs):
    plain = json.loads((runs / "pspnet/assets/model.json").read_text())
    assert plain["segmenter"] == "pspnet" and plain["classes"][1] == {"name": "0", "colour": [128, 0, 0]}
    report = (runs / "pspnet/report.html").read_text()
    assert report.count("data:image/png") > 0 and "of the pixels" in report
    assert "power: 0.9" in (runs / "pspnet/config.yaml").read_text()


def test_evaluate_gives_the_four_figures_and_each_classs_iou(runs):
    done = odonata("evaluate", runs / "pspnet", "--json")
    assert done.status == 0, done.err
    figures = done.json
    assert {"mIoU", "pixel_accuracy", "mean_accuracy", "frequency_weighted_iou", "IoU/background", "IoU/9"} <= set(
        figures
    )
    assert figures["mIoU"]["low"] <= figures["mIoU"]["value"] <= figures["mIoU"]["high"]
    assert json.loads((runs / "pspnet/evaluation.json").read_text()) == figures
    table = odonata("evaluate", runs / "pspnet", "--flip", "--scales", "0.75", "1.25", "--tile", "33", "--most", "2",
                    "--resamples", "0")  # fmt: skip
    assert table.status == 0 and "IoU/background" in table.out and "%" in table.out


def test_evaluate_on_other_data_goes_by_the_names_of_classes(runs, street, tmp_path):
    done = odonata("evaluate", runs / "fcn-32s", "--data.path", street, "--resamples", "0", "--json")
    assert done.status == 0 and done.json["mIoU"]["count"] == 4
    (street / "classes.txt").write_text("background\npole\nvoid\n")
    said = refused("evaluate", runs / "fcn-32s", "--data.path", street)
    assert "does not know: pole" in said
    (street / "classes.txt").write_text("background\n0\nvoid\n")
    assert "no such folder" in refused("evaluate", runs / "fcn-32s", "--data.path", tmp_path / "nowhere")


def test_predict_writes_drawings_and_json(runs, street, tmp_path):
    done = odonata("predict", runs / "fcn-16s", street / "val", "--draw", tmp_path / "drawn", "--json",
                   tmp_path / "r.json", "--coco", tmp_path / "c.json", "--tile", "17")  # fmt: skip
    assert done.status == 0, done.err
    assert contents(tmp_path / "drawn") == {f"{n}.png" for n in range(4)}
    rows = json.loads((tmp_path / "r.json").read_text())
    assert len(rows) == 4 and rows[0]["height"] == 32
    assert sum(entry["share"] for entry in rows[0]["classes"]) == pytest.approx(1, abs=1e-4)
    assert json.loads((tmp_path / "c.json").read_text())[0]["segmentation"]["size"] == [32, 40]
    assert "segmenters have no threshold" in refused("predict", runs / "fcn-16s", street / "val", "--score", "0.5")


def test_the_python_facade_gives_a_map_that_can_be_saved(runs, street, tmp_path):
    answer = package.load(runs / "pspnet").predict(street / "val/0.png")
    assert answer.size == (32, 40) and answer.classes[0] == "background"
    answer.save(tmp_path / "map.png")
    with Image.open(tmp_path / "map.png") as image:
        assert image.mode == "P" and np.array_equal(np.array(image), answer.map.numpy())


def test_convert_says_what_a_layout_cannot_hold(runs, tmp_path):
    assert odonata("convert", runs / "pspnet", tmp_path / "own", "--to", "odonata").status == 0
    assert contents(tmp_path / "own") == {"model.json", "model.safetensors"}
    assert "fc6 and fc7" in refused("convert", runs / "fcn-32s", tmp_path / "a", "--to", "pytorch-fcn")
    assert "bottlenecks" in refused("convert", runs / "pspnet", tmp_path / "b", "--to", "semseg")
    assert contents(tmp_path) == {"own", "own/model.json", "own/model.safetensors"}


def test_training_on_a_folder_takes_its_classes_and_leaves_void_out(street, tmp_path):
    done = odonata("train", "pspnet", *SET[2:], "--data.path", street, "--out", tmp_path / "run")
    assert done.status == 0, done.err
    assert "6 pictures of" in done.err and "2 classes: background, 0" in done.err
    said = refused("train", "pspnet", *SET, "--crop", "64", "--out", tmp_path / "other")
    assert "8k + 1: 65 or 73" in said
