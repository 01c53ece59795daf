"""Encodings against COCO's code as faster-coco-eval carries it, and pasting against bilinear reading written out."""

import numpy as np
import pytest
import torch
from faster_coco_eval.core import mask as coco
from hypothesis import given, settings
from hypothesis import strategies as st

from odonata.errors import DataError
from odonata.ops.masks import (
    decode,
    encode,
    mask_area,
    mask_boxes,
    mask_iou,
    paste,
    polygons_to_mask,
    read_counts,
    run_lengths,
    write_counts,
)


def random_mask(height, width, share, seed):
    coarse = torch.rand(max(height // 3, 1), max(width // 3, 1), generator=torch.Generator().manual_seed(seed))
    large = torch.nn.functional.interpolate(coarse[None, None], (height, width))[0, 0]
    return large < share


masks = st.builds(random_mask, st.integers(1, 40), st.integers(1, 40), st.floats(0, 1), st.integers(0, 10**6))


@settings(max_examples=60, deadline=None)
@given(masks)
def test_masks_are_encoded_as_coco_encodes_them(mask):
    theirs = coco.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))
    ours = encode(mask)
    text = theirs["counts"].decode() if isinstance(theirs["counts"], bytes) else theirs["counts"]
    assert ours["counts"] == text and list(ours["size"]) == list(theirs["size"])
    assert torch.equal(decode(ours), mask)
    assert torch.equal(decode({"size": ours["size"], "counts": text.encode()}), mask)
    assert torch.equal(decode({"size": ours["size"], "counts": run_lengths(mask)}), mask)
    assert int(mask_area([ours])) == int(mask.sum())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 10**9), max_size=12))
def test_counts_survive_their_text(counts):
    assert read_counts(write_counts(counts)) == counts


@pytest.mark.parametrize(
    ("rle", "message"),
    [
        ({"size": [4, 4], "counts": [3, 4]}, "4 × 4 pixels cover 7 pixels, not 16"),
        ({"size": [4, 4], "counts": [3, -4, 17]}, "negative run"),
        ({"size": [4], "counts": [4]}, "height and width"),
        ({"size": [4, 4], "counts": "0\n"}, "impossible character"),
        ({"size": [4, 4], "counts": "0P"}, "cut off"),
        ({"size": [4, 4], "counts": "o" * 9 + "0"}, "more than 40 bits"),
    ],
)
def test_broken_encodings_are_named(rle, message):
    with pytest.raises(DataError, match=message):
        decode(rle)
    with pytest.raises(DataError):
        mask_iou([rle], [rle])


def test_polygons_are_drawn_as_coco_draws_them():
    random = np.random.default_rng(0)
    for _ in range(20):
        angle = np.sort(random.uniform(0, 2 * np.pi, random.integers(3, 12)))
        far = random.uniform(3, 30, len(angle))
        one = np.stack([30 + far * np.cos(angle), 20 + far * np.sin(angle)], 1).ravel().tolist()
        two = [3.2, 4.1, 15.5, 3.3, 8.8, 17.9]
        expected = coco.decode(coco.merge(coco.frPyObjects([one, two], 40, 60)))
        assert np.array_equal(polygons_to_mask([one, two], 40, 60).numpy(), expected.astype(bool))


def test_a_rectangle_covers_its_pixels_and_what_is_outside_is_cut():
    assert torch.equal(polygons_to_mask([[2, 3, 7, 3, 7, 9, 2, 9]], 12, 14).nonzero().amin(0), torch.tensor([3, 2]))
    assert int(polygons_to_mask([[2, 3, 7, 3, 7, 9, 2, 9]], 12, 14).sum()) == 5 * 6
    assert polygons_to_mask([[-1e6, -1e6, 1e6, -1e6, 1e6, 1e6, -1e6, 1e6]], 12, 14).all()
    assert not polygons_to_mask([], 12, 14).any()


