"""COCO's json of instances: ids with gaps, crowds, outlines, several splits, and what is wrong with a file."""

import json
from pathlib import Path

import numpy as np
import pytest
from object_files import coco, picture

from odonata.data.open_objects import open_objects
from odonata.errors import DataError


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as error:
        open_objects(path)
    return str(error.value)


def skipped(path: Path) -> list[str]:
    return [str(problem) for problem in open_objects(path, on_error="skip").problems]


def test_boxes_are_corners_and_labels_count_the_table(tmp_path: Path):
    coco(tmp_path, [[10, 5, 20, 30], [0.5, 0.25, 1.75, 4]])
    source = open_objects(tmp_path)
    assert source[0].boxes.tolist() == [[10, 5, 30, 35], [0.5, 0.25, 2.25, 4.25]]
    assert [(c.id, c.name) for c in source.categories] == [(3, "dog"), (7, "cat")]
    assert source[0].labels.tolist() == [1, 1] and source[0].size == (40, 60) and source[0].id == 1
    assert source[0].areas is not None and source[0].areas.tolist() == [600, 7]


def test_a_size_that_the_file_lacks_is_read_from_the_header(tmp_path: Path):
    coco(tmp_path, [[10, 5, 20, 30]], size=None)
    assert open_objects(tmp_path)[0].size == (40, 60)


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ([10, 5, -4, 30], "annotation 10: box [10, 5, 6, 35] has x2 < x1"),
        ([10, 5, 0, 30], "annotation 10: box [10, 5, 10, 35] has no width"),
        ([10, 5, 8, 0], "annotation 10: box [10, 5, 18, 5] has no height"),
        ([10, float("nan"), 8, 3], "annotation 10: box [10, nan, 18, nan] is not finite"),
        ([70, 5, 8, 9], "annotation 10: box [70, 5, 78, 14] lies outside the picture of 60 × 40 px"),
        ([50, 5, 20, 9], "annotation 10: box [50, 5, 70, 14] reaches 10 px over the edge of the picture of 60 × 40 px"),
        ([0.1, 0.2, 0.5, 0.6], "annotation 10: box [0.1, 0.2, 0.6, 0.8] looks normalised"),
        ([1, 2, 3], "annotation 10: bbox is [1, 2, 3]; want [x, y, width, height]"),
        (None, "annotation 10: bbox is None"),
    ],
)
def test_a_bad_box_is_named(tmp_path: Path, box: list, message: str):
    path = coco(tmp_path, [box, [10, 5, 20, 30]])
    assert refusal(path).startswith(f"{path}: {message}")
    assert skipped(path)[0].startswith(f"{path}: {message}")
    kept = open_objects(path, on_error="skip")[0].boxes.tolist()
    # What reaches over the edge is cut there; the others are left out.
    assert kept == ([[50, 5, 60, 14], [10, 5, 30, 35]] if "over the edge" in message else [[10, 5, 30, 35]])


def test_a_box_slightly_over_the_edge_is_cut_and_noted_in_either_mode(tmp_path: Path):
    path = coco(tmp_path, [[-1, 0, 20, 30], [50, 5, 10.05, 9]])
    source = open_objects(path)
    assert source[0].boxes.tolist() == [[0, 0, 19, 30], [50, 5, 60, 14]]
    assert [(p.mended, "reaches 1 px over the edge" in p.what) for p in source.problems] == [(True, True)]


def test_rows_that_do_not_belong_are_named(tmp_path: Path):
    path = coco(tmp_path, [[10, 5, 20, 30]])
    data = json.loads(path.read_text())
    row = data["annotations"][0]

    def altered(**keys: object) -> Path:
        path.write_text(json.dumps(data | {"annotations": [row, row | {"id": 11} | keys]}))
        return path

    assert refusal(altered(id=10)) == f"{path}: annotation 10: duplicate annotation id"
    assert refusal(altered(image_id=99)) == f"{path}: annotation 11: belongs to image 99, which is not listed"
    assert refusal(altered(category_id=0)).endswith("category_id 0 is not in the table, which has 3 dog, 7 cat")
    assert len(open_objects(altered(category_id=0), on_error="skip")[0].boxes) == 1
    path.write_text(json.dumps(data | {"images": data["images"] * 2}))
    assert refusal(path) == f"{path}: images[1]: duplicate image id 1"
    path.write_text(json.dumps(data | {"images": [*data["images"], data["images"][0] | {"id": 2}]}))
    assert "is listed twice" in refusal(path)
    path.write_text(json.dumps(data | {"categories": data["categories"] * 2}))
    assert "categories[0] 'cat' (id 7): the id occurs twice" in refusal(path)


def test_a_missing_picture_is_named_and_a_negative_is_kept(tmp_path: Path):
    images = [
        {"id": n, "file_name": name, "height": 40, "width": 60} for n, name in enumerate(("a.png", "b.png", "c.png"))
    ]
    picture(tmp_path / "images" / "b.png")
    path = coco(tmp_path, [], images=images)
    assert refusal(path).startswith(f"{path}: image 2: the picture 'c.png' was not found; looked in ")
    source = open_objects(path, on_error="skip")
    assert [(sample.id, len(sample.boxes)) for sample in source] == [(0, 0), (1, 0)] and source.num_objects == 0


