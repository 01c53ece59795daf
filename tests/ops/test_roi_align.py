"""Pooling of regions against torchvision's recorded numbers, and against what a linear map must give."""

from pathlib import Path

import numpy as np
import pytest
import torch

from odonata.ops import roi_align as module
from odonata.ops.roi_align import assign_levels, multi_level_roi_align, roi_align, roi_pool

RECORDED = {
    name: torch.from_numpy(array) for name, array in np.load(Path(__file__).parents[1] / "fixtures/roi_ops.npz").items()
}
SCALE, BINS = 1 / 4, (3, 5)


def difference(ours, reference):
    return float((ours.double() - reference).norm() / reference.norm())


def with_gradient(function, *features):
    leaves = [feature.clone().requires_grad_() for feature in features]
    pooled = function(*leaves)
    upstream = torch.cos(torch.arange(pooled.numel(), dtype=torch.float64)).view(pooled.shape).to(pooled.dtype)
    return pooled.detach(), torch.autograd.grad(pooled, leaves, upstream)


def ramp(height, width):
    """A map whose value in the middle of a cell is 2x + 3y, in units of cells."""
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    return (2 * x + 3 * y)[None, None]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("ratio", [2, 3, 0])
@pytest.mark.parametrize("aligned", [True, False])
def test_roi_align_and_its_gradient_are_those_of_torchvision(aligned, ratio, dtype):
    features, rois = RECORDED["features"].to(dtype), RECORDED["rois"].to(dtype)

    def pool(x):
        return roi_align(x, rois, BINS, spatial_scale=SCALE, sampling_ratio=ratio, aligned=aligned)

    pooled, (grad,) = with_gradient(pool, features)
    name = f"align_{int(aligned)}_{ratio}"
    bound = 1e-12 if dtype == torch.float64 else 1e-5
    assert pooled.dtype == grad.dtype == dtype
    assert difference(pooled, RECORDED[name]) < bound
    assert difference(grad, RECORDED[f"{name}_grad"]) < bound


def test_roi_pool_and_its_gradient_are_those_of_torchvision():
    rois = RECORDED["rois"]
    pooled, (grad,) = with_gradient(lambda x: roi_pool(x, rois, BINS, spatial_scale=SCALE), RECORDED["features"])
    assert torch.equal(pooled, RECORDED["pool"])
    assert difference(grad, RECORDED["pool_grad"]) < 1e-12


def test_the_pyramid_pools_what_torchvision_pools_from_the_same_levels():
    maps = [RECORDED[f"map_{number}"] for number in range(4)]
    rois, scales = RECORDED["pyramid_rois"], (1 / 4, 1 / 8, 1 / 16, 1 / 32)
    pooled, grads = with_gradient(
        lambda *levels: multi_level_roi_align(levels, rois, 2, scales, canonical_size=40.0), *maps
    )
    assert difference(pooled, RECORDED["pyramid"]) < 1e-12
    used = assign_levels(rois[:, 1:], 2, 5, canonical_size=40.0).unique()
    assert len(used) > 2
    for number, grad in enumerate(grads):
        assert torch.allclose(grad, RECORDED[f"map_{number}_grad"], rtol=0, atol=1e-12)


def test_levels_change_where_torchvision_changes_them():
    assert torch.equal(assign_levels(RECORDED["level_boxes"], 2, 5), RECORDED["levels"])
    empty = torch.tensor([[5.0, 5, 5, 5], [5, 5, 4, 9]])
    assert assign_levels(empty, 2, 5).tolist() == [2, 2]


@pytest.mark.parametrize("ratio", [1, 2, 0])
def test_a_linear_map_is_read_at_the_middle_of_every_bin(ratio):
    roi = torch.tensor([[0, 8.0, 12.0, 36.0, 40.0]])  # pixels at stride 4: x from 2 to 9 cells, y from 3 to 10
    pooled = roi_align(ramp(16, 16), roi, 7, spatial_scale=1 / 4, sampling_ratio=ratio)[0, 0]
    x, y = 2.5 + torch.arange(7.0), 3.5 + torch.arange(7.0)
    assert torch.allclose(pooled, 2 * x + 3 * y[:, None], atol=1e-5)


