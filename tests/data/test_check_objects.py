"""The report on a set with objects: counts, faults by kind, and the best recall that anchors and points can reach."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from object_files import coco, picture, voc, voc_object

from odonata.app.commands.check_data import check_data
from odonata.data.check_objects import check_object_source, check_objects
from odonata.data.coverage import RANGES, STRIDES, assigned_points, best_anchor_iou, coverage
from odonata.data.framing import Framing
from odonata.data.open_objects import open_objects
from odonata.errors import DataError
from odonata.ops.boxes import iou_matrix
from odonata.ops.grids import anchors, base_anchors, points, retinanet_sizes

FRAME = (256, 384)


def random_boxes(count: int = 60) -> np.ndarray:
    random = np.random.default_rng(0)
    sides = np.exp(random.uniform(np.log(3), np.log(220), (count, 2)))
    low = random.uniform(0, 1, (count, 2)) * (np.array([384, 256]) - sides)
    return np.concatenate([low, low + sides], axis=1)


def test_the_best_anchor_is_that_of_all_anchors():
    boxes = random_boxes()
    grid = [
        anchors(-(-FRAME[0] // stride), -(-FRAME[1] // stride), stride, base_anchors(sizes, (0.5, 1.0, 2.0)))
        for stride, sizes in zip(STRIDES, retinanet_sizes(32, 5), strict=True)
    ]
    wanted = iou_matrix(torch.from_numpy(boxes), torch.cat(grid).double()).amax(1).numpy()
    assert np.abs(best_anchor_iou(boxes, FRAME) - wanted).max() < 1e-9
    assert wanted.min() < 0.1 and wanted.max() > 0.8


@pytest.mark.parametrize("radius", [0.0, 1.5])
def test_the_assigned_points_are_those_of_fcos_rule(radius: float):
    boxes = random_boxes()
    found = np.zeros(len(boxes), dtype=bool)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    for stride, (least, most) in zip(STRIDES, RANGES, strict=True):
        for x, y in points(-(-FRAME[0] // stride), -(-FRAME[1] // stride), stride).tolist():
            sides = np.stack([x - boxes[:, 0], y - boxes[:, 1], boxes[:, 2] - x, boxes[:, 3] - y], axis=1)
            fits = (sides.min(1) > 0) & (sides.max(1) >= least) & (sides.max(1) <= most)
            if radius:
                centres = (boxes[:, :2] + boxes[:, 2:]) / 2
                fits &= np.abs(centres - [x, y]).max(1) < radius * stride
            if fits.any():
                found[np.flatnonzero(fits)[areas[fits].argmin()]] = True
    assert np.array_equal(assigned_points(boxes, FRAME, radius=radius), found)
    assert 0 < found.sum() < len(found)


def test_thin_boxes_escape_anchors_and_not_points():
    thin = np.array([[20.0, 20.0, 220.0, 40.0]])
    assert best_anchor_iou(thin, FRAME)[0] < 0.4 and assigned_points(thin, FRAME).all()


def test_points_reach_more_of_the_real_objects_than_anchors(shared_data: Path):
    found = coverage(open_objects(shared_data / "image-text" / "coco-mini"))
    assert found is not None and found.objects == 1389 and sum(found.levels) == 1389
    # Tian et al. 2019, table 1, on COCO: 98.40 for FCOS; 86.82 for RetinaNet at IoU >= .5, 90.92 at >= .4.
    assert found.points > 0.98 and 0.84 < found.anchors < found.anchors_low < 0.95


def test_cells_and_raccoons_are_reached(shared_data: Path):
    cells = check_objects(shared_data / "detection" / "bccd")
    assert cells.ok and cells.classes == {"Platelets": 292, "RBC": 3348, "WBC": 301}
    assert sum(cells.sizes.values()) == cells.num_objects == 3941 and cells.splits == {"val": 87, "train": 205}
    assert cells.coverage is not None and cells.coverage.anchors == 1.0 and cells.coverage.points > 0.99
    raccoons = check_objects(shared_data / "detection" / "raccoon")
    # Four photographs are in this set twice.
    assert raccoons.ok and len(raccoons.exact_duplicates) == 4


def test_every_fault_is_counted_by_kind(tmp_path: Path):
    boxes = [[10, 5, 20, 30], [10, 5, -4, 30], [10, 5, 0, 30], [70, 5, 8, 9], [50, 5, 20, 9], [0.1, 0.2, 0.5, 0.6]]
    path = coco(tmp_path, boxes)
    report = check_objects(path)
    assert report.faults == {
        "degenerate boxes": 2,
        "boxes outside the picture": 1,
        "boxes over the edge of the picture": 1,
        "normalised values where pixels are expected": 1,
    }
    assert not report.ok and len(report.problems) == 5 and report.num_objects == 2
    assert json.loads(json.dumps(report.to_dict()))["ok"] is False


def test_ids_empty_pictures_repeats_and_sizes(tmp_path: Path):
    picture(tmp_path / "images" / "b.png", 200, 300)
    images = [
        {"id": 1, "file_name": "a.png", "height": 40, "width": 60},
        {"id": 2, "file_name": "b.png", "height": 200, "width": 300},
    ]
    rows = [
        {"id": n, "image_id": 2, "category_id": 7, "bbox": box}
        for n, box in enumerate([[1, 2, 10, 10], [1, 2, 10, 10], [50, 50, 40, 40], [100, 50, 100, 100]])
    ]
    report = check_objects(coco(tmp_path, [], images=images, annotations=rows))
    assert report.ok and report.empty_images == 1 and report.ids == [3, 7]
    assert report.sizes == {"small": 2, "medium": 1, "large": 1} and [n for _, n in report.repeated_boxes] == [1]
    text = " / ".join(report.warnings)
    assert "category ids run from 3 to 7 with 3 gaps (4, 5, 6)" in text
    assert "1 classes have no objects: dog" in text and "1 objects repeat another" in text


def test_classes_of_one_split_only_and_leaks_are_told(tmp_path: Path):
    voc(tmp_path, voc_object(5, 5, 20, 20, "cat"), stem="a")
    voc(tmp_path, voc_object(5, 5, 20, 20, "dog"), stem="b")
    lists = tmp_path / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("a\n")
    (lists / "val.txt").write_text("b\n")
    warnings = " / ".join(check_objects(tmp_path).warnings)
    assert "1 classes are in val and not in train: dog" in warnings
    assert "1 pictures are there more than once, 1 of them in several splits" in warnings


def test_pictures_that_do_not_decode_or_fit_stop(tmp_path: Path):
    coco(tmp_path, [[1, 2, 3, 4]], size=(60, 40))
    assert "the picture is 60 × 40 px, and its annotation is for 40 × 60" in check_objects(tmp_path).unreadable[0][1]
    (tmp_path / "images" / "a.png").write_bytes(b"none")
    report = check_objects(tmp_path)
    assert not report.ok and "not a picture that Pillow can read" in report.unreadable[0][1]


def test_the_frame_decides_what_is_reached():
    source = open_objects("objects:n=30,split=train")
    large = check_object_source(source, framing=Framing(size=800)).coverage
    small = coverage(source, Framing(resize="letterbox", size=128, divisor=1))
    assert large is not None and small is not None and small.size == 128
    assert small.anchors < 0.6 < 0.99 < large.anchors and small.missed is not None


def test_a_set_without_objects_would_stop(tmp_path: Path):
    voc(tmp_path, "")
    (tmp_path / "classes.txt").write_text("cat\n")
    report = check_objects(tmp_path)
    assert not report.ok and report.coverage is None
    assert "there is no object in any picture: nothing can be learned" in report.warnings


def test_the_command_finds_the_kind_and_ends_with_the_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert check_data(["objects:n=7,size=64,sides=16-32"]) == 0
    assert "best possible recall, shorter side 800 px" in capsys.readouterr().out
    coco(tmp_path, [[10, 5, 20, 30], [10, 5, 0, 30]])
    assert check_data([str(tmp_path), "--json", "--size", "400"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["faults"] == {"degenerate boxes": 1} and report["coverage"]["size"] == 400
    assert check_data([str(tmp_path)]) == 1
    shown = capsys.readouterr().out
    assert "would stop a training" in shown and "annotation 11: box [10, 5, 10, 35] has no width" in shown
    assert check_data(["objects:n=7,size=64,sides=16-32", "--kind", "semantic"]) == 0
    assert "background" in capsys.readouterr().out
    with pytest.raises(DataError, match="no such file or folder"):
        check_data([str(tmp_path / "nowhere"), "--kind", "objects"])
