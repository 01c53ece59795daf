"""Monte Carlo and temporal differences: what they converge to, how they relate, and their traps."""

import numpy as np
import pytest

from odonata.decide import dynamic_programming as dp
from odonata.decide import monte_carlo as mc
from odonata.decide import temporal_difference as td
from odonata.decide.gridworld import GridRules, grid_mdp
from odonata.decide.mdp import from_model
from odonata.decide.sampling import explore
from odonata.decide.stochastic_approximation import StepSize

BOOK = grid_mdp(rules=GridRules(r_forbidden=-10))
GRID = grid_mdp()
PATH = grid_mdp(
    ("S....", ".##..", "..#..", ".#T#.", ".#..."),
    GridRules(r_target=0, r_forbidden=-10, r_boundary=-10, r_other=-1, target="terminal"),
)
"""The world of the book's figures 7.2 and 7.3: from the first cell to the target, and no further."""
TOSS = from_model({0: {0: [(0.5, 0, 1.0, True), (0.5, 0, 0.0, False)]}}, 1.0)
"""A coin is tossed until it shows heads, which pays 1."""
MEAN, TENTH = StepSize(), StepSize(0.1, power=0)


def nothing_known(mdp):
    return np.zeros((mdp.states, mdp.actions)), np.zeros((mdp.states, mdp.actions), np.int64)


@pytest.mark.parametrize(("length", "corner"), [(1, 0.0), (14, 0.0), (15, 0.2), (30, 1.9), (100, 2.3)])
def test_mc_basic_finds_what_the_best_steps_of_an_episode_give(length, corner):
    q, _ = nothing_known(BOOK)
    for _ in range(60):
        q = mc.mc_basic(BOOK, q, episodes=1, length=length, rng=np.random.default_rng(0))
    np.testing.assert_allclose(q.max(1), dp.finite_horizon(BOOK, length), rtol=0, atol=1e-12)
    assert q.max(1)[20] == pytest.approx(corner, abs=0.05)  # figure 5.4: row 5, column 1


def test_mc_basic_of_a_lake_comes_within_three_standard_errors_of_the_policy_it_plays():
    world = from_model({0: {0: [(0.8, 1, 0.0, False), (0.2, 0, -1.0, True)]}, 1: {0: [(1.0, 0, 2.0, True)]}}, 0.5)
    q = mc.mc_basic(world, np.zeros((2, 1)), episodes=40_000, length=10, rng=np.random.default_rng(3))
    # 0.8 · 0.5 · 2 − 0.2 = 0.6, with a variance of 0.8 · 1 + 0.2 · 1 − 0.36 = 0.64.
    assert abs(q[0, 0] - 0.6) < 3 * np.sqrt(0.64 / 40_000)
    assert q[1, 0] == pytest.approx(2.0, rel=1e-9)


def test_returns_are_averaged_over_every_visit():
    # Heads at once, or later: every visit returns 1, the episode's length is what varies.
    q, visits = mc.mc_exploring_starts(
        TOSS, *nothing_known(TOSS), episodes=200, length=1000, sizes=MEAN, rng=np.random.default_rng(1)
    )
    assert q[0, 0] == 1.0
    assert 300 < visits[0, 0] < 500  # two tosses an episode


def test_the_walk_back_through_an_episode_discounts_by_hand():
    chain = from_model({0: {0: [(1.0, 1, 2.0, False)]}, 1: {0: [(1.0, 0, 3.0, True)]}}, 0.5)
    q, visits = mc.mc_epsilon_greedy(
        chain, *nothing_known(chain), episodes=1, length=9, sizes=TENTH, epsilon=0.0, rng=np.random.default_rng(2)
    )
    begun = 0 if visits[0, 0] else 1
    np.testing.assert_allclose(q[:, 0], [0.1 * (2 + 0.5 * 3), 0.1 * 3] if begun == 0 else [0.0, 0.3])


def test_epsilon_greedy_actions_have_the_probabilities_of_the_soft_policy():
    row, epsilon, draws = np.array([0.0, 3.0, 1.0, 2.0, -1.0]), 0.5, 50_000
    rng = np.random.default_rng(5)
    counts = np.bincount([explore(row, epsilon, rng) for _ in range(draws)], minlength=5) / draws
    wanted = dp.soft(row[None], epsilon)[0]
    assert np.abs(counts - wanted).max() < 4 * np.sqrt(0.24 / draws)
    assert abs(counts[1] - (1 - epsilon)) > 0.08  # 1 − ε is what a common mistake gives it


