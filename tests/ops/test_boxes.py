from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from odonata.ops import boxes as ops

FIXTURE = Path(__file__).resolve().parents[1] / "fixtures" / "box_ops.npz"
PAIRED = {"iou": ops.paired_iou, "giou": ops.paired_giou, "diou": ops.paired_diou, "ciou": ops.paired_ciou}
MATRICES = {"iou": ops.iou_matrix, "giou": ops.giou_matrix, "iom": ops.iom_matrix, "ioa": ops.ioa_matrix}


@pytest.fixture(scope="module")
def recorded():
    with np.load(FIXTURE) as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


@st.composite
def some_boxes(draw):
    """Boxes in float64, some without area, on a grid coarse enough for many to touch or to be equal."""
    numbers = hnp.arrays(np.float64, (draw(st.integers(0, 8)), 4), elements=st.integers(0, 12).map(float))
    corners = torch.from_numpy(draw(numbers))
    return torch.cat([corners[:, :2], corners[:, :2] + corners[:, 2:]], 1)


def relative_error(found, expected):
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("name", ["iou", "giou"])
def test_matrices_are_torchvisions(recorded, name):
    assert torch.equal(MATRICES[name](recorded["a"], recorded["b"]), recorded[name])


@pytest.mark.parametrize("name", PAIRED)
def test_losses_and_their_gradients_are_torchvisions(recorded, name):
    leaf = recorded["a"].clone().requires_grad_()
    loss = 1 - PAIRED[name](leaf, recorded["b"])
    loss.sum().backward()
    if name == "iou":  # boxes that only touch: torchvision's losses give them no gradient either, its plain IoU does
        assert not leaf.grad[2].any()
        leaf.grad[2] = recorded["grad/iou"][2]
    # torchvision adds 1e-7 to areas of tens and hundreds.
    assert relative_error(loss.detach(), recorded[f"loss/{name}"]) < 1e-7
    assert relative_error(leaf.grad, recorded[f"grad/{name}"]) < 1e-7


def test_conversions_area_and_clipping_are_torchvisions(recorded):
    a = recorded["a"]
    assert torch.equal(ops.xyxy_to_cxcywh(a), recorded["cxcywh"])
    assert torch.equal(ops.xyxy_to_xywh(a), recorded["xywh"])
    assert torch.equal(ops.box_area(a), recorded["area"])
    assert torch.equal(ops.clip_boxes(a - 10, (50, 40)), recorded["clipped"])


@settings(deadline=None)
@given(some_boxes())
def test_conversions_come_back(boxes):
    assert torch.equal(ops.xywh_to_xyxy(ops.xyxy_to_xywh(boxes)), boxes)
    assert torch.equal(ops.cxcywh_to_xyxy(ops.xyxy_to_cxcywh(boxes)), boxes)
    torch.testing.assert_close(ops.denormalize_boxes(ops.normalize_boxes(boxes, (30, 50)), (30, 50)), boxes)


def test_normalised_boxes_count_x_in_widths_and_y_in_heights():
    box = torch.tensor([[10.0, 10.0, 50.0, 20.0]])
    assert ops.normalize_boxes(box, (20, 100)).tolist() == [pytest.approx([0.1, 0.5, 0.5, 1.0])]


@settings(deadline=None)
@given(some_boxes(), some_boxes())
def test_matrices_stay_in_their_ranges_and_turn_with_their_arguments(a, b):
    iou, giou, iom = ops.iou_matrix(a, b), ops.giou_matrix(a, b), ops.iom_matrix(a, b)
    assert iou.shape == (len(a), len(b))
    assert ((iou >= 0) & (iou <= 1)).all() and ((giou >= -1) & (giou <= iou)).all() and (iom >= iou).all()
    for name in ("iou", "giou", "iom"):
        torch.testing.assert_close(MATRICES[name](a, b), MATRICES[name](b, a).T)
    covered = torch.maximum(ops.ioa_matrix(a, b), ops.ioa_matrix(b, a).T)
    torch.testing.assert_close(covered, iom)  # of two shares, the smaller box's is the larger one
    for name in ("iou", "giou"):
        count = min(len(a), len(b))
        torch.testing.assert_close(PAIRED[name](a[:count], b[:count]), MATRICES[name](a, b).diagonal())


@settings(deadline=None)
@given(some_boxes(), st.integers(-50, 50), st.sampled_from([0.5, 2.0, 8.0]))
def test_overlaps_do_not_know_where_and_how_large_the_picture_is(boxes, shift, scale):
    boxes[:, 2:] += 1  # a box without height has no aspect ratio
    others = boxes.flip(0)
    for name, overlap in PAIRED.items():
        moved = overlap(boxes * scale + shift, others * scale + shift)
        torch.testing.assert_close(moved, overlap(boxes, others), msg=name)


