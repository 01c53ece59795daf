"""Scale policies: ranges, pyramids, windows; the same for every detector."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from odonata.data.detections import Detections
from odonata.data.framing import Framing
from odonata.data.item import Item
from odonata.data.object_batches import ObjectData, to_batch
from odonata.data.object_scenes import CATEGORIES, ObjectScenes
from odonata.data.objects import ObjectSource
from odonata.detect.assets import DetectorAssets
from odonata.detect.detector import DetectorOptions
from odonata.detect.fcos import FCOS, FCOSConfig
from odonata.detect.predictor import DetectorPredictor
from odonata.detect.scale_policy import (
    INFINITE,
    InRange,
    in_range,
    looks,
    ranges_from,
    resolved_policy,
    training_pipeline,
    windows,
)
from odonata.errors import RecipeError


def source(count: int = 30) -> ObjectSource:
    scenes = ObjectScenes(count, sides=(8, 60))
    return ObjectSource([scenes.sample(i) for i in range(count)], CATEGORIES, "objects", kind="objects")


def test_ranges_count_pixels_of_the_picture_and_not_of_the_frame():
    box = torch.tensor([[0.0, 0.0, 40.0, 40.0]])  # 20 px in the picture, at twice its size
    assert in_range(box, 2.0, (0, 20)).item() and not in_range(box, 1.0, (0, 20)).item()


def test_snip_ignores_what_is_out_of_range_and_forgets_nothing():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 40, 40], [5, 5, 9, 9]])
    item = Item(torch.zeros(3, 64, 64, dtype=torch.uint8), boxes, torch.tensor([1, 2, 3]), scale=1.0)
    item = replace(item, ignore=torch.tensor([False, False, True]))
    marked = InRange(8, 30)(item, torch.Generator())
    assert marked.ignore is not None and marked.boxes is not None
    assert marked.ignore.tolist() == [False, True, True] and len(marked.boxes) == 3


def test_the_largest_objects_are_for_the_smallest_size():
    ranges = ranges_from(source(), 3)
    assert ranges[0][1] == INFINITE and ranges[2][0] == 0
    lows, highs = zip(*ranges, strict=True)
    assert list(lows) == sorted(lows, reverse=True) and list(highs) == sorted(highs, reverse=True)
    # They overlap: an object is learned at two sizes at least.
    sides = np.concatenate([np.sqrt(np.prod(s.boxes[:, 2:] - s.boxes[:, :2], axis=1)) for s in source()])
    counts = sum((sides >= low) & (sides <= high) for low, high in ranges)
    assert counts.min() >= 1 and counts.mean() > 1.5


def test_a_resolved_policy_says_all():
    config = resolved_policy(DetectorOptions(scale_policy="snip", framing=Framing(size=100)), source())
    assert config.scale_sizes == (75, 100, 150) and len(config.scale_ranges) == len(config.scale_test_ranges) == 3
    for (low, high), (test_low, test_high) in zip(config.scale_ranges, config.scale_test_ranges, strict=True):
        assert test_low <= low and (test_high >= high or high == INFINITE)
    assert [look.framing.size for look in looks(config)] == [75, 100, 150]
    assert resolved_policy(DetectorOptions(scale_policy="tiles", framing=Framing(size=100)), source()).tile == 100


def test_ranges_must_be_as_many_as_sizes():
    config = DetectorOptions(scale_policy="snip", scale_sizes=(64, 96), scale_ranges=((0.0, 10.0),))
    with pytest.raises(RecipeError, match="1 ranges for 2 sizes"):
        resolved_policy(config, source())


def test_thresholds_outside_zero_and_one_are_refused():
    with pytest.raises(RecipeError, match=r"--score-threshold is 1.5; it lies in \[0, 1\]"):
        DetectorOptions(score_threshold=1.5)
    with pytest.raises(RecipeError, match="--tile-overlap"):
        DetectorOptions(tile_overlap=1.0)


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 900), st.integers(1, 900), st.integers(16, 256), st.floats(0, 0.9))
def test_windows_cover_the_picture_and_overlap_as_asked(height, width, tile, overlap):
    covered = np.zeros((height, width), dtype=bool)
    found = windows(height, width, tile, overlap)
    for top, left, h, w in found:
        assert top >= 0 and left >= 0 and top + h <= height and left + w <= width and h <= tile and w <= tile
        covered[top : top + h, left : left + w] = True
    assert covered.all()
    tops = sorted({top for top, *_ in found})
    assert all(b - a <= max(1, round(tile * (1 - overlap))) for a, b in itertools.pairwise(tops))


@pytest.mark.parametrize("kind", ["single", "multi-scale", "pyramid", "snip", "tiles"])
def test_every_policy_trains_a_step(kind):
    config = FCOSConfig(framing=Framing(size=64, max_size=128), scale_policy=kind)
    config = resolved_policy(config, source())
    transform, _ = training_pipeline(config, ObjectData(augment="flip"))
    from odonata.data.object_batches import read_item

    items = [transform(read_item(sample), torch.Generator().manual_seed(i)) for i, sample in enumerate(source(4))]
    loss = FCOS(config, 10).loss(to_batch(items, 32))["loss"]
    loss.backward()
    assert loss.isfinite()


class Oracle(FCOS):
    """Says where bright squares are: a detector whose answers are known."""

    def predict(self, batch):
        answers = []
        for picture, size in zip(batch.images.float(), batch.sizes, strict=True):
            from scipy import ndimage

            bright = (picture[0, : size[0], : size[1]] > 128).numpy()
            labels, count = ndimage.label(bright)
            boxes = torch.tensor(
                [[x.start, y.start, x.stop, y.stop] for y, x in ndimage.find_objects(labels)], dtype=torch.float32
            ).reshape(-1, 4)
            scores = torch.linspace(0.9, 0.8, count) if count else torch.zeros(0)
            answers.append(Detections(boxes, scores, torch.zeros(count, dtype=torch.int64), tuple(size.tolist())))
        return answers


def oracle(**changes) -> DetectorPredictor:
    config = FCOSConfig(framing=Framing("keep", divisor=8), nms_threshold=0.5, **changes)
    return DetectorPredictor(Oracle(config, 10), DetectorAssets("fcos", config, CATEGORIES), torch.device("cpu"))


def squares(*places: tuple[int, int, int], size: int = 200) -> torch.Tensor:
    image = torch.zeros(3, size, size, dtype=torch.uint8)
    for top, left, side in places:
        image[:, top : top + side, left : left + side] = 255
    return image


def test_windows_find_what_the_whole_picture_shows():
    image = squares((10, 10, 12), (100, 150, 20), (170, 40, 16))
    whole, tiled = oracle().predict(image), oracle().predict(image, tile=64, overlap=0.5, merge="nmm")
    assert sorted(map(tuple, whole.boxes.tolist())) == sorted(map(tuple, tiled.boxes.tolist()))


def test_merging_makes_an_object_whole_that_windows_cut():
    image = squares((60, 20, 100))  # larger than any window
    kept = oracle().predict(image, tile=80, overlap=0.4)
    merged = oracle().predict(image, tile=80, overlap=0.4, merge="nmm")
    assert len(kept) > len(merged) == 1
    assert merged.boxes.tolist() == [[20.0, 60.0, 120.0, 160.0]]


def test_each_size_of_a_pyramid_answers_for_its_range():
    image = squares((10, 10, 12), (100, 100, 60))
    both = oracle(scale_policy="pyramid", scale_sizes=(1, 2)).predict(image)
    assert len(both) == 2
    small = oracle(
        scale_policy="pyramid", scale_sizes=(1,), scale_test_ranges=((0.0, 20.0),), scale_ranges=((0.0, 20.0),)
    ).predict(image)
    assert small.boxes.tolist() == [[10.0, 10.0, 22.0, 22.0]]


def test_a_threshold_is_for_one_call_only():
    model, image = oracle(), squares((10, 10, 12))
    model.predict(image, score=0.5)
    assert model.detector.options.score_threshold == model.assets.config.score_threshold
    with pytest.raises(RecipeError, match=r"lies in \[0, 1\]"):
        model.predict(image, score=1.5)
    with pytest.raises(RecipeError, match="overlap"):
        model.predict(image, tile=32, overlap=1.0)