def test_monte_carlo_with_exploration_comes_near_the_best_soft_policy():
    q, visits = mc.mc_epsilon_greedy(
        GRID, *nothing_known(GRID), episodes=2000, length=1000, sizes=MEAN, epsilon=0.5, rng=np.random.default_rng(7)
    )
    assert visits.sum() == 2_000_000
    loss = dp.optimal(GRID, 0.5) - dp.evaluate_exactly(GRID, dp.soft(q, 0.5))
    assert np.sqrt((loss**2).mean()) < 0.066


def test_a_mean_over_all_policies_lags_behind_a_falling_epsilon_and_a_constant_step_does_not():
    errors = {}
    for name, sizes in (("mean", MEAN), ("constant", StepSize(0.02, power=0))):
        q, visits = nothing_known(GRID)
        rng = np.random.default_rng(7)
        for epsilon in np.linspace(1.0, 0.05, 100):
            q, visits = mc.mc_epsilon_greedy(
                GRID, q, visits, episodes=20, length=500, sizes=sizes, epsilon=epsilon, rng=rng
            )
        gap = dp.optimal(GRID, 0.05) - dp.evaluate_exactly(GRID, dp.soft(q, 0.05))
        errors[name] = gap.max()
    assert errors["mean"] > 2 * errors["constant"]


def test_off_policy_q_learning_falls_to_the_exact_values_as_its_samples_grow():
    # 100,000 steps of the uniform policy, α = 0.1 (Zhao, figure 7.4), the mean over five walks.
    target, counts = dp.optimal(GRID), (1000, 9000, 20_000, 70_000)
    errors = np.zeros(len(counts))
    for seed in range(5):
        walk, rng = td.begin(GRID), np.random.default_rng(seed)
        for place, count in enumerate(counts):
            walk = td.q_learning(GRID, walk, td.Block(count, TENTH, epsilon=1.0), rng)
            errors[place] += np.sqrt(((walk.q.max(1) - target) ** 2).mean()) / 5
    for found, known in zip(errors, (7.7, 3.9, 0.69, 0.0016), strict=True):
        assert known / 3 < found < 3 * known


@pytest.mark.parametrize(
    ("learn", "tolerance"),
    [(td.sarsa, 0.25), (td.expected_sarsa, 0.1), (td.q_learning, 0.01)],
    ids=["sarsa", "expected", "q"],
)
def test_each_learner_finds_the_values_that_it_should(learn, tolerance):
    epsilon = 0.4
    block = td.Block(1_000_000, StepSize(1.0, power=0.7), epsilon, length=100)
    walk = learn(GRID, td.begin(GRID), block, np.random.default_rng(8))
    soft = 0.0 if learn is td.q_learning else epsilon
    values = (dp.soft(walk.q, soft) * walk.q).sum(1)
    assert np.sqrt(((values - dp.optimal(GRID, soft)) ** 2).mean()) < tolerance
    assert walk.visits.sum() == 1_000_000


def test_td0_finds_the_values_of_the_policy_it_is_given():
    policy = dp.uniform(GRID)
    walk = td.td0(
        GRID, td.begin(GRID, 1), policy, td.Block(1_000_000, StepSize(1.0, power=0.7)), np.random.default_rng(9)
    )
    assert np.abs(walk.q[:, 0] - dp.evaluate_exactly(GRID, policy)).max() < 0.1


def test_one_step_sarsa_is_sarsa_bit_for_bit():
    block = td.Block(20_000, TENTH, 0.3, length=50)
    one = td.sarsa(PATH, td.begin(PATH), block, np.random.default_rng(4))
    other = td.n_step_sarsa(PATH, td.begin(PATH), block, np.random.default_rng(4), n=1)
    np.testing.assert_array_equal(one.q, other.q)
    assert (one.state, one.action, one.age) == (other.state, other.action, other.age)


def test_n_beyond_the_episode_is_monte_carlo():
    # All actions alike, so that what is learned changes no episode: both walk the same way.
    block = td.Block(30_000, MEAN, epsilon=1.0)
    walk = td.n_step_sarsa(PATH, td.begin(PATH), block, np.random.default_rng(6), n=30_000)
    assert walk.pending is not None and len(walk.pending) == walk.age > 0  # the last episode is not over
    q, visits = nothing_known(PATH)
    rng, episodes = np.random.default_rng(6), 0
    while visits.sum() < 30_000 - walk.age:
        q, visits = mc.mc_epsilon_greedy(PATH, q, visits, episodes=1, length=30_000, sizes=MEAN, epsilon=1.0, rng=rng)
        episodes += 1
    assert episodes > 100
    np.testing.assert_array_equal(visits, walk.visits)
    np.testing.assert_allclose(q, walk.q, rtol=1e-9)


