"""Transforms of pictures with objects: boxes, masks, class maps and the frame stay in step."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from odonata.data.framing import Framing
from odonata.data.item import Item, flip_item, window_item
from odonata.data.keys import keyed_generator
from odonata.data.object_transforms import (
    FrameItem,
    IoUCrop,
    RandomAffine,
    RandomScaleCrop,
    TileCrop,
    ZoomOut,
    cut_tile,
    frame_item,
)


def scene(*boxes: tuple[int, int, int, int], height: int = 120, width: int = 160, ignored: int = -1) -> Item:
    """Bright rectangles, each with its box, mask, label, corner points, and class in the map."""
    image = torch.full((3, height, width), 30, dtype=torch.uint8)
    masks = torch.zeros(len(boxes), height, width, dtype=torch.bool)
    classes = torch.zeros(height, width, dtype=torch.uint8)
    for number, (x1, y1, x2, y2) in enumerate(boxes):
        masks[number, y1:y2, x1:x2] = True
        image[:, y1:y2, x1:x2] = 220
        classes[y1:y2, x1:x2] = number + 1
    corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return Item(
        image,
        corners,
        torch.arange(len(boxes)) + 1,
        masks,
        corners.reshape(-1, 2, 2),
        torch.arange(len(boxes)) == ignored,
        classes,
    )


def box_of(mask: torch.Tensor) -> torch.Tensor:
    rows, columns = torch.nonzero(mask, as_tuple=True)
    return torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], dtype=torch.float32)


RANDOM = [
    RandomScaleCrop((0.3, 2.0), 96),
    RandomScaleCrop((0.3, 2.0), (64, 128)),
    RandomScaleCrop((0.8, 1.25)),
    IoUCrop(),
    ZoomOut(p=1.0),
    RandomAffine(),
    RandomAffine(degrees=30, shear=10, size=(100, 140)),
    TileCrop(64),
    TileCrop((200, 50)),
    FrameItem(Framing("shortest", 90, 130, 32)),
    FrameItem(Framing("letterbox", 96, 0, 32)),
    FrameItem(Framing("squash", 80, 0, 16), (64, 80, 96)),
    FrameItem(Framing("keep")),
]


def name_of(transform: object) -> str:
    return type(transform).__name__


@given(st.sampled_from(RANDOM), st.integers(0, 120), st.integers(0, 80), st.integers(8, 40), st.integers(0, 10_000))
@settings(deadline=None, max_examples=250)
def test_boxes_masks_and_classes_stay_in_step(transform, x: int, y: int, side: int, key: int):
    item = scene((x, y, x + side, y + side), (60, 40, 100, 90), ignored=1)
    # The second is painted over the first, whose pixels in the map are then the second's.
    moved = transform(item, keyed_generator(0, 0, key))
    assert moved.boxes is not None and moved.masks is not None and moved.classes is not None
    assert moved.labels is not None and moved.ignore is not None and moved.points is not None
    assert len({len(moved.boxes), len(moved.masks), len(moved.labels), len(moved.ignore), len(moved.points)}) == 1
    assert moved.masks.shape[-2:] == moved.classes.shape == moved.image.shape[-2:]
    assert moved.boxes.isfinite().all() and math.isfinite(moved.scale) and moved.scale > 0
    height, width = moved.height_width
    assert (moved.boxes[:, 2:] > moved.boxes[:, :2]).all(), "an object without area stayed"
    assert (moved.boxes >= 0).all() and (moved.boxes <= torch.tensor([width, height, width, height]) + 1e-3).all()
    for box, mask, label, ignored in zip(moved.boxes, moved.masks, moved.labels, moved.ignore, strict=True):
        assert not (label == 2 and not ignored), "the ignored object is to be found now"
        if mask.any():
            assert (box_of(mask) - box).abs().max() <= 1.0
        else:
            assert (box[2:] - box[:2]).min() < 1.5
        if label == 2:
            # What the map says of the topmost object is its mask, whatever happened to both.
            assert torch.equal(moved.classes == 2, mask)


@pytest.mark.parametrize("transform", RANDOM, ids=name_of)
def test_an_empty_picture_stays_empty(transform):
    moved = transform(scene(), keyed_generator(0, 0, 1))
    assert moved.boxes is not None and moved.boxes.shape == (0, 4)
    assert moved.masks is not None and moved.masks.shape == (0, *moved.height_width)


@pytest.mark.parametrize("transform", RANDOM, ids=name_of)
def test_chance_comes_from_the_key_and_draws_do_not_depend_on_the_picture(transform):
    def run(item: Item) -> tuple[Item, float]:
        generator = keyed_generator(0, 3, 5)
        return transform(item, generator), torch.rand(1, generator=generator).item()

    first, left = run(scene((20, 20, 60, 60)))
    torch.manual_seed(5)
    again, _ = run(scene((20, 20, 60, 60)))
    assert torch.equal(first.image, again.image) and torch.equal(first.boxes, again.boxes)
    assert run(scene(height=51, width=90))[1] == left


def test_two_flips_are_none():
    item = scene((10, 20, 50, 90), (60, 40, 100, 90), ignored=0)
    twice = flip_item(flip_item(item))
    for name in ("image", "boxes", "labels", "masks", "points", "ignore", "classes"):
        assert torch.equal(getattr(twice, name), getattr(item, name)), name
    assert twice.scale == item.scale


def test_outside_the_picture_nothing_is_said():
    wide = window_item(scene((10, 10, 20, 20)), -5, -7, 140, 180, fill=9)
    assert wide.classes is not None and wide.masks is not None
    assert (wide.classes[:5] == 255).all() and (wide.classes[:, :7] == 255).all()
    assert wide.classes[5, 7] == 0 and wide.image[:, 0, 0].tolist() == [9, 9, 9]
    assert box_of(wide.masks[0]).tolist() == [17, 15, 27, 25]
    apart = window_item(scene((10, 10, 20, 20)), 500, 0, 20, 20)
    assert apart.classes is not None and (apart.classes == 255).all()


@pytest.mark.parametrize(
    "framing",
    [
        Framing("shortest", 75, 100, 32),
        Framing("shortest", 75, 90, 32, rounding="detr"),
        Framing("letterbox", 97, 0, 32, corners=True),
        Framing("squash", 64, 0, 32, antialias=True),
        Framing("keep"),
    ],
    ids=lambda framing: f"{framing.resize}-{framing.rounding}",
)
@pytest.mark.parametrize("size", [(120, 160), (133, 71), (75, 75)])
def test_training_sees_the_frame_that_prediction_sees(framing: Framing, size: tuple[int, int]):
    item = scene((10, 20, 50, 60), height=size[0], width=size[1])
    image = torch.randint(0, 256, item.image.shape, dtype=torch.uint8)
    framed = frame_item(item.with_image(image), framing)
    pixels, place = framing.frame(image)
    assert framed.image.shape == pixels.shape
    assert (framed.image.float() - pixels).abs().max() <= 0.5
    assert framed.boxes is not None and item.boxes is not None
    torch.testing.assert_close(framed.boxes, place.to_frame(item.boxes), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(place.to_picture(framed.boxes), item.boxes, rtol=1e-5, atol=1e-4)
    assert framed.scale == pytest.approx(math.sqrt(place.scale[0] * place.scale[1]))


def test_several_sizes_all_come_up():
    frame = FrameItem(Framing("shortest", 64, 128, 32), (48, 64, 96))
    sides = {min(frame(scene(), keyed_generator(0, 0, key)).height_width) for key in range(40)}
    assert sides == {48, 64, 96}


def test_the_scale_counts_the_pixels_of_the_picture():
    item = scene((40, 40, 80, 80))
    for key in range(10):
        moved = RandomScaleCrop((0.4, 0.9), 300, min_visible=0.99)(item, keyed_generator(0, 0, key))
        assert moved.boxes is not None
        side = float((moved.boxes[0, 2:] - moved.boxes[0, :2]).prod()) ** 0.5
        assert side / moved.scale == pytest.approx(40, abs=1.5)
    turned = RandomAffine(degrees=45, scale=0.4, translate=0.0)(item, keyed_generator(0, 0, 3))
    assert turned.masks is not None
    assert float(turned.masks.sum()) ** 0.5 / turned.scale == pytest.approx(40, abs=1)


def test_crops_overlap_an_object_as_wanted_and_keep_by_centre():
    item = scene((10, 10, 60, 60), (90, 70, 150, 110))
    crop = IoUCrop(overlaps=(0.5,))
    whole = item.height_width
    changed = 0
    for key in range(60):
        moved = crop(item, keyed_generator(0, 0, key))
        assert moved.boxes is not None and len(moved.boxes) >= 1
        height, width = moved.height_width
        if moved.height_width == whole:
            continue
        changed += 1
        assert 0.5 <= width / height <= 2
        # Inside the window an object's IoU with it is its share of the window's area, or less where it was cut.
        areas = (moved.boxes[:, 2:] - moved.boxes[:, :2]).prod(1) / (height * width)
        assert areas.max() >= 0.5
    assert changed >= 40


def test_an_object_whose_centre_is_cut_off_is_dropped():
    crop = IoUCrop(overlaps=(0.0,))
    item = scene((10, 10, 60, 60), (90, 70, 150, 110))
    for key in range(40):
        moved = crop(item, keyed_generator(0, 0, key))
        assert moved.boxes is not None and moved.labels is not None
        for box, label in zip(moved.boxes, moved.labels, strict=True):
            full = 2500 if label == 1 else 2400
            assert float((box[2:] - box[:2]).prod()) > full / 4 - 120  # a centre inside leaves a quarter at least


def test_zooming_out_changes_no_object_but_its_place():
    item = scene((10, 10, 60, 60))
    moved = ZoomOut(side=(3, 3), p=1.0)(item, keyed_generator(0, 0, 0))
    assert moved.height_width == (360, 480) and moved.scale == 1.0 and moved.boxes is not None
    assert (moved.boxes[0, 2:] - moved.boxes[0, :2]).tolist() == [50, 50]
    x, y = (int(v) for v in moved.boxes[0, :2])
    assert torch.equal(moved.image[:, y : y + 50, x : x + 50], item.image[:, 10:60, 10:60])
    colours, counts = moved.image.flatten(1).unique(dim=1, return_counts=True)
    assert colours[:, counts.argmax()].tolist() == [123, 117, 104]


def test_a_tile_ignores_what_it_shows_little_of():
    item = scene((0, 0, 40, 40), (50, 0, 90, 40), (120, 80, 150, 110))
    tile = cut_tile(item, (0, 0, 60, 60), min_visible=0.3)
    assert tile.boxes is not None and tile.ignore is not None and tile.labels is not None
    assert tile.labels.tolist() == [1, 2]
    assert tile.boxes.tolist() == [[0, 0, 40, 40], [50, 0, 60, 40]]
    assert tile.ignore.tolist() == [False, True]


def test_tiles_find_the_objects_of_a_large_picture():
    item = scene((700, 500, 720, 520), height=800, width=1000)
    near, anywhere = ([0, 0], [0, 0])
    for count, transform in ((near, TileCrop(64, near_object=1.0)), (anywhere, TileCrop(64, near_object=0.0))):
        for key in range(30):
            tile = transform(item, keyed_generator(0, 0, key))
            assert tile.height_width == (64, 64) and tile.boxes is not None
            count[len(tile.boxes) > 0] += 1
    assert near[1] == 30 and anywhere[1] < 10


def test_a_whole_small_picture_is_one_tile():
    item = scene((10, 10, 60, 60), height=100, width=90)
    assert TileCrop(128)(item, keyed_generator(0, 0, 0)).height_width == (100, 90)


def test_impossible_ranges_are_refused():
    with pytest.raises(ValueError, match=r"want 0 < scale"):
        RandomScaleCrop((0.0, 1.0))
    with pytest.raises(ValueError, match="want sides of 1 or more"):
        ZoomOut(side=(0.5, 2))
    with pytest.raises(ValueError, match=r"scale must lie between 0 and 1, not 1\.5"):
        RandomAffine(scale=1.5)
