"""Means over areas from a table of running sums, beside PyTorch's area interpolation window by window."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from odonata.errors import DataError
from odonata.ops.area_crops import _gathered, area_crops, running_sums


def one_by_one(image, windows, size):
    cut = [image[None, :, top:bottom, left:right].float() for top, bottom, left, right in windows.tolist()]
    return torch.cat([F.interpolate(part, size, mode="area") for part in cut])


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**31),
    st.tuples(st.integers(1, 70), st.integers(1, 70)),
    st.tuples(st.integers(1, 30), st.integers(2, 30)),
)
def test_every_window_is_bit_equal_to_area_interpolation_of_it(seed, shape, size):
    generator = torch.Generator().manual_seed(seed)
    # One pixel is a plain mean in PyTorch, with a single division, and so is not asked for.
    image = torch.randint(0, 256, (3, *shape), dtype=torch.uint8, generator=generator)
    ends = torch.stack([torch.randint(0, side, (8, 2), generator=generator).sort(1).values for side in shape], 1)
    windows = ends.flatten(1) + torch.tensor([0, 1, 0, 1])
    table = running_sums(image)
    assert torch.equal(area_crops(table, windows, size), one_by_one(image, windows, size))


def test_the_way_for_gpus_gives_the_same():
    image = torch.randint(0, 256, (3, 57, 91), dtype=torch.uint8)
    windows = torch.tensor([[0, 57, 0, 91], [5, 6, 7, 8], [10, 44, 3, 90]])
    table = running_sums(image)
    summed = F.pad(image.double().cumsum(1).cumsum(2), (1, 0, 1, 0)).permute(1, 2, 0)
    assert torch.equal(table, summed)
    assert torch.equal(_gathered(table, windows, (24, 13)), area_crops(table, windows, (24, 13)))


def test_no_window_gives_no_crop():
    assert area_crops(running_sums(torch.zeros(3, 9, 9)), torch.zeros(0, 4, dtype=torch.int64), (24, 24)).shape[0] == 0


@pytest.mark.parametrize("window", [[0, 10, 3, 3], [5, 2, 0, 4], [0, 11, 0, 4], [-1, 4, 0, 4], [0, 4, 0, 13]])
def test_an_empty_window_or_one_that_reaches_outside_is_named(window):
    with pytest.raises(DataError, match=r"window 1 .* is empty or reaches outside the picture of 12 × 10 px"):
        area_crops(running_sums(torch.zeros(3, 10, 12)), torch.tensor([[0, 4, 0, 4], window]), (4, 4))
