"""Intervals: coverage, agreement with scipy, determinism."""

import numpy as np
import pytest
from scipy import stats

from odonata.errors import DataError
from odonata.metrics.bootstrap import bootstrap_mean, paired_bootstrap, paired_t_interval


def test_the_interval_agrees_with_scipy_s_percentile_bootstrap():
    values = np.random.default_rng(0).exponential(size=200)
    ours = bootstrap_mean(values)
    theirs = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=10_000, rng=1).confidence_interval
    assert ours.estimate == pytest.approx(values.mean())
    assert [ours.low, ours.high] == pytest.approx([theirs.low, theirs.high], rel=0.01)


def test_it_covers_the_truth_about_as_often_as_it_says():
    generator = np.random.default_rng(1)
    covered = [
        not bootstrap_mean(generator.random(60) < 0.7, level=0.9, resamples=400, seed=i).excludes(0.7)
        for i in range(300)
    ]
    assert 0.84 < np.mean(covered) < 0.95


def test_the_same_seed_gives_the_same_interval_and_blocks_do_not_matter():
    values = np.random.default_rng(0).random(5000)
    assert bootstrap_mean(values, resamples=2000) == bootstrap_mean(list(values), resamples=2000)
    assert bootstrap_mean(values, resamples=2000) != bootstrap_mean(values, resamples=2000, seed=1)


def test_pairing_finds_a_small_steady_difference():
    base = np.random.default_rng(0).normal(0, 10, 100)
    better = base + 0.1 + np.random.default_rng(1).normal(0, 0.1, 100)
    assert paired_bootstrap(better, base).excludes(0)
    assert not bootstrap_mean(better).excludes(float(base.mean()))


def test_the_t_interval_is_scipy_s():
    a, b = np.array([0.61, 0.64, 0.60, 0.66]), np.array([0.58, 0.62, 0.61, 0.60])
    ours = paired_t_interval(a, b, level=0.9)
    theirs = stats.ttest_rel(a, b).confidence_interval(0.9)
    assert [ours.low, ours.high] == pytest.approx([theirs.low, theirs.high])


def test_what_does_not_fit_is_named():
    with pytest.raises(DataError, match="not 3 and 2"):
        paired_bootstrap([1, 2, 3], [1, 2])
    with pytest.raises(DataError, match="2 values or more, not 1"):
        paired_t_interval([1], [2])
    with pytest.raises(DataError, match="value 1 is not finite"):
        bootstrap_mean([1, float("nan")])
    with pytest.raises(DataError, match="level must lie between 0 and 1, not 95"):
        bootstrap_mean([1, 2], level=95)
