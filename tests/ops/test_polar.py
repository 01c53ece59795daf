"""Rays of shapes whose outline is known, and what polygons of rays can describe."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from odonata.errors import DataError
from odonata.ops.masks import polygons_to_mask
from odonata.ops.polar import (
    largest_part,
    mask_outline,
    mass_centre,
    polar_centerness,
    polar_iou,
    polar_polygons,
    polygon_outline,
    rays,
)


def rectangle(height, width, top, left, bottom, right):
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[top:bottom, left:right] = True
    return mask


def blob(seed):
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(48, 64)), 5)
    return largest_part(torch.from_numpy(noise > noise.std() * 0.5))


def test_the_first_ray_points_down_and_the_next_turn_to_the_right():
    centre = torch.tensor([[10.0, 8.0]])
    distances = rays(mask_outline(rectangle(30, 40, 4, 6, 15, 25)), centre, 4)  # down, right, up, left
    assert distances[0].tolist() == pytest.approx([7, 15, 4, 4])
    polygon = polar_polygons(centre[0], distances[0].float())
    assert torch.allclose(polygon, torch.tensor([[10.0, 15], [25, 8], [10, 4], [6, 8]]), atol=1e-5)


def test_rays_of_a_rectangle_end_on_its_sides():
    centre, half = torch.tensor([[20.0, 12.0]], dtype=torch.float64), torch.tensor([9.0, 5.0], dtype=torch.float64)
    found = rays(mask_outline(rectangle(30, 40, 7, 11, 17, 29)), centre, 72)[0]
    angle = torch.arange(72, dtype=torch.float64) * 2 * math.pi / 72
    expected = torch.minimum(half[0] / angle.sin().abs(), half[1] / angle.cos().abs())
    assert torch.allclose(found, expected, atol=1e-9)
    corners = torch.tensor([[11.0, 7], [29, 7], [29, 17], [11, 17]])
    assert torch.allclose(rays(polygon_outline(corners), centre, 72)[0], expected, atol=1e-9)


def test_a_circle_has_equal_rays_from_its_centre_and_centerness_one():
    turn = torch.linspace(0, 2 * math.pi, 721)[:-1]
    circle = torch.stack([30 + 10 * turn.cos(), 20 + 10 * turn.sin()], 1)
    distances = rays(polygon_outline(circle), torch.tensor([[30.0, 20.0], [35.0, 20.0]]), 36)
    assert torch.allclose(distances[0], torch.tensor(10.0).double(), atol=1e-3)
    assert float(polar_centerness(distances[0])) == pytest.approx(1, abs=1e-4)
    assert float(polar_centerness(distances[1])) == pytest.approx(math.sqrt(5 / 15), abs=1e-3)  # 5 and 15 away


def test_the_farthest_crossing_counts_and_no_crossing_is_almost_zero():
    mask = rectangle(20, 40, 5, 5, 15, 35)
    mask[8:12, 12:20] = False  # a hole to the right of the centre
    mask[:, 25:28] = False
    outline = mask_outline(mask)
    assert rays(outline, torch.tensor([[8.0, 10.0]]), 4)[0].tolist() == pytest.approx([5, 27, 5, 3])
    outside = rays(outline, torch.tensor([[2.0, 10.0]]), 4)[0]
    assert outside[1] == 33 and outside[[0, 2, 3]].tolist() == [1e-6] * 3
    assert rays(outline[:0], torch.zeros(2, 2), 5).tolist() == [[1e-6] * 5] * 2
    assert rays(outline, torch.zeros(0, 2), 36).shape == (0, 36)


@pytest.mark.parametrize("seed", range(3))
def test_rays_are_those_of_a_walk_in_small_steps(seed):
    mask = blob(seed)
    centre = mass_centre(mask)
    found = rays(mask_outline(mask), centre[None], 36)[0].numpy()
    steps = np.arange(0, 90, 0.01)
    for number in range(36):
        angle = 2 * math.pi * number / 36
        x, y = float(centre[0]) + steps * math.sin(angle), float(centre[1]) + steps * math.cos(angle)
        valid = (x >= 0) & (x < mask.shape[1]) & (y >= 0) & (y < mask.shape[0])
        inside = np.zeros(len(steps), dtype=bool)
        inside[valid] = mask.numpy()[y[valid].astype(int), x[valid].astype(int)]
        last = steps[inside].max() if inside.any() else 0.0
        assert found[number] == pytest.approx(last, abs=0.03)


def test_shifts_and_mirrors_move_rays_with_the_mask():
    mask = blob(1)
    centre = mass_centre(mask)[None]
    distances = rays(mask_outline(mask), centre, 36)
    shifted = torch.nn.functional.pad(mask, (7, 0, 3, 0))
    moved = rays(mask_outline(shifted), centre + torch.tensor([7.0, 3.0]), 36)
    assert torch.allclose(moved, distances, atol=1e-9)
    mirrored = torch.stack([mask.shape[1] - centre[:, 0], centre[:, 1]], 1)
    flipped = rays(mask_outline(mask.flip(1)), mirrored, 36)
    assert torch.allclose(flipped, distances[:, [0, *range(35, 0, -1)]], atol=1e-9)


def test_more_rays_describe_a_mask_better():
    overlaps: list[float] = []
    for count in (8, 18, 72, 360):
        total = 0.0
        for seed in range(4):
            mask = blob(seed)
            centre = mass_centre(mask)
            polygon = polar_polygons(centre, rays(mask_outline(mask), centre[None], count)[0], tuple(mask.shape))
            drawn = polygons_to_mask([polygon.flatten().tolist()], *mask.shape)
            total += float((drawn & mask).sum() / (drawn | mask).sum()) / 4
        overlaps.append(total)
    assert overlaps == sorted(overlaps) and overlaps[-1] > overlaps[0] + 0.03


def test_polar_iou_is_the_share_of_lengths_and_its_logarithm_the_loss():
    predicted, target = torch.tensor([[1.0, 2, 3], [2, 2, 2]]), torch.tensor([[2.0, 2, 1], [2, 2, 2]])
    assert polar_iou(predicted, target).tolist() == pytest.approx([4 / 7, 1])
    scaled = polar_iou(3 * target, target)
    assert torch.allclose(scaled, torch.full((2,), 1 / 3))


def test_the_largest_part_and_the_mass_centre():
    mask = rectangle(20, 30, 2, 2, 6, 6) | rectangle(20, 30, 10, 10, 18, 20)
    mask[6, 6] = True  # diagonal neighbour of the small part
    part = largest_part(mask)
    assert torch.equal(part, rectangle(20, 30, 10, 10, 18, 20))
    assert mass_centre(part).tolist() == [15.0, 14.0]
    assert not largest_part(torch.zeros(3, 3, dtype=torch.bool)).any()
    small = largest_part(mask & ~part)
    assert int(small.sum()) == 17
    with pytest.raises(DataError, match="mask of 3 × 4 pixels is empty"):
        mass_centre(torch.zeros(3, 4, dtype=torch.bool))


def test_polygons_are_clipped_and_need_three_points():
    points = polar_polygons(torch.tensor([5.0, 5.0]), torch.full((4,), 20.0), (12, 9))
    assert torch.allclose(points, torch.tensor([[5.0, 12], [9, 5], [5, 0], [0, 5]]), atol=1e-5)
    with pytest.raises(DataError, match="2 points"):
        polygon_outline(torch.zeros(2, 2))
    with pytest.raises(ValueError, match="at least 3"):
        rays(torch.zeros(1, 2, 2), torch.zeros(1, 2), 2)
