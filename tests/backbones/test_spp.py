"""Spatial pyramid pooling: of SPPNet, of YOLOv3-SPP, and SPPF, which gives the same bits."""

import pytest
import torch

from odonata.backbones.spp import SPP, SPPF, SpatialPyramidPooling, paper_windows


@pytest.mark.parametrize("size", [(13, 13), (6, 6), (10, 17), (3, 2)])
def test_the_vector_has_the_same_length_whatever_the_size(size):
    pool = SpatialPyramidPooling()
    assert pool.bins == 50
    assert pool(torch.randn(2, 8, *size)).shape == (2, 400)


def test_bins_cover_the_map_and_hold_its_maxima():
    x = torch.randn(1, 1, 10, 10)
    vector = SpatialPyramidPooling((1, 2, 6))(x)[0]
    assert vector[0] == x.max()
    assert vector[1] == x[..., :5, :5].max()
    assert vector[1:5].max() == vector[5:].max() == x.max()


def test_the_papers_windows_miscount_ten_of_its_pairs():
    """He et al. 2014, sec. 2.3, over the maps of 6 … 39 cells and the pyramid of 1, 2, 3 and 6."""
    wrong = [(a, n) for a in range(6, 40) for n in (1, 2, 3, 6) if paper_windows(a, n)[2] != n]
    assert wrong == [(a, 6) for a in (8, 9, 10, 11, 15, 16, 17, 22, 23, 29)]
    assert paper_windows(13, 3) == (5, 4, 3)  # the paper's own example: conv5 of 13 × 13, pool3x3
    assert paper_windows(8, 6) == (2, 1, 7)
    assert all(SpatialPyramidPooling((n,))(torch.zeros(1, 1, a, a)).shape[1] == n * n for a, n in wrong)


@pytest.mark.parametrize("input_last", [False, True])
@pytest.mark.parametrize("size", [(13, 13), (20, 7), (4, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_three_poolings_of_five_are_five_nine_and_thirteen_bit_for_bit(size, dtype, input_last):
    x = torch.randn(2, 3, *size, dtype=dtype)
    assert torch.equal(SPP(input_last=input_last)(x), SPPF(input_last=input_last)(x))


def test_the_same_holds_of_other_sizes():
    x = torch.randn(1, 2, 16, 16)
    assert torch.equal(SPP((3, 5, 7))(x), SPPF(3)(x))


def test_order_of_the_parts():
    x = torch.randn(1, 2, 16, 16)
    first, last = SPP()(x).split(2, 1), SPP(input_last=True)(x).split(2, 1)
    assert torch.equal(first[0], x)
    assert all(torch.equal(a, b) for a, b in zip(first, last[::-1], strict=True))
    assert (last[0] >= last[1]).all()  # darknet: the largest square first
    assert (last[1] >= last[2]).all()