@pytest.mark.parametrize("name", PAIRED)
@settings(deadline=None)
@given(boxes=some_boxes(), scale=st.sampled_from([0.0, 1e-30, 1e-7, 1.0, 1e4]))
def test_no_value_and_no_gradient_is_nan_whatever_the_box(name, boxes, scale):
    leaf = (boxes * scale).float().requires_grad_()
    others = (boxes.flip(0) * scale).float()
    overlap = PAIRED[name](leaf, others) + PAIRED[name](leaf, leaf.detach())
    overlap.sum().backward()
    assert overlap.isfinite().all() and leaf.grad.isfinite().all()


def test_apart_boxes_get_a_gradient_by_giou_diou_and_ciou_only():
    for name, overlap in PAIRED.items():
        leaf = torch.tensor([[0.0, 0.0, 10.0, 10.0]], requires_grad=True)
        (-overlap(leaf, torch.tensor([[30.0, 0.0, 40.0, 10.0]]))).sum().backward()
        assert bool(leaf.grad.abs().sum() > 0) == (name != "iou")


def test_half_precision_and_integers_are_compared_in_float32():
    boxes = torch.tensor([[0, 0, 300, 300], [0, 0, 300, 150]])
    assert ops.iou_matrix(boxes.half(), boxes.half())[0, 1] == 0.5  # the area overflows float16
    assert ops.iou_matrix(boxes, boxes).dtype == torch.float32


def test_tiny_normalised_boxes_overlap_as_their_pixels_do():
    pixels = torch.tensor([[0.0, 0.0, 2.0, 2.0], [1.0, 0.0, 3.0, 2.0]])
    small = ops.normalize_boxes(pixels, (4000, 4000))
    torch.testing.assert_close(ops.paired_iou(small[0], small[1]), torch.tensor(1 / 3))


@pytest.mark.parametrize("name", MATRICES)
def test_no_boxes_make_an_empty_matrix(name):
    none, one = torch.zeros(0, 4), torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    assert MATRICES[name](none, one).shape == (0, 1) and MATRICES[name](one, none).shape == (1, 0)


def test_overlap_by_the_smaller_area_sees_what_lies_inside():
    large, small = torch.tensor([[0.0, 0.0, 10.0, 10.0]]), torch.tensor([[2.0, 2.0, 4.0, 4.0]])
    assert ops.overlap_matrix(large, small, "iom").item() == 1.0
    assert ops.overlap_matrix(large, small, "iou").item() == pytest.approx(0.04)
    assert ops.ioa_matrix(large, small).item() == pytest.approx(0.04)


@settings(deadline=None)
@given(some_boxes())
def test_shapes_overlap_as_boxes_around_one_centre(boxes):
    sizes = boxes[:, 2:] - boxes[:, :2]
    centred = torch.cat([-sizes / 2, sizes / 2], 1)
    torch.testing.assert_close(ops.shape_iou(sizes, sizes), ops.iou_matrix(centred, centred))


def test_sides_that_reach_a_minimum():
    boxes = torch.tensor([[0.0, 0.0, 5.0, 5.0], [0.0, 0.0, 4.9, 9.0], [0.0, 0.0, 0.0, 0.0]])
    assert ops.sides_reach(boxes, 5.0).tolist() == [True, False, False]


def test_a_large_matrix_computed_in_parts_is_that_of_its_pairs():
    corner = torch.rand(700, 2) * 50
    boxes = torch.cat([corner, corner + torch.rand(700, 2) * 30], 1)
    others = boxes.flip(0)[:431] + 0.25
    assert len(boxes) * len(others) > 2 * ops.CELLS_AT_ONCE
    matrix = ops.iou_matrix(boxes, others)
    assert torch.equal(matrix, ops.paired_iou(boxes[:, None], others[None]))
    assert torch.equal(matrix, ops.iou_matrix(boxes.clone().requires_grad_(), others).detach())


def test_more_boxes_than_fit_at_once_are_compared_box_by_box(monkeypatch):
    monkeypatch.setattr(ops, "CELLS_AT_ONCE", 3)
    boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0]] * 5)
    assert torch.equal(ops.iou_matrix(boxes, boxes[:2] + torch.tensor([1.0, 0, 1, 0])), torch.full((5, 2), 1 / 3))
    assert ops.iou_matrix(boxes[:0], boxes).shape == (0, 5)
    assert ops.iou_matrix(boxes, boxes[:0]).shape == (5, 0)
