"""Training items: the key decides crop and caption, bad pictures are named, nothing leaks into the held-back part."""

import io
import itertools
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from odonata.data.image_text import (
    ImageTextData,
    ImageTextDataset,
    ImageTextItem,
    augmentation,
    hold_back,
    make_sampler,
    train_and_heldout,
)
from odonata.data.loader import Batches, Shuffled
from odonata.data.sources import open_image_text
from odonata.errors import DataError


def write_set(folder: Path, count: int = 12, bad: dict[int, bytes] | None = None) -> Path:
    lines = ["image,caption"]
    for number in range(count):
        buffer = io.BytesIO()
        noise = np.random.default_rng(number).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(noise).save(buffer, "PNG")
        (folder / f"{number}.png").write_bytes((bad or {}).get(number, buffer.getvalue()))
        lines += [f"{number}.png,picture {number}", f"{number}.png,again {number}"]
    (folder / "captions.csv").write_text("\n".join(lines))
    return folder


def collate(items: list[ImageTextItem]) -> tuple[torch.Tensor, list[str], list[int]]:
    return torch.stack([item.image for item in items]), [item.caption for item in items], [item.index for item in items]


def dataset(folder: Path, on_error: str = "raise", seed: int = 0) -> ImageTextDataset:
    return ImageTextDataset(open_image_text(folder), augmentation(16), seed, on_error=on_error)  # type: ignore[arg-type]


def test_an_item_depends_on_seed_epoch_and_index_alone(tmp_path: Path):
    data, again = dataset(write_set(tmp_path)), dataset(tmp_path)
    for index in range(12):
        again[(5, 11 - index)]  # other items asked for in between
        first, second = data[(1, index)], again[(1, index)]
        assert torch.equal(first.image, second.image) and first.caption == second.caption
        assert first.group == second.group and first.index == index and first.label == -1
    assert not torch.equal(data[(1, 3)].image, data[(2, 3)].image)
    assert not torch.equal(data[(1, 3)].image, dataset(tmp_path, seed=1)[(1, 3)].image)
    assert {data[(epoch, 0)].caption for epoch in range(20)} == {"picture 0", "again 0"}
    assert len({data[(0, index)].group for index in range(12)}) == 12


def test_the_first_caption_on_request(tmp_path: Path):
    data = ImageTextDataset(open_image_text(write_set(tmp_path)), augmentation(16), captions="first")
    assert {data[(epoch, 0)].caption for epoch in range(9)} == {"picture 0"}


BAD: dict[str, Callable[[], bytes]] = {"empty": lambda: b"", "text": lambda: b"not found", "cut": lambda: _png()[:-150]}


def _png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_picture_among_good_ones(tmp_path: Path, kind: str, workers: int, caplog: pytest.LogCaptureFixture):
    write_set(tmp_path, bad={4: BAD[kind]()})
    strict = Batches(dataset(tmp_path), Shuffled(12, 4), collate, workers=workers).start()
    with pytest.raises(DataError, match=r"4\.png: "):
        list(itertools.islice(strict, 3))
    lenient = Batches(dataset(tmp_path, "skip"), Shuffled(12, 4), collate, workers=workers).start()
    seen = [index for _, _, indices in itertools.islice(lenient, 3) for index in indices]
    assert sorted(seen) == [0, 1, 2, 3, 5, 5, 6, 7, 8, 9, 10, 11], "the next picture stands in"


def test_a_skipped_picture_is_named_and_counted_once(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    data = dataset(write_set(tmp_path, bad={4: b"", 7: b"x"}), "skip")
    with caplog.at_level(logging.WARNING):
        for epoch, index in itertools.product(range(3), range(12)):
            data[(epoch, index)]
    assert [Path(name).name for name in data.skipped] == ["4.png", "7.png"]
    assert len(caplog.records) == 2 and "4.png: the picture file is empty" in caplog.text


def test_a_set_of_bad_pictures_only_does_not_hang(tmp_path: Path):
    data = dataset(write_set(tmp_path, 3, bad={0: b"", 1: b"", 2: b""}), "skip")
    with pytest.raises(DataError, match="none of its 3 pictures can be decoded"):
        data[(0, 0)]


@pytest.mark.parametrize("workers", [0, 3])
def test_training_resumes_in_the_middle_with_the_same_pixels(workers: int):
    config = ImageTextData("scenes:n=40", batch_size=8)
    train, _ = train_and_heldout(config)
    data = ImageTextDataset(train, augmentation(32, "strong"), seed=3)
    batches = Batches(data, make_sampler(train, config, 3), collate, workers=workers)
    whole = list(itertools.islice(batches.start(), 9))
    rest = list(itertools.islice(batches.start(step=6), 3))
    for (a, captions_a, _), (b, captions_b, _) in zip(whole[6:], rest, strict=True):
        assert torch.equal(a, b) and captions_a == captions_b


def test_a_set_with_splits_keeps_them():
    train, held = train_and_heldout(ImageTextData("scenes:n=80"))
    assert held is not None
    assert (train.splits, held.splits, len(train), len(held)) == (("train",), ("val",), 80, 10)
    train, held = train_and_heldout(ImageTextData("scenes:n=80", split="test"))
    assert held is not None and (train.splits, held.splits) == (("test",), ("val",))


def test_a_tenth_is_held_back_and_equal_pictures_stay_together(tmp_path: Path):
    write_set(tmp_path, 200)
    table = (tmp_path / "captions.csv").read_text().splitlines()
    for number in range(100):
        (tmp_path / f"copy{number}.png").write_bytes((tmp_path / f"{number}.png").read_bytes())
        table.append(f"copy{number}.png,a copy of {number}")
    (tmp_path / "captions.csv").write_text("\n".join(table))
    train, held = train_and_heldout(ImageTextData(str(tmp_path)))
    assert held is not None and len(train) + len(held) == 300
    assert 0.04 < len(held) / 300 < 0.18
    names = [{sample.id.removeprefix("copy") for sample in part} for part in (train, held)]
    assert not names[0] & names[1]
    (tmp_path / "captions.csv").write_text("\n".join([table[0], *reversed(table[1:])]))
    _, again = train_and_heldout(ImageTextData(str(tmp_path)))
    assert again is not None and {s.id for s in again} == {s.id for s in held}


def test_too_small_a_set_holds_nothing_back(tmp_path: Path):
    source = open_image_text(write_set(tmp_path, 2))
    train, held = hold_back(source, share=0.0)
    assert len(train) == 2 and held is None


def test_samplers_fit_the_set_or_say_why():
    source = open_image_text("scenes-classes:n=160", split="train")
    sampler = make_sampler(source, ImageTextData(batch_size=80, sampling="balanced"), 0)
    assert sorted(source[i].label or 0 for _, i in sampler.keys(0)) == list(range(80))
    with pytest.raises(DataError, match="batch size 500 is larger than the data set"):
        make_sampler(source, ImageTextData(batch_size=500), 0)
    with pytest.raises(DataError, match="'balanced' needs classes"):
        make_sampler(open_image_text("scenes:n=9"), ImageTextData(batch_size=4, sampling="balanced"), 0)


@pytest.mark.parametrize("augment", ["none", "flip", "crop", "strong"])
def test_every_augmentation_gives_the_size(tmp_path: Path, augment: str):
    data = ImageTextDataset(open_image_text(write_set(tmp_path)), augmentation((16, 24), augment))  # type: ignore[arg-type]
    assert data[(0, 0)].image.shape == (3, 16, 24)
    with pytest.raises(ValueError, match="augment 'wild' is unknown"):
        augmentation(16, "wild")  # type: ignore[arg-type]
