"""The commands on towers that learned from pictures alone, end to end."""

import json

import numpy as np
import pytest
from PIL import Image

from app.conftest import contents, odonata, picture, refused
from odonata.represent.protocols import KNN, PROBES, differences

SET = ("--data.path", "digits:n=160,size=32", "--data.batch-size", "16", "--image-size", "32", "--steps", "3",
       "--evaluation.pictures", "20", "--evaluation.neighbours", "40", "--device", "cpu",
       "--log-every", "1")  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A MoCo run, a classifier, and a MAE run, each of three steps."""
    root = tmp_path_factory.mktemp("towers")
    for name, more in (
        ("moco-v2", ("--backbone", "resnet8", "--queue", "64")),
        ("classify", ("--backbone", "resnet8")),
        ("mae", ("--backbone", "vit-tiny4:depth=2,width=48,num_heads=3,mlp_width=96,positions=sincos_2d")),
    ):
        done = odonata("train", name, *SET, *more, "--out", root / name)
        assert done.status == 0, done.err
    return root


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    """Two classes of ten noisy pictures, red and blue, with a part to test on."""
    root = tmp_path_factory.mktemp("classes")
    generator = np.random.default_rng(0)
    for split, count in (("train", 10), ("val", 6)):
        for name, channel in (("red", 0), ("blue", 2)):
            for number in range(count):
                noise = generator.integers(0, 60, (40, 36, 3))
                noise[:, :, channel] += 150
                path = root / split / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(noise.astype(np.uint8)).save(path)
    return root


def test_the_effective_recipe_is_said_and_kept(runs):
    done = odonata("train", "moco-v2", *SET, "--backbone", "resnet8", "--queue", "64", "--epochs", "0.2",
                   "--out", runs / "again")  # fmt: skip
    assert "effective batch: 16 = 1 × 16 × 1" in done.err
    assert "learning rate 0.24 × 16 / 256 = 0.015" in done.err
    assert "2 steps = 0.2 epochs of 160 pictures" in done.err
    assert "labels: 10 classes, not used for training" in done.err
    config = (runs / "again" / "config.yaml").read_text()
    assert "steps: 2" in config and "lr: 0.015" in config and "lr_per: 0" in config


def test_evaluate_measures_what_is_asked_with_intervals(runs, classes):
    done = odonata("evaluate", runs / "moco-v2", "--data.path", classes, "--knn", "--probe", "--few-shot",
                   "--baselines", "--knn-protocols", "dino", "lightly", "--json")  # fmt: skip
    assert done.status == 0, done.err
    figures = done.json
    assert {"knn/dino", "knn/lightly", "probe/lbfgs", "few-shot/1", "few-shot/5", "few-shot/10"} <= figures.keys()
    assert {"pixels/knn", "pixels/probe", "untrained/knn/dino", "untrained/probe/lbfgs"} <= figures.keys()
    assert figures["pixels/knn"]["value"] == 1.0  # red against blue: pixels know it all
    for figure in figures.values():
        assert figure["low"] <= figure["value"] <= figure["high"] and figure["count"] == 12
    assert json.loads((runs / "moco-v2" / "evaluation.json").read_text()) == figures


def test_probes_of_several_protocols_say_in_what_they_differ(runs, classes):
    done = odonata("evaluate", runs / "moco-v2", "--data.path", classes, "--probe", "--probe-protocols", "mae", "moco")
    assert done.status == 0, done.err
    assert "lars" in done.out and "MoCo main_lincls.py" in done.out and "probe/mae" in done.out
    rows = dict(differences(["mae", "moco"]))
    assert rows["batch"] == ["16384", "256"] and rows["normed"] == ["True", "False"] and "taps" not in rows
    assert KNN["dino"].k == 20 and PROBES["moco"].rates == (30.0,)


def test_finetuning_separates_what_is_easy(runs, classes):
    done = odonata("evaluate", runs / "mae", "--data.path", classes, "--finetune", "--finetune-steps", "30", "--json")
    assert done.status == 0, done.err
    assert done.json["finetune"]["value"] > 0.9 and done.json["finetune"]["note"] == "30 steps of 20"


def test_a_classifier_answers_with_its_accuracy_and_its_classes(runs):
    done = odonata("evaluate", runs / "classify", "--json")
    assert done.status == 0 and set(done.json) == {"top1", "top5"}
    assert done.json["top5"]["value"] >= done.json["top1"]["value"]


def test_predict_and_search_take_towers(runs, photos, tmp_path):
    done = odonata("predict", runs / "classify", photos / "a.jpg", "--json", "--top", "3")
    assert done.status == 0, done.err
    assert sum(label["probability"] for label in done.json[0]["labels"]) == pytest.approx(1, abs=1e-4)
    assert "takes no --labels" in refused("predict", runs / "classify", photos / "a.jpg", "--labels", "cat")
    assert "has no classifier" in refused("predict", runs / "moco-v2", photos / "a.jpg")
    assert odonata("embed", runs / "moco-v2", photos, "-o", tmp_path / "vectors").status == 0
    found = odonata("search", tmp_path / "vectors", "--image", photos / "a.jpg", "--json").json
    assert found[0]["image"].endswith("a.jpg") and found[0]["cosine"] == pytest.approx(1, abs=1e-5)
    assert "search by --image, not by words" in refused("search", tmp_path / "vectors", "a red bus")


@pytest.mark.parametrize(("run", "shape"), [("moco-v2", [32, 16, 16]), ("mae", [48, 8, 8])])
def test_features_are_written_and_drawn(runs, photos, tmp_path, run, shape):
    done = odonata("features", runs / run, photos / "a.jpg", "--layers", "1", "-1", "--draw", "--save",
                   "-o", tmp_path / "made", "--json")  # fmt: skip
    assert done.status == 0, done.err
    rows = done.json
    assert rows[0]["shape"] == shape
    arrays = np.load(tmp_path / "made" / "a.npz")
    assert list(arrays["layer_1"].shape) == shape and "layer_-1" in arrays
    with Image.open(tmp_path / "made" / "a.features.png") as drawn:
        assert drawn.size == (3 * 224, (2 if run == "mae" else 1) * 224)
    assert "layers [9] do not exist" in refused("features", runs / run, photos / "a.jpg", "--layers", "9")


def test_a_run_is_converted_and_what_comes_back_is_the_same_tower(runs, tmp_path):
    done = odonata("convert", runs / "classify", tmp_path / "cifar", "--to", "cifar")
    assert done.status == 0, done.err
    again = odonata("convert", tmp_path / "cifar", tmp_path / "own", "--to", "odonata")
    assert again.status == 0 and "source: CIFAR ResNet-8 (akamaster)" in again.out
    assert contents(tmp_path / "own") == {"model.safetensors", "model.json"}
    message = refused("convert", runs / "classify", tmp_path / "x", "--to", "openai")
    assert "no layout 'openai' for backbones of the family resnet; there are" in message
    assert not (tmp_path / "x").exists()


def test_reports_show_neighbours_and_a_map(runs):
    for run in ("moco-v2", "classify", "mae"):
        page = (runs / run / "report.html").read_text()
        assert "data:image/png" in page
    assert "nearest, cosine" in (runs / "moco-v2" / "report.html").read_text()
    assert "label:" in (runs / "classify" / "report.html").read_text()


def test_what_the_collapse_watch_says_stands_in_the_log_and_in_the_report(runs, tmp_path):
    done = odonata("train", "dino", *SET, "--backbone", "resnet8", "--centering", "none", "--teacher-temperature", "3",
                   "--teacher-temperature-start", "3", "--steps", "6", "--out", tmp_path / "flat")  # fmt: skip
    assert done.status == 0, done.err
    words = "collapse watch: uniform targets"
    assert words in done.err and words in (tmp_path / "flat" / "log.jsonl").read_text()
    page = (tmp_path / "flat" / "report.html").read_text()
    assert "<h2>Warnings</h2>" in page and words in page and "Sharpen: lower the teacher" in page
    assert "<h2>Warnings</h2>" not in (runs / "classify" / "report.html").read_text()


def test_show_tells_what_a_tower_costs():
    found = odonata("show", "resnet50", "--json").json
    assert found["parameters"] == 23_508_032 and found["layers"][-1] == {"layer": 3, "channels": 2048, "stride": 32}
    assert found["macs"] == pytest.approx(4.09e9, rel=0.01) and found["receptive_field"] == 427
    assert odonata("show", "vit-b16", "--json").json["receptive_field"] is None
    assert "swin-t" in odonata("show", "backbones").out
    assert "did you mean" in refused("train", "classify", *SET, "--backbone", "resnet5")
    assert "resnet18 has no option 'colour'" in refused("train", "classify", *SET, "--backbone", "resnet18:colour=1")


def test_pictures_without_words_or_classes_can_be_checked_and_learned_from(tmp_path):
    for number in range(24):
        picture(tmp_path / "photos" / ("deep" if number % 2 else "") / f"{number}.jpg", number)
    assert odonata("check-data", tmp_path / "photos").status == 0
    done = odonata("train", "moco-v1", "--data.path", tmp_path / "photos", "--data.batch-size", "8",
                   "--image-size", "32", "--steps", "2", "--backbone", "resnet8", "--queue", "16",
                   "--out", tmp_path / "run")  # fmt: skip
    assert done.status == 0, done.err
    assert "no classes to measure by" in done.err
    message = refused("evaluate", tmp_path / "run", "--probe")
    assert "need two classes or more: path/class/*.jpg" in message
    assert "no classes: a classifier needs two or more" in refused(
        "train", "classify", "--data.path", tmp_path / "photos", "--out", tmp_path / "c"
    )


def test_help_of_evaluate_follows_the_model(runs):
    assert "--few-shot" in odonata("evaluate", runs / "moco-v2", "--help").out
    assert "usage: odonata evaluate MODEL" in odonata("evaluate").out
    assert "the model comes first" in refused("evaluate", "--knn")
