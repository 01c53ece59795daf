"""Bad input through the real commands: status 2, a message that names file, line, key or shape, nothing half-made."""

import io
import json
import os
import re
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from app.conftest import TINY, contents, odonata, picture, refused
from odonata.app.catalog import methods
from odonata.engine.run import Run

QUICK = {
    "lit": ("--lock", "none"),
    "dfn": ("--filter-steps", 1, "--clean", "scenes:n=16,size=32", "--keep", 0.9),
    "catlip": ("--min-count", 1),
}
NAMES = [entry.name for entry in methods("align")]
every_method = pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.shows(n, "manners")) for n in NAMES])


def training(name: str, data: object, out: Path, *more: object) -> tuple[object, ...]:
    """The arguments of a tiny run of a method on some data; later options replace earlier ones."""
    tiny = ("--data.batch-size", 8, "--steps", 2, "--image-size", 32, "--device", "cpu", "--log-every", 1)
    given = ("--data.path", data, *tiny, *QUICK.get(name, ()), "--out", out, *more)
    options = dict(zip(given[::2], given[1::2], strict=True))
    return ("train", name, *(word for option in options.items() for word in option))


# ---- pictures --------------------------------------------------------------------------------------------------------


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(*shape: int, dtype=np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype=dtype)


def bomb() -> bytes:
    """A PNG of a few bytes that says it has 900 million pixels."""
    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + body


def rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(Image.fromarray(noise(30, 40, 3)), "JPEG", exif=exif)


def animated() -> bytes:
    frames = [Image.fromarray(noise(30, 40, 3)).convert("P"), Image.new("P", (40, 30), 7)]
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])


BAD = {
    "empty": (lambda: b"", "the picture file is empty (0 bytes)"),
    "truncated": (
        lambda: encoded(Image.fromarray(noise(30, 40, 3)), "PNG")[:-400],
        "the picture is truncated or damaged",
    ),
    "text": (lambda: b"<html>not found</html>", "not a picture that Pillow can read (22 bytes, first bytes b'<html>"),
    "bomb": (bomb, "the limit"),
}
ODD = {
    "cmyk.jpg": lambda: encoded(Image.fromarray(noise(30, 40, 4), "CMYK"), "JPEG"),
    "deep.png": lambda: encoded(Image.fromarray(noise(30, 40, dtype=np.uint16)), "PNG"),
    "grey.png": lambda: encoded(Image.fromarray(noise(30, 40)), "PNG"),
    "clear.png": lambda: encoded(Image.fromarray(noise(30, 40, 4), "RGBA"), "PNG"),
    "moving.gif": animated,
    "turned.jpg": rotated,
    "line.png": lambda: encoded(Image.fromarray(noise(1, 300, 3)), "PNG"),
}


@pytest.fixture
def odd(tmp_path) -> Path:
    (tmp_path / "odd").mkdir()
    for name, make in ODD.items():
        (tmp_path / "odd" / name).write_bytes(make())
    return tmp_path / "odd"


@every_method
def test_unusual_pictures_are_trained_on(name, odd, tmp_path):
    lines = [json.dumps({"image": file, "caption": f"a dog number {n} on grass"}) for n, file in enumerate(ODD)]
    (odd / "set.jsonl").write_text("\n".join(lines))
    done = odonata(*training(name, odd / "set.jsonl", tmp_path / "run", "--data.batch-size", 4))
    assert done.status == 0, done.err


def test_unusual_pictures_are_predicted(trained, odd):
    for run in ("clip", "siglip"):
        shown = odonata("predict", trained / run, odd, "--labels", "x", "y", "--json").json
        assert [Path(row["image"]).name for row in shown] == sorted(ODD)
        assert all(0 <= entry["probability"] <= 1 for row in shown for entry in row["labels"])


def test_rotation_is_undone(trained, tmp_path):
    """A camera's tag and turned pixels are the same picture."""
    (tmp_path / "tagged.png").write_bytes(rotated())
    upright = Image.open(io.BytesIO(rotated())).transpose(Image.Transpose.ROTATE_270)
    upright.save(tmp_path / "upright.png")
    tagged, upright = odonata("predict", trained / "clip", tmp_path, "--labels", "x", "y", "--json").json
    assert tagged["labels"] == upright["labels"]


