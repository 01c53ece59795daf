"""One step of each solver, from tables to tables: what a run repeats.

Notable: a step is one outer iteration of dynamic programming or MC Basic, or a block of episodes or transitions; 500 of
them suit every solver on worlds of some dozen states. Dynamic programming rests once it has converged.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from odonata.decide import dynamic_programming as dp
from odonata.decide import monte_carlo as mc
from odonata.decide import temporal_difference as td
from odonata.decide.mdp import MDP, Policy, Values
from odonata.decide.tables_config import ExperienceData, GridWorldConfig, Solver, step_size
from odonata.errors import RecipeError


@dataclass(frozen=True)
class Tables:
    """All that a solver knows after a step."""

    values: Values
    policy: Policy
    """What the values are of: greedy, ε-greedy, or the policy that is evaluated."""
    walk: td.Walk
    """Action values, visits, and where a walk stands."""
    iterations: int = 0
    """Steps made, up to the one that saw no change."""
    converged: bool = False
    """Whether dynamic programming has come to rest."""


@dataclass(frozen=True)
class Plan:
    """What a step needs besides tables and chance."""

    mdp: MDP
    config: GridWorldConfig
    """Resolved."""
    data: ExperienceData
    """Resolved."""
    given: Policy | None = None
    """The policy that td0 evaluates."""

    def epsilon(self, share: float) -> float:
        """Return ε after this share of the run; 0 for solvers without."""
        first, last = self.config.epsilon, self.config.epsilon_final
        return 0.0 if first is None or last is None else first + share * (last - first)


def empty(plan: Plan) -> Tables:
    """Return tables of zeros; their policy is the one that a solver begins with."""
    columns = 1 if plan.config.solver == "td0" else plan.mdp.actions
    walk = td.begin(plan.mdp, columns)
    if plan.config.solver == "n-step":
        walk = replace(walk, pending=np.empty((0, 3)))
    policy = (
        plan.given
        if plan.given is not None
        else dp.soft(np.zeros((plan.mdp.states, plan.mdp.actions)), plan.epsilon(0))
    )
    return Tables(np.zeros(plan.mdp.states), policy, walk)


def policy_named(name: str, mdp: MDP, actions: tuple[str, ...]) -> Policy:
    """Return the policy of a name: uniform, optimal, or an action to take everywhere.

    Raises:
        RecipeError: no such policy, or the world has no optimal values.
    """
    if name == "uniform":
        return dp.uniform(mdp)
    if name in actions:
        return dp.always(mdp, actions.index(name))
    if name == "optimal":
        values = dp.optimal(mdp)
        if values is None:
            raise RecipeError("--policy optimal: with --discount 1 this world has no finite values, so no best policy")
        return dp.soft(mdp.backup(values))
    raise RecipeError(f"--policy {name!r} is unknown; there are uniform, optimal, {', '.join(actions)}")


def _dynamic(plan: Plan, tables: Tables, rng: np.random.Generator, share: float) -> Tables:
    if tables.converged:
        return tables
    sweeps = {"value": 1, "policy": None}.get(plan.config.solver, plan.config.sweeps)
    values, policy = dp.improve(plan.mdp, tables.values, sweeps)
    assert plan.config.tolerance is not None
    rests = bool(np.abs(values - tables.values).max() < plan.config.tolerance)
    walk = replace(tables.walk, q=plan.mdp.backup(values))
    return Tables(values, dp.soft(walk.q) if rests else policy, walk, tables.iterations + 1, rests)


def _monte_carlo(plan: Plan, tables: Tables, rng: np.random.Generator, share: float) -> Tables:
    walk, epsilon, solver = tables.walk, plan.epsilon(share), plan.config.solver
    episodes, length = plan.data.episodes, plan.data.episode_length
    assert episodes is not None and length is not None
    if solver == "mc-basic":
        q = mc.mc_basic(plan.mdp, walk.q, episodes=episodes, length=length, rng=rng)
        return _of_q(tables, td.Walk(q, walk.visits + episodes), 0.0)
    sizes = step_size(plan.config)
    if solver == "mc-exploring-starts":
        q, visits = mc.mc_exploring_starts(
            plan.mdp, walk.q, walk.visits, episodes=episodes, length=length, sizes=sizes, rng=rng
        )
    else:
        q, visits = mc.mc_epsilon_greedy(
            plan.mdp, walk.q, walk.visits, episodes=episodes, length=length, sizes=sizes, epsilon=epsilon, rng=rng
        )
    return _of_q(tables, td.Walk(q, visits), epsilon)


def _temporal(plan: Plan, tables: Tables, rng: np.random.Generator, share: float) -> Tables:
    mdp, walk, epsilon, config = plan.mdp, tables.walk, plan.epsilon(share), plan.config
    if config.solver == "q-learning":
        acts = 1.0 if config.behaviour == "uniform" else epsilon
        return _of_q(tables, td.q_learning(mdp, walk, _block(plan, acts), rng), 0.0)  # greedy, whoever acts
    if config.solver == "n-step":
        assert config.n is not None
        return _of_q(tables, td.n_step_sarsa(mdp, walk, _block(plan, epsilon), rng, n=config.n), epsilon)
    learn = td.sarsa if config.solver == "sarsa" else td.expected_sarsa
    return _of_q(tables, learn(mdp, walk, _block(plan, epsilon), rng), epsilon)


def _evaluation(plan: Plan, tables: Tables, rng: np.random.Generator, share: float) -> Tables:
    assert plan.given is not None
    walk = td.td0(plan.mdp, tables.walk, plan.given, _block(plan, 0.0), rng)
    return Tables(walk.q[:, 0], plan.given, walk, tables.iterations + 1)


def _block(plan: Plan, epsilon: float) -> td.Block:
    assert plan.data.transitions is not None and plan.data.episode_length is not None
    return td.Block(plan.data.transitions, step_size(plan.config), epsilon, plan.data.episode_length)


def _of_q(before: Tables, walk: td.Walk, epsilon: float) -> Tables:
    policy = dp.soft(walk.q, epsilon)
    return Tables((policy * walk.q).sum(1), policy, walk, before.iterations + 1)


STEPS: dict[Solver, Callable[[Plan, Tables, np.random.Generator, float], Tables]] = {
    "value": _dynamic,
    "policy": _dynamic,
    "truncated": _dynamic,
    "mc-basic": _monte_carlo,
    "mc-exploring-starts": _monte_carlo,
    "mc-epsilon-greedy": _monte_carlo,
    "sarsa": _temporal,
    "expected-sarsa": _temporal,
    "q-learning": _temporal,
    "n-step": _temporal,
    "td0": _evaluation,
}
"""Solver → what does one step."""


def advance(plan: Plan, tables: Tables, rng: np.random.Generator, share: float) -> Tables:
    """Return the tables after one more step.

    Args:
        plan: of the run.
        tables: so far.
        rng: decides all that is left to chance in this step.
        share: of the run that is done, in [0, 1]; for ε.

    Raises:
        RecipeError: policy iteration at discount 1 met a policy that never ends.
    """
    return STEPS[plan.config.solver](plan, tables, rng, share)


def sought(plan: Plan) -> Values | None:
    """Return what the solver's values should become; None where there is no such thing.

    That is v_π of the policy that td0 evaluates; the values of the best ε-greedy policy, for solvers that act and learn
    by one, with the last ε; else v*.
    """
    if plan.given is not None:
        return dp.evaluate_exactly(plan.mdp, plan.given)
    epsilon = 0.0 if plan.config.solver == "q-learning" else plan.epsilon(1.0)
    return dp.optimal(plan.mdp, epsilon)
