"""Processes of maps and of Gymnasium's models: exact values, a linear program as oracle, and bad input."""

import gymnasium
import numpy as np
import pytest
from scipy.optimize import linprog

from odonata.decide import dynamic_programming as dp
from odonata.decide.gridworld import BOOK_MAP, GridRules, grid_mdp, read_map
from odonata.decide.mdp import MDP, from_environment, from_model
from odonata.decide.world import gymnasium_world
from odonata.errors import DataError, RecipeError


def values_by_linear_program(model, discount):
    """v* as the least v with v(s) ≥ Σ p (r + γ v(s')) for every action, straight from Gymnasium's `P`, by HiGHS."""
    states = len(model)
    rows, bounds = [], []
    for state, actions in model.items():
        for outcomes in actions.values():
            row, gain = np.zeros(states), 0.0
            row[state] -= 1
            for probability, successor, reward, terminated in outcomes:
                gain += probability * reward
                row[int(successor)] += 0.0 if terminated else discount * probability
            rows.append(row)
            bounds.append(-gain)
    found = linprog(np.ones(states), A_ub=np.array(rows), b_ub=np.array(bounds), bounds=(None, None), method="highs")
    assert found.success, found.message
    return found.x


@pytest.mark.shows("gridworld", "parity")
@pytest.mark.parametrize(
    ("name", "options", "discount"),
    [
        ("FrozenLake-v1", {}, 0.99),
        ("FrozenLake-v1", {"map_name": "8x8"}, 0.99),
        ("FrozenLake-v1", {"is_slippery": False}, 0.9),
        ("CliffWalking-v1", {}, 0.95),
        ("CliffWalking-v1", {"is_slippery": True}, 0.95),
    ],
)
@pytest.mark.parametrize("sweeps", [1, 5, None], ids=["value", "truncated", "policy"])
def test_the_solvers_agree_with_the_linear_program_of_gymnasiums_model(name, options, discount, sweeps):
    environment = gymnasium.make(name, **options)
    exact = values_by_linear_program(environment.unwrapped.P, discount)
    found = dp.iterate(from_environment(environment, discount), sweeps, tolerance=1e-11)
    assert np.abs(found.values - exact).max() < 1e-6 * np.abs(exact).max()


@pytest.mark.shows("gridworld", "parity")
def test_the_grid_agrees_with_its_linear_program_whose_model_is_written_out_here():
    moves, forbidden, target = ((-1, 0), (0, 1), (1, 0), (0, -1), (0, 0)), {6, 7, 12, 16, 18, 21}, 17
    model = {}
    for state in range(25):
        model[state] = {}
        for action, (down, right) in enumerate(moves):
            y, x = state // 5 + down, state % 5 + right
            inside = 0 <= y < 5 and 0 <= x < 5
            after = 5 * y + x if inside else state
            reward = -1.0 if not inside else 1.0 if after == target else -10.0 if after in forbidden else 0.0
            model[state][action] = [(1.0, after, reward, False)]
    exact = values_by_linear_program(model, 0.9)
    ours = dp.policy_iteration(grid_mdp(rules=GridRules(r_forbidden=-10)), tolerance=1e-11).values
    assert np.abs(ours - exact).max() < 1e-6 * np.abs(exact).max()
    # The same model, read in Gymnasium's form, is the same process.
    assert from_model(model, 0.9).fingerprint() == grid_mdp(rules=GridRules(r_forbidden=-10)).fingerprint()


@pytest.mark.parametrize(
    ("name", "options", "discount", "start"),
    [
        ("FrozenLake-v1", {}, 0.99, 0.54203),
        ("FrozenLake-v1", {"map_name": "8x8"}, 0.99, 0.41464),
        ("CliffWalking-v1", {}, 1.0, -13.0),
    ],
)
def test_the_first_state_of_gymnasiums_worlds_is_worth_what_is_known(name, options, discount, start):
    mdp = from_environment(gymnasium.make(name, **options), discount)
    assert mdp.starts @ dp.optimal(mdp) == pytest.approx(start, abs=5e-6)
    if discount < 1:
        values = dp.policy_iteration(mdp, tolerance=1e-10).values
        assert mdp.starts @ values == pytest.approx(start, abs=5e-6)


def test_taxi_has_five_hundred_states_and_no_grid():
    world = gymnasium_world("Taxi-v4", {}, 0.99)
    assert (world.mdp.states, world.mdp.actions, world.legend.shape) == (500, 6, (500, 1))
    assert world.legend.actions == ("0", "1", "2", "3", "4", "5") and not world.legend.is_grid
    # 300 starts: the passenger waits at one of four places and wants to another.
    assert (world.mdp.starts > 0).sum() == 300


@pytest.mark.parametrize(
    ("name", "options", "actions"),
    [
        ("FrozenLake-v1", {}, ("left", "down", "right", "up")),
        ("FrozenLake-v1", {"is_slippery": "false"}, ("left", "down", "right", "up")),
        ("CliffWalking-v1", {}, ("up", "right", "down", "left")),
    ],
)
def test_directions_are_found_from_where_actions_lead(name, options, actions):
    # As the documentation of these environments numbers them.
    legend = gymnasium_world(name, options, 0.9).legend
    assert legend.actions == actions and legend.is_grid


def test_what_no_episode_comes_to_is_known():
    cliff = from_environment(gymnasium.make("CliffWalking-v1"), 0.9)
    # The ten cells of the cliff throw back to the start, and the goal is the end: 48 − 11 cells are walked on.
    assert cliff.reachable.sum() == 37 and not cliff.reachable[37:].any()
    lake = from_environment(gymnasium.make("FrozenLake-v1"), 0.9)
    assert lake.reachable.sum() == 11  # the frozen ones: four holes and the goal end it
    assert grid_mdp().reachable.all()