@pytest.mark.parametrize("kind", BAD)
@every_method
def test_a_bad_picture_stops_a_training(name, kind, pairs, tmp_path):
    make, words = BAD[kind]
    for number in range(16):  # wherever the first batch looks
        (pairs.parent / f"{number}.png").write_bytes(make())
    message = refused(*training(name, pairs, tmp_path / "run"))
    assert re.search(r"set/\d+\.png: ", message) and words in message
    assert not (tmp_path / "run").exists(), "a run that did not begin leaves no folder"


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.shows("siglip", "manners")
def test_a_bad_picture_is_counted_and_named_and_skipped(pairs, tmp_path, workers):
    for number in (3, 7):
        (pairs.parent / f"{number}.png").write_bytes(b"")
    options = ("--data.on-error", "skip", "--steps", 6, "--data.workers", workers, "--evaluation.pairs", 0)
    done = odonata(*training("siglip", pairs, tmp_path / "run", *options))
    assert done.status == 0, done.err
    rows = [json.loads(line) for line in (tmp_path / "run/log.jsonl").open()]
    told = [row["warning"] for row in rows if "warning" in row]
    for number in (3, 7):
        assert any(f"{number}.png: the picture file is empty" in warning for warning in told), told
        assert f"{number}.png: the picture file is empty" in done.err
    assert any("(2 so far" in warning for warning in told) or workers
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4, 5, 6]
    assert odonata("compare", tmp_path / "run", tmp_path / "run").status == 0


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_picture_elsewhere(kind, trained, pairs, tmp_path):
    make, words = BAD[kind]
    bad = pairs.parent / "5.png"
    bad.write_bytes(make())
    commands = [
        ("predict", trained / "clip", bad, "--labels", "x"),
        ("filter", trained / "clip", pairs, "-o", tmp_path / "out"),
        ("evaluate", trained / "clip", "--retrieval", pairs, "-o", tmp_path / "out"),
        ("embed", trained / "clip", pairs.parent, "-o", tmp_path / "out"),
    ]
    for command in commands:
        message = refused(*command)
        assert f"{bad}: " in message and words in message, command
    assert contents(tmp_path) == contents(tmp_path) - {"out", "out.partial"}
    kept = odonata("embed", trained / "clip", pairs.parent, "-o", tmp_path / "out", "--on-error", "skip")
    assert kept.status == 0 and kept.out.startswith("15 vectors") and "1 skipped" in kept.out
    assert f"skipped {bad}: " in kept.err


def test_a_missing_picture(trained, tmp_path):
    assert f"{tmp_path / 'no.jpg'}: no such picture or folder" in refused(
        "predict", trained / "clip", tmp_path / "no.jpg", "--labels", "x"
    )
    assert f"no pictures in {tmp_path}" in refused("predict", trained / "clip", tmp_path, "--labels", "x")


# ---- captions and tables ---------------------------------------------------------------------------------------------

TABLES = {
    "an empty caption": (b"image,caption\n0.png,a\n1.png, \n", r"captions\.csv:3: the caption is empty"),
    "a missing caption": (b"image,caption\n0.png,a\n1.png\n", r"captions\.csv:3: the caption is missing"),
    "not UTF-8": (b"image,caption\n0.png,caf\xe9\n", r"captions\.csv:2: the caption is not UTF-8"),
    "a missing picture": (
        b"image,caption\n0.png,a\nnone.png,b\n",
        r"captions\.csv:3: the picture 'none\.png' was not found",
    ),
    "a duplicate id": (
        b"id,image,caption\n7,0.png,a\n7,1.png,b\n",
        r"captions\.csv:3: duplicate id '7', first used at .*captions\.csv:2",
    ),
    "no picture column": (
        b"x,caption\n0.png,a\n",
        r"captions\.csv: no column with picture files; columns present: x, caption",
    ),
    "no caption column": (b"image,y\n0.png,a\n", r"captions\.csv: no column with captions; columns present: image, y"),
    "an address": (b"image,caption\nhttps://a/b.png,a\n", r"captions\.csv:2: the picture .* is an address"),
    "too many cells": (b"image,caption\n0.png,a, b\n", r"captions\.csv:2: 3 cells, but 2 columns"),
    "nothing": (b"", r"captions\.csv: the manifest is empty"),
    "a header only": (b"image,caption\n", r"captions\.csv: the manifest has no usable rows"),
}


