"""The AP = 0 doctor: detections are made wrong in one way each, and that way is named; good ones are left alone."""

import re
from dataclasses import replace

import numpy as np
import pytest

from odonata.errors import DataError
from odonata.metrics.doctor import Finding, ap50, diagnose
from odonata.metrics.object_matches import Found, Truth

NAMES = ("bolt", "nut", "washer")
SIZES = [(480, 640), (600, 400), (360, 360), (900, 1200)] * 10
SQUARE = [(512, 512)] * 40


def good(sizes=SIZES, classes: int = 3, seed: int = 0) -> tuple[list[Truth], list[Found]]:
    """Detections like those of a trained detector: most objects, boxes a little off, some false ones."""
    random = np.random.default_rng(seed)
    truths, found = [], []
    for height, width in sizes:
        count = int(random.integers(2, 7))
        side = random.uniform(0.08, 0.3, (count, 2)) * [width, height]
        corner = random.uniform(0, 1, (count, 2)) * ([width, height] - side)
        boxes = np.concatenate([corner, corner + side], axis=1)
        labels = random.integers(0, classes, count)
        truths.append(Truth(boxes, labels))
        moved = boxes + random.normal(0, 0.04, (count, 4)) * np.tile(side, 2)
        false = random.uniform(0, 0.5, (2, 2)) * [width, height]
        false = np.concatenate([false, false + 0.1 * np.array([width, height])], axis=1)
        scores = np.concatenate([random.uniform(0.5, 1, count), random.uniform(0.05, 0.4, 2)])
        found.append(Found(np.concatenate([moved, false]), scores, np.concatenate([labels, [0, 1 % classes]])))
    return truths, found


def changed(found: list[Found], **how) -> list[Found]:
    """The detections with fields made anew by functions of (detections, number of the picture)."""
    return [replace(g, **{name: change(g, n) for name, change in how.items()}) for n, g in enumerate(found)]


def only(findings: list[Finding], name: str) -> Finding:
    assert [finding.name for finding in findings] == [name], [str(finding) for finding in findings]
    return findings[0]


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("sizes", [SIZES, SQUARE], ids=["mixed", "square"])
@pytest.mark.parametrize("seed", range(3))
def test_good_detections_are_left_alone(sizes, classes: int, seed: int):
    truths, found = good(sizes, classes, seed)
    assert ap50(truths, found, classes) > 0.8
    assert diagnose(truths, found, NAMES[:classes], sizes=sizes, threshold=0.05, trained=[9] * classes) == []


def corners_to_xywh(boxes: np.ndarray) -> np.ndarray:
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)


def corners_to_cxcywh(boxes: np.ndarray) -> np.ndarray:
    return np.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], axis=1)


def picture(number: int) -> np.ndarray:
    height, width = SIZES[number]
    return np.array([width, height, width, height], dtype=float)


BOX_MISTAKES = {
    "xywh": (lambda g, n: corners_to_xywh(g.boxes), r"read as \(x, y, width, height\)"),
    "cxcywh": (lambda g, n: corners_to_cxcywh(g.boxes), r"read as \(centre x, centre y, width, height\)"),
    "twice": (
        lambda g, n: np.concatenate([g.boxes[:, :2], g.boxes[:, :2] + g.boxes[:, 2:]], axis=1),
        "made corners once too often",
    ),
    "swapped": (lambda g, n: g.boxes[:, [1, 0, 3, 2]], "x and y exchanged"),
    "normalized": (lambda g, n: g.boxes / picture(n), "multiplied by the picture's size: they are normalised"),
    "normalized cxcywh": (lambda g, n: corners_to_cxcywh(g.boxes / picture(n)), "size and read as .centre x"),
    "scaled twice": (lambda g, n: g.boxes * picture(n), "divided by the picture's size"),
    "half": (lambda g, n: g.boxes / 2, r"multiplied by about (1\.9|2\.0|2\.1)"),
    "larger": (lambda g, n: g.boxes * 3.3, r"multiplied by about 0\.(29|30|31)"),
    "frame": (lambda g, n: g.boxes * 416 / max(SIZES[n]), r"whose longer side is about 4[012]\d pixels"),
    "short frame": (lambda g, n: g.boxes * 256 / min(SIZES[n]), r"whose shorter side is about 2[4567]\d pixels"),
}


@pytest.mark.parametrize("mistake", BOX_MISTAKES)
def test_boxes_in_another_convention_are_recognised(mistake: str):
    truths, found = good()
    change, words = BOX_MISTAKES[mistake]
    wrong = changed(found, boxes=change)
    assert ap50(truths, wrong, 3) < 0.15
    finding = only(diagnose(truths, wrong, NAMES, sizes=SIZES), "boxes")
    assert re.search(words, str(finding)), str(finding)
    assert finding.figures["recall_changed"] > 0.8 and finding.figures["recall"] < 0.4


