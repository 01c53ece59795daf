"""The report of a check counts and names what is wrong with a data set."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from odonata.data.check import DataReport, check
from odonata.data.report_tables import histogram


def picture(seed: int, size: int = 48) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((size, size), Image.Resampling.BICUBIC)


def text_of(report: DataReport) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(report.render())
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_what_is_wrong_is_counted_and_named(tmp_path: Path):
    for number in range(6):
        picture(number).save(tmp_path / f"{number}.png")
    (tmp_path / "copy.png").write_bytes((tmp_path / "0.png").read_bytes())
    picture(1, 64).save(tmp_path / "near.jpg", quality=90)
    (tmp_path / "cut.png").write_bytes((tmp_path / "2.png").read_bytes()[:-200])
    rows = [f"{number}.png,caption {number}" for number in range(6)]
    rows += [
        "copy.png,caption 0",
        "near.jpg,near",
        "cut.png,cut",
        "gone.png,gone",
        "5.png,",
        f"5.png,{'word ' * 10_000}",
    ]
    (tmp_path / "captions.csv").write_text("\n".join(["image,caption", *rows]))
    report = check(tmp_path, near_duplicates=True)
    assert (report.num_images, report.num_captions, report.ok) == (9, 10, False)
    assert [Path(where).name for where, _ in report.unreadable] == ["cut.png"]
    assert [what.split(";")[0] for _, what in report.problems] == [
        "the picture 'gone.png' was not found",
        "the caption is empty",
    ]
    assert [[Path(name).name for name in group] for group in report.exact_duplicates] == [["0.png", "copy.png"]]
    assert [tuple(Path(name).name for name in pair) for pair in report.near_duplicates or []] == [("1.png", "near.jpg")]
    assert report.repeated_captions == pytest.approx(0.1)
    assert report.long_captions == 1 and report.huge_captions[0][1] == 10_000
    assert sum(count for _, count in report.sides) == 8
    json.dumps(report.to_dict())
    shown = text_of(report)
    assert "cut.png: the picture is truncated or damaged" in shown
    assert "more than 1,000 words" in shown and "repeat others byte for byte" in shown


def test_one_class_only_is_warned_of(tmp_path: Path):
    (tmp_path / "cat").mkdir()
    picture(0).save(tmp_path / "cat" / "a.png")
    report = check(tmp_path)
    assert report.ok and report.classes == {"cat": 1}
    assert "only one class has pictures ('cat')" in text_of(report)


def test_a_sound_set_has_no_warnings():
    report = check("scenes:n=16")
    assert report.ok and report.unreadable == [] and report.exact_duplicates == []
    assert report.splits == {"train": 16, "val": 2, "test": 2}


def test_histograms_count_between_edges():
    assert histogram([1, 2, 2, 9], (2, 4, 8)) == [("< 2", 1), ("2 – 4", 2), ("4 – 8", 0), ("≥ 8", 1)]
    assert histogram([], (1, 2)) == []


def test_coco_mini_is_sound(shared_data: Path):
    report = check(shared_data / "image-text" / "coco-mini", near_duplicates=True)
    assert report.ok and report.num_captions == 1661 and report.near_duplicates == []
