"""Every command end to end, as the documents write it."""

import contextlib
import csv
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import time
import typing
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import odonata as library
from app.conftest import TINY, contents, odonata, refused
from odonata.app.api import recipe
from odonata.app.catalog import ROOMS, default_recipe, methods
from odonata.app.cli import COMMANDS
from odonata.app.commands.train import parse_recipe
from odonata.card import MARKS
from odonata.engine.config_file import from_plain, read_recipe_name, to_plain, write_recipe
from odonata.engine.recipe import SGD, AdamW, Recipe
from odonata.errors import RecipeError

NAMES = [entry.name for entry in methods()]


# ---- list, show, help ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments", [(), ("--help",), ("list",), ("list", "--json"), ("show", "siglip"), ("train", "--help"), ("claim",)]
)
def test_what_only_tells_imports_no_torch(arguments):
    code = (
        "import sys, time; from odonata.app.cli import main; t = time.perf_counter(); "
        f"main({list(arguments)!r}); print(time.perf_counter() - t, file=sys.stderr); "
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    print(f"odonata {' '.join(arguments)}: {time.perf_counter() - started:.2f} s with the interpreter")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_help_names_every_command():
    for arguments in ((), ("--help",), ("help",)):
        done = odonata(*arguments)
        assert done.status == 0 and all(re.search(rf"^  {name} ", done.out, re.M) for name in COMMANDS)
    assert odonata("--version").out == f"odonata {library.__version__}\n"


@pytest.mark.parametrize("command", sorted(set(COMMANDS) - {"train", "claim"}))
def test_every_command_has_help(command):
    done = odonata(command, "--help")
    assert done.status == 0 and f"usage: odonata {command}" in done.out


def test_list_shows_methods_and_marks():
    done = odonata("list")
    rows = done.out.splitlines()
    assert done.status == 0 and [row.split()[0] for row in rows[1:]] == NAMES, "a row a method, unbroken"
    listed = odonata("list", "--json").json
    assert [row["name"] for row in listed] == NAMES
    rooms = [row["name"] for room in ROOMS for row in odonata("list", room, "--json").json]
    assert rooms == NAMES
    assert all(set(row["marks"]) == {"trains", "parity", "weights", "claim", "manners"} for row in listed)
    assert "no room 'kitchen'; there are align" in refused("list", "kitchen")


@pytest.mark.parametrize("name", NAMES)
def test_show(name):
    assert f"odonata train {name}" in odonata("show", name).out
    shown = odonata("show", name, "--json").json
    assert shown["name"] == name and set(shown["marks"]) == set(MARKS)
    # The tables of a book, and GPT-2's report, have no number there.
    assert "arXiv" in shown["paper"] or name == "gridworld"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("trian", "siglip"), "no command 'trian'; did you mean train?"),
        (("xyzzy",), "no command 'xyzzy'; see odonata --help"),
        (("train", "siglpi"), "no method 'siglpi'; did you mean siglip"),
        (("show", "clpi"), "no method 'clpi'; did you mean clip"),
        (("train", "--steps", "3", "siglip"), "the method comes first: odonata train NAME"),
        (("train", "nothing.yaml"), "nothing.yaml: no such recipe file"),
        (("train", "siglip", "--variant", "VIT-B-16", "--data.path", "scenes:n=80,size=32"), "'VIT-B-16' is unknown"),
    ],
)
def test_a_wrong_name_is_answered_with_the_nearest(arguments, words):
    assert words in refused(*arguments)


@pytest.mark.parametrize(
    ("option", "nearest"),
    [
        ("--optim.lrr", "--optim.lr"),
        ("--stepz", "--steps"),
        ("--data.pth", "--data.path"),
        ("--bias-inti", "--bias-init"),
    ],
)
def test_a_wrong_option_is_answered_with_the_nearest(option, nearest):
    message = refused("train", "siglip", option, "1")
    assert f"Unrecognized options: {option}" in message and nearest in message


def test_a_value_of_another_type_is_refused():
    assert "--steps" in refused("train", "siglip", "--steps", "many")
    assert "--precision" in refused("train", "siglip", "--precision", "fp8")