@pytest.mark.parametrize("what", TABLES)
@every_method
def test_a_bad_table_stops_a_training(name, what, pairs, tmp_path):
    content, words = TABLES[what]
    pairs.write_bytes(content)
    assert re.search(words, refused(*training(name, pairs, tmp_path / "run")))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("what", TABLES)
def test_a_bad_table_elsewhere(what, trained, pairs, tmp_path):
    content, words = TABLES[what]
    pairs.write_bytes(content)
    assert re.search(words, refused("filter", trained / "clip", pairs, "-o", tmp_path / "out"))
    assert re.search(words, refused("evaluate", trained / "clip", "--retrieval", pairs, "-o", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@every_method
def test_a_bad_row_is_skipped_on_request(name, pairs, tmp_path):
    with pairs.open("ab") as file:
        file.write(b"1.png,\n2.png,caf\xe9\n")
    done = odonata(*training(name, pairs, tmp_path / "run", "--data.on-error", "skip", "--evaluation.pairs", 0))
    assert done.status == 0, done.err
    assert re.search(r"skipped 2 bad rows: .*captions\.csv:18: the caption is empty; .*csv:19: .* not UTF-8", done.err)


@every_method
def test_a_caption_of_ten_thousand_words_is_cut(name, pairs, tmp_path):
    lines = pairs.read_text().splitlines()
    lines[1] = "0.png," + "dog word " * 5000
    pairs.write_text("\n".join(lines))
    done = odonata(*training(name, pairs, tmp_path / "run", "--evaluation.pairs", 0))
    assert done.status == 0, done.err


@every_method
def test_one_class_only(name, tmp_path):
    for number in range(10):
        picture(tmp_path / f"set/cat/{number}.png", number)
    message = refused(*training(name, tmp_path / "set", tmp_path / "run"))
    assert "set: there is one class only ('a photo of a cat'): nothing can be told apart" in message
    assert not (tmp_path / "run").exists()


def test_one_class_only_elsewhere(trained, tmp_path):
    for number in range(10):
        picture(tmp_path / f"set/cat/{number}.png", number)
    for question in ("--zeroshot", "--probe", "--knn"):
        assert "with two classes or more" in refused("evaluate", trained / "clip", question, tmp_path / "set")


@every_method
def test_a_batch_larger_than_the_set(name, pairs, tmp_path):
    message = refused(*training(name, pairs, tmp_path / "run", "--data.batch-size", 64))
    assert re.search(r"the batch size 64 is larger than the data set \(\d+ items\); make it smaller", message)
    assert not (tmp_path / "run").exists()


# ---- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--steps", 0), "--steps is 0; it must be at least 1"),
        (("--optim.lr", "nan"), "--optim.lr is nan; it must be positive and finite"),
        (("--device", "cuda"), "--device cuda: torch sees no GPU here"),
        (("--data.batch-size", 0), "the batch size must be at least 1"),
        (("--data.path", "nowhere"), "nowhere: no such file or folder"),
        (("--data.images", "nowhere"), "nowhere: the folder of pictures does not exist"),
        (("--data.split", "dev2"), "no items of split 'dev2'; splits found: none"),
        (("--data.sampling", "balanced"), "needs classes, and the set has none"),
        (
            ("--data.caption-column", "text"),
            "there is no column 'text' (caption_column); columns present: image, caption",
        ),
        (("--init", "nowhere"), "nowhere"),
        (("--devices", 4096), "--devices 4096: this machine has"),
        (("--image-sizes", 3), "Unrecognized options: --image-sizes"),
    ],
)
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.shows(n, "manners")) for n in ("siglip", "clip", "catlip")]
)
def test_an_option_that_cannot_be(name, options, words, pairs, tmp_path, monkeypatch):
    if "cuda" in options and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    monkeypatch.chdir(tmp_path)
    assert words in refused(*training(name, pairs, tmp_path / "run", *options))
    assert not (tmp_path / "run").exists() and not (tmp_path / "runs").exists()


