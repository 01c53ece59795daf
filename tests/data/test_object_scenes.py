"""The embedded pictures with objects: boxes are tight, masks are what is painted, and all follows from the key."""

import pickle

import numpy as np
import pytest

from odonata.data.object_scenes import ObjectScenes
from odonata.data.open_objects import open_objects
from odonata.data.scenes import PALETTE
from odonata.errors import DataError


def test_boxes_are_tight_around_masks_and_masks_apart():
    source = open_objects("objects:n=80,seed=3")
    for sample in source:
        masks = sample.masks()
        assert masks.sum(0).max() <= 1 and 1 <= len(masks) <= 4
        for box, mask, area in zip(sample.boxes, masks, sample.areas, strict=True):
            rows, columns = np.nonzero(mask)
            assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert area == mask.sum()


def test_the_masks_are_where_the_ink_is():
    for sample in open_objects("objects:n=20,clutter=0,sides=24-48").split("train"):
        image = sample.image.read_array().astype(int)
        for mask in sample.masks():
            colour = np.median(image[mask], axis=0)
            assert min(np.abs(colour - value).max() for value in PALETTE.values()) <= 25
            # No ground is so colourful or so bright.
            assert image[mask].max(1).mean() > 150 > image[~sample.masks().any(0)].max(1).mean()


def test_a_picture_follows_from_seed_split_and_number():
    first, again = open_objects("objects:n=12"), open_objects("objects:n=12,seed=0")
    longer, other = open_objects("objects:n=40"), open_objects("objects:n=12,seed=1")
    for number in range(12):
        assert np.array_equal(first[number].image.read_array(), longer[number].image.read_array())
        assert np.array_equal(first[number].boxes, again[number].boxes)
    assert not np.array_equal(first[0].image.read_array(), other[0].image.read_array())
    assert first.fingerprint() == again.fingerprint() != other.fingerprint()
    assert first.split("train")[0].boxes.tolist() != first.split("val")[0].boxes.tolist()


def test_the_samples_travel_to_other_processes():
    sample = open_objects("objects:n=3")[1]
    again = pickle.loads(pickle.dumps(sample))
    assert np.array_equal(again.masks(), sample.masks())
    assert np.array_equal(again.image.read_array(), sample.image.read_array())


def test_sizes_cover_the_octaves_evenly():
    scenes = ObjectScenes(600, objects=(1, 1), sides=(8, 64))
    sides = np.array([scenes.layout(index)[0].alpha.shape[0] for index in range(600)])
    counts = [((sides >= low) & (sides < 2 * low)).sum() for low in (8, 16, 32)]
    assert sides.min() >= 8 and sides.max() <= 64 and min(counts) > 150


def test_all_classes_and_splits_are_there():
    source = open_objects("objects:n=210")
    assert [len(source.split(split)) for split in ("train", "val", "test")] == [210, 30, 30]
    assert source.names == tuple("0123456789") and source.kind == "objects"
    assert set(np.concatenate([sample.labels for sample in source]).tolist()) == set(range(10))
    assert open_objects("objects:n=9,split=val").splits == ("val",) and len(open_objects("objects:n=9,split=val")) == 9


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("objects:n=0", "n must be at least 1"),
        ("objects:sides=4-8", "sides least-most from 8 to the size"),
        ("objects:objects=3-1", "want objects fewest-most"),
        ("objects:colour=2", "unknown option 'colour=2'; known: n, size, seed, clutter, objects, sides, split"),
        ("objects:n=many", "the option 'n=many' needs whole numbers"),
        ("objects:split=other", "unknown option 'split=other'"),
    ],
)
def test_a_bad_option_is_named(text: str, message: str):
    with pytest.raises(DataError) as error:
        open_objects(text)
    assert message in str(error.value) and str(error.value).startswith(text)
