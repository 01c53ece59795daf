"""COCO's figures against the COCO API's own summary, worked examples, and the matching that the bootstrap rests on."""

import numpy as np
import pytest

from odonata.errors import DataError
from odonata.metrics.coco import ap50_interval, coco_figures
from odonata.metrics.object_matches import (
    Found,
    Truth,
    average_precision,
    greedy_pairs,
    match_class,
    overlaps,
    precision_recall,
)


def noisy(pictures: int = 25, classes: int = 4, seed: int = 0, crowds: bool = True) -> tuple[list[Truth], list[Found]]:
    """Objects of all sizes, and detections with errors of every kind, some with equal scores."""
    random = np.random.default_rng(seed)
    truths, found = [], []
    for _ in range(pictures):
        count = int(random.integers(0, 12))
        corner = random.uniform(0, 300, (count, 2))
        boxes = np.concatenate([corner, corner + random.uniform(8, 180, (count, 2))], axis=1)
        labels = random.integers(0, classes, count)
        crowd = random.random(count) < (0.15 if crowds else 0)
        truths.append(Truth(boxes, labels, crowd))
        keep = random.random(count) < 0.8
        moved = boxes[keep] + random.normal(0, 6, (int(keep.sum()), 4))
        moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2] + 1)
        wrong = random.uniform(0, 200, (3, 2))
        wrong = np.concatenate([wrong, wrong + random.uniform(10, 100, (3, 2))], axis=1)
        everything = np.concatenate([moved, boxes[:2] + 2.0, wrong])
        guessed = np.concatenate([labels[keep], labels[:2], random.integers(0, classes, 3)])
        scores = np.round(random.random(len(everything)), 2)
        found.append(Found(everything, scores, guessed))
    return truths, found


def as_coco(truths: list[Truth], found: list[Found], classes: int):
    """The same in COCO's own form, with the library's own summary."""
    from faster_coco_eval import COCO, COCOeval_faster

    rows, guesses = [], []
    for picture, (truth, guess) in enumerate(zip(truths, found, strict=True)):
        for (x1, y1, x2, y2), label, crowd in zip(truth.boxes, truth.labels, truth.crowd, strict=True):
            box = [x1, y1, x2 - x1, y2 - y1]
            rows.append(
                {
                    "id": len(rows) + 1,
                    "image_id": picture,
                    "category_id": int(label),
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": int(crowd),
                }
            )
        for (x1, y1, x2, y2), label, score in zip(guess.boxes, guess.labels, guess.scores, strict=True):
            guesses.append(
                {
                    "image_id": picture,
                    "category_id": int(label),
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "score": float(score),
                }
            )
    images = [{"id": n, "width": 500, "height": 500} for n in range(len(truths))]
    api = COCO(
        {"images": images, "categories": [{"id": n, "name": str(n)} for n in range(classes)], "annotations": rows}
    )
    run = COCOeval_faster(api, api.loadRes(guesses), "bbox")
    run.run()
    return run


def rle(mask: np.ndarray) -> dict:
    from faster_coco_eval import mask as mask_api

    return mask_api.encode(np.asfortranarray(mask.astype(np.uint8)))


@pytest.mark.parametrize("seed", range(4))
def test_the_twelve_figures_are_the_apis(seed: int):
    truths, found = noisy(seed=seed)
    figures = coco_figures(truths, found, ["a", "b", "c", "d"])
    theirs = as_coco(truths, found, 4).stats[:12]
    assert list(figures.flat().values()) == pytest.approx(theirs.tolist(), abs=1e-12)
    assert 0.05 < figures.ap < figures.ap50 < 1
    assert figures.objects == sum(int((~t.crowd).sum()) for t in truths) == sum(figures.objects_by_size.values())


def test_classes_and_curves_average_to_the_whole():
    truths, found = noisy(seed=1)
    figures = coco_figures(truths, found, ["a", "b", "c", "d"])
    assert np.mean(list(figures.per_class.values())) == pytest.approx(figures.ap)
    assert np.mean(list(figures.per_class50.values())) == pytest.approx(figures.ap50)
    assert figures.curves[0.5].shape == (101, 4)
    assert figures.curves[0.5].mean() == pytest.approx(figures.ap50)
    assert figures.curves[0.75].mean() == pytest.approx(figures.ap75)
    assert (np.diff(figures.curves[0.5], axis=0) <= 1e-12).all(), "interpolated precision never rises"


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.75])
@pytest.mark.parametrize("seed", range(3))
def test_our_matching_gives_the_apis_precision(seed: int, threshold: float):
    truths, found = noisy(seed=seed)
    run = as_coco(truths, found, 4)
    run.params.iouThrs = np.array([threshold])
    run.evaluate()
    run.accumulate()
    theirs = np.asarray(run.eval["precision"]).reshape(1, 101, 4, 4, 3)[0, :, :, 0, 2].mean(0)
    ours = [average_precision(match_class(truths, found, label, threshold)) for label in range(4)]
    assert ours == pytest.approx(theirs.tolist(), abs=1e-12)


def test_perfect_detections_are_perfect():
    truths, _ = noisy(crowds=False)
    found = [Found(t.boxes, np.linspace(1, 0.5, len(t.boxes)), t.labels) for t in truths]
    figures = coco_figures(truths, found, list("abcd"), resamples=20)
    assert figures.ap == figures.ar100 == figures.ap_small == figures.ap_large == pytest.approx(1.0)
    assert figures.interval50 == pytest.approx((1.0, 1.0))


