"""Robbins and Monro's algorithm: its conditions, means as its case, and descent along gradients of samples."""

import numpy as np
import pytest

from odonata.decide.stochastic_approximation import StepSize, means, robbins_monro, sgd
from odonata.errors import RecipeError


def test_one_over_k_is_the_mean_of_all_samples_so_far():
    samples = np.random.default_rng(0).normal(3.0, 2.0, (200, 4))
    running = np.cumsum(samples, 0) / np.arange(1, 201)[:, None]
    np.testing.assert_allclose(means(samples, np.full(4, 1e6), StepSize()), running, rtol=1e-9)


def test_a_constant_step_weighs_samples_by_their_age():
    samples = np.random.default_rng(0).normal(size=(50, 1))
    weights = 0.2 * 0.8 ** np.arange(49, -1, -1)
    wanted = 0.8**50 * 10 + weights @ samples[:, 0]
    assert means(samples, np.full(1, 10.0), StepSize(0.2, power=0))[-1, 0] == pytest.approx(wanted, rel=1e-12)


def test_estimates_of_a_mean_err_as_their_step_sizes_allow():
    samples = np.random.default_rng(1).normal(size=(2000, 400))
    known = {StepSize(): 0.018, StepSize(power=0.6): 0.058, StepSize(0.05, power=0): 0.12, StepSize(power=2): 0.43}
    for sizes, error in known.items():
        found = np.abs(means(samples, np.full(400, 10.0), sizes)[-1]).mean()
        assert found == pytest.approx(error, rel=0.25)


def test_a_root_is_found_without_noise_as_the_book_prints():
    # g(w) = tanh(w − 1) from w = 3: 1.029 after 50 steps.
    w, diverged = robbins_monro(lambda w: np.tanh(w - 1), np.array([3.0]), 49, StepSize())
    assert w[0] == pytest.approx(1.029, abs=2e-3)
    assert np.isinf(diverged).all()


@pytest.mark.parametrize(("offset", "low", "high"), [(0, 0.97, 1.0), (1, 0.2, 0.5), (2, 0.0, 0.02)])
def test_a_slope_without_a_bound_runs_away_unless_the_first_steps_are_small(offset, low, high):
    rng = np.random.default_rng(2)
    measure = lambda w: w**3 - 5 + rng.standard_normal(len(w))  # noqa: E731
    _, diverged = robbins_monro(measure, np.zeros(1000), 2000, StepSize(offset=offset))
    assert low <= np.isfinite(diverged).mean() <= high


def test_what_diverged_stays_where_it_was_left_and_the_others_go_on():
    w, diverged = robbins_monro(lambda w: w**3 - 5, np.array([100.0, 1.7]), 3000, StepSize(offset=9))
    assert diverged[0] <= 3 and np.isfinite(w[0]) and abs(w[0]) > 1e6
    assert np.isinf(diverged[1]) and w[1] == pytest.approx(5 ** (1 / 3), abs=1e-6)


def test_descent_along_one_samples_gradient_is_the_incremental_mean():
    samples = np.random.default_rng(3).normal(size=(100, 2))
    gradient = lambda w, x: w - x.mean(0)  # noqa: E731 - of the mean of |w − x|² / 2
    path = sgd(gradient, np.zeros(2), samples, StepSize(), steps=300, rng=np.random.default_rng(4))
    rng = np.random.default_rng(4)
    drawn = np.array([samples[rng.integers(100, size=1)][0] for _ in range(300)])
    np.testing.assert_allclose(path, means(drawn, np.zeros(2), StepSize()), rtol=1e-12)


def test_a_batch_of_everything_is_gradient_descent_and_larger_batches_scatter_less():
    samples = np.random.default_rng(3).uniform(-1, 1, (64, 1))
    gradient = lambda w, x: w - x.mean(0)  # noqa: E731
    half = StepSize(0.5, power=0)
    whole = sgd(gradient, np.array([8.0]), samples, half, steps=40, batch=64, rng=np.random.default_rng(0))
    np.testing.assert_allclose(whole[:, 0] - samples.mean(), (8 - samples.mean()) * 0.5 ** np.arange(1, 41), atol=1e-14)
    scatter = [
        sgd(gradient, np.zeros(1), samples, half, steps=2000, batch=batch, rng=np.random.default_rng(5))[100:].std()
        for batch in (1, 4, 16)
    ]
    assert scatter[0] > 1.5 * scatter[1] > 2.25 * scatter[2]


def test_step_sizes_know_the_two_conditions():
    harmonic, slow, constant, fast = StepSize(), StepSize(power=0.6), StepSize(0.05, power=0), StepSize(power=2)
    assert [s.sums_to_infinity for s in (harmonic, slow, constant, fast)] == [True, True, True, False]
    assert [s.squares_are_summable for s in (harmonic, slow, constant, fast)] == [True, True, False, True]
    assert StepSize(offset=2).at(1) == pytest.approx(1 / 3)


def test_step_sizes_and_batches_that_make_no_sense_are_refused():
    for wrong in ({"scale": 0.0}, {"scale": float("nan")}, {"power": -0.1}, {"offset": -1.0}):
        with pytest.raises(RecipeError, match="wants a positive scale"):
            StepSize(**wrong)
    with pytest.raises(RecipeError, match="a batch of 5 from 4 samples"):
        sgd(lambda w, x: w, np.zeros(1), np.zeros((4, 1)), StepSize(), steps=1, batch=5, rng=np.random.default_rng(0))
