"""Values from one step at a time: TD(0), Sarsa, n-step Sarsa, expected Sarsa, and Q-learning on and off the policy.

Notable: they differ in what an entry is moved towards. With δ the target minus the entry, and a step size that may fall
with the entry's visits, each does entry ← entry + a δ (Zhao, sections 7.1 to 7.5):

    TD(0)            r + γ v(s')                       of a policy that is given
    Sarsa            r + γ q(s', a')                   a' is taken, by the ε-greedy policy of q before it changes
    n-step Sarsa     r + … + γⁿ q(sₙ, aₙ)              n = 1 is Sarsa; n beyond the episode is Monte Carlo
    expected Sarsa   r + γ Σ π(a' | s') q(s', a')      π: the ε-greedy policy of q
    Q-learning       r + γ max q(s', ·)                whoever chose the actions

Where an episode ends nothing follows, and the next begins where the process does. Where it is only cut, after so many
steps, because the process has no end, the target stays as it is: what would have followed counts. A walk goes on from
block to block: a `Walk` carries the table and the place, so that two blocks of 500 steps are one of 1,000.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64
from numba import njit

from odonata.decide.mdp import MDP, ActionValues, Policy, Values, cumulative
from odonata.decide.sampling import any_action, arrays_of, draw, explore, step
from odonata.decide.stochastic_approximation import StepSize

NOWHERE = -1
"""The state of a walk that has not begun."""
ENDLESS = 2**62
"""The length of episodes that nothing cuts."""


@dataclass(frozen=True)
class Walk:
    """A table, and the walk that it is learned from.

    Args:
        q: action values; for TD(0) the values of states, as one column.
        visits: of each entry.
        state: where the walk is; `NOWHERE` before an episode.
        action: what will be done there, where that is decided already.
        age: steps made in this episode.
        pending: rows (state, action, reward) that n-step Sarsa still has to learn from, the oldest first.
    """

    q: ActionValues
    visits: Int64[np.ndarray, "states actions"]
    state: int = NOWHERE
    action: int = NOWHERE
    age: int = 0
    pending: Float64[np.ndarray, "pending 3"] | None = None


@dataclass(frozen=True)
class Block:
    """How a walk goes on.

    Args:
        transitions: steps to make.
        sizes: of an entry's n-th visit.
        epsilon: share of random actions.
        length: steps after which an episode is cut and another begins.
    """

    transitions: int
    sizes: StepSize
    epsilon: float = 0.0
    length: int = ENDLESS

    def plain(self, mdp: MDP) -> tuple[int, int, float, float, float, float, float]:
        """Return what the compiled loops take."""
        sizes = float(self.sizes.scale), float(self.sizes.power), float(self.sizes.offset)
        return self.transitions, self.length, float(mdp.discount), float(self.epsilon), *sizes


def begin(mdp: MDP, actions: int | None = None) -> Walk:
    """Return a walk that has not begun, with a table of zeros; `actions` is 1 for TD(0)."""
    shape = (mdp.states, mdp.actions if actions is None else actions)
    return Walk(np.zeros(shape), np.zeros(shape, np.int64))


def td0(mdp: MDP, walk: Walk, policy: Policy, block: Block, rng: np.random.Generator) -> Walk:
    """Learn v_π from steps of π (Zhao, algorithm 7.1).

    Args:
        mdp: the process.
        walk: with a table of one column.
        policy: π.
        block: how many steps, and how large; its ε is not used, π is what it is.
        rng: draws starts, actions and chance.
    """
    place = (walk.state, walk.action, walk.age)
    v, visits, after = _td0(
        arrays_of(mdp), walk.q[:, 0], walk.visits[:, 0], cumulative(policy), place, block.plain(mdp), rng
    )
    return Walk(v[:, None], visits[:, None], *_integers(after))


def sarsa(mdp: MDP, walk: Walk, block: Block, rng: np.random.Generator) -> Walk:
    """Learn from ε-greedy steps, and the action that follows each (Zhao, algorithm 7.2); see `td0`."""
    return _learned(_sarsa, mdp, walk, block, rng)


def expected_sarsa(mdp: MDP, walk: Walk, block: Block, rng: np.random.Generator) -> Walk:
    """Learn from ε-greedy steps, and what the policy would do after each (Zhao, section 7.3); see `td0`."""
    return _learned(_expected_sarsa, mdp, walk, block, rng)


def q_learning(mdp: MDP, walk: Walk, block: Block, rng: np.random.Generator) -> Walk:
    """Learn from ε-greedy steps, and the best action after each (Zhao, algorithm 7.3); see `td0`.

    With ε = 1 the behaviour is off the policy: every action is as likely.
    """
    return _learned(_q_learning, mdp, walk, block, rng)


def n_step_sarsa(mdp: MDP, walk: Walk, block: Block, rng: np.random.Generator, *, n: int) -> Walk:
    """Learn from ε-greedy steps, each from the n rewards that follow and what q says after (Zhao, eq. 7.15); see `td0`.

    Args:
        n: rewards; what is still to come at the end of the block waits in the walk.
    """
    pending = np.empty((0, 3)) if walk.pending is None else walk.pending
    place = (walk.state, walk.action, walk.age)
    q, visits, after, rest = _n_step_sarsa(
        arrays_of(mdp), walk.q, walk.visits, place, pending, n, block.plain(mdp), rng
    )
    return Walk(q, visits, *_integers(after), rest)


def _learned(kernel: Any, mdp: MDP, walk: Walk, block: Block, rng: np.random.Generator) -> Walk:
    place = (walk.state, walk.action, walk.age)
    q, visits, after = kernel(arrays_of(mdp), walk.q, walk.visits, place, block.plain(mdp), rng)
    return Walk(q, visits, *_integers(after))


def _integers(place: Any) -> tuple[int, int, int]:
    state, action, age = place
    return int(state), int(action), int(age)


@njit(cache=True, nogil=True)
def _move(table: Any, visits: Any, entry: Any, target: float, how: Any) -> None:
    """Move an entry towards its target."""
    _, _, _, _, scale, power, offset = how
    visits[entry] += 1
    size = scale if power == 0 else scale / (visits[entry] + offset) ** power
    table[entry] += size * (target - table[entry])


@njit(cache=True, nogil=True)
def _td0(
    process: Any, values: Values, visits: Any, choices: Any, place: Any, how: Any, rng: np.random.Generator
) -> Any:
    values, visits = values.copy(), visits.copy()
    state, action, age = place
    transitions, length, discount = how[:3]
    for _ in range(transitions):
        if state < 0:
            state, age = draw(process[4], rng), 0
        after, reward, ended = step(process, state, draw(choices[state], rng), rng)
        age += 1
        _move(values, visits, state, reward if ended else reward + discount * values[after], how)
        state = -1 if ended or age >= length else after
    return values, visits, (state, action, age)


@njit(cache=True, nogil=True)
def _sarsa(process: Any, q: ActionValues, visits: Any, place: Any, how: Any, rng: np.random.Generator) -> Any:
    q, visits = q.copy(), visits.copy()
    state, action, age = place
    transitions, length, discount, epsilon = how[:4]
    for _ in range(transitions):
        if state < 0:
            state, age = draw(process[4], rng), 0
            action = explore(q[state], epsilon, rng)
        after, reward, ended = step(process, state, action, rng)
        age += 1
        target, following = reward, -1
        if not ended:
            following = explore(q[after], epsilon, rng)
            target += discount * q[after, following]
        _move(q, visits, (state, action), target, how)
        state, action = -1 if ended or age >= length else after, following
    return q, visits, (state, action, age)


@njit(cache=True, nogil=True)
def _expected_sarsa(process: Any, q: ActionValues, visits: Any, place: Any, how: Any, rng: np.random.Generator) -> Any:
    q, visits = q.copy(), visits.copy()
    state, action, age = place
    transitions, length, discount, epsilon = how[:4]
    for _ in range(transitions):
        if state < 0:
            state, age = draw(process[4], rng), 0
        action = explore(q[state], epsilon, rng)
        after, reward, ended = step(process, state, action, rng)
        age += 1
        target = reward
        if not ended:
            target += discount * ((1 - epsilon) * q[after].max() + epsilon * q[after].mean())
        _move(q, visits, (state, action), target, how)
        state = -1 if ended or age >= length else after
    return q, visits, (state, action, age)


@njit(cache=True, nogil=True)
def _q_learning(process: Any, q: ActionValues, visits: Any, place: Any, how: Any, rng: np.random.Generator) -> Any:
    q, visits = q.copy(), visits.copy()
    state, action, age = place
    transitions, length, discount, epsilon = how[:4]
    for _ in range(transitions):
        if state < 0:
            state, age = draw(process[4], rng), 0
        action = any_action(q.shape[1], rng) if epsilon >= 1 else explore(q[state], epsilon, rng)
        after, reward, ended = step(process, state, action, rng)
        age += 1
        _move(q, visits, (state, action), reward if ended else reward + discount * q[after].max(), how)
        state = -1 if ended or age >= length else after
    return q, visits, (state, action, age)


@njit(cache=True, nogil=True)
def _n_step_sarsa(
    process: Any, q: ActionValues, visits: Any, place: Any, pending: Any, n: int, how: Any, rng: np.random.Generator
) -> Any:
    q, visits = q.copy(), visits.copy()
    window, held = np.empty((n, 3)), len(pending)
    window[:held] = pending
    state, action, age = place
    transitions, length, discount, epsilon = how[:4]
    for _ in range(transitions):
        if state < 0:
            state, age = draw(process[4], rng), 0
            action = explore(q[state], epsilon, rng)
        after, reward, ended = step(process, state, action, rng)
        age += 1
        window[held, 0], window[held, 1], window[held, 2] = state, action, reward
        held += 1
        following, follows = -1, 0.0
        if not ended:
            following = explore(q[after], epsilon, rng)
            follows = q[after, following]
        over = ended or age >= length
        while held == n or (over and held > 0):  # a full window gives up its oldest; an end empties it
            target = follows
            for row in range(held - 1, -1, -1):
                target = window[row, 2] + discount * target
            _move(q, visits, (int(window[0, 0]), int(window[0, 1])), target, how)
            window[: held - 1] = window[1:held].copy()
            held -= 1
        state, action = -1 if over else after, following
    return q, visits, (state, action, age), window[:held].copy()
