"""Radii against the overlaps that they promise, drawn targets against the formula, and peaks read back."""

import numpy as np
import pytest
import torch

from odonata.ops.boxes import iou_matrix
from odonata.ops.gaussian import draw_gaussian, gaussian_radius, local_maxima, top_peaks

SIDES = torch.tensor([[10.0, 10], [3, 40], [25, 7], [1, 1], [128, 96]], dtype=torch.float64)


@pytest.mark.parametrize("overlap", [0.3, 0.5, 0.7])
def test_corners_moved_by_the_radius_still_overlap_enough_and_no_farther(overlap):
    radii = gaussian_radius(SIDES[:, 0], SIDES[:, 1], overlap)

    def least(radii):
        zero = torch.zeros_like(radii)
        boxes = torch.stack([zero, zero, SIDES[:, 1], SIDES[:, 0]], 1)
        moves = [(radii, radii), (radii, -radii), (-radii, radii)]  # the same way, inwards, outwards
        moved = [boxes + torch.stack([a, a, b, b], 1) for a, b in moves]
        return torch.stack([iou_matrix(boxes, other).diagonal() for other in moved]).amin(0)

    assert torch.allclose(least(radii), torch.full_like(radii, overlap), atol=1e-9)
    assert (least(radii * 1.01) < overlap).all()


def test_the_radius_of_centernet_keeps_its_slip():
    h, w, overlap = 20.0, 30.0, 0.7
    roots = []
    for a, b, c in (
        (1, h + w, w * h * (1 - overlap) / (1 + overlap)),
        (4, 2 * (h + w), (1 - overlap) * w * h),
        (4 * overlap, -2 * overlap * (h + w), (overlap - 1) * w * h),
    ):
        roots.append((b + np.sqrt(b**2 - 4 * a * c)) / 2)
    one = torch.tensor([1.0], dtype=torch.float64)
    found = float(gaussian_radius(h * one, w * one, overlap, "centernet"))
    assert found == pytest.approx(min(roots), rel=1e-12)
    assert found > 2 * float(gaussian_radius(h * one, w * one, overlap, "corner"))
    with pytest.raises(ValueError, match="centernet"):
        gaussian_radius(one, one, 0.7, "right")  # type: ignore[arg-type]


def drawn(height, width, *objects):
    maps = torch.zeros(2, height, width)
    x, y, label, radius = (torch.tensor(column) for column in zip(*objects, strict=True))
    draw_gaussian(maps, torch.stack([x, y], 1), label, radius)
    return maps


def test_a_drawn_gaussian_is_one_in_the_middle_and_ends_at_its_radius():
    maps = drawn(15, 20, (8, 6, 1, 3))
    y, x = np.mgrid[:15, :20]
    expected = np.exp(-((x - 8) ** 2 + (y - 6) ** 2) / (2 * (7 / 6) ** 2)) * (abs(x - 8) <= 3) * (abs(y - 6) <= 3)
    assert np.allclose(maps[1], expected, atol=1e-7)
    assert maps[1, 6, 8] == 1 and not maps[0].any()
    assert drawn(15, 20, (8, 6, 0, 0)).sum() == 1  # radius 0: one cell


def test_where_gaussians_meet_the_greater_stays_and_borders_cut_them():
    one, other, both = (
        drawn(12, 12, (3, 3, 0, 4)),
        drawn(12, 12, (6, 4, 0, 5)),
        drawn(12, 12, (3, 3, 0, 4), (6, 4, 0, 5)),
    )
    assert torch.equal(both, torch.maximum(one, other))
    corner, large = drawn(12, 12, (0, 11, 0, 4)), drawn(40, 40, (20, 20, 0, 4))
    assert torch.equal(corner[:, 4:, :8], large[:, 13:21, 20:28])
    assert not drawn(12, 12, (50, 3, 0, 4)).any()
    with pytest.raises(ValueError, match="radius is -1"):
        drawn(12, 12, (3, 3, 0, -1))


def test_peaks_of_drawn_targets_are_the_objects():
    maps = drawn(20, 30, (4, 5, 0, 3), (20, 9, 1, 5), (10, 15, 1, 0))[None]
    scores, labels, cells = top_peaks(local_maxima(maps), 3)
    assert scores.tolist() == [[1.0] * 3]
    found = {(label, *cell) for label, cell in zip(labels[0].tolist(), cells[0].tolist(), strict=True)}
    assert found == {(0, 4, 5), (1, 20, 9), (1, 10, 15)}


def test_only_what_no_neighbour_exceeds_stays():
    heat = torch.tensor([[0.1, 0.2, 0.1, 0.0], [0.3, 0.9, 0.8, 0.1], [0.1, 0.2, 0.1, 0.5]])[None, None]
    kept = local_maxima(heat)
    assert kept.nonzero()[:, 2:].tolist() == [[1, 1]]
    assert local_maxima(heat, 1).equal(heat)
    with pytest.raises(ValueError, match="odd"):
        local_maxima(heat, 2)