def test_the_parts_in_which_bags_are_made_change_nothing(monkeypatch):
    features, rois = RECORDED["features"], RECORDED["rois"]
    expected = [roi_align(features, rois, BINS, spatial_scale=SCALE, sampling_ratio=ratio) for ratio in (0, 2)]
    expected.append(roi_pool(features, rois, BINS, spatial_scale=SCALE))
    monkeypatch.setattr(module, "_TAPS_AT_ONCE", 50)
    found = [roi_align(features, rois, BINS, spatial_scale=SCALE, sampling_ratio=ratio) for ratio in (0, 2)]
    found.append(roi_pool(features, rois, BINS, spatial_scale=SCALE))
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_channels_last_maps_give_the_same():
    features = RECORDED["features"].float()
    last = features.contiguous(memory_format=torch.channels_last)
    rois = RECORDED["rois"].float()
    assert torch.equal(roi_align(last, rois, 3, spatial_scale=SCALE), roi_align(features, rois, 3, spatial_scale=SCALE))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_float32_rounded_once(dtype):
    features = RECORDED["features"].to(dtype)
    rois = RECORDED["rois"].float()
    for pool in (roi_align, roi_pool):
        exact = pool(features.float(), rois, BINS, spatial_scale=SCALE)
        pooled, (grad,) = with_gradient(lambda x, pool=pool: pool(x, rois, BINS, spatial_scale=SCALE), features)
        assert torch.equal(pooled, exact.to(dtype))
        assert grad.dtype == dtype and float(grad.abs().sum()) > 0


def test_gradients_are_those_of_finite_differences_to_the_second_order():
    features = RECORDED["features"][:, :1, :4, :5].clone().requires_grad_()
    rois = torch.tensor([[0, 1.0, 2, 15, 14], [1, 3, 3, 9, 12]], dtype=torch.float64)

    def pool(x):
        return roi_align(x, rois, 2, spatial_scale=SCALE).pow(2)

    assert torch.autograd.gradcheck(pool, (features,))
    assert torch.autograd.gradgradcheck(pool, (features,))


def test_no_regions_give_an_empty_result_with_a_gradient_of_zeros():
    maps = [torch.randn(2, 3, side, side, requires_grad=True) for side in (8, 4)]
    none = torch.zeros(0, 5)
    for pooled in (
        roi_align(maps[0], none, 7),
        roi_pool(maps[0], none, (7, 5)),
        multi_level_roi_align(maps, none, 7, (1 / 4, 1 / 8)),
    ):
        assert pooled.shape[:3] == (0, 3, 7)
        maps[0].grad = None
        pooled.sum().backward()
        assert maps[0].grad is not None and not maps[0].grad.any()


def test_regions_that_reach_nothing_give_zeros():
    features = torch.ones(1, 2, 8, 8)
    nowhere = torch.tensor([[0, 100.0, 100, 120, 120], [0, float("nan"), 0, 8, float("inf")], [0, -30, -30, -20, -20]])
    for ratio in (0, 2):
        assert not roi_align(features, nowhere, 3, sampling_ratio=ratio).any()
    assert not roi_pool(features, nowhere[::2], 3).any()


def test_wrong_regions_are_named():
    features = torch.zeros(2, 1, 4, 4)
    with pytest.raises(ValueError, match=r"shape \(3, 4\): \[rois, 5\]"):
        roi_align(features, torch.zeros(3, 4), 7)
    with pytest.raises(ValueError, match="batch of 2"):
        roi_pool(features, torch.tensor([[2.0, 0, 0, 1, 1]]), 7)
    with pytest.raises(ValueError, match="2 scales"):
        multi_level_roi_align([features], torch.zeros(0, 5), 7, (0.5, 0.25))
