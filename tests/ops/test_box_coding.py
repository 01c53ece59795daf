import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from odonata.ops.box_coding import (
    BOX_HEAD_WEIGHTS,
    RPN_WEIGHTS,
    decode_deltas,
    decode_distances,
    encode_deltas,
    encode_distances,
)

FIXTURE = Path(__file__).resolve().parents[1] / "fixtures" / "box_ops.npz"
WEIGHTS = {"rpn": RPN_WEIGHTS, "head": BOX_HEAD_WEIGHTS}


@pytest.fixture(scope="module")
def recorded():
    with np.load(FIXTURE) as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


@pytest.mark.parametrize("name", WEIGHTS)
def test_offsets_are_torchvisions_and_so_are_decoded_boxes(recorded, name):
    targets, anchors, weights = recorded["targets"], recorded["anchors"], WEIGHTS[name]
    torch.testing.assert_close(
        encode_deltas(targets, anchors, weights), recorded[f"encoded/{name}"], rtol=1e-7, atol=1e-9
    )
    scaled = recorded["deltas"] * torch.tensor(weights)
    assert (recorded["deltas"][:, 2:] > math.log(1000 / 16)).any()
    torch.testing.assert_close(
        decode_deltas(scaled, anchors, weights), recorded[f"decoded/{name}"], rtol=1e-7, atol=1e-9
    )


def test_distances_are_torchvisions(recorded):
    stride = 8  # torchvision's are in units of it
    distances = encode_distances(recorded["targets"], recorded["points"]) / stride
    torch.testing.assert_close(distances, recorded["distances"])
    decoded = decode_distances(recorded["deltas"].abs() * stride, recorded["points"])
    torch.testing.assert_close(decoded, recorded["from_distances"])


sides = st.floats(0.5, 400)
places = st.floats(-300, 300)
one_box = st.tuples(places, places, sides, sides).map(
    lambda b: torch.tensor([[b[0], b[1], b[0] + b[2], b[1] + b[3]]], dtype=torch.float64)
)


@given(one_box, one_box)
def test_what_is_encoded_is_decoded(box, anchor):
    grows_little = ((box[:, 2:] - box[:, :2]) / (anchor[:, 2:] - anchor[:, :2]) < 1000 / 16).all()
    for weights in WEIGHTS.values():
        back = decode_deltas(encode_deltas(box, anchor, weights), anchor, weights)
        if grows_little:
            torch.testing.assert_close(back, box, rtol=1e-9, atol=1e-7)
        else:
            assert (back[:, 2:] - back[:, :2] <= 1000 / 16 * (anchor[:, 2:] - anchor[:, :2]) * (1 + 1e-9)).all()
    point = anchor[:, :2]
    torch.testing.assert_close(decode_distances(encode_distances(box, point), point), box)


def test_ssd_variances_are_the_weights_of_the_box_head():
    box, anchor = torch.tensor([[10.0, 20.0, 50.0, 80.0]]), torch.tensor([[12.0, 10.0, 44.0, 74.0]])
    by_variances = encode_deltas(box, anchor) / torch.tensor([0.1, 0.1, 0.2, 0.2])
    torch.testing.assert_close(encode_deltas(box, anchor, BOX_HEAD_WEIGHTS), by_variances)


def test_an_anchor_of_sixteen_pixels_grows_to_a_thousand_at_most():
    anchor = torch.tensor([[0.0, 0.0, 16.0, 16.0]])
    box = decode_deltas(torch.tensor([[0.0, 0.0, 50.0, 0.0]]), anchor)
    assert (box[0, 2] - box[0, 0]).item() == pytest.approx(1000, rel=1e-5)
    assert (box[0, 3] - box[0, 1]).item() == 16


def test_class_specific_offsets_broadcast_over_proposals():
    deltas, anchors = torch.randn(5, 3, 4), torch.rand(5, 4) * 20
    anchors[:, 2:] += anchors[:, :2]
    decoded = decode_deltas(deltas, anchors[:, None], BOX_HEAD_WEIGHTS)
    for label in range(3):
        torch.testing.assert_close(decoded[:, label], decode_deltas(deltas[:, label], anchors, BOX_HEAD_WEIGHTS))


def test_each_point_has_distances_to_each_box():
    boxes, points = torch.tensor([[0.0, 0.0, 10.0, 6.0], [4.0, 4.0, 8.0, 8.0]]), torch.tensor([[3.0, 2.0]])
    found = encode_distances(boxes[None], points[:, None])
    assert found.tolist() == [[[3.0, 2.0, 7.0, 4.0], [-1.0, -2.0, 5.0, 6.0]]]


def test_boxes_without_area_have_finite_offsets_and_gradients():
    point = torch.zeros(1, 4, requires_grad=True)
    deltas = encode_deltas(torch.ones(1, 4), point)
    deltas.sum().backward()
    assert deltas.isfinite().all() and point.grad.isfinite().all()


def test_predictions_in_half_precision_are_decoded_in_that_of_the_anchors():
    anchor = torch.tensor([[4000.0, 4000.0, 4005.0, 4009.0]])
    decoded = decode_deltas(torch.zeros(1, 4, dtype=torch.float16), anchor)
    assert torch.equal(decoded, anchor)


def test_no_boxes_are_coded_as_none():
    none = torch.zeros(0, 4)
    assert encode_deltas(none, none).shape == decode_deltas(none, none).shape == (0, 4)
    assert encode_distances(none, none[:, :2]).shape == decode_distances(none, none[:, :2]).shape == (0, 4)