def test_a_worked_example():
    """Two objects; hit, miss, hit: precision 1 up to recall .5, then 2/3."""
    truth = Truth(np.array([[0, 0, 10, 10], [50, 50, 60, 60.0]]), np.array([0, 0]))
    boxes = np.array([[0, 0, 10, 10], [100, 100, 110, 110], [50, 50, 60, 60.0]])
    guess = Found(boxes, np.array([0.9, 0.8, 0.7]), np.array([0, 0, 0]))
    figures = coco_figures([truth], [guess], ["thing"])
    assert figures.ap50 == pytest.approx((51 * 1 + 50 * 2 / 3) / 101)
    assert figures.ar1 == pytest.approx(0.5) and figures.ar10 == pytest.approx(1.0)
    precision, recall = precision_recall(match_class([truth], [guess], 0))
    assert precision.tolist() == pytest.approx([1, 1 / 2, 2 / 3]) and recall.tolist() == [0.5, 0.5, 1.0]


def test_masks_are_compared_where_boxes_agree():
    """Two triangles in one square: the boxes are equal, the masks share the diagonal only."""
    below = np.tril(np.ones((60, 60), dtype=bool))
    box = np.array([[0, 0, 60, 60.0]])
    truth = Truth(box, np.array([0]), masks=[rle(below)])
    right = Found(box, np.array([0.9]), np.array([0]), masks=[rle(below)])
    wrong = Found(box, np.array([0.9]), np.array([0]), masks=[rle(below.T)])
    assert coco_figures([truth], [right], ["a"], kind="masks").ap == pytest.approx(1)
    assert coco_figures([truth], [wrong], ["a"], kind="masks").ap == 0
    assert coco_figures([truth], [wrong], ["a"]).ap == pytest.approx(1)
    figures = coco_figures([truth], [right], ["a"], kind="masks")
    assert figures.objects_by_size == {"small": 0, "medium": 1, "large": 0}, "1830 pixels of mask"
    assert figures.kind == "masks" and np.isnan(figures.ap_large)


def test_detections_in_a_crowd_cost_nothing():
    truth = Truth(np.array([[0, 0, 10, 10], [100, 100, 300, 300.0]]), np.array([0, 0]), np.array([False, True]))
    inside = np.array([[0, 0, 10, 10], [120, 120, 140, 140], [200, 200, 220, 220.0]])
    guess = Found(inside, np.array([0.5, 0.9, 0.8]), np.array([0, 0, 0]))
    assert coco_figures([truth], [guess], ["a"]).ap == pytest.approx(1)
    assert average_precision(match_class([truth], [guess], 0)) == pytest.approx(1)


def test_nothing_found_is_zero_and_no_class_is_nan():
    truth = Truth(np.array([[0, 0, 10, 10.0]]), np.array([1]))
    nothing = Found(np.zeros((0, 4)), np.zeros(0), np.zeros(0, dtype=np.int64))
    figures = coco_figures([truth], [nothing], ["a", "b"])
    assert figures.ap == 0 and figures.per_class["b"] == 0 and np.isnan(figures.per_class["a"])
    assert figures.to_dict()["per_class"] == {"a": None, "b": 0.0} and figures.to_dict()["AP_L"] is None


def test_the_interval_covers_the_figure_and_narrows_with_pictures():
    few, many = noisy(12, seed=3), noisy(96, seed=3)
    figures = coco_figures(*few, list("abcd"), resamples=150)
    assert figures.interval50 is not None
    low, high = figures.interval50
    assert low < figures.ap50 < high
    narrow = ap50_interval(*many, 4, 100)
    assert narrow[1] - narrow[0] < 0.7 * (high - low)
    assert figures.figures()["AP50"].low == low and figures.figures()["AP"].low is None
    assert ap50_interval(*few, 4, 50, seed=1) == ap50_interval(*few, 4, 50, seed=1)


def test_each_object_is_found_once_and_by_the_surest():
    boxes = np.array([[0, 0, 10, 10.0]])
    shared = overlaps(np.array([[0, 0, 10, 8], [0, 0, 10, 10.0]]), boxes)
    assert shared.ravel().tolist() == pytest.approx([0.8, 1.0])
    assert greedy_pairs(shared, np.array([False]), 0.5).tolist() == [0, -1]
    assert greedy_pairs(shared, np.array([True]), 0.5).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("truths", "found", "message"),
    [
        ([Truth(np.zeros((0, 4)), np.zeros(0, int))], [], "detections of 0 pictures"),
        ([Truth(np.zeros((0, 4)), np.zeros(0, int))], [Found(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int))],
         "there is no object in 1 pictures"),
        ([Truth(np.ones((1, 4)), np.array([3]))], [Found(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int))],
         r"picture 0, objects: labels from 3 to 3, classes: 2"),
        ([Truth(np.ones((1, 4)), np.array([0]))], [Found(np.ones((1, 4)), np.array([np.nan]), np.array([0]))],
         "score of a detection is not a number"),
        ([Truth(np.ones((1, 4)), np.array([0]))], [Found(np.ones((2, 4)), np.array([1.0]), np.array([0]))],
         r"boxes are \(2, 4\) with 1 labels"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(truths, found, message: str):
    with pytest.raises(DataError, match=message):
        coco_figures(truths, found, ["a", "b"])


def test_masks_that_are_missing_are_named():
    truth = Truth(np.ones((1, 4)), np.array([0]))
    with pytest.raises(DataError, match="picture 0, objects: there are boxes only"):
        coco_figures([truth], [Found(np.ones((1, 4)), np.ones(1), np.array([0]))], ["a"], kind="masks")