def test_a_draw_follows_the_probabilities_to_the_last_outcome_that_can_happen():
    model = {0: {0: [(0.25, 0, 0.0, False), (0.75, 1, 1.0, False)]}, 1: {0: [(1.0, 0, 0.0, True)]}}
    mdp = from_model(model, 0.5)
    np.testing.assert_array_equal(mdp.cumulative[:, 0], [[0.25, 1.0], [1.0, 1.0]])
    # v(1) = 0, for the episode ends; v(0) = 3/4 + v(0)/8.
    np.testing.assert_allclose(dp.evaluate_exactly(mdp, np.ones((2, 1))), [0.75 / 0.875, 0.0])


@pytest.mark.shows("gridworld", "manners")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("..T\n.x.\n", r"map\.txt:2: 'x' in column 2 is no cell; known are \. \(free\), # \(forbidden\), T \(target\)"),
        ("..T\n....\n", r"map\.txt:2: 4 cells, and 3 in line 1; rows must be equally long"),
        ("..T\n\n...\n", r"map\.txt:2: 0 cells, and 3 in line 1"),
        ("\n\n", r"map\.txt: the map is empty"),
        ("\n..T\n", r"map\.txt:2: 3 cells, and 0 in line 1"),
        ("...\n...\n", r"map\.txt: there is no target \(T\) on the map"),
    ],
)
def test_a_map_that_is_none_is_refused_by_file_and_line(tmp_path, text, message):
    (tmp_path / "map.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        read_map(tmp_path / "map.txt")


@pytest.mark.shows("gridworld", "manners")
def test_a_map_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"none\.txt: cannot read the map: No such file"):
        read_map(tmp_path / "none.txt")
    (tmp_path / "map.txt").write_bytes(b"..\xffT")
    with pytest.raises(DataError, match=r"map\.txt: not a text file: byte 2 is no UTF-8"):
        read_map(tmp_path / "map.txt")


def test_a_map_from_a_file_is_the_books_and_starts_where_it_says(tmp_path):
    (tmp_path / "map.txt").write_text("\n".join(BOOK_MAP) + "\n\n")
    assert read_map(tmp_path / "map.txt") == BOOK_MAP
    (tmp_path / "map.txt").write_text("S.\r\nT.\r\n")
    mdp = grid_mdp(read_map(tmp_path / "map.txt"))
    np.testing.assert_array_equal(mdp.starts, [1, 0, 0, 0])
    np.testing.assert_array_equal(grid_mdp().starts, np.full(25, 1 / 25))


@pytest.mark.shows("gridworld", "manners")
def test_an_environment_without_a_model_or_a_name_is_refused():
    with pytest.raises(RecipeError, match=r"CartPoleEnv has no model \(env\.unwrapped\.P\).*FrozenLake-v1"):
        gymnasium_world("CartPole-v1", {}, 0.9)
    with pytest.raises(RecipeError, match=r"--env FrozenPond-v1: Environment `FrozenPond` doesn't exist"):
        gymnasium_world("FrozenPond-v1", {}, 0.9)
    with pytest.raises(RecipeError, match=r"--env FrozenLake-v1: .*slipery"):
        gymnasium_world("FrozenLake-v1", {"slipery": "false"}, 0.9)


@pytest.mark.shows("gridworld", "manners")
def test_models_that_no_process_has_are_refused_with_the_place():
    good = [(1.0, 0, 0.0, False)]
    with pytest.raises(DataError, match=r"state 1, action 0: probabilities \[0\.9\].*sum to 1"):
        from_model({0: {0: good}, 1: {0: [(0.9, 0, 0.0, False)]}}, 0.9)
    with pytest.raises(DataError, match=r"state 0, action 0: .*successors \[7\].*states below 1"):
        from_model({0: {0: [(1.0, 7, 0.0, False)]}}, 0.9)
    with pytest.raises(DataError, match=r"rewards \[nan\]"):
        from_model({0: {0: [(1.0, 0, float("nan"), False)]}}, 0.9)
    with pytest.raises(DataError, match="2 states, but state 1 lacks one of the actions 0 … 1"):
        from_model({0: {0: good, 1: good}, 1: {0: good}}, 0.9)
    with pytest.raises(RecipeError, match=r"--discount is 1\.1; it must lie in \[0, 1\]"):
        from_model({0: {0: good}}, 1.1)
    with pytest.raises(DataError, match=r"first state sum to 0\.5"):
        MDP(np.ones((1, 1, 1)), np.zeros((1, 1, 1), np.int64), np.zeros((1, 1, 1)), np.zeros((1, 1, 1), np.bool_), 0.9,
            np.array([0.5]))  # fmt: skip


@pytest.mark.shows("gridworld", "manners")
def test_values_that_do_not_exist_are_refused_or_reported_as_absent():
    forever = grid_mdp(discount=1.0)
    assert dp.optimal(forever, limit=1000) is None
    with pytest.raises(RecipeError, match=r"--discount is 1, and from state 0 the policy never ends"):
        dp.policy_iteration(forever)
    # Where the target ends the episode, and each step costs, there are values without a discount.
    ending = grid_mdp(("S.T",), GridRules(target="terminal", r_other=-1, r_target=-1), discount=1.0)
    np.testing.assert_array_equal(dp.optimal(ending), [-2, -1, 0])