def test_files_of_another_kind_are_named(tmp_path: Path):
    path = coco(tmp_path, [])
    path.write_text("[]")
    assert "a list, as COCO's results are" in refusal(path)
    path.write_text('{"images": []}')
    assert "no list under 'annotations'; keys found: images" in refusal(path)
    path.write_text('{"images": [\n}')
    assert refusal(path).startswith(f"{path}:2: not JSON")


def test_outlines_must_fit(tmp_path: Path):
    path = coco(tmp_path, [[10, 5, 20, 30]])
    data = json.loads(path.read_text())

    def outlined(outline: object) -> Path:
        path.write_text(json.dumps(data | {"annotations": [data["annotations"][0] | {"segmentation": outline}]}))
        return path

    assert "a polygon has 4 numbers; want three points or more" in refusal(outlined([[10, 5, 20, 30]]))
    wrong = "the mask is [4, 6] (height, width), and the picture is [40, 60]"
    assert wrong in refusal(outlined({"size": [4, 6], "counts": [24]}))
    assert "the run lengths cover 24 pixels" in refusal(outlined({"size": [40, 60], "counts": [24]}))
    square = open_objects(outlined([[10, 5, 30, 5, 30, 35, 10, 35]]))[0].masks()
    assert square.sum() == 600 and square[0, 5:35, 10:30].all()
    # A column of 40 pixels outside, then one inside.
    column = open_objects(outlined({"size": [40, 60], "counts": [40, 40, 2320]}))[0].masks()
    assert column[0, :, 1].all() and column.sum() == 40


def test_a_box_stands_for_a_missing_outline(tmp_path: Path):
    rows = [{"id": n, "image_id": 1, "category_id": 7, "bbox": [5, 5, 10, 10]} for n in range(3)]
    rows[0]["segmentation"] = [[5, 5, 15, 5, 15, 15]]
    source = open_objects(coco(tmp_path, [], annotations=rows))
    assert source[0].masks().sum((1, 2)).tolist()[1:] == [100, 100]
    assert [str(p).split(": ")[1] for p in source.problems] == [
        "2 objects have no outline, and their boxes stand for it"
    ]


def test_a_crowd_is_kept_apart(tmp_path: Path):
    rows = [
        {"id": n, "image_id": 1, "category_id": 7, "bbox": [5, 5, 10, 10], "iscrowd": n, "area": 3.5} for n in range(2)
    ]
    source = open_objects(coco(tmp_path, [], annotations=rows))
    assert source[0].crowd.tolist() == [False, True] and source.num_objects == 1
    assert source[0].areas is not None and source[0].areas.tolist() == [3.5, 3.5]


def test_splits_share_the_first_table_by_name(tmp_path: Path):
    coco(tmp_path, [[1, 2, 3, 4]], name="instances_train2017.json")
    other = [{"id": 0, "name": "dog"}]
    row = {"id": 1, "image_id": 1, "category_id": 0, "bbox": [1, 2, 3, 4]}
    path = coco(tmp_path, [], name="instances_val2017.json", categories=other, annotations=[row])
    source = open_objects(tmp_path)
    assert source.splits == ("train", "val") and source.split("val")[0].labels.tolist() == [0]
    coco(tmp_path, [], name="instances_val2017.json", categories=[{"id": 0, "name": "cow"}], annotations=[row])
    assert refusal(tmp_path).startswith(f"{path}: annotation 1: class 'cow' (id 0) is unknown in the first split")
    # A class that no object uses does no harm.
    coco(tmp_path, [], name="instances_val2017.json", categories=[{"id": 0, "name": "cow"}])
    assert len(open_objects(tmp_path)) == 2


def test_the_real_sets_have_the_counts_they_state(shared_data: Path):
    source = open_objects(shared_data / "image-text" / "coco-mini")
    assert [len(source.split(split)) for split in ("train", "val")] == [80, 84] and source.kind == "coco"
    assert len(source.categories) == 80 and source.categories[-1].id == 90
    assert source.num_objects == 1389 and sum(int(sample.crowd.sum()) for sample in source) == 14
    nuclei = open_objects(shared_data / "detection" / "nuclei-dsb2018")
    assert nuclei.num_objects == 5248 and [len(nuclei.split(s)) for s in ("train", "val")] == [140, 40]


def test_polygons_paint_the_area_that_the_file_states(shared_data: Path):
    source = open_objects(shared_data / "image-text" / "coco-mini").split("val")
    sample = max(source, key=lambda item: len(item.boxes))
    painted = sample.masks().sum((1, 2))[~sample.crowd]
    stated = np.asarray(sample.areas)[~sample.crowd]
    large = stated > 100
    assert large.sum() > 5 and np.abs(painted[large] / stated[large] - 1).max() < 0.25
