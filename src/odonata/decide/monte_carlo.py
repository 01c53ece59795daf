"""Values as means of returns: MC Basic, exploring starts, and ε-greedy, as in chapter 5 of Zhao's book.

Notable:
- MC Basic is policy iteration whose evaluation is a mean over episodes from every pair of state and action. An episode
  of L steps sees L rewards and no more: without chance it finds what the best L steps give (figure 5.4), and L must be
  large enough for a target to be reached at all.
- The other two learn from every visit and walk back through an episode by g ← r + γ g. The policy is greedy for q as it
  stands, so it improves with each step of that walk and needs no table of its own.
- The mean of all returns of a pair counts those of policies long given up. Where ε falls, as it is often told to, the
  mean lags so far behind that the greedy policy stays wrong: take a constant step then (`StepSize(0.02, power=0)`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float64, Int64
from numba import njit

from odonata.decide.mdp import MDP, ActionValues
from odonata.decide.sampling import any_action, arrays_of, best, draw, explore, step
from odonata.decide.stochastic_approximation import StepSize

Visits = Int64[np.ndarray, "states actions"]
"""How often each pair has been learned from."""


def mc_basic(mdp: MDP, q: ActionValues, *, episodes: int, length: int, rng: np.random.Generator) -> ActionValues:
    """Return the mean returns of the policy that is greedy for `q`: one iteration of MC Basic (Zhao, algorithm 5.1).

    Args:
        mdp: the process.
        q: decides the policy.
        episodes: from each pair of state and action; 1 is enough without chance.
        length: steps of an episode that does not end before.
        rng: draws what is left to chance.
    """
    return _mc_basic(arrays_of(mdp), q, mdp.discount, episodes, length, rng)


def mc_exploring_starts(
    mdp: MDP, q: ActionValues, visits: Visits, *, episodes: int, length: int, sizes: StepSize, rng: np.random.Generator
) -> tuple[ActionValues, Visits]:
    """Learn from greedy episodes that begin with any state and action (Zhao, algorithm 5.2); return q and visits.

    Args:
        mdp: the process.
        q: mean returns so far.
        visits: of each pair so far.
        episodes: to make.
        length: steps of an episode that does not end before.
        sizes: of a pair's n-th visit; 1 / n is the mean.
        rng: draws starts and chance.
    """
    return _mc_episodes(
        arrays_of(mdp),
        q,
        visits,
        mdp.discount,
        episodes,
        length,
        0.0,
        True,
        (sizes.scale, sizes.power, sizes.offset),
        rng,
    )


def mc_epsilon_greedy(
    mdp: MDP,
    q: ActionValues,
    visits: Visits,
    *,
    episodes: int,
    length: int,
    sizes: StepSize,
    epsilon: float,
    rng: np.random.Generator,
) -> tuple[ActionValues, Visits]:
    """Learn from ε-greedy episodes that begin where the process does (Zhao, algorithm 5.3); return q and visits.

    Args:
        mdp: the process.
        q: mean returns so far.
        visits: of each pair so far.
        episodes: to make.
        length: steps of an episode that does not end before.
        sizes: of a pair's n-th visit; 1 / n is the mean.
        epsilon: share of random actions.
        rng: draws starts, actions and chance.
    """
    sizes_ = (sizes.scale, sizes.power, sizes.offset)
    return _mc_episodes(arrays_of(mdp), q, visits, mdp.discount, episodes, length, epsilon, False, sizes_, rng)


@njit(cache=True, nogil=True)
def _mc_basic(
    process: Any, q: ActionValues, discount: float, episodes: int, length: int, rng: np.random.Generator
) -> ActionValues:
    means = np.zeros_like(q)
    for first_state in range(q.shape[0]):
        for first_action in range(q.shape[1]):
            for _ in range(episodes):
                state, action, weight = first_state, first_action, 1.0
                for _ in range(length):
                    state, reward, ended = step(process, state, action, rng)
                    means[first_state, first_action] += weight * reward / episodes
                    if ended:
                        break
                    weight *= discount
                    action = best(q[state])
    return means


@njit(cache=True, nogil=True)
def _mc_episodes(
    process: Any,
    q: ActionValues,
    visits: Visits,
    discount: float,
    episodes: int,
    length: int,
    epsilon: float,
    exploring_starts: bool,
    sizes: tuple[float, float, float],
    rng: np.random.Generator,
) -> tuple[ActionValues, Visits]:
    q, visits = q.copy(), visits.copy()
    scale, power, offset = sizes
    states, actions, rewards = np.empty(length, np.int64), np.empty(length, np.int64), np.empty(length)
    for _ in range(episodes):
        if exploring_starts:
            state, action = any_action(q.shape[0], rng), any_action(q.shape[1], rng)
        else:
            state = draw(process[4], rng)
            action = explore(q[state], epsilon, rng)
        steps = 0
        ended = False
        while steps < length and not ended:
            states[steps], actions[steps] = state, action
            state, rewards[steps], ended = step(process, state, action, rng)
            if not ended:
                action = explore(q[state], epsilon, rng)
            steps += 1
        _learn_backwards(q, visits, states[:steps], actions[:steps], rewards[:steps], discount, scale, power, offset)
    return q, visits


@njit(cache=True, nogil=True)
def _learn_backwards(
    q: ActionValues,
    visits: Visits,
    states: Int64[np.ndarray, "time"],
    actions: Int64[np.ndarray, "time"],
    rewards: Float64[np.ndarray, "time"],
    discount: float,
    scale: float,
    power: float,
    offset: float,
) -> None:
    """Move each visited pair towards the return from there on, the last first."""
    gained = 0.0
    for place in range(len(states) - 1, -1, -1):
        state, action = states[place], actions[place]
        gained = rewards[place] + discount * gained
        visits[state, action] += 1
        q[state, action] += scale / (visits[state, action] + offset) ** power * (gained - q[state, action])
