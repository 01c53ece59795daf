"""Assignment against torchvision's recorded matches, transformers' way of Hungarian matching, and loops."""

from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from odonata.errors import RunError
from odonata.ops.boxes import CELLS_AT_ONCE
from odonata.ops.matching import centre_sampling, hungarian, ignore_overlap, match_by_iou, match_ssd

RECORDED = {
    name: torch.from_numpy(array) for name, array in np.load(Path(__file__).parents[1] / "fixtures/roi_ops.npz").items()
}
INF = float("inf")


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 10**6))
def test_hungarian_is_the_cheapest_of_all_permutations(rows, columns, seed):
    cost = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed))
    found_rows, found_columns = hungarian(cost)
    table = cost if rows <= columns else cost.T
    every = permutations(range(max(rows, columns)), min(rows, columns))
    least = min(float(sum(table[i, j] for i, j in enumerate(choice))) for choice in every)
    assert float(cost[found_rows, found_columns].sum()) == pytest.approx(least, rel=1e-5)
    assert found_rows.tolist() == sorted(set(found_rows.tolist())) and len(set(found_columns.tolist())) == len(
        found_rows
    )


def test_hungarian_without_objects_and_with_costs_that_cannot_be_used():
    assert [len(side) for side in hungarian(torch.zeros(5, 0))] == [0, 0]
    cost = torch.zeros(3, 2)
    cost[2, 1] = float("nan")
    with pytest.raises(RunError, match=r"1 of the 3 × 2 matching costs .* row 2, column 1"):
        hungarian(cost)
    with pytest.raises(RunError, match="no matching of 2 × 2"):
        hungarian(torch.full((2, 2), INF))


@pytest.mark.parametrize(
    ("name", "high", "low", "low_quality"),
    [("rpn", 0.7, 0.3, True), ("roi", 0.5, 0.5, False), ("retina", 0.5, 0.4, True)],
)
def test_matches_by_overlap_are_those_of_torchvision(name, high, low, low_quality):
    assert torch.equal(match_by_iou(RECORDED["iou"], high, low, low_quality), RECORDED[name])


def test_ssd_matches_are_those_of_torchvision():
    matches = match_ssd(RECORDED["iou"])
    assert torch.equal(matches, RECORDED["ssd"])
    assert 5 in matches and 4 in matches  # of two equal objects the last has the anchor; a weak one has its best


def test_without_objects_everything_is_background():
    none = torch.zeros(0, 4)
    assert match_by_iou(none, 0.5, 0.4, True).tolist() == [-1] * 4
    assert match_ssd(none).tolist() == [-1] * 4
    assert match_ssd(none.T).shape == (0,)
    points = torch.rand(3, 2)
    matches, distances = centre_sampling(points, torch.ones(3), torch.ones(3, 2), torch.zeros(0, 4))
    assert matches.tolist() == [-1] * 3 and not distances.any()
    with pytest.raises(ValueError, match=r"low = 0.6 is above high = 0.5"):
        match_by_iou(none, 0.5, 0.6)


def ranges_of(strides):
    low = torch.where(strides == 8, -1.0, strides * 4)
    return torch.stack([low, torch.where(strides == 128, INF, strides * 8)], 1)


def test_centre_sampling_gives_the_points_that_torchvision_gives():
    points, strides, boxes = RECORDED["fcos_points"], RECORDED["fcos_strides"], RECORDED["fcos_boxes"]
    matches, distances = centre_sampling(points, strides, ranges_of(strides), boxes)
    assert torch.equal(matches, RECORDED["fcos"])
    assert int((matches >= 0).sum()) > 50
    has = matches >= 0
    again = torch.cat([points - distances[:, :2], points + distances[:, 2:]], 1)[has]
    assert torch.allclose(again, boxes[matches[has]], atol=1e-3) and not distances[~has].any()


@pytest.mark.parametrize("radius", [None, 1.5])
def test_centre_sampling_is_what_its_loop_says(radius):
    strides, boxes = RECORDED["fcos_strides"][::7], RECORDED["fcos_boxes"].round()  # whole numbers: sides on the bounds
    points, ranges = RECORDED["fcos_points"][::7], ranges_of(RECORDED["fcos_strides"][::7])
    expected: list[int] = []
    for (x, y), stride, (low, high) in zip(points.tolist(), strides.tolist(), ranges.tolist(), strict=True):
        best, least = -1, INF
        for number, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
            if radius is None:
                region = (x1, y1, x2, y2)
            else:
                cx, cy, reach = (x1 + x2) / 2, (y1 + y2) / 2, radius * stride
                region = (max(cx - reach, x1), max(cy - reach, y1), min(cx + reach, x2), min(cy + reach, y2))
            inside = region[0] < x < region[2] and region[1] < y < region[3]
            if inside and low <= max(x - x1, y - y1, x2 - x, y2 - y) <= high and (x2 - x1) * (y2 - y1) < least:
                best, least = number, (x2 - x1) * (y2 - y1)
        expected.append(best)
    assert centre_sampling(points, strides, ranges, boxes, radius)[0].tolist() == expected


def test_level_ranges_include_both_ends_and_equal_areas_go_to_the_first():
    point, box = torch.tensor([[64.0, 10.0]]), torch.tensor([[0.0, 0, 100, 20], [0, 0, 100, 20]])
    for low, high, match in ((64.0, 70.0, 0), (0.0, 64.0, 0), (64.5, 70.0, -1), (0.0, 63.5, -1)):
        found, _ = centre_sampling(point, torch.ones(1), torch.tensor([[low, high]]), box, None)
        assert found.tolist() == [match]


def test_a_small_box_in_a_crowd_is_ignored_by_its_own_area_but_not_by_iou():
    boxes = torch.tensor([[10.0, 10, 20, 20], [95, 95, 115, 115], [200, 200, 210, 210]])
    crowd = torch.tensor([[0.0, 0, 100, 100]])
    assert ignore_overlap(boxes, crowd, 0.5).tolist() == [True, False, False]
    assert ignore_overlap(boxes, crowd, 0.06).tolist() == [True, True, False]  # 25 of 400
    assert ignore_overlap(boxes, crowd, 0.3, "iou").tolist() == [False, False, False]
    assert ignore_overlap(boxes, crowd, 0.005, "iou").tolist() == [True, False, False]  # 100 of 10,000; 25 of 10,375
    assert ignore_overlap(boxes, crowd[:0], 0.5).tolist() == [False] * 3
    with pytest.raises(ValueError, match="own_area"):
        ignore_overlap(boxes, crowd, 0.5, "ioa")  # type: ignore[arg-type]


def test_points_in_parts_learn_what_they_learn_alone():
    points, corner = torch.rand(5000, 2) * 100, torch.rand(60, 2) * 60
    boxes = torch.cat([corner, corner + 1 + torch.rand(60, 2) * 40], 1)
    strides, ranges = torch.full((5000,), 8.0), torch.tensor([[0.0, 64.0]]).expand(5000, 2)
    assert len(points) * len(boxes) > 2 * CELLS_AT_ONCE
    owner, sides = centre_sampling(points, strides, ranges, boxes)
    assert int(owner.max()) >= 0
    for some in torch.arange(5000).split(617):
        one, its = centre_sampling(points[some], strides[some], ranges[some], boxes)
        assert torch.equal(one, owner[some]) and torch.equal(its, sides[some])
