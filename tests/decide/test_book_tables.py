"""The value tables printed in Zhao's book, the traps in them, and truncated policy iteration between its two ends."""

import dataclasses
import itertools

import numpy as np
import pytest

from odonata.decide import book
from odonata.decide import dynamic_programming as dp
from odonata.decide.gridworld import GridRules, grid_mdp

FUZZ = 1e-9
BY_FIGURE = {table.figure.split(":")[0]: table for table in book.TABLES}


@pytest.mark.parametrize("table", book.TABLES, ids=lambda table: table.figure)
def test_a_printed_table_reproduces_to_its_one_decimal(table):
    assert len(table.values) == 25
    assert table.error() <= book.TOLERANCE + FUZZ


def test_a_target_that_ends_nothing_is_worth_what_staying_there_pays():
    assert dp.optimal(grid_mdp())[17] == pytest.approx(1 / (1 - 0.9), rel=1e-12)
    # Where it ends the episode, nothing follows it, and the cell above it is worth one target.
    ends = dp.optimal(grid_mdp(rules=GridRules(target="terminal")))
    assert ends[12] == pytest.approx(1.0)


@pytest.mark.parametrize("figure", ["5.6(b)", "5.6(c)", "5.6(d)", "5.7(b)", "5.7(c)", "5.7(d)", "8.6"])
def test_each_table_holds_only_under_one_reading_of_a_bump_on_a_forbidden_cell(figure):
    table = BY_FIGURE[figure]
    assert dataclasses.replace(table, bumps_add=not table.bumps_add).error() > 0.2


def test_the_bump_under_the_forbidden_cell_of_the_last_row_shows_the_trap_by_hand():
    down, cell = 2, 21  # row 5, column 2
    for bump, cost in (("boundary", -1.0), ("sum", -11.0)):
        mdp = grid_mdp(rules=GridRules(r_forbidden=-10, bump_on_forbidden=bump))
        assert mdp.expected_rewards[cell, down] == cost
        assert mdp.successors[cell, down, 0] == cell
        assert mdp.expected_rewards[20, down] == -1.0  # a free cell pays for the border alone
        assert mdp.expected_rewards[cell, 4] == -10.0  # staying on it is entering it again


def test_the_misprinted_cell_of_figure_5_7_c_is_closer_to_minus_1_1():
    table = BY_FIGURE["5.7(c)"]
    assert np.isnan(table.values[10])
    assert table.solve()[10] == pytest.approx(-1.134, abs=5e-4)


@pytest.mark.parametrize(("sweeps", "iterations"), book.EVALUATION_SWEEPS.items())
def test_more_sweeps_an_iteration_need_fewer_iterations(sweeps, iterations):
    assert book.iterations_to(1e-3, sweeps) == iterations


@pytest.mark.parametrize("sweeps", [2, 7, 40])
def test_whatever_lies_between_value_and_policy_iteration_ends_at_the_same_values(sweeps):
    mdp = grid_mdp(rules=GridRules(r_forbidden=-10))
    ends = [
        dp.value_iteration(mdp, tolerance=1e-12),
        dp.truncated_policy_iteration(mdp, sweeps, tolerance=1e-12),
        dp.policy_iteration(mdp, tolerance=1e-12),
    ]
    assert all(end.converged for end in ends)
    for end in ends[:2]:
        np.testing.assert_allclose(end.values, ends[2].values, rtol=0, atol=1e-10)
        np.testing.assert_allclose(dp.evaluate_exactly(mdp, end.policy), ends[2].values, rtol=0, atol=1e-10)


def test_one_sweep_is_value_iteration_bit_for_bit():
    mdp, values = grid_mdp(), np.zeros(25)
    for _ in range(30):
        improved, _ = dp.improve(mdp, values, 1)
        values = mdp.backup(values).max(1)
        np.testing.assert_array_equal(improved, values)


def test_iterations_stop_where_no_value_changed_by_the_tolerance_and_say_when_they_did_not():
    mdp = grid_mdp()
    done = dp.value_iteration(mdp, tolerance=1e-3)
    assert done.converged and done.changes[-1] < 1e-3 <= done.changes[-2]
    cut = dp.value_iteration(mdp, tolerance=1e-3, limit=5)
    assert not cut.converged and cut.iterations == 5
    # Once only the target still gains, the change of sweep k is γ^(k − 1): below 1e-3 first at k = 67.
    assert done.iterations == 67


def test_evaluation_by_sweeps_and_by_a_linear_system_agree():
    mdp = grid_mdp()
    exact = dp.evaluate_exactly(mdp, dp.uniform(mdp))
    swept, sweeps = dp.evaluate_iteratively(mdp, dp.uniform(mdp), tolerance=1e-12)
    np.testing.assert_allclose(swept, exact, rtol=0, atol=1e-10)
    assert 100 < sweeps < 1000


def test_a_soft_policy_gives_the_best_action_what_exploration_leaves():
    q = np.array([[0.0, 2.0, 1.0, 2.0, -1.0]])
    np.testing.assert_allclose(dp.soft(q, 0.5), [[0.1, 0.6, 0.1, 0.1, 0.1]])
    np.testing.assert_array_equal(dp.soft(q), [[0, 1, 0, 0, 0]])  # of equal ones the first
    np.testing.assert_allclose(dp.soft(q, 1.0), np.full((1, 5), 0.2))


def test_more_exploration_costs_more_and_a_policy_never_beats_the_best_one():
    mdp = grid_mdp(rules=GridRules(r_forbidden=-10))
    best = [dp.optimal(mdp, epsilon) for epsilon in (0.0, 0.1, 0.3, 0.6, 1.0)]
    assert all((more <= less + 1e-12).all() for less, more in itertools.pairwise(best))
    np.testing.assert_allclose(best[-1], dp.evaluate_exactly(mdp, dp.uniform(mdp)), rtol=0, atol=1e-10)
