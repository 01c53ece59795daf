"""Corner pools against a scan written out, in values and in where gradients go."""

import numpy as np
import pytest
import torch

from odonata.ops.corner_pool import bottom_pool, left_pool, right_pool, top_pool

POOLS = {
    # which way the scan goes: axis of the array [height, width], and whether it starts at the far end
    "top": (top_pool, 0, True),
    "bottom": (bottom_pool, 0, False),
    "left": (left_pool, 1, True),
    "right": (right_pool, 1, False),
}


def scan(values, upstream, axis, from_end):
    """One map: the running maximum, replaced only by what is strictly greater; the gradient goes to its source."""
    values, upstream = (array if axis == 1 else array.T for array in (values, upstream))
    pooled, gradient = np.empty_like(values), np.zeros_like(values)
    for line in range(len(values)):
        order = range(values.shape[1])
        best = None
        for place in reversed(order) if from_end else order:
            if best is None or values[line, place] > values[line, best]:
                best = place
            pooled[line, place] = values[line, best]
            gradient[line, best] += upstream[line, place]
    return (pooled, gradient) if axis == 1 else (pooled.T, gradient.T)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("name", POOLS)
def test_values_and_gradients_are_those_of_the_scan(name, ties):
    pool, axis, from_end = POOLS[name]
    features = torch.randn(2, 3, 7, 9, dtype=torch.float64)
    if ties:
        features = features.relu().mul(2).round()
    features.requires_grad_()
    upstream = torch.randn_like(features)
    pooled = pool(features)
    (gradient,) = torch.autograd.grad(pooled, features, upstream)
    for index in np.ndindex(2, 3):
        expected = scan(features.detach().numpy()[index], upstream.numpy()[index], axis, from_end)
        assert np.array_equal(pooled[index].detach(), expected[0])
        assert np.allclose(gradient[index], expected[1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", POOLS)
def test_without_gradients_the_values_are_the_same(name):
    pool = POOLS[name][0]
    features = torch.randn(1, 2, 6, 5, requires_grad=True)
    with torch.no_grad():
        quick = pool(features)
    assert torch.equal(quick, pool(features).detach()) and not quick.requires_grad


def test_edges_of_an_object_meet_in_its_corners():
    edges = torch.zeros(1, 1, 8, 8)
    edges[..., 2, 4] = 1  # the topmost place of an object
    edges[..., 5, 1] = 1  # its leftmost
    corner = left_pool(edges) + top_pool(edges)
    both = (corner == 2).nonzero()[:, 2:].tolist()
    assert [2, 1] in both  # top-left: row of the topmost, column of the leftmost
    assert (bottom_pool(edges) + right_pool(edges))[0, 0, 5, 4] == 2  # bottom-right of the same two


def test_one_line_pools_to_itself():
    features = torch.randn(1, 2, 1, 1, requires_grad=True)
    assert all(torch.equal(pool(features), features) for pool, _, _ in POOLS.values())
