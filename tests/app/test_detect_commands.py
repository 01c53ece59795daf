"""The commands on detectors, end to end."""

import json

import numpy as np
import pytest
from PIL import Image

import odonata as package
from app.conftest import contents, odonata, picture, refused
from odonata.data.object_scenes import ObjectScenes

SET = ("--data.path", "objects:n=40,size=64,sides=8-32", "--data.batch-size", "4", "--steps", "3",
       "--framing.size", "64", "--framing.max-size", "96", "--evaluation.pictures", "6", "--device", "cpu",
       "--log-every", "1")  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """An FCOS run of three steps."""
    folder = tmp_path_factory.mktemp("detect") / "fcos"
    done = odonata("train", "fcos", *SET, "--out", folder)
    assert done.status == 0, done.err
    assert "objects: " in done.err and "of 10 classes: 0, 1, 2" in done.err
    return folder


def test_a_run_keeps_its_conventions_and_its_table_of_categories(run):
    plain = json.loads((run / "assets/model.json").read_text())
    assert plain["detector"] == "fcos" and plain["categories"][3] == {"id": 3, "name": "3"}
    assert plain["config"]["framing"]["size"] == 64
    assert (run / "report.html").read_text().count("data:image/png") > 0


def test_evaluate_gives_cocos_figures_and_says_why_they_are_zero(run, tmp_path):
    done = odonata("evaluate", run, "--voc", "--resamples", "10", "--curves", tmp_path / "curves.json", "--json")
    assert done.status == 0, done.err
    assert {"AP", "AP50", "AP_S", "AR100", "AP/0", "VOC/mAP"} <= done.json.keys()
    assert done.json["AP50"]["value"] < 0.3
    curves = json.loads((tmp_path / "curves.json").read_text())
    assert len(curves["recall"]) == 101 and set(curves["precision"]["0.50"]) == set("0123456789")
    kept = json.loads((run / "evaluation.json").read_text())
    assert kept == done.json
    table = odonata("evaluate", run, "--resamples", "0")
    assert "AP_S" in table.out and "%" in table.out


def test_evaluate_on_other_data_counts_labels_by_name(run, tmp_path):
    done = odonata("evaluate", run, "--data.path", "objects:n=40,size=64,sides=8-32", "--data.split", "test",
                   "--resamples", "0", "--json")  # fmt: skip
    assert done.status == 0 and done.json["AP"]["count"] > 0
    said = refused("evaluate", run, "--data.path", tmp_path / "nowhere.json")
    assert "nowhere.json: no such file or folder" in said


def test_predict_writes_drawings_json_and_cocos_results(run, tmp_path):
    shown = tmp_path / "pictures"
    for seed in range(2):
        Image.fromarray(ObjectScenes(2, "test", size=80).pixels(seed)).save(picture(shown / f"p{seed}.png"))
    done = odonata("predict", run, shown, "--draw", tmp_path / "drawn", "--json", tmp_path / "r.json", "--coco",
                   tmp_path / "c.json", "--score", "0.0", "--tile", "48", "--overlap", "0.5")  # fmt: skip
    assert done.status == 0, done.err
    assert contents(tmp_path / "drawn") == {"p0.png", "p1.png"}
    rows = json.loads((tmp_path / "r.json").read_text())
    assert [row["image"] for row in rows] == [str(shown / "p0.png"), str(shown / "p1.png")]
    first = rows[0]["objects"][0]
    assert first["name"] in "0123456789" and 0 <= first["box"][0] <= first["box"][2] <= 80
    assert {"image_id", "category_id", "bbox", "score"} <= json.loads((tmp_path / "c.json").read_text())[0].keys()


def test_predict_draws_videos(run, tmp_path):
    av = pytest.importorskip("av")
    from fractions import Fraction

    from odonata.data.video import VideoWriter, frame_rate, read_frames

    clip = tmp_path / "clip.mp4"
    with VideoWriter(clip, Fraction(10)) as writer:
        for number in range(6):
            writer.write(Image.fromarray(ObjectScenes(6, size=64).pixels(number)))
    assert frame_rate(clip) == 10 and av is not None
    done = odonata("predict", run, clip, "--every", "2", "--draw", tmp_path / "out", "--json", tmp_path / "r.json")
    assert done.status == 0, done.err
    assert len(list(read_frames(tmp_path / "out/clip.mp4"))) == 3
    assert [row["image"][-2:] for row in json.loads((tmp_path / "r.json").read_text())] == ["#0", "#2", "#4"]


