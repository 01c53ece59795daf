"""VOC's average precision against a reference written from the paper's words, and worked examples."""

import numpy as np
import pytest

from odonata.errors import DataError
from odonata.metrics.object_matches import Found, Truth
from odonata.metrics.voc import voc_figures


def reference(truths: list[Truth], found: list[Found], label: int, eleven: bool) -> float:
    """One loop over all detections by falling confidence, as section 4.2 of the challenge's paper tells it."""
    ranked = sorted(
        ((float(score), picture, box)
         for picture, guess in enumerate(found)
         for score, box, kind in zip(guess.scores, guess.boxes, guess.labels, strict=True) if kind == label),
        key=lambda row: -row[0],
    )  # fmt: skip
    assigned: set[tuple[int, int]] = set()
    positives = sum(
        1
        for truth in truths
        for kind, hard in zip(truth.labels, truth.crowd, strict=True)
        if kind == label and not hard
    )
    curve, hits, misses = [], 0, 0
    for _, picture, box in ranked:
        best, which = 0.0, None
        for number, other in enumerate(truths[picture].boxes):
            if truths[picture].labels[number] != label:
                continue
            width = min(box[2], other[2]) - max(box[0], other[0])
            height = min(box[3], other[3]) - max(box[1], other[1])
            if width <= 0 or height <= 0:
                continue
            union = (box[2] - box[0]) * (box[3] - box[1]) + (other[2] - other[0]) * (other[3] - other[1])
            iou = width * height / (union - width * height)
            if iou > best:
                best, which = iou, number
        if which is None or best < 0.5:
            misses += 1
        elif truths[picture].crowd[which]:
            continue
        elif (picture, which) in assigned:
            misses += 1
        else:
            assigned.add((picture, which))
            hits += 1
        curve.append((hits / positives, hits / (hits + misses)))
    if eleven:
        return sum(max((p for r, p in curve if r >= k / 10), default=0.0) for k in range(11)) / 11
    total, last = 0.0, 0.0
    for recall in sorted({r for r, _ in curve}):
        total += (recall - last) * max(p for r, p in curve if r >= recall)
        last = recall
    return total


def noisy(seed: int) -> tuple[list[Truth], list[Found]]:
    random = np.random.default_rng(seed)
    truths, found = [], []
    for _ in range(15):
        count = int(random.integers(1, 9))
        corner = random.uniform(0, 200, (count, 2))
        boxes = np.concatenate([corner, corner + random.uniform(15, 90, (count, 2))], axis=1)
        labels = random.integers(0, 3, count)
        truths.append(Truth(boxes, labels, random.random(count) < 0.2))
        moved = np.repeat(boxes, 2, axis=0) + random.normal(0, 6, (2 * count, 4))
        moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2] + 1)
        right = np.where(random.random(2 * count) < 0.85, np.repeat(labels, 2), random.integers(0, 3, 2 * count))
        found.append(Found(moved, random.random(2 * count), right))
    return truths, found


@pytest.mark.parametrize("seed", range(5))
def test_both_definitions_are_the_papers(seed: int):
    truths, found = noisy(seed)
    figures = voc_figures(truths, found, ["a", "b", "c"])
    for label, name in enumerate("abc"):
        assert figures.area[name] == pytest.approx(reference(truths, found, label, eleven=False), abs=1e-12)
        assert figures.eleven_point[name] == pytest.approx(reference(truths, found, label, eleven=True), abs=1e-12)
    assert 0.1 < figures.mean_area < 0.9
    assert figures.flat() == {"mAP": figures.mean_area, "mAP_11": figures.mean_eleven_point}


def at(*places: int) -> np.ndarray:
    return np.array([[20 * place, 0, 20 * place + 10, 10] for place in places], dtype=float).reshape(-1, 4)


def zeros(count: int) -> np.ndarray:
    return np.zeros(count, dtype=np.int64)


def test_a_worked_example():
    """Hit, miss, hit of two objects: area ½·1 + ½·⅔, eleven points (6·1 + 5·⅔) / 11."""
    truth, guess = Truth(at(0, 1), zeros(2)), Found(at(0, 9, 1), np.array([0.9, 0.8, 0.7]), zeros(3))
    figures = voc_figures([truth], [guess], ["a"])
    assert figures.mean_area == pytest.approx(0.5 + 0.5 * 2 / 3)
    assert figures.mean_eleven_point == pytest.approx((6 + 5 * 2 / 3) / 11)


def test_a_recall_of_three_tenths_reaches_the_fourth_point():
    figures = voc_figures([Truth(at(*range(10)), zeros(10))], [Found(at(0, 1, 2), np.ones(3), zeros(3))], ["a"])
    assert figures.eleven_point["a"] == pytest.approx(4 / 11)


def test_difficult_objects_neither_help_nor_hurt():
    hard = np.array([False, True])
    guess = Found(at(1, 0), np.array([0.9, 0.8]), zeros(2))
    assert voc_figures([Truth(at(0, 1), zeros(2), hard)], [guess], ["a"]).mean_area == 1.0
    assert voc_figures([Truth(at(0, 1), zeros(2), hard)], [Found(at(0), np.ones(1), zeros(1))], ["a"]).mean_area == 1.0


def test_the_second_detection_of_an_object_is_false_even_beside_a_free_one():
    """Here VOC and COCO part: the second box lies nearer the object that is taken, and enough over its neighbour."""
    from odonata.metrics.object_matches import average_precision, match_class

    truth = Truth(np.array([[0, 0, 100, 10], [30, 0, 130, 10.0]]), zeros(2))
    guess = Found(np.array([[0, 0, 100, 10], [10, 0, 110, 10.0]]), np.array([0.9, 0.8]), zeros(2))
    assert voc_figures([truth], [guess], ["a"]).mean_area == pytest.approx(0.5)
    assert average_precision(match_class([truth], [guess], 0)) == pytest.approx(1.0)


def test_a_class_without_objects_does_not_count():
    figures = voc_figures([Truth(at(0), zeros(1))], [Found(at(0), np.ones(1), zeros(1))], ["a", "b"])
    assert figures.mean_area == 1.0 and np.isnan(figures.area["b"])
    with pytest.raises(DataError, match="there is no object in 1 pictures"):
        voc_figures([Truth(at(), zeros(0))], [Found(at(), np.zeros(0), zeros(0))], ["a"])