@every_method
def test_a_loss_that_is_not_finite(name, trained, pairs, tmp_path):
    options = ("--optim.lr", 1e30, "--steps", 6, "--save-every", 1, "--clip.policy", "none", "--evaluation.pairs", 0)
    if name == "dfn":  # else the filter, which learns at the same rate, breaks first
        options += ("--filter-by", trained / "clip")
    message = refused(*training(name, pairs, tmp_path / "run", *options, "--schedule.warmup", 0))
    found = re.search(
        r"odonata: step (\d): the (loss|gradient of \S+) is \S+.*; the checkpoint of step (\d) is kept", message
    )
    assert found and int(found[1]) == int(found[3]) + 1, message
    assert (tmp_path / f"run/checkpoints/step-0000000{found[3]}/model.safetensors").is_file()


@every_method
def test_a_place_that_cannot_be_written(name, pairs, tmp_path):
    before = contents(tmp_path)
    message = refused(*training(name, pairs, pairs / "run"))
    assert f"{pairs / 'run'}: cannot write a run folder here: {pairs} is a file" in message
    assert contents(tmp_path) == before


def test_places_that_cannot_be_written_elsewhere(trained, photos, pairs, tmp_path):
    before, place = contents(tmp_path), pairs / "out"
    for command in (
        ("embed", trained / "clip", photos, "-o", place),
        ("filter", trained / "clip", pairs, "-o", place),
        ("convert", trained / "clip", place, "--to", "hf"),
        ("convert", trained / "clip", place, "--to", "odonata"),
    ):
        assert str(pairs) in refused(*command)
    assert contents(tmp_path) == before


def test_a_run_in_use(copy):
    run = copy("siglip")
    holder = Run(run, resume=True)
    try:
        assert f"{run} is in use by process {os.getpid()}" in refused("resume", run)
    finally:
        holder.close()
    before = contents(run)
    assert f"{run} already holds a run; resume it with `odonata resume {run}`" in refused(
        "train", "siglip", *TINY, "--out", run
    )
    assert contents(run) == before


def test_data_that_changed_since(pairs, tmp_path):
    assert odonata(*training("clip", pairs, tmp_path / "run")).status == 0
    pairs.write_text(pairs.read_text().replace("of a set", "of another"))
    assert "the data changed since the run began" in refused("resume", tmp_path / "run")


# ---- weights ---------------------------------------------------------------------------------------------------------


def damage(file: Path, how: str) -> str:
    """Spoil a file of weights and return what the message must say."""
    state = load_file(file)
    key = next(k for k in state if k.endswith(("patch_embed.weight", "patch_embed.proj.weight")))
    match how:
        case "truncated":
            file.write_bytes(file.read_bytes()[:-1000])
            return "is damaged or not a safetensors file"
        case "empty":
            file.write_bytes(b"")
            return "is empty"
        case "missing key":
            del state[key]
        case "extra key":
            state["model.visual.surplus" if key.startswith("model.") else "visual.surplus"] = torch.zeros(3)
            key = "surplus"
        case "another shape":
            state[key] = torch.zeros(5, *state[key].shape[1:])
            key = r"\[5, "
    save_file(state, file)
    return key.removeprefix("model.").removeprefix("visual.")


@pytest.mark.parametrize("how", ["truncated", "empty", "missing key", "extra key", "another shape"])
@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.shows(n, "manners")) for n in ("siglip", "clip")])
def test_weights_that_do_not_fit(name, how, copy, photos, pairs, tmp_path):
    run = copy(name)
    file = run / "checkpoints/step-00000003/model.safetensors"
    (run / "checkpoints/index.json").write_text('{"last": 3, "best": null}')
    words = damage(file, how)
    for command in (
        ("predict", run, photos, "--labels", "x"),
        ("embed", run, photos, "-o", tmp_path / "out"),
        ("filter", run, pairs, "-o", tmp_path / "out"),
        ("evaluate", run),
        ("convert", run, tmp_path / "out"),
        training(name, pairs, tmp_path / "out", "--init", run, "--image-size", 0),
        ("resume", run),
    ):
        message = refused(*command)
        assert str(file) in message or str(file.parent) in message, (command, message)
        assert command[0] == "resume" or re.search(words, message), (command, message)
    assert not (tmp_path / "out").exists() and not (run / "evaluation.json").exists()