@pytest.mark.parametrize(
    ("polygon", "message"),
    [
        ([1, 2, 3, 4], "4 coordinates"),
        ([1, 2, 3, 4, 5, 6, 7], "7 coordinates"),
        ([1, 2, 3, 4, 5, float("nan")], "finite"),
    ],
)
def test_impossible_polygons_are_named(polygon, message):
    with pytest.raises(DataError, match=f"polygon 1 has .*{message}"):
        polygons_to_mask([[0, 0, 4, 0, 4, 4], polygon], 10, 10)


def test_overlaps_are_those_of_the_pixels_and_a_crowd_divides_by_the_detection():
    first = [random_mask(20, 30, 0.4, seed) for seed in range(3)]
    second = [random_mask(20, 30, 0.6, seed) for seed in range(7, 11)]
    crowd = [False, True, False, True]
    found = mask_iou([encode(mask) for mask in first], [encode(mask) for mask in second], crowd)
    for i, one in enumerate(first):
        for j, other in enumerate(second):
            whole = one if crowd[j] else one | other
            assert float(found[i, j]) == pytest.approx(float((one & other).sum() / whole.sum()), abs=1e-6)
    assert mask_iou([], [encode(second[0])]).shape == (0, 1)
    with pytest.raises(DataError, match="different sizes"):
        mask_iou([encode(first[0])], [encode(first[0].T)])
    with pytest.raises(DataError, match="1 crowd flags for 4"):
        mask_iou([encode(first[0])], [encode(mask) for mask in second], [True])


def test_boxes_are_those_of_coco_in_corners():
    found = [random_mask(25, 31, share, seed) for seed, share in enumerate((0.04, 0.06, 0.1, 0.5, 0.0))]
    boxes = mask_boxes([encode(mask) for mask in found])
    assert boxes[-1].tolist() == [0, 0, 0, 0]
    for mask, box in zip(found[:-1], boxes[:-1], strict=True):
        rows, columns = np.nonzero(mask.numpy())
        assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        x, y, w, h = coco.toBbox(coco.encode(np.asfortranarray(mask.numpy().astype(np.uint8))))
        assert box.tolist() == [x, y, x + w, y + h]


def read_bilinear(mask, x, y):
    """Value of a mask at a place in its own cells (middle of the first: 0.5), zeros around it."""
    total = 0.0
    for row in range(mask.shape[0]):
        for column in range(mask.shape[1]):
            weight = max(0.0, 1 - abs(x - 0.5 - column)) * max(0.0, 1 - abs(y - 0.5 - row))
            total += weight * float(mask[row, column])
    return total


def test_pasted_masks_are_read_bilinearly_at_the_middle_of_pixels():
    soft = torch.rand(3, 4, 5)
    boxes = torch.tensor([[2.3, 1.6, 14.2, 11.1], [-4, -3, 9, 8], [10.4, 5.2, 30, 25]])
    pasted = paste(soft, boxes, (14, 20))
    for mask, (x1, y1, x2, y2), found in zip(soft, boxes.tolist(), pasted, strict=True):
        for row in range(14):
            for column in range(20):
                x, y = column + 0.5, row + 0.5
                value = 0.0
                if x1 <= x <= x2 and y1 <= y <= y2:
                    value = read_bilinear(mask, (x - x1) / (x2 - x1) * 5, (y - y1) / (y2 - y1) * 4)
                if abs(value - 0.5) > 1e-5:
                    assert bool(found[row, column]) == (value >= 0.5)


def test_a_full_mask_fills_the_pixels_whose_middle_is_in_its_box():
    boxes = torch.tensor(
        [[3.0, 2, 9, 7], [3.4, 2.6, 9.6, 7.4], [5, 5, 5, 9], [4, 4, float("nan"), 9], [50, 50, 60, 60]]
    )
    pasted = paste(torch.ones(5, 28, 28), boxes, (12, 14), 0.5)
    assert pasted.sum((1, 2)).tolist() == [6 * 5, 7 * 4, 0, 0, 0]
    assert pasted[0, 2:7, 3:9].all()
    assert paste(torch.ones(0, 28, 28), torch.zeros(0, 4), (12, 14)).shape == (0, 12, 14)
