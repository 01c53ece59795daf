"""Recall by size, the best that a set of boxes allows, and average recall against COCO's."""

import numpy as np
import pytest

from odonata.errors import DataError
from odonata.metrics.coco import coco_figures
from odonata.metrics.object_matches import Found, Truth
from odonata.metrics.recall import average_recall, best_recall, matched_recall


def squares(*sides: float) -> np.ndarray:
    """Squares in a row that do not touch."""
    left = np.cumsum([0, *[side + 5 for side in sides]])[:-1]
    return np.array([[x, 0, x + side, side] for x, side in zip(left, sides, strict=True)], dtype=float).reshape(-1, 4)


def labels(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def test_sizes_are_cocos():
    truth = Truth(squares(10, 20, 50, 100), labels(0, 0, 0, 0))
    found = Found(squares(10, 20, 50, 100)[[0, 3]], np.ones(2), labels(0, 0))
    recalls = matched_recall([truth], [found])
    assert recalls.all == 0.5 and recalls.by_size == {"small": 0.5, "medium": 0.0, "large": 1.0}
    assert recalls.counts == {"small": 2, "medium": 1, "large": 1}
    border = matched_recall([Truth(squares(32, 96), labels(0, 0))], [found])
    assert border.counts == {"small": 0, "medium": 1, "large": 1} and np.isnan(border.by_size["small"])


def test_a_class_must_be_right_unless_it_is_not_asked_for():
    truth, found = Truth(squares(10, 20), labels(0, 1)), Found(squares(10, 20), np.ones(2), labels(1, 1))
    assert matched_recall([truth], [found]).all == 0.5
    assert matched_recall([truth], [found], by_class=False).all == 1.0


def test_one_box_finds_one_object_but_may_cover_two():
    truth = Truth(np.array([[0, 0, 10, 10], [1, 0, 11, 10.0]]), labels(0, 0))
    box = np.array([[0, 0, 10, 10.0]])
    assert matched_recall([truth], [Found(box, np.ones(1), labels(0))]).all == 0.5
    assert best_recall([truth], [box]).all == 1.0
    assert best_recall([truth], [box], threshold=0.9).all == 0.5


def test_crowds_are_not_asked_for():
    truth = Truth(squares(10, 20), labels(0, 0), np.array([False, True]))
    assert matched_recall([truth], [Found(squares(10), np.ones(1), labels(0))]).all == 1.0
    assert best_recall([truth], [squares(10)]).all == 1.0


def test_average_recall_is_cocos():
    random = np.random.default_rng(0)
    truths, found = [], []
    for _ in range(20):
        boxes = squares(*random.uniform(10, 120, int(random.integers(1, 6))))
        truths.append(Truth(boxes, np.zeros(len(boxes), dtype=np.int64)))
        moved = boxes + random.normal(0, 3, boxes.shape)
        found.append(Found(moved, random.random(len(boxes)), np.zeros(len(boxes), dtype=np.int64)))
    figures = coco_figures(truths, found, ["a"])
    assert average_recall(truths, found) == pytest.approx(figures.ar100, abs=1e-12)
    assert average_recall(truths, found, 1) == pytest.approx(figures.ar1, abs=1e-12)


def test_best_recall_falls_with_the_threshold_and_bounds_the_matched_one():
    random = np.random.default_rng(1)
    boxes = squares(*random.uniform(10, 120, 30))
    moved = boxes + random.normal(0, 4, boxes.shape)
    truth, found = Truth(boxes, np.zeros(30, dtype=np.int64)), Found(moved, random.random(30), labels(*[0] * 30))
    best = [best_recall([truth], [moved], threshold).all for threshold in (0.3, 0.5, 0.7, 0.9)]
    assert best == sorted(best, reverse=True) and best[0] > best[-1]
    assert all(
        matched_recall([truth], [found], threshold).all <= value
        for threshold, value in zip((0.3, 0.5, 0.7, 0.9), best, strict=True)
    )


def test_no_object_and_wrong_counts_are_named():
    nothing = Truth(np.zeros((0, 4)), labels())
    with pytest.raises(DataError, match="there is no object in 1 pictures"):
        best_recall([nothing], [squares(10)])
    with pytest.raises(DataError, match="boxes of 2 pictures cannot be compared with the objects of 1"):
        best_recall([nothing], [squares(10), squares(10)])
