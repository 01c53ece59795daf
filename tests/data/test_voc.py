"""VOC's xml: counting from one, difficult objects, ImageSets, and what is wrong with a file."""

from pathlib import Path

import pytest
from object_files import picture, voc, voc_object

from odonata.data.open_objects import open_objects
from odonata.errors import DataError


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as error:
        open_objects(path)
    return str(error.value)


def test_the_first_pixel_is_one_and_the_last_is_included(tmp_path: Path):
    voc(tmp_path, voc_object(1, 1, 60, 40))
    assert open_objects(tmp_path)[0].boxes.tolist() == [[0, 0, 60, 40]]


def test_a_set_with_a_corner_at_zero_counts_from_zero(tmp_path: Path):
    voc(tmp_path, voc_object(0, 1, 30, 20))
    voc(tmp_path, voc_object(10, 10, 20, 20), stem="b")
    assert [sample.boxes.tolist() for sample in open_objects(tmp_path)] == [[[0, 1, 30, 20]], [[10, 10, 20, 20]]]


def test_classes_are_in_order_of_name_or_of_the_list(tmp_path: Path):
    voc(tmp_path, voc_object(5, 5, 9, 9, "dog") + voc_object(5, 5, 20, 20, "cat", difficult=1))
    source = open_objects(tmp_path)
    assert source.names == ("cat", "dog") and source[0].labels.tolist() == [1, 0]
    assert source[0].crowd.tolist() == [False, True] and source.num_objects == 1
    (tmp_path / "classes.txt").write_text("dog\ncat\n")
    assert open_objects(tmp_path)[0].labels.tolist() == [0, 1]
    (tmp_path / "classes.txt").write_text("dog\n")
    assert "object 2 (cat): class 'cat' is not in classes.txt (dog)" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("corners", "message"),
    [
        ((20, 5, 20, 9), "object 1 (cat): box [20, 5, 20, 9] has xmax <= xmin"),
        ((20, 9, 30, 5), "object 1 (cat): box [20, 9, 30, 5] has ymax <= ymin"),
        ((70, 5, 80, 9), "object 1 (cat): box [69, 4, 80, 9] lies outside the picture of 60 × 40 px"),
        (("x", 5, 80, 9), "object 1 (cat): the box (xmin ymin xmax ymax) is ['x', '5', '80', '9']; want four numbers"),
        (("nan", 5, 8, 9), "object 1 (cat): box [nan, 4, 8, 9] is not finite"),
    ],
)
def test_a_bad_object_is_named(tmp_path: Path, corners: tuple, message: str):
    path = voc(tmp_path, voc_object(*corners) + voc_object(5, 5, 9, 9))
    assert refusal(tmp_path) == f"{path}: {message}"
    source = open_objects(tmp_path, on_error="skip")
    assert len(source[0].boxes) == 1 and [str(p) for p in source.problems] == [f"{path}: {message}"]


def test_lists_give_the_splits(tmp_path: Path):
    for stem in ("a", "b", "c"):
        voc(tmp_path, voc_object(5, 5, 9, 9), stem=stem)
    lists = tmp_path / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("a\n")
    (lists / "val.txt").write_text("b  1\n")
    (lists / "trainval.txt").write_text("a\nb\n")
    assert [sample.split for sample in open_objects(tmp_path)] == ["train", "val", None]
    (lists / "val.txt").write_text("a\n")
    assert refusal(tmp_path) == f"{lists / 'val.txt'}:1: the picture 'a' is already in train.txt"
    (lists / "val.txt").write_text("d\n")
    assert "d: the picture is listed and has no annotation file" in refusal(tmp_path)


def test_pictures_are_found_by_the_name_of_the_annotation(tmp_path: Path):
    path = voc(tmp_path, "", size="")
    sample = open_objects(tmp_path)[0]
    assert sample.size == (40, 60) and len(sample.boxes) == 0
    (tmp_path / "JPEGImages" / "a.png").unlink()
    picture(tmp_path / "JPEGImages" / "other.png")
    assert refusal(tmp_path) == f"{path}: the picture 'a.png' was not found"
    path.write_text(path.read_text().replace("a.png", r"C:\photos\other.jpg").replace("\\", "/"))
    assert open_objects(tmp_path)[0].image.name.endswith("other.png")


def test_xml_that_is_none_is_named(tmp_path: Path):
    path = voc(tmp_path, "<object>")
    assert refusal(tmp_path).startswith(f"{path}: not XML: mismatched tag")


def test_xml_beside_its_picture_is_read(tmp_path: Path):
    for split in ("train", "valid"):
        picture(tmp_path / split / "a.png")
        (tmp_path / split / "a.xml").write_text(f"<annotation>{voc_object(5, 5, 9, 9)}</annotation>")
    assert [sample.split for sample in open_objects(tmp_path)] == ["train", "val"]


def test_the_real_sets_have_the_counts_they_state(shared_data: Path):
    cells = open_objects(shared_data / "detection" / "bccd")
    assert [len(cells.split(split)) for split in ("train", "val")] == [205, 87] and not cells.problems
    assert cells.names == ("Platelets", "RBC", "WBC") and cells.num_objects == 3941
    raccoons = open_objects(shared_data / "detection" / "raccoon")
    assert len(raccoons) == 160 and raccoons.num_objects == 173 and not raccoons.problems
