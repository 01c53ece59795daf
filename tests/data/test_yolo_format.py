"""YOLO's text files: shares of the picture, polygons, negatives, and what is wrong with a line."""

from pathlib import Path

import pytest
from object_files import picture, yolo

from odonata.data.open_objects import open_objects
from odonata.errors import DataError


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as error:
        open_objects(path)
    return str(error.value)


def test_shares_become_pixels(tmp_path: Path):
    yolo(tmp_path, "1 0.5 0.5 0.5 0.25\n\n0 0.25 0.5 0.5 1\n")
    source = open_objects(tmp_path)
    assert source[0].boxes.tolist() == [[15, 15, 45, 25], [0, 0, 30, 40]] and source[0].labels.tolist() == [1, 0]
    assert source.names == ("cat", "dog") and source.splits == ("train",) and source[0].outlines is None


def test_more_than_five_numbers_are_a_polygon(tmp_path: Path):
    yolo(tmp_path, "0 0.25 0.25 0.75 0.25 0.75 0.75 0.25 0.75\n1 0.5 0.5 1 1\n")
    sample = open_objects(tmp_path)[0]
    assert sample.boxes.tolist() == [[15, 10, 45, 30], [0, 0, 60, 40]]
    assert sample.masks().sum((1, 2)).tolist() == [600, 2400]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 30 20 10 10", "30 20 10 10 looks like pixels; want shares of the picture, 0 to 1"),
        ("0 0.5 0.5 -0.1 0.1", "box [33, 18, 27, 22] has x2 < x1; want [x1, y1, x2, y2]"),
        ("0 0.5 0.5 0 0.1", "box [30, 18, 30, 22] has no width"),
        ("0 1.5 0.5 0.1 0.1", "box [87, 18, 93, 22] lies outside the picture of 60 × 40 px"),
        ("0 nan 0.5 0.1 0.1", "nan 0.5 0.1 0.1 is not finite"),
        ("2 0.5 0.5 0.1 0.1", "class 2 is unknown; the 2 names are 0 cat, 1 dog"),
        ("0.5 0.5 0.5 0.1 0.1", "the class is 0.5; want a whole number from 0"),
        ("cat 0.5 0.5 0.1 0.1", "'cat 0.5 0.5 0.1 0.1' is not a class and numbers"),
        (
            "0 0.5 0.5 0.1",
            "4 numbers; want class cx cy width height, or class and three points or more of a polygon",
        ),
        (
            "0 0.5 0.5 0.1 0.1 0.9",
            "6 numbers; want class cx cy width height, or class and three points or more of a polygon",
        ),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, message: str):
    path = yolo(tmp_path, f"1 0.5 0.5 0.5 0.5\n{line}\n")
    assert refusal(tmp_path) == f"{path}:2: {message}"
    source = open_objects(tmp_path, on_error="skip")
    assert len(source[0].boxes) == 1 and [p.what for p in source.problems] == [message]


def test_pictures_without_labels_are_negatives_and_labels_need_a_picture(tmp_path: Path):
    path = yolo(tmp_path, "")
    picture(tmp_path / "images" / "train" / "b.png")
    assert [len(sample.boxes) for sample in open_objects(tmp_path)] == [0, 0]
    (path.parent / "lost.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    assert refusal(tmp_path) == f"{path.parent / 'lost.txt'}: the labels belong to a picture that is missing"


def test_names_of_a_data_yaml(tmp_path: Path):
    yolo(tmp_path, "5 0.5 0.5 0.5 0.5\n", names="names: {2: cat, 5: dog}\n")
    source = open_objects(tmp_path / "data.yaml")
    assert [(c.id, c.name) for c in source.categories] == [(2, "cat"), (5, "dog")] and source[0].labels.tolist() == [1]
    yolo(tmp_path, "", names="nc: 3\nnames: [cat, dog]\n")
    assert refusal(tmp_path) == f"{tmp_path / 'data.yaml'}: nc is 3, and there are 2 names"
    yolo(tmp_path, "", names="names: cat\n")
    assert "names is 'cat'; want a list of class names" in refusal(tmp_path)
    yolo(tmp_path, "", names="val: nowhere\nnames: [cat]\n")
    assert "val: 'nowhere' does not exist" in refusal(tmp_path)


def test_layouts_without_a_yaml(tmp_path: Path):
    for part in ("images", "labels"):
        (tmp_path / "folders" / part).mkdir(parents=True)
    picture(tmp_path / "folders" / "images" / "a.png")
    (tmp_path / "folders" / "labels" / "a.txt").write_text("1 0.5 0.5 0.5 0.5\n")
    plain = open_objects(tmp_path / "folders")
    assert plain.names == ("0", "1") and plain[0].split is None
    (tmp_path / "folders" / "classes.txt").write_text("cat\ndog\n")
    assert open_objects(tmp_path / "folders").names == ("cat", "dog")
    for split in ("train", "valid"):
        picture(tmp_path / "divided" / split / "images" / f"{split}.png")
        (tmp_path / "divided" / split / "labels").mkdir()
        (tmp_path / "divided" / split / "labels" / f"{split}.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    divided = open_objects(tmp_path / "divided")
    assert [(s.split, len(s.boxes)) for s in divided] == [("train", 1), ("val", 1)]
    picture(tmp_path / "beside" / "a.png")
    (tmp_path / "beside" / "a.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    (tmp_path / "beside" / "obj.names").write_text("cat\n")
    beside = open_objects(tmp_path / "beside")
    assert beside.names == ("cat",) and len(beside[0].boxes) == 1