# ---- recipes ---------------------------------------------------------------------------------------------------------


def round_trip(value: Recipe, tmp_path: Path) -> Recipe:
    write_recipe(value, tmp_path / "recipe.yaml")
    name, plain = read_recipe_name(tmp_path / "recipe.yaml")
    assert name == value.name
    return from_plain(plain, default_recipe(name), "recipe.yaml")


@pytest.mark.parametrize("name", NAMES)
def test_a_default_recipe_survives_yaml(name, tmp_path):
    assert round_trip(default_recipe(name), tmp_path) == default_recipe(name)


def other_values(value, hint):
    """Some other values that a field of this type may have."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return [choice for choice in arguments if choice != value]
    if hint is bool:
        return [not value]
    if hint is int:
        return [value + 1, 10**9]
    if hint is float:
        return [value / 3 + 1e-9, 1e-7, 3.0, -1e12]
    if hint is str:
        return ["", "runs/ä ö: 'x' #1 → \"y\"", "null", "1e-3", "no", "- a"]
    if origin is tuple and typing.get_origin(arguments[0]) is typing.Literal:
        return [(), typing.get_args(arguments[0])[:2]]
    if origin is tuple and arguments[0] is int:
        return [(), (3, 5)] if Ellipsis in arguments else [tuple(number + 1 for number in value)]
    if origin is tuple and typing.get_origin(arguments[0]) is tuple:
        return [(), value[:1] or ((0.0, 9.0), (3.5, 1e8))]
    if origin is tuple and arguments[0] is str:
        return [(), ("one", "an other")]
    if origin is tuple:
        return [(0.25,) * len(value)] if Ellipsis not in arguments else [(), (0.1, 0.5)]
    if origin is dict:
        return [{"model.visual": 0.1, "a b": 10.0}, {}]
    if type(None) in arguments:
        return [None, *([] if str not in arguments else ["some where"])]
    return []


def variations(node):
    """Every recipe that differs from this one in a single field, at any depth."""
    hints = typing.get_type_hints(type(node))
    for field in dataclasses.fields(node):
        value = getattr(node, field.name)
        if dataclasses.is_dataclass(value):
            for changed in variations(value):
                with contextlib.suppress(RecipeError):
                    yield dataclasses.replace(node, **{field.name: changed})
        elif field.name != "name":
            for changed in other_values(value, hints[field.name]):
                # A configuration that refuses impossible values itself has them refused, wherever they come from.
                with contextlib.suppress(RecipeError):
                    yield dataclasses.replace(node, **{field.name: changed})


@pytest.mark.parametrize("name", NAMES)
def test_every_field_survives_yaml(name, tmp_path):
    """A property over all fields: whatever one option changes comes back from the file, but the run folder."""
    changed = list(variations(default_recipe(name)))
    assert len(changed) > 100, "most fields take other values"
    for value in changed:
        plain = yaml.safe_load(yaml.safe_dump(to_plain(value), sort_keys=False, allow_unicode=True))
        assert from_plain(plain, default_recipe(name), "x") == value
    sgd = dataclasses.replace(default_recipe(name), optim=SGD(lr=0.3, nesterov=True), out="elsewhere")
    assert round_trip(sgd, tmp_path) == dataclasses.replace(sgd, out="")


def test_a_recipe_written_by_hand(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "name: siglip\nsteps: 7\nmethod: {bias_init: -3}\noptim: {lr: 1e-4}\n"
        "data:\n  path: photos\n  crop_scale: [0.2, 1]\n"
    )
    found = parse_recipe(str(tmp_path / "mine.yaml"), ["--data.batch-size", "4"])
    assert (found.steps, found.method.bias_init, found.data.path, found.optim.lr) == (7, -3.0, "photos", 1e-4)
    assert found.data.crop_scale == (0.2, 1.0) and found.data.batch_size == 4
    assert found.method.variant == default_recipe("siglip").method.variant, "what is not named is the default"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("steps: 3", "a recipe is a mapping with the method's name under 'name'"),
        ("name: siglip\nstep: 3", "Recipe has no field 'step'; did you mean steps"),
        ("name: siglip\noptim: {lrr: 1}", "AdamW has no field 'lrr'; did you mean lr"),
        ("name: siglip\nsteps: many", "steps is 'many', which is not int"),
        ("name: siglip\nsteps: true", "steps is True, which is not int"),
        ("name: siglip\nmethod: 3", "method is 3, which is not a mapping with the fields of SigLIPConfig"),
        ("name: siglip\ndata:", "data is None, which is not a mapping with the fields of ImageTextData"),
        ("name: siglip\noptim: {_: Adam}", "optim: 'Adam' is none of AdamW"),
        ("name: siglip\noptim: {betas: [0.9]}", "betas has 1 entries: [0.9]; it takes 2"),
        ("name: siglip\noptim: {betas: [0.9, x]}", "betas[1] is 'x', which is not float"),
        ("name: siglip\nprecision: fp8", "precision is 'fp8'"),
        ("name: siglpi", "no method 'siglpi'; did you mean siglip"),
        ("name: [", "not YAML"),
        ("name: clip\n_: SigLIP", "expected a Recipe, found a SigLIP"),
    ],
)
def test_a_recipe_that_is_wrong_is_explained(tmp_path, text, words):
    (tmp_path / "mine.yaml").write_text(text)
    assert words in refused("train", tmp_path / "mine.yaml")


def test_a_recipe_that_is_no_text(tmp_path):
    (tmp_path / "mine.yaml").write_bytes(b"name: \xff\xfe")
    assert "mine.yaml: not YAML" in refused("train", tmp_path / "mine.yaml")


def test_options_reach_the_recipe_in_any_order():
    found = parse_recipe("siglip", ["--steps", "5", "optim:sgd", "--optim.lr", "3e-4", "--data.batch-size", "4"])
    assert found.optim == SGD(lr=3e-4) and found.steps == 5 and found.data.batch_size == 4
    kept = parse_recipe("siglip", ["--optim.lr", "3e-4"]).optim
    assert isinstance(kept, AdamW) and dataclasses.replace(kept, lr=1e-3) == default_recipe("siglip").optim


# ---- train, resume, compare, report ----------------------------------------------------------------------------------


def test_training_leaves_a_run(trained):
    for name in ("siglip", "clip"):
        there = {path.name for path in (trained / name).iterdir()} - {"tensorboard", ".lock"}
        assert there == {"assets", "checkpoints", "config.yaml", "environment.json", "log.jsonl", "report.html"}
        assert not [path for path in contents(trained / name) if path.endswith(".partial")]


def test_training_on_ones_own_table(pairs, tmp_path):
    """The first lines of the documents: a table, a folder of pictures, a rate."""
    shutil.move(pairs, tmp_path / "captions.csv")
    done = odonata(
        "train", "clip", "--data.path", tmp_path / "captions.csv", "--data.images", tmp_path / "set",
        "--optim.lr", "3e-4", "--steps", 2, "--data.batch-size", 4, "--image-size", 32, "--device", "cpu",
        "--out", tmp_path / "run",
    )  # fmt: skip
    assert done.status == 0, done.err
    assert "16 pictures to train on" in done.err or "held back" in done.err
    assert done.out.strip() == f"report: {tmp_path / 'run/report.html'}"
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["optim"]["lr"] == 3e-4


def test_a_saved_recipe_trains_again_to_the_same_figures(trained, tmp_path):
    done = odonata("train", trained / "siglip/config.yaml", "--out", tmp_path / "again")
    assert done.status == 0, done.err
    logs = [
        [{k: v for k, v in json.loads(line).items() if k not in ("samples_per_s", "wait")} for line in path.open()]
        for path in (trained / "siglip/log.jsonl", tmp_path / "again/log.jsonl")
    ]
    assert logs[0] == logs[1]
    assert (tmp_path / "again/config.yaml").read_text() == (trained / "siglip/config.yaml").read_text()


def test_resume_goes_on(copy):
    run = copy("siglip")
    final = (run / "checkpoints/step-00000003/model.safetensors").read_bytes()
    shutil.rmtree(run / "checkpoints/step-00000003")
    done = odonata("resume", run)
    assert done.status == 0, done.err
    assert (run / "checkpoints/step-00000003/model.safetensors").read_bytes() == final
    assert "is not a run folder: it has no config.yaml" in refused("resume", run.parent)


def test_compare_shows_what_differs(trained):
    shown = odonata("compare", trained / "siglip", trained / "clip", "--json").json
    assert shown["settings"]["name"] == ["siglip", "clip"]
    assert shown["settings"]["method.bias_init"] == [default_recipe("siglip").method.bias_init, None]
    assert "steps" not in shown["settings"] and "seed" not in shown["settings"], "what is equal is left out"
    assert shown["figures"]["step"] == [3, 3] and len(shown["figures"]["recall@1"]) == 2
    table = odonata("compare", trained / "siglip", trained / "clip").out
    assert "optim.betas" in table and "recall@1" in table and "steps" not in table
    assert odonata("compare", trained / "clip", trained / "clip", "--json").json["settings"] == {}
    assert "two run folders or more" in refused("compare", trained / "clip")
    assert "is not a run folder" in refused("compare", trained / "clip", trained)


def test_report_stands_by_itself(copy):
    run = copy("siglip")
    (run / "report.html").unlink()
    done = odonata("report", run, "--pictures", 2)
    assert done.out == f"{run / 'report.html'}\n"
    page = (run / "report.html").read_text()
    assert page.count("<img src='data:image/png;base64,") == 2 and "http" not in page and "recall@1" in page
    assert page.count("<svg") == page.count("<polyline") >= 3
    assert "is not a run folder" in refused("report", run.parent)


# ---- predict, embed, search ------------------------------------------------------------------------------------------

ORDERS = [
    "{run} {a} {b} --labels x y --json",
    "{run} --labels x y --json {a} {b}",
    "--labels x y --json {run} {a} {b}",
    "--json {run} {a} {b} --device cpu --labels x y",
]


@pytest.mark.parametrize("order", ORDERS)
def test_predict_takes_options_in_any_order(trained, photos, order):
    words = order.split()
    known = {"{run}": trained / "clip", "{a}": photos / "a.jpg", "{b}": photos / "d [x].png"}
    shown = odonata("predict", *(known.get(word, word) for word in words)).json
    assert [row["image"] for row in shown] == [str(photos / "a.jpg"), str(photos / "d [x].png")]
    for row in shown:
        assert {entry["label"] for entry in row["labels"]} == {"x", "y"}
        values = [entry["probability"] for entry in row["labels"]]
        assert sum(values) == pytest.approx(1) and values == sorted(values, reverse=True)


def test_predict_prints_a_table(trained, photos, tmp_path):
    done = odonata("predict", trained / "siglip", photos, "--labels", "[/dog]", "a cat")
    rows = [line for line in done.out.splitlines()[1:] if line.strip()]
    assert done.status == 0 and len(rows) == 10, "two labels for each of five pictures, a line each"
    assert sum("[/dog]" in row for row in rows) == 5 and sum("d [x].png" in row for row in rows) == 1
    one = odonata("predict", trained / "siglip", photos / "a.jpg", "--labels", "x", "y", "z", "--top", 1).out
    assert len(one.splitlines()) == 2
    (tmp_path / "prompts.txt").write_text("a photo of a {}\na drawing of a {}\n")
    prompted = odonata(
        "predict", trained / "siglip", photos / "a.jpg", "--labels", "x", "y", "--templates", tmp_path / "prompts.txt"
    )
    assert prompted.status == 0


def test_embed_and_search(trained, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = odonata("embed", Path(os.path.relpath(trained / "clip")), photos, "-o", "vectors", "--batch-size", 2)
    assert done.status == 0 and done.out.startswith("5 vectors of "), done
    vectors = np.load("vectors/vectors.npy")
    assert vectors.shape[0] == 5 and np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    names = [json.loads(line)["image"] for line in Path("vectors/items.jsonl").read_text().splitlines()]
    assert names == sorted(str(path) for path in photos.rglob("*.*g"))
    monkeypatch.chdir(photos)  # the vectors know where their model is, from anywhere
    found = odonata("search", tmp_path / "vectors", "--image", photos / "c.jpg", "--json").json
    assert found[0]["image"] == str(photos / "c.jpg") and found[0]["cosine"] == pytest.approx(1, abs=1e-5)
    assert [row["cosine"] for row in found] == sorted((row["cosine"] for row in found), reverse=True)
    table = odonata("search", tmp_path / "vectors", "a red bus", "--top", 2).out
    assert len(table.splitlines()) == 3
    words = odonata("search", tmp_path / "vectors", "a red bus", "--json").json
    model = library.load(trained / "clip", device="cpu")
    query = model.embed_text("a red bus")[0].numpy()
    assert [row["cosine"] for row in words] == pytest.approx(sorted(vectors @ query, reverse=True), abs=1e-5)


def test_search_says_what_it_needs(trained, photos, tmp_path):
    assert "takes either words" in refused("search", tmp_path)
    assert "takes either words" in refused("search", tmp_path, "a bus", "--image", photos / "a.jpg")
    assert "not a folder of vectors made by `odonata embed`" in refused("search", tmp_path, "a bus")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").write_text("mine")
    assert "full is there already; choose another -o" in refused(
        "embed", trained / "clip", photos, "-o", tmp_path / "full"
    )
    assert contents(tmp_path / "full") == {"file"}


# ---- evaluate, filter, check-data, convert ---------------------------------------------------------------------------


def test_evaluate_answers_the_runs_own_question(copy, tmp_path):
    run = copy("clip")
    figures = odonata("evaluate", run, "--json", "-o", tmp_path / "figures.json").json
    assert (
        json.loads((run / "evaluation.json").read_text())
        == figures
        == json.loads((tmp_path / "figures.json").read_text())
    )
    logged = [json.loads(line) for line in (run / "log.jsonl").open()][-1]
    for name in ("image_to_text/recall@1", "text_to_image/recall@5"):
        figure = figures[name]
        assert figure["low"] <= figure["value"] <= figure["high"]
    assert figures["image_to_text/recall@1"]["value"] == pytest.approx(logged["image_to_text/recall@1"])
    table = odonata("evaluate", run).out.splitlines()
    assert table[0].split() == ["figure", "value", "95", "%", "interval", "of"] and len(table) == len(figures) + 1


def test_evaluate_takes_pairs_and_classes(trained, pairs, tmp_path):
    """The classes are told by brightness, which even an untrained tower passes on."""
    from PIL import Image

    for label, base in (("dark", 30), ("light", 220)):
        for split in ("train", "test"):
            for number in range(12):
                (tmp_path / f"classes/{split}/{label}").mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (32, 32), (base + number, base, base)).save(
                    tmp_path / f"classes/{split}/{label}/{number}.png"
                )
    figures = odonata(
        "evaluate", trained / "clip", "--retrieval", pairs, "--zeroshot", tmp_path / "classes/test",
        "--probe", tmp_path / "classes", "--knn", tmp_path / "classes", "--json",
    ).json  # fmt: skip
    assert figures["image_to_text/recall@10"]["count"] == 16 and figures["zeroshot/top1"]["count"] == 24
    assert figures["probe/top1"]["value"] > 0.9 and figures["knn/top1 (k=20)"]["value"] > 0.9


def test_filter_keeps_the_best(trained, pairs, tmp_path):
    done = odonata(
        "filter",
        trained / "clip",
        pairs,
        "--keep",
        0.25,
        "-o",
        tmp_path / "kept.jsonl",
        "--scores",
        tmp_path / "all.jsonl",
    )
    assert done.status == 0 and done.out.startswith("kept 4 of 16 pairs, cosine ≥ ")
    kept = [json.loads(line) for line in (tmp_path / "kept.jsonl").open()]
    scored = [json.loads(line) for line in (tmp_path / "all.jsonl").open()]
    best = sorted(scored, key=lambda row: -row["score"])[:4]
    assert sorted(row["image"] for row in kept) == sorted(row["image"] for row in best)
    again = odonata("check-data", tmp_path / "kept.jsonl", "--json").json
    assert again["num_images"] == 4 and not again["problems"], "what was kept is itself a manifest"
    assert "kept.jsonl is there already" in refused("filter", trained / "clip", pairs, "-o", tmp_path / "kept.jsonl")


def test_check_data_reports(pairs):
    assert odonata("check-data", pairs).status == 0
    with pairs.open("a") as file:
        file.write("17.png,missing\n")
    (pairs.parent / "3.png").write_bytes(b"")
    done = odonata("check-data", pairs, "--json")
    assert done.status == 1, "something would stop a training"
    assert done.json["num_images"] == 16 and done.json["unreadable"][0][0].endswith("3.png")
    assert done.json["problems"][0][0] == f"{pairs}:18"
    shown = odonata("check-data", pairs)
    assert shown.status == 1 and "captions.csv:18" in shown.out and "the picture file is empty" in shown.out
    assert "nowhere: no such file or folder" in refused("check-data", "nowhere")


@pytest.mark.parametrize(
    ("name", "layouts"), [("clip", ("hf", "openai", "open_clip")), ("siglip", ("hf", "big_vision"))]
)
def test_convert_there_and_back(trained, photos, tmp_path, name, layouts):
    """The pictures and words mean the same in every layout: embeddings agree to the bit of a float's rounding."""
    model = library.load(trained / name, device="cpu")
    pictures, words = sorted(photos.glob("*.jpg")), ["a red 3", "two things"]
    images, texts = model.embed_image(pictures), model.embed_text(words)
    for layout in layouts:
        done = odonata("convert", trained / name, tmp_path / layout, "--to", layout)
        assert done.status == 0, done.err
        assert all(Path(line).is_file() for line in done.out.splitlines() if not line.startswith("- "))
        weights = next(path for path in (tmp_path / layout).iterdir() if path.suffix in (".pt", ".safetensors", ".npz"))
        source = tmp_path / layout if layout in ("hf", "open_clip") else weights
        back = tmp_path / f"{layout}-back"
        done = odonata("convert", source, back, "--to", "odonata")
        assert done.status == 0, done.err
        assert f"- layout {layout}" in done.out, "what was inferred is told"
        again = library.load(back, device="cpu")
        assert torch.allclose(again.embed_text(words), texts, atol=1e-5), layout
        assert torch.allclose(again.model.state_dict()["logit_scale"], model.model.state_dict()["logit_scale"])
        if layout in ("hf", "open_clip"):  # the others carry no preprocessing of their own
            assert torch.allclose(again.embed_image(pictures), images, atol=1e-5), layout
    assert "is there already and not an empty folder" in refused(
        "convert", trained / name, tmp_path / "hf", "--to", "odonata"
    )


