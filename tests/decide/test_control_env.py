"""Environments for control against Gymnasium, step by step; episodes, time limits, and going on from a saved state."""

import sys

import gymnasium
import numpy as np
import pytest

from odonata.decide.control_env import CLASSIC, WINDOW, make_env
from odonata.errors import RecipeError

COPIES = 4


class Counter(gymnasium.Env):
    """Sees how often each of its actions, 5, 6 and 7, was taken; over after four steps."""

    action_space = gymnasium.spaces.Discrete(3, start=5)
    observation_space = gymnasium.spaces.Box(0, 9, (3, 2))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.counts = np.zeros((3, 2), np.float32)
        self.counts[:, 1] = self.np_random.integers(9)
        return self.counts.copy(), {}

    def step(self, action):
        self.counts[action - 5, 0] += 1
        return self.counts.copy(), float(action), bool(self.counts[:, 0].sum() == 4), False, {}


gymnasium.register("OdonataCounter-v0", entry_point=Counter)


def start_of(env, copy):
    """Where the episode at hand of a copy began."""
    return env.draw(np.random.default_rng([*env.seed, copy, int(env.episodes[copy])]))


@pytest.mark.shows("ppo-control", "parity")
@pytest.mark.parametrize("name", CLASSIC)
def test_every_number_is_gymnasiums_through_many_episodes(name):
    env = make_env(name, COPIES, (3,))
    env.begin()
    theirs = [gymnasium.make(name) for _ in range(COPIES)]
    for copy, other in enumerate(theirs):
        other.reset()
        other.unwrapped.state = start_of(env, copy)
    actions, ended = np.random.default_rng(0).integers(env.num_actions, size=(1200, COPIES)), 0
    for row in actions:
        ours = env.step(row)
        for copy, other in enumerate(theirs):
            seen, reward, terminated, truncated, _ = other.step(int(row[copy]))
            assert np.array_equal(seen, ours.final[copy])
            assert (reward, terminated, truncated) == tuple(part[copy] for part in ours[1:4])
            if terminated or truncated:
                ended += 1
                other.reset()
                other.unwrapped.state = start_of(env, copy)
                continue
            assert np.array_equal(np.asarray(other.unwrapped.state, np.float64), env.variable[:, copy])
    assert ended >= 8


@pytest.mark.shows("ppo-control", "parity")
@pytest.mark.parametrize("name", CLASSIC)
def test_starts_are_drawn_as_gymnasium_draws_them(name):
    env, other = CLASSIC[name](1), gymnasium.make(name)
    for seed in range(5):
        seen, _ = other.reset(seed=seed)
        start = env.draw(np.random.default_rng(seed))
        assert np.array_equal(np.asarray(other.unwrapped.state, np.float64), start)
        assert np.array_equal(env.observe(start[:, None])[0], seen)
    assert (env.dim, env.num_actions) == (other.observation_space.shape[0], other.action_space.n)
    assert env.time_limit == other.spec.max_episode_steps


def test_a_pole_falls_over_and_the_next_episode_begins_in_the_same_step():
    env = make_env("CartPole-v1", 2)
    env.begin()
    for _ in range(60):
        step = env.step(np.array([1, 1]))
        if step.terminated[0]:
            break
    assert not step.truncated[0]
    assert abs(step.final[0, 2]) > 0.2
    assert abs(step.observations[0]).max() <= 0.05
    assert np.array_equal(step.observations[0], env.observations[0])
    assert env.elapsed[0] == 0 and env.episodes[0] == 2


def test_what_runs_out_of_time_is_truncated_and_not_terminated():
    env = make_env("MountainCar-v0", 1)
    env.begin()
    for number in range(1, 201):
        step = env.step(np.array([1]))
        assert step.truncated[0] == (number == 200)
        assert not step.terminated[0]
    assert env.last_episodes().tolist() == [[-200.0], [200.0]]


def test_a_fall_at_the_time_limit_is_both_as_with_gymnasium():
    env = make_env("CartPole-v1", 1)
    env.begin()
    env.elapsed[:] = 499
    env.variable[2] = 0.3
    step = env.step(np.array([0]))
    assert step.terminated[0] and step.truncated[0]


def test_figures_are_means_of_the_last_hundred_episodes():
    env = make_env("CartPole-v1", 8)
    env.begin()
    lengths, running = [], np.zeros(8)
    while len(lengths) < WINDOW + 30:
        step = env.step(np.ones(8, np.int64))
        running += 1
        for copy in np.flatnonzero(step.terminated):
            lengths.append(running[copy])
            running[copy] = 0
    returns, found = env.last_episodes()
    assert sorted(found) == sorted(lengths[-WINDOW:])
    assert np.array_equal(returns, found)
    assert env.finished[0] == len(lengths)


