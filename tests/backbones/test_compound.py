"""Compound scaling: the search, and equal cost by one axis."""

import pytest

from odonata.backbones.compound import PAPER, grid, macs, scale, scale_compound, scale_one_axis, search
from odonata.backbones.create import variant

BASE = variant("efficientnet-small")


def test_the_papers_coefficients_about_double_the_cost():
    alpha, beta, gamma = PAPER
    assert alpha * beta**2 * gamma**2 == pytest.approx(2, rel=0.05)
    base = variant("efficientnet-b0")
    # Every stage of B0 rounds up to one more block, so the first doubling is more than that; then it evens out.
    assert macs(scale_compound(base, 1)) / macs(base) == pytest.approx(2.58, rel=0.01)
    assert macs(scale_compound(base, 4)) / macs(base) == pytest.approx(16, rel=0.05)


def test_the_published_sizes_are_not_the_powers():
    base, b4 = variant("efficientnet-b0"), variant("efficientnet-b4")
    powers = scale_compound(base, 4)
    assert powers.resolution == 392  # 1.15⁴ · 224
    assert b4.resolution == 380
    assert powers.depth == pytest.approx(1.2**4)


def test_a_grid_holds_what_doubles_the_cost_and_nothing_else():
    found = grid([1.0, 1.2, 1.4, 2.0], [1.0, 1.1, 1.2], [1.0, 1.15, 1.4], tolerance=0.05)
    assert PAPER in found
    assert (2.0, 1.0, 1.0) in found
    assert (1.4, 1.2, 1.4) not in found
    assert all(a * b * b * g * g == pytest.approx(2, rel=0.05) for a, b, g in found)
    with pytest.raises(ValueError, match="no alpha, beta, gamma"):
        grid([1.0], [1.0], [1.1])


def test_a_search_returns_every_candidate_best_first_with_its_counted_cost():
    candidates = [(2.0, 1.0, 1.0), (1.0, 1.4, 1.0), (1.0, 1.0, 1.4)]
    rows = search(BASE, candidates, lambda config: config.width)
    assert (rows[0].alpha, rows[0].beta, rows[0].gamma) == (1.0, 1.4, 1.0)
    assert len(rows) == 3
    assert all(row.macs == macs(row.config) for row in rows)
    assert rows[0].config == scale(BASE, 1.0, 1.4, 1.0)
    assert rows[0].score == pytest.approx(BASE.width * 1.4)


@pytest.mark.parametrize(("axis", "tolerance"), [("depth", 0.12), ("width", 0.12), ("resolution", 0.12)])
def test_one_axis_reaches_the_cost_of_the_compound(axis, tolerance):
    wanted = macs(scale_compound(BASE, 2))
    config, factor = scale_one_axis(BASE, axis, wanted)
    assert macs(config) == pytest.approx(wanted, rel=tolerance)
    assert factor > 1
    kept = {"depth", "width", "resolution"} - {axis}
    assert all(getattr(config, name) == getattr(BASE, name) for name in kept)


def test_one_axis_can_shrink():
    config, factor = scale_one_axis(BASE, "resolution", macs(BASE) / 4)
    assert factor == pytest.approx(0.5, abs=0.06)
    assert macs(config) < macs(BASE) / 3


def test_a_cost_out_of_reach_is_refused():
    with pytest.raises(ValueError, match="depth alone still costs"):
        scale_one_axis(BASE, "depth", macs(BASE) / 100)
