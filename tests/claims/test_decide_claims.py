"""The claims about tables: their trials measure what their comparisons read, are paired, and are what they say."""

import math

import numpy as np
import pytest

from odonata import claims
from odonata.claims import decide_monte_carlo, decide_robbins_monro
from odonata.claims.claim import Trial
from odonata.decide import dynamic_programming as dp

NAMES = ("robbins-monro", "monte-carlo-dp")
CELLS = [(name, variant) for name in NAMES for variant in claims.load(name).variants]


def trial_of(name, variant, condition=None, budget=0.02, seed=101):
    claim = claims.load(name)
    return Trial(name, condition or claim.conditions[0], variant, {}, seed, "test", budget)


@pytest.mark.parametrize(("name", "variant"), CELLS)
def test_a_trial_measures_all_that_is_compared(name, variant):
    claim = claims.load(name)
    for condition in claim.conditions:
        trial = trial_of(name, variant, condition, budget=0.01)
        figures = claim.trial(trial)
        compared = {c.quantity for c in claim.comparisons if trial.cell in c.cells()}
        assert compared | {plot.quantity for plot in claim.plots} <= figures.keys()
        assert all(math.isfinite(value) for value in figures.values())


@pytest.mark.parametrize(("name", "variant"), CELLS)
def test_a_seed_decides_a_trial(name, variant):
    claim = claims.load(name)
    one, same, other = (claim.trial(trial_of(name, variant, budget=0.2, seed=seed)) for seed in (101, 101, 102))
    assert one == same
    assert variant == "MC Basic" or one != other  # which has no chance to decide


def test_step_sizes_see_the_same_noise():
    one, other = (decide_robbins_monro.measurer(decide_robbins_monro.MEAN, 7) for _ in range(2))
    np.testing.assert_array_equal(one(np.zeros(9)), other(np.zeros(9)))


def test_the_functions_are_zero_at_their_roots_and_rise_through_them():
    for function, root in decide_robbins_monro.ROOTS.items():
        below, at, above = decide_robbins_monro.value(function, np.array([root - 0.1, root, root + 0.1]))
        assert below < 0 < above and at == pytest.approx(0, abs=1e-12)


def test_what_ran_away_is_counted_and_not_averaged_away():
    trial = trial_of("robbins-monro", "1/k", decide_robbins_monro.UNBOUNDED, budget=0.05)
    figures = decide_robbins_monro.trial(trial)
    assert figures["diverged"] > 0.9 and figures["error"] > 9e5


def test_each_learner_is_held_against_its_own_target():
    best, soft = dp.optimal(decide_monte_carlo.MDP), dp.optimal(decide_monte_carlo.MDP, decide_monte_carlo.EPSILON)
    np.testing.assert_array_equal(decide_monte_carlo.target("Q-learning"), best)
    np.testing.assert_array_equal(decide_monte_carlo.target("4-step Sarsa"), soft)
    assert (decide_monte_carlo.target("MC Basic") < best).all()  # a hundred steps see less than all
    assert (soft < best).all()