def test_a_detector_goes_out_and_comes_back_the_same(run, tmp_path):
    assert odonata("convert", run, tmp_path / "own", "--to", "odonata").status == 0
    image = ObjectScenes(1, size=64).pixels(0)
    one, other = package.load(run), package.load(tmp_path / "own")
    a, b = (model.predict(Image.fromarray(image), score=0.0) for model in (one, other))
    assert np.array_equal(a.boxes, b.boxes) and np.array_equal(a.scores, b.scores) and len(a) > 0
    assert a.to_coco("x")[0]["image_id"] == "x" and a.draw(Image.fromarray(image)).size == (64, 64)


@pytest.mark.slow
def test_export_agrees_with_onnxruntime_at_sizes_it_did_not_see(run, tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    for more, outputs in (((), "picture, boxes, scores, labels"), (("--raw",), "boxes, scores")):
        done = odonata("export", run, "--to", "onnx", "--out", tmp_path / "m.onnx", *more)
        assert done.status == 0, done.err
        compared = done.out.count("relative difference")
        assert compared + done.out.count("nothing was compared") == 2 and outputs in done.out
        assert compared == 2 or not more, "raw heads are always compared"
    kept = {entry.key: entry.value for entry in onnx.load(tmp_path / "m.onnx").metadata_props}
    assert json.loads(kept["categories"])[1] == {"id": 1, "name": "1"} and kept["outputs"] == "raw"
    assert contents(tmp_path) == {"m.onnx"}


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["snip", "tiles"])
def test_scale_policies_train_and_predict_by_their_run(policy, tmp_path):
    done = odonata("train", "fcos", *SET, "--scale-policy", policy, "--out", tmp_path / "run")
    assert done.status == 0, done.err
    assert ("√area that counts at each size" in done.err) == (policy == "snip")
    model = package.load(tmp_path / "run")
    assert model.assets.config.scale_policy == policy
    assert odonata("evaluate", tmp_path / "run", "--resamples", "0").status == 0


def test_what_cannot_be_is_said(run, tmp_path):
    clip = picture(tmp_path / "a.png")
    assert "lies in [0, 1]" in refused("predict", run, clip, "--score", "2")
    assert "no such picture, video or folder" in refused("predict", run, tmp_path / "b.png")
    assert "--score-threshold is 3.0; it lies in [0, 1]" in refused("train", "fcos", *SET, "--score-threshold", "3")
    assert "--freeze is 9, and the tower has 4 stages" in refused("train", "fcos", *SET, "--freeze", "9")
    assert "no such run folder or weights" in refused("train", "fcos", *SET, "--init", tmp_path / "none.pth")
    said = refused("convert", run, tmp_path / "o", "--to", "yolo")
    assert "no layout 'yolo' for fcos; there are odonata, torchvision" in said


def test_init_takes_a_run_and_learns_other_classes_anew(run, tmp_path):
    done = odonata("train", "fcos", *SET, "--init", run, "--out", tmp_path / "again")
    assert done.status == 0 and "init: " in done.err and "anew" not in done.err
    objects = tmp_path / "set"
    done = odonata("convert-data", "objects:n=20,size=64,sides=8-32", objects, "--to", "coco")
    assert done.status == 0 and "10 classes" in done.out
    for file in objects.rglob("*.json"):
        renamed = json.loads(file.read_text())
        for category in renamed["categories"]:
            category["name"] = f"digit {category['name']}"
        file.write_text(json.dumps(renamed))
    done = odonata("train", "fcos", "--data.path", objects, *SET[2:], "--init", run, "--out", tmp_path / "other")
    assert done.status == 0, done.err
    assert "anew: head.class_logits" in done.err
