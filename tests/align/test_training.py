"""Each method learns: eight samples by heart, and more than a stated floor of the embedded scenes in a short run.

The floor is four times chance. One digit stands in each picture, in one of eight colours; five of the 80 classes named
at random hold the true one in 1 of 16 cases, and ten of the 75 held-back pictures in 2 of 15.
"""

import json

import pytest
import torch
from PIL import Image

import odonata
from align.towers import run, small_vit, tiny
from odonata.data.image_text import ImageTextData, train_and_heldout
from odonata.data.scenes import Scenes

SCENES = "scenes:n=600,size=32,objects=1,clutter=0"
TWO_TOWERS = ("clip", "siglip", "lit", "flip", "dfn")


@pytest.fixture(autouse=True)
def _tiny_tower(monkeypatch):
    small_vit(monkeypatch)


def logged(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def each(names):
    return pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.shows(n, "trains")) for n in names])


@pytest.mark.slow
@each((*TWO_TOWERS, "catlip"))
def test_eight_samples_are_learned_by_heart(name, tmp_path):
    """The loss ends below a twentieth of its start; each picture finds its caption (CatLIP: its nouns), and back."""
    own = {
        "siglip": {"bias_init": -2.0, "scale_init": 5.0},
        "lit": {"tower_steps": 60},
        "flip": {"unmasked": 0.3},
        "dfn": {"keep": 1.0, "filter_steps": 1},
    }.get(name, {})
    path = "scenes:n=8,size=32,seed=2"
    chosen = tiny(
        name, data__path=path, data__captions="first", steps=150, save_every=150, optim__lr=2e-3, log_every=1, **own
    )
    _, folder = run(chosen, tmp_path / "run")
    losses = [row["loss"] for row in logged(folder) if "loss" in row]
    assert losses[-1] < losses[0] / 20, (losses[0], losses[-1])
    model = odonata.load(folder, device="cpu")
    samples, _ = train_and_heldout(ImageTextData(path=path))
    pictures, captions = [s.image for s in samples], [s.captions[0] for s in samples]
    assert len(set(captions)) == 8
    if name == "catlip":
        truth = model.assets.nouns.encode(captions)
        said = torch.tensor([p.probabilities for p in model.predict(pictures)])
        assert torch.equal((said > 0.5).float(), truth)
        return
    similar = model.embed_image(pictures) @ model.embed_text(captions).T
    assert similar.argmax(0).tolist() == similar.argmax(1).tolist() == list(range(8))


@pytest.mark.slow
@each(TWO_TOWERS)
def test_a_short_run_beats_four_times_chance(name, tmp_path):
    own = {
        "clip": {"steps": 150},
        "siglip": {"steps": 150, "bias_init": -4.2},  # -ln 64
        "lit": {"steps": 120, "tower_steps": 80},
        "flip": {"steps": 160, "unmasked": 0.1},
        "dfn": {
            "steps": 100, "filter_steps": 150, "keep": 0.35, "clean": f"{SCENES},seed=1",
            "data__path": f"{SCENES},noise=60",
        },
    }[name]  # fmt: skip
    chosen = tiny(
        name, data__batch_size=64, optim__lr=2e-3, vocab_size=400, log_every=10, evaluation__pairs=75,
        evaluation__zeroshot="scenes-classes:n=800,size=32,clutter=0", **({"data__path": SCENES} | own),
    )  # fmt: skip
    _, folder = run(chosen, tmp_path / "run")
    figures = logged(folder)[-1]
    assert figures["zeroshot/top5"] >= 4 * 5 / 80
    assert figures["text_to_image/recall@10"] >= 4 * 10 / 75
    if name == "dfn":
        pool, _ = train_and_heldout(chosen.data)
        clean, _ = train_and_heldout(ImageTextData(path=SCENES))
        kept = json.loads((folder / "assets" / "kept.json").read_text())
        assert len(kept) == round(0.35 * len(pool))
        true = [pool[i].captions == clean[i].captions for i in range(len(pool))]
        purity = sum(true[i] for i in kept) / len(kept)
        assert sum(true) / len(pool) < 0.45
        assert purity > 0.6, "the filter must keep half again as many true pairs as the pool holds"


NOUN_OF = {
    "red": "tomato", "green": "leaf", "blue": "ocean", "yellow": "lemon", "purple": "plum", "cyan": "sky",
    "orange": "pumpkin", "white": "snow",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.shows("catlip", "trains")
def test_catlip_beats_four_times_chance(tmp_path):
    """Embedded scenes with captions that name colours by nouns, as pictures on disk: each of eight in 1 of 8 pictures,
    which is the mean average precision of guessing."""
    rows = ["image,caption,split"]
    for split, count in (("train", 400), ("val", 100)):
        scenes = Scenes(count, split=split, size=32, objects=(1, 1), clutter=0)
        for number, scene in enumerate(scenes):
            Image.fromarray(scene.image).save(tmp_path / f"{split}-{number}.png")
            rows.append(f"{split}-{number}.png,a picture of the {NOUN_OF[scene.colours[0]]},{split}")
    (tmp_path / "pairs.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "nouns.txt").write_text("\n".join(NOUN_OF.values()) + "\n")
    chosen = tiny(
        "catlip", data__path=str(tmp_path / "pairs.csv"), nouns=str(tmp_path / "nouns.txt"), data__batch_size=32,
        steps=200, save_every=200, optim__lr=2e-3, log_every=10, evaluation__pairs=100,
    )  # fmt: skip
    _, folder = run(chosen, tmp_path / "run")
    assert logged(folder)[-1]["map"] >= 4 / 8