@pytest.mark.parametrize("name", CLASSIC)
def test_another_process_goes_on_from_the_state_to_the_same_bits(name):
    first, second = make_env(name, COPIES, (7,)), make_env(name, COPIES, (7,))
    first.begin()
    actions = np.random.default_rng(1).integers(first.num_actions, size=(700, COPIES))
    for row in actions[:350]:
        first.step(row)
    second.restore({key: value.copy() for key, value in first.state().items()})
    for row in actions[350:]:
        ours, others = first.step(row), second.step(row)
        assert all(np.array_equal(a, b) for a, b in zip(ours, others, strict=True))
    assert np.array_equal(first.last_episodes(), second.last_episodes())


def test_starts_do_not_depend_on_how_copies_are_shared():
    whole = make_env("CartPole-v1", 4, (5, 0))
    parts = [make_env("CartPole-v1", 2, (5, 0), first=first) for first in (0, 2)]
    assert np.array_equal(whole.begin(), np.concatenate([part.begin() for part in parts]))
    assert len(np.unique(whole.observations, axis=0)) == 4


def test_gymnasiums_own_cart_pole_is_played_as_ours():
    env = make_env("gymnasium:CartPole-v1", 2, (4,))
    ours = CLASSIC["CartPole-v1"](2, (4,))
    env.begin()
    ours.begin()
    for copy in range(2):
        ours.variable[:, copy] = env.envs[copy].unwrapped.state
    ours.observations = env.observations.copy()
    for number, row in enumerate(np.random.default_rng(2).integers(2, size=(300, 2))):
        found, wanted = env.step(row), ours.step(row)
        assert np.array_equal(found.final, wanted.final), number
        assert np.array_equal(found.terminated, wanted.terminated)
        for copy in np.flatnonzero(found.terminated):
            ours.variable[:, copy] = env.envs[copy].unwrapped.state
            ours.observations[copy] = env.observations[copy]
    assert np.array_equal(env.last_episodes(), ours.last_episodes())
    assert env.finished[0] > 10


def test_actions_that_begin_at_five_and_observations_of_two_axes():
    env = make_env("gymnasium:OdonataCounter-v0", 1)
    seen = env.begin()
    assert seen.shape == (1, 6) and env.num_actions == 3
    for action in (0, 2, 2):
        step = env.step(np.array([action]))
    assert step.final[0, ::2].tolist() == [1, 0, 2]
    assert step.rewards.tolist() == [7]
    last = env.step(np.array([1]))
    assert last.final[0, ::2].tolist() == [1, 1, 2] and last.terminated[0]
    assert last.observations[0, ::2].tolist() == [0, 0, 0]


def test_gymnasiums_episodes_begin_anew_in_another_process_and_are_said_to(caplog):
    first, second = (make_env("gymnasium:CartPole-v1", 2, (4,)) for _ in range(2))
    first.begin()
    for _ in range(5):
        first.step(np.array([0, 1]))
    second.begin()
    second.restore(first.state())
    assert "gymnasium:CartPole-v1 keeps its state to itself: 2 episodes begin anew" in caplog.text
    assert second.elapsed.tolist() == [0, 0] and second.episodes.tolist() == [2, 2]
    caplog.clear()
    first.restore(first.state())
    assert not caplog.text and first.elapsed.tolist() == [5, 5]


@pytest.mark.shows("ppo-control", "manners")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("CartPole", "--env 'CartPole' is unknown; did you mean CartPole-v1, or Gymnasium's own: --env gym"),
        ("Breakout", "there are CartPole-v1, Acrobot-v1, MountainCar-v0, and Gymnasium's own: --env gymnasium:Break"),
        ("gymnasium:CartPoll-v1", "--env gymnasium:CartPoll-v1: Environment `CartPoll` doesn't exist"),
        ("gymnasium:nowhere:Thing-v0", "--env gymnasium:nowhere:Thing-v0: No module named 'nowhere'"),
        ("gymnasium:Pendulum-v1", r"its actions are Box\(-2.0, 2.0.*only Discrete ones can be learned"),
        ("gymnasium:FrozenLake-v1", r"its observations are Discrete\(16\); only a Box can be learned from"),
    ],
)
def test_environments_that_cannot_be_had_are_named(name, message):
    with pytest.raises(RecipeError, match=message):
        make_env(name, 1)


@pytest.mark.shows("ppo-control", "manners")
def test_without_gymnasium_its_environments_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(RecipeError, match=r"pip install 'odonata\[control\]', or take one of CartPole-v1"):
        make_env("gymnasium:CartPole-v1", 1)
    assert make_env("CartPole-v1", 1).begin().shape == (1, 4)
