"""Bellman's equations solved with the model at hand: value iteration, policy iteration, and all that lies between.

Notable: the three are one loop. An outer iteration takes the greedy policy of the current values and sweeps so many
times with that policy; one sweep is value iteration, infinitely many (a linear system) policy iteration (Zhao, section
4.3). It stops where no value changed by the tolerance or more, in the max norm. Where actions tie, the first is taken:
values are unique and policies are not, so compare the former.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool
from scipy.sparse import eye_array
from scipy.sparse.linalg import spsolve

from odonata.decide.mdp import MDP, ActionValues, Policy, Values
from odonata.errors import RecipeError


@dataclass(frozen=True)
class Solution:
    """Where the iterations came to."""

    values: Values
    policy: Policy
    """The one that the last iteration was greedy for."""
    changes: tuple[float, ...]
    """The largest change of a value in each outer iteration."""
    converged: bool
    """Whether the last change was below the tolerance."""

    @property
    def iterations(self) -> int:
        """Outer iterations made, with the one that saw no change."""
        return len(self.changes)


def soft(q: ActionValues, epsilon: float = 0.0) -> Policy:
    """Return the ε-greedy policy: 1 − ε (|A| − 1) / |A| for the best action, ε / |A| for each other (Zhao, eq. 5.4)."""
    states, actions = q.shape
    policy = np.full((states, actions), epsilon / actions)
    policy[np.arange(states), q.argmax(1)] = 1 - epsilon * (actions - 1) / actions
    return policy


def uniform(mdp: MDP) -> Policy:
    """Return the policy that takes every action alike."""
    return np.full((mdp.states, mdp.actions), 1 / mdp.actions)


def always(mdp: MDP, action: int) -> Policy:
    """Return the policy that takes one action everywhere."""
    policy = np.zeros((mdp.states, mdp.actions))
    policy[:, action] = 1
    return policy


def evaluate_exactly(mdp: MDP, policy: Policy) -> Values:
    """Return v_π from (I − γ P_π) v = r_π (Zhao, section 2.7.1).

    Raises:
        RecipeError: the discount is 1 and the policy may go on for ever.
    """
    if mdp.discount == 1 and not surely_ends(mdp, policy).all():
        stuck = int(np.flatnonzero(~surely_ends(mdp, policy))[0])
        raise RecipeError(
            f"--discount is 1, and from state {stuck} the policy never ends: its values are not defined; use a "
            f"discount below 1, or --solver value"
        )
    # Sparse: of five hundred states each has a few successors, and a dense system would wake all threads.
    system = eye_array(mdp.states, format="csc") - mdp.discount * mdp.transitions_under(policy).tocsc()
    return np.asarray(spsolve(system, mdp.rewards_under(policy)), np.float64).reshape(mdp.states)


def surely_ends(mdp: MDP, policy: Policy) -> Bool[np.ndarray, "states"]:
    """Return for each state whether an end can be reached from it, and from all states that the policy leads to."""
    follows = mdp.transitions_under(policy)
    reaches = (policy[:, :, None] * (mdp.probabilities * mdp.ends)).sum((1, 2)) > 0
    while (grown := reaches | (follows @ reaches > 0)).sum() > reaches.sum():
        reaches = grown
    lost = ~reaches
    while (grown := lost | (follows @ lost > 0)).sum() > lost.sum():
        lost = grown
    return ~lost


def sweep(mdp: MDP, policy: Policy, values: Values) -> Values:
    """Return r_π + γ P_π v: one step of policy evaluation (Zhao, eq. 2.11)."""
    return (policy * mdp.backup(values)).sum(1)


def evaluate_iteratively(
    mdp: MDP, policy: Policy, values: Values | None = None, *, tolerance: float = 1e-6, limit: int = 100_000
) -> tuple[Values, int]:
    """Return v_π by sweeps, and their number.

    Args:
        mdp: the process.
        policy: the one to evaluate.
        values: to begin with; None: 0.
        tolerance: it stops where no value changed by this or more.
        limit: of sweeps; what has not converged by then is returned as it is.
    """
    values = np.zeros(mdp.states) if values is None else values
    for done in range(1, limit + 1):
        after = sweep(mdp, policy, values)
        change, values = float(np.abs(after - values).max()), after
        if change < tolerance:
            return values, done
    return values, limit


def improve(mdp: MDP, values: Values, sweeps: int | None) -> tuple[Values, Policy]:
    """Do one outer iteration: the greedy policy, then so many sweeps with it (Zhao, algorithms 4.1 to 4.3).

    Args:
        mdp: the process.
        values: the current ones.
        sweeps: 1 is value iteration; None evaluates the policy exactly: policy iteration.
    """
    policy = soft(mdp.backup(values))
    if sweeps is None:
        return evaluate_exactly(mdp, policy), policy
    for _ in range(sweeps):
        values = sweep(mdp, policy, values)
    return values, policy


def iterate(
    mdp: MDP, sweeps: int | None, *, values: Values | None = None, tolerance: float = 1e-6, limit: int = 100_000
) -> Solution:
    """Do outer iterations until the values rest.

    Args:
        mdp: the process.
        sweeps: of policy evaluation in each iteration; see `improve`.
        values: to begin with; None: 0.
        tolerance: it stops where no value changed by this or more.
        limit: of outer iterations.
    """
    values = np.zeros(mdp.states) if values is None else values
    changes: list[float] = []
    while True:
        after, policy = improve(mdp, values, sweeps)
        changes.append(float(np.abs(after - values).max()))
        values = after
        if changes[-1] < tolerance or len(changes) >= limit:
            return Solution(values, policy, tuple(changes), changes[-1] < tolerance)


def value_iteration(mdp: MDP, *, tolerance: float = 1e-6, limit: int = 100_000) -> Solution:
    """Iterate v ← max_a q(·, a) from 0 (Zhao, algorithm 4.1)."""
    return iterate(mdp, 1, tolerance=tolerance, limit=limit)


def policy_iteration(mdp: MDP, *, tolerance: float = 1e-6, limit: int = 100_000) -> Solution:
    """Alternate the greedy policy and its exact values (Zhao, algorithm 4.2).

    Raises:
        RecipeError: the discount is 1 and a policy on the way goes on for ever.
    """
    return iterate(mdp, None, tolerance=tolerance, limit=limit)


def truncated_policy_iteration(mdp: MDP, sweeps: int, *, tolerance: float = 1e-6, limit: int = 100_000) -> Solution:
    """Alternate the greedy policy and `sweeps` steps towards its values (Zhao, algorithm 4.3)."""
    return iterate(mdp, sweeps, tolerance=tolerance, limit=limit)


def finite_horizon(mdp: MDP, length: int) -> Values:
    """Return the most that so many steps can give from each state: what Monte Carlo sees in episodes of that length."""
    values = np.zeros(mdp.states)
    for _ in range(length):
        values = mdp.backup(values).max(1)
    return values


def optimal(mdp: MDP, epsilon: float = 0.0, *, limit: int = 50_000) -> Values | None:
    """Return the values of the best among the ε-greedy policies, to 1e-12 of the largest.

    Args:
        mdp: the process.
        epsilon: share of random actions that no policy can do without; 0: the best of all policies.
        limit: of sweeps, where the discount is 1.

    Returns:
        None where the discount is 1 and the values do not rest: then there are none.
    """
    values = np.zeros(mdp.states)
    for _ in range(limit):
        policy = soft(mdp.backup(values), epsilon)
        after = evaluate_exactly(mdp, policy) if mdp.discount < 1 else sweep(mdp, policy, values)
        change, values = float(np.abs(after - values).max()), after
        if change <= 1e-12 * max(1.0, float(np.abs(values).max())):
            return values
    return None
