"""Draws from a process, compiled: what every learner from samples does at each step. Importing this takes numba's time.

Notable: numba takes NumPy's generator as it is, so a compiled walk draws the very numbers that NumPy would, and the key
(seed, step) of a generator decides all of a step. A process without chance draws nothing for its successors.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float64
from numba import njit
from numpy.typing import NDArray

from odonata.decide.mdp import MDP

Arrays = tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64], NDArray[np.bool_], NDArray[np.float64]]
"""What the compiled loops take of a process; see `arrays_of`."""


def arrays_of(mdp: MDP) -> Arrays:
    """Return cumulative probabilities, successors, rewards, ends, and cumulative probabilities of the first state."""
    return mdp.cumulative, mdp.successors, mdp.rewards, mdp.ends, mdp.cumulative_starts


@njit(cache=True, nogil=True)
def draw(cumulative: Float64[np.ndarray, "choices"], rng: np.random.Generator) -> int:
    """Return a choice by its cumulative probability; nothing is drawn where there is only one."""
    if len(cumulative) == 1:
        return 0
    share = rng.random()
    for choice in range(len(cumulative)):
        if share < cumulative[choice]:
            return choice
    return len(cumulative) - 1


@njit(cache=True, nogil=True)
def best(row: Float64[np.ndarray, "actions"]) -> int:
    """Return the first of the best actions."""
    found = 0
    for action in range(1, len(row)):
        if row[action] > row[found]:
            found = action
    return found


@njit(cache=True, nogil=True)
def any_action(actions: int, rng: np.random.Generator) -> int:
    """Return an action, each as likely."""
    return min(int(rng.random() * actions), actions - 1)


@njit(cache=True, nogil=True)
def explore(row: Float64[np.ndarray, "actions"], epsilon: float, rng: np.random.Generator) -> int:
    """Return the ε-greedy action: with probability ε any of them, the best included (Zhao, eq. 5.4)."""
    if epsilon > 0 and rng.random() < epsilon:
        return any_action(len(row), rng)
    return best(row)


@njit(cache=True, nogil=True)
def step(process: Any, state: int, action: int, rng: np.random.Generator) -> tuple[int, float, bool]:
    """Return the successor, the reward, and whether the episode ends."""
    cumulative, successors, rewards, ends, _ = process
    outcome = draw(cumulative[state, action], rng)
    return successors[state, action, outcome], rewards[state, action, outcome], ends[state, action, outcome]