@pytest.mark.parametrize(("shift", "cause"), [(1, "counted from 1 or have a background"), (-1, "one too low")])
@pytest.mark.parametrize("classes", [1, 3])
def test_labels_that_are_one_off_are_recognised(shift: int, cause: str, classes: int):
    truths, found = good(classes=classes)
    wrong = changed(found, labels=lambda g, n: g.labels + shift)
    finding = only(diagnose(truths, wrong, NAMES[:classes], sizes=SIZES), "labels")
    assert f"With labels moved by {-shift:+d} AP50 is" in str(finding) and cause in str(finding)
    assert finding.figures["ap50_shifted"] > 0.8 and finding.figures["agreement"] < 0.2
    assert finding.figures["ap50_without_classes"] > 0.8


def test_exchanged_labels_are_recognised():
    truths, found = good()
    table = np.array([2, 1, 0])
    finding = only(diagnose(truths, changed(found, labels=lambda g, n: table[g.labels]), NAMES), "labels")
    assert "'bolt' means 'washer', 'washer' means 'bolt'" in str(finding) and "'nut'" not in str(finding)
    assert finding.figures["ap50_permuted"] > 0.8


def test_random_labels_are_recognised_as_unlearned():
    truths, found = good()
    random = np.random.default_rng(0)
    wrong = changed(found, labels=lambda g, n: random.integers(0, 3, len(g.labels)))
    assert "the classification has not been learned" in str(only(diagnose(truths, wrong, NAMES), "labels"))


def test_two_mistakes_are_both_found():
    truths, found = good()
    wrong = changed(found, boxes=BOX_MISTAKES["xywh"][0], labels=lambda g, n: g.labels + 1)
    assert [finding.name for finding in diagnose(truths, wrong, NAMES, sizes=SIZES)] == ["boxes", "labels"]


def test_scores_below_the_threshold_are_recognised():
    truths, found = good()
    finding = only(
        diagnose(truths, changed(found, scores=lambda g, n: g.scores * 0.04), NAMES, threshold=0.05), "scores"
    )
    assert "scores lie below the threshold of 0.05; the highest is 0.0" in str(finding)


def test_scores_that_are_not_numbers_are_recognised():
    truths, found = good()
    finding = diagnose(truths, changed(found, scores=lambda g, n: g.scores * np.nan), NAMES)[0]
    assert "have a score or a box that is not a number: training has diverged" in str(finding)
    assert finding.figures["share"] == 1.0
    some = changed(found, boxes=lambda g, n: g.boxes * (np.nan if n == 3 else 1))
    assert 0 < only(diagnose(truths, some, NAMES), "scores").figures["share"] < 0.1


def test_equal_scores_are_recognised():
    truths, found = good()
    finding = only(diagnose(truths, changed(found, scores=lambda g, n: g.scores * 0 + 0.01), NAMES), "scores")
    assert "have the same score, 0.01" in str(finding)


def test_no_detections_at_all_are_recognised():
    truths, found = good()
    nothing = [Found(np.zeros((0, 4)), np.zeros(0), np.zeros(0, dtype=np.int64))] * len(found)
    assert "no detection in any of the 40 pictures" in str(only(diagnose(truths, nothing, NAMES), "scores"))


def test_a_class_that_was_not_trained_is_named():
    truths, found = good()
    without = [replace(g, **{f: getattr(g, f)[g.labels != 1] for f in ("boxes", "scores", "labels")}) for g in found]
    finding = only(diagnose(truths, without, NAMES, trained=[40, 0, 30]), "training")
    assert "Class 'nut' has" in str(finding) and "none in training" in str(finding)
    assert "no object at all in training" in str(diagnose(truths, found, NAMES, trained=[0, 0, 0])[0])


def test_pictures_without_objects_are_named():
    empty = [Truth(np.zeros((0, 4)), np.zeros(0, dtype=np.int64))] * 40
    assert "None of the 40 pictures has an object" in str(only(diagnose(empty, good()[1], NAMES), "objects"))


def test_boxes_that_are_near_but_do_not_fit_are_told_from_boxes_elsewhere():
    truths, found = good()
    random = np.random.default_rng(0)

    def near(g: Found, n: int) -> np.ndarray:
        side = g.boxes[:, 2:] - g.boxes[:, :2]
        return g.boxes + np.tile(random.choice([-0.5, 0.5], side.shape) * side, 2)

    finding = only(diagnose(truths, changed(found, boxes=near), NAMES, sizes=SIZES), "location")
    assert "near the objects but do not fit" in str(finding) and finding.figures["recall_10"] > 0.8
    elsewhere = [replace(g, boxes=random.uniform(0, 300, g.boxes.shape).cumsum(1)) for g in found]
    finding = only(diagnose(truths, elsewhere, NAMES, sizes=SIZES), "location")
    assert "Few objects have a box even near them" in str(finding)


def test_a_detector_that_knows_only_the_common_class_is_not_told_that_its_labels_are_wrong():
    truths, found = good()
    common = [replace(t, labels=np.where(np.arange(len(t.labels)) > 0, 0, t.labels)) for t in truths]
    always = changed(found, labels=lambda g, n: g.labels * 0)
    assert diagnose(common, always, NAMES, sizes=SIZES) == []


def test_counts_that_differ_are_refused():
    truths, found = good()
    with pytest.raises(DataError, match="detections of 39 pictures cannot be compared with the objects of 40"):
        diagnose(truths, found[1:], NAMES)