@pytest.mark.parametrize("learn", [td.sarsa, td.expected_sarsa, td.q_learning], ids=lambda x: x.__name__)
@pytest.mark.parametrize("mdp", [GRID, PATH], ids=["goes on", "ends"])
def test_two_blocks_are_one(learn, mdp):
    def walk(*counts):
        state, rng = td.begin(mdp), np.random.default_rng(11)
        for count in counts:
            state = learn(mdp, state, td.Block(count, TENTH, 0.2, length=37), rng)
        return state

    np.testing.assert_array_equal(walk(1000).q, walk(333, 1, 666).q)


def test_two_blocks_of_n_steps_are_one():
    def walk(*counts):
        state, rng = td.begin(PATH), np.random.default_rng(11)
        for count in counts:
            state = td.n_step_sarsa(PATH, state, td.Block(count, TENTH, 0.2, length=37), rng, n=5)
        return state

    np.testing.assert_array_equal(walk(1000).q, walk(333, 1, 666).q)


def test_one_update_of_each_learner_by_hand():
    # From 0 to 1 for a reward of 2; from 1, action 0 pays 1 and ends, action 1 pays 5 and ends. γ = 1/2.
    end = {0: [(1.0, 1, 1.0, True)], 1: [(1.0, 1, 5.0, True)]}
    mdp = from_model({0: {a: [(1.0, 1, 2.0, False)] for a in (0, 1)}, 1: end}, 0.5, np.array([1.0, 0.0]))
    known = np.array([[0.0, 0.0], [3.0, 7.0]])
    start = td.Walk(known, np.zeros((2, 2), np.int64), state=0, action=0)
    one = td.Block(1, TENTH, epsilon=0.0)
    rng = np.random.default_rng(0)
    assert td.sarsa(mdp, start, one, rng).q[0, 0] == pytest.approx(0.1 * (2 + 0.5 * 7))
    assert td.q_learning(mdp, start, one, rng).q[0, 0] == pytest.approx(0.1 * (2 + 0.5 * 7))
    soft = td.expected_sarsa(mdp, start, td.Block(1, TENTH, epsilon=0.6), rng).q
    assert soft[0].max() == pytest.approx(0.1 * (2 + 0.5 * (0.4 * 7 + 0.6 * 5)))
    # Where the episode ends, nothing of the table counts.
    last = td.Walk(known, np.zeros((2, 2), np.int64), state=1, action=0)
    assert td.sarsa(mdp, last, one, rng).q[1, 0] == pytest.approx(3 + 0.1 * (1 - 3))
    # Two steps: 2 + 0.5 · 5, and the second pair by itself, once the episode is over.
    two = td.n_step_sarsa(mdp, start, td.Block(2, TENTH, epsilon=0.0), rng, n=2).q
    assert two[0, 0] == pytest.approx(0.1 * (2 + 0.5 * 5))
    assert two[1, 1] == pytest.approx(7 + 0.1 * (5 - 7))


def test_an_episode_that_is_cut_still_counts_what_would_have_followed():
    mdp = from_model({0: {0: [(1.0, 0, 1.0, False)]}}, 0.5)  # worth 2
    walk = td.td0(mdp, td.begin(mdp, 1), np.ones((1, 1)), td.Block(2000, TENTH, length=1), np.random.default_rng(0))
    assert walk.q[0, 0] == pytest.approx(2.0, abs=1e-6)
    n_step = td.n_step_sarsa(mdp, td.begin(mdp), td.Block(2000, TENTH, length=3), np.random.default_rng(0), n=8)
    assert n_step.q[0, 0] == pytest.approx(2.0, abs=1e-6)


@pytest.mark.parametrize("learn", [td.sarsa, td.q_learning], ids=lambda x: x.__name__)
def test_the_books_path_example_reaches_the_target_without_a_forbidden_cell(learn):
    # α = ε = 0.1, one episode after another from the first cell (Zhao, figures 7.2 and 7.3).
    walk = learn(PATH, td.begin(PATH), td.Block(60_000, TENTH, 0.1), np.random.default_rng(1))
    state, steps, forbidden = 0, 0, {6, 7, 12, 16, 18, 21}
    while state != 17 and steps < 20:
        state, steps = int(PATH.successors[state, walk.q[state].argmax(), 0]), steps + 1
        assert state not in forbidden
    assert state == 17