# ---- Python ----------------------------------------------------------------------------------------------------------


def test_python_says_the_same(trained, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = library.train(
        "siglip", steps=2, data__path="scenes:n=48,size=32", data__batch_size=8, image_size=32, device="cpu",
        evaluation__pairs=6, evaluation__zeroshot="none",
    )  # fmt: skip
    assert run == Path("runs/siglip-1") and (run / "report.html").is_file()
    model = library.load(trained / "clip", device="cpu")
    (prediction,) = model.predict(photos / "a.jpg", labels=["x", "y"])
    shown = odonata("predict", trained / "clip", photos / "a.jpg", "--labels", "x", "y", "--json").json[0]
    assert prediction.best == shown["labels"][0]["label"]
    assert prediction.probabilities[0] == pytest.approx({e["label"]: e["probability"] for e in shown["labels"]}["x"])
    assert model.embed_image([photos / "a.jpg", photos / "b.png"]).shape == (2, model.embed_text(["x"]).shape[1])
    figures = library.evaluate(run, device="cpu")
    assert figures["image_to_text/recall@1"]["count"] == 6
    assert [entry.name for entry in library.methods()] == NAMES


def test_python_recipes():
    assert recipe("siglip", optim__lr=1e-4, bias_init=-5.0).method.bias_init == -5.0
    assert recipe("clip", data__crop_scale=(0.3, 1.0)).data.crop_scale == (0.3, 1.0)
    assert recipe("clip", optim=SGD(lr=1.0)).optim == SGD(lr=1.0)
    with pytest.raises(RecipeError, match="AdamW has no field 'lrr'"):
        recipe("siglip", optim__lrr=1)
    with pytest.raises(RecipeError, match="which is not int"):
        recipe("siglip", steps="many")
    with pytest.raises(RecipeError, match="several devices are started by the command line"):
        library.train("siglip", devices=2)


# ---- the real thing --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_first_command_of_the_documents(shared_data, tmp_path):
    path = shared_data / "image-text/coco-mini/annotations/captions_karpathy.json"
    done = odonata(
        "train", "siglip", "--data.path", path, "--steps", 2, "--data.batch-size", 8, "--image-size", 32,
        "--device", "cpu", "--evaluation.pairs", 20, "--out", tmp_path / "run",
    )  # fmt: skip
    assert done.status == 0, done.err
    figures = odonata(
        "evaluate", tmp_path / "run", "--retrieval", path, "--most", 50, "--json",
        "--zeroshot", shared_data / "classification/cifar10/test", "--probe", shared_data / "classification/cifar10",
    ).json  # fmt: skip
    assert figures["zeroshot/top1"]["count"] == 50 and "probe/top1" in figures and "zeroshot/top5" in figures


@pytest.mark.slow
@pytest.mark.parametrize("name", ["catlip", "dfn", "flip", "lit"])
def test_the_other_methods_by_command(name, tmp_path, photos):
    more = {"lit": ["--tower-steps", 2], "dfn": ["--filter-steps", 2, "--clean", "scenes:n=24,size=32"], "catlip": []}
    done = odonata("train", name, *TINY, *more.get(name, []), "--out", tmp_path / "run")
    assert done.status == 0, done.err
    label = "three" if name != "catlip" else library.load(tmp_path / "run", device="cpu").assets.nouns.names[0]
    assert odonata("predict", tmp_path / "run", photos / "a.jpg", "--labels", label, "--json").json
    assert odonata("embed", tmp_path / "run", photos, "-o", tmp_path / "vectors").status == 0
    assert odonata("report", tmp_path / "run").status == 0
    if name != "catlip":
        assert odonata("evaluate", tmp_path / "run", "--json").json
        assert odonata("filter", tmp_path / "run", "scenes:n=20,size=32", "-o", tmp_path / "kept.jsonl").status == 0


@pytest.mark.slow
def test_two_devices(tmp_path):
    """`--devices 2` learns what one process does, and an error is told once, without torchrun's tables."""

    def run(*arguments):
        command = [sys.executable, "-m", "odonata.app.cli", "train", "clip", *TINY, *arguments]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=180, check=False)

    done = run("--devices", "2", "--out", str(tmp_path / "two"))
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "two/environment.json").read_text())["world_size"] == 2
    assert odonata("train", "clip", *TINY, "--out", tmp_path / "one").status == 0
    from safetensors.torch import load_file

    one, two = (load_file(tmp_path / n / "checkpoints/step-00000003/model.safetensors") for n in ("one", "two"))
    for key, value in one.items():
        assert torch.allclose(two[key], value, atol=2e-3), key
    failed = run("--devices", "2", "--data.path", str(tmp_path / "nowhere"), "--out", str(tmp_path / "none"))
    assert failed.returncode == 2 and not (tmp_path / "none").exists()
    assert failed.stderr.splitlines()[-1].startswith(f"odonata: {tmp_path / 'nowhere'}: no such file or folder")
    assert failed.stderr.count("odonata:") == 1 and "Traceback" not in failed.stderr


def test_more_devices_than_there_are(tmp_path):
    message = refused("train", "clip", *TINY, "--devices", 4096, "--out", tmp_path / "run")
    assert re.search(r"--devices 4096: this machine has \d+ CPU cores", message)
    assert not (tmp_path / "run").exists()


def test_a_manifest_is_read_by_the_csv_module_alike(pairs):
    assert len(list(csv.DictReader(pairs.open()))) == 16