def test_a_pickle_that_runs_code_is_not_run(trained, photos, pairs, tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    evil = tmp_path / "evil.pt"
    torch.save({"weight": torch.zeros(3), "trap": Trap()}, evil)
    for command in (
        ("predict", evil, photos, "--labels", "x"),
        ("embed", evil, photos, "-o", tmp_path / "out"),
        ("filter", evil, pairs, "-o", tmp_path / "out"),
        ("evaluate", evil, "--retrieval", pairs),
        ("convert", evil, tmp_path / "out", "--to", "hf"),
        training("clip", pairs, tmp_path / "out", "--init", evil),
        training("lit", pairs, tmp_path / "out", "--lock", "image", "--tower", evil),
        training("dfn", pairs, tmp_path / "out", "--filter-by", evil),
        training("catlip", pairs, tmp_path / "out", "--init", evil),
    ):
        message = refused(*command)
        assert str(evil) in message and "could run code when read" in message, (command, message)
    assert not (tmp_path / "ran").exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda p: p.write_bytes(b"\x80"),
            "is truncated or not a PyTorch file|could run code when read, or it is damaged",
        ),
        (lambda p: torch.save({"a": torch.zeros(3)}, p), "the layout is not known"),
        (lambda p: torch.save([1, 2], p), "holds a list, not a dictionary of tensors"),
        (lambda p: None, "no such run folder or weights"),
    ],
)
def test_a_file_that_is_no_model(make, words, photos, tmp_path):
    make(tmp_path / "model.pt")
    assert re.search(words, refused("predict", tmp_path / "model.pt", photos, "--labels", "x"))
    assert re.search(words, refused("convert", tmp_path / "model.pt", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_no_model(copy, photos, tmp_path):
    assert "holds no weights" in refused("predict", photos, photos, "--labels", "x")
    run = copy("clip")
    shutil.rmtree(run / "checkpoints")
    assert "has no checkpoint yet; resume it with" in refused("predict", run, photos, "--labels", "x")
    run = copy("siglip")
    (run / "assets/model.json").write_text("{")
    assert "assets/model.json: cannot read the model's description" in refused("predict", run, photos, "--labels", "x")
    (run / "assets/model.json").write_text('{"architecture": {"visual": {}, "text": {}, "colour": 3}}')
    assert "assets/model.json: cannot read the model's description" in refused("predict", run, photos, "--labels", "x")


def test_a_layout_that_cannot_say_what_the_model_is(trained, tmp_path):
    assert "--to" in refused("convert", trained / "clip", tmp_path / "out", "--to", "onnx")
    refused("convert", trained / "clip", tmp_path / "out", "--to", "big_vision")
    refused("convert", trained / "siglip", tmp_path / "out", "--to", "openai")
    assert not contents(tmp_path)


# ---- questions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("predict", "{run}", "{photos}"), "predict needs --labels"),
        (("predict", "{run}", "{photos}", "--labels", "x", "--top", "0"), "--top is 0; it must be at least 1"),
        (("predict", "{run}", "{photos}", "--labels", "x", "--templates", "no.txt"), "no.txt"),
        (("embed", "{run}", "{photos}"), "--out"),
        (("embed", "{run}", "{photos}", "-o", "out", "--batch-size", "0"), "--batch-size is 0"),
        (("evaluate", "{run}", "--most", "0"), "--most is 0"),
        (("evaluate", "{run}", "--batch-size", "-1"), "--batch-size is -1"),
        (("evaluate", "{run}", "--retrieval", "no.json"), "no.json: no such file or folder"),
        (("evaluate", "{run}", "--zeroshot", "{photos}"), "caption"),
        (
            ("filter", "{run}", "scenes:n=8,size=32", "--keep", "0", "-o", "out"),
            "--keep is 0.0; a share lies in (0, 1]",
        ),
        (("filter", "{run}", "scenes:n=8,size=32", "--keep", "0.001", "-o", "out"), "--keep 0.001 of 10 pairs is none"),
        (("filter", "{run}", "scenes:n=x", "-o", "out"), "the option 'n=x' needs a whole number"),
        (("report", "{photos}"), "is not a run folder"),
        (("compare", "{run}", "{photos}"), "is not a run folder"),
    ],
)
def test_a_question_that_cannot_be_answered(arguments, words, trained, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    known = {"{run}": trained / "clip", "{photos}": photos}
    assert words in refused(*(known.get(word, word) for word in arguments))
    assert not contents(tmp_path)
