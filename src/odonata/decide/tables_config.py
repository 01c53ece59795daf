"""The options of `odonata train gridworld`: which solver uses which, and what it takes where nothing is said.

Notable: an option that says None is one that is left to the solver. One that the solver, or the world, does not use is
refused by name instead of ignored, and a run's folder holds the value that was taken.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from odonata.decide.gridworld import Bump, GridRules
from odonata.decide.stochastic_approximation import StepSize
from odonata.decide.world import World, grid_world, gymnasium_world
from odonata.errors import RecipeError

Solver = Literal[
    "value", "policy", "truncated", "mc-basic", "mc-exploring-starts", "mc-epsilon-greedy", "sarsa", "expected-sarsa",
    "q-learning", "td0", "n-step",
]  # fmt: skip


@dataclass(frozen=True)
class GridWorldConfig:
    """A world of finitely many states, and how its values are found."""

    solver: Solver = "value"
    """value, policy, truncated: dynamic programming with the model. mc-…: means of returns. The others: temporal
    differences. td0 evaluates --policy; all others look for the best one."""
    map: str = ""
    """Text file of the grid, one character a cell: . free, # forbidden, T target, S start. Empty: the book's 5 × 5."""
    env: str = ""
    """Instead of a map: a Gymnasium environment with a model, such as FrozenLake-v1, CliffWalking-v1, Taxi-v4."""
    env_options: dict[str, str] = field(default_factory=dict[str, str])
    """For --env: what gymnasium.make takes besides the name, such as `is_slippery false map_name 8x8`."""
    discount: float = 0.9
    """γ, in [0, 1]. CliffWalking is usually given 1, FrozenLake 0.99."""
    draw: bool = False
    """Write values and arrows as tables.png into the run folder."""

    r_forbidden: float | None = None
    """Of a map: for entering a forbidden cell, or staying there (None: −1)."""
    r_boundary: float | None = None
    """Of a map: for walking into the border (None: −1)."""
    r_target: float | None = None
    """Of a map: for entering a target, or staying there (None: 1)."""
    r_other: float | None = None
    """Of a map: for entering any other cell (None: 0)."""
    step_cost: float | None = None
    """Of a map: taken off every reward (None: 0)."""
    target: Literal["endless", "terminal"] | None = None
    """Of a map: whether entering a target ends the episode (None: endless; staying there pays for ever)."""
    bump_on_forbidden: Bump | None = None
    """Of a map: what the border costs on a forbidden cell, r_boundary or its sum with r_forbidden (None: boundary)."""

    sweeps: int | None = None
    """truncated: sweeps of evaluation in each iteration; 1 is value, ∞ policy iteration (None: 6)."""
    tolerance: float | None = None
    """value, policy, truncated: they rest once no value changes by as much (None: 1e-6)."""
    policy: str | None = None
    """td0: the policy to evaluate: uniform, optimal, or the name of an action to take everywhere (None: uniform)."""
    n: int | None = None
    """n-step: rewards that an entry is learned from (None: 4)."""
    behaviour: Literal["uniform", "epsilon-greedy"] | None = None
    """q-learning: who acts: every action alike (off the policy), or the ε-greedy policy (None: uniform)."""
    epsilon: float | None = None
    """Share of random actions of the ε-greedy solvers (None: 0.3)."""
    epsilon_final: float | None = None
    """Where ε ends, on a straight line over the run (None: it stays)."""
    alpha: float | None = None
    """Step size of what is learned from samples (None: 0.1; mc-exploring-starts and mc-epsilon-greedy: 1 / visits,
    the mean)."""
    alpha_power: float | None = None
    """The step is --alpha / visits^this (None: 0, constant)."""


@dataclass(frozen=True)
class ExperienceData:
    """How much a step of the run sees, where the solver learns from samples."""

    episodes: int | None = None
    """mc-…: a step's episodes; of mc-basic from each state and action (None: 20; mc-basic: 1, or 100
    where chance plays a part)."""
    episode_length: int | None = None
    """All but dynamic programming: steps after which an episode that has not ended is cut; Monte Carlo sees no more
    than that, temporal differences count what would have followed (None: 100)."""
    transitions: int | None = None
    """Temporal differences: a step's transitions (None: 1,000)."""


@dataclass(frozen=True)
class TableEvaluation:
    """What the tables are measured by."""

    exact: bool = True
    """Compare with the exact solution, which dynamic programming has in a moment unless states are many thousands."""


_DYNAMIC: dict[str, Any] = {"tolerance": 1e-6}
_MEANS: dict[str, Any] = {"alpha": 1.0, "alpha_power": 1.0}
_STEPS: dict[str, Any] = {"transitions": 1000, "episode_length": 100, "alpha": 0.1, "alpha_power": 0.0}
_GREEDY: dict[str, Any] = {"epsilon": 0.3, "epsilon_final": None}
USES: dict[Solver, dict[str, Any]] = {
    "value": _DYNAMIC,
    "policy": _DYNAMIC,
    "truncated": {**_DYNAMIC, "sweeps": 6},
    "mc-basic": {"episodes": 1, "episode_length": 100},
    "mc-exploring-starts": {"episodes": 20, "episode_length": 100, **_MEANS},
    "mc-epsilon-greedy": {"episodes": 20, "episode_length": 100, **_MEANS, **_GREEDY},
    "sarsa": {**_STEPS, **_GREEDY},
    "expected-sarsa": {**_STEPS, **_GREEDY},
    "q-learning": {**_STEPS, **_GREEDY, "behaviour": "uniform"},
    "td0": {**_STEPS, "policy": "uniform"},
    "n-step": {**_STEPS, **_GREEDY, "n": 4},
}
"""Solver → the options that it uses, with what they are where nothing is said."""
RULES = tuple(each.name for each in dataclasses.fields(GridRules))
"""Options of a map's world."""
_OWN = ("sweeps", "tolerance", "policy", "n", "behaviour", "epsilon", "epsilon_final", "alpha", "alpha_power")
_OF_DATA = ("episodes", "episode_length", "transitions")
_POSITIVE = ("sweeps", "tolerance", "n", "episodes", "episode_length", "transitions", "alpha")


def resolved(config: GridWorldConfig, data: ExperienceData, has_chance: bool) -> tuple[GridWorldConfig, ExperienceData]:
    """Return the options with those filled in that were left to the solver.

    Args:
        config: as given.
        data: as given.
        has_chance: whether an action of the world may lead to several outcomes.

    Raises:
        RecipeError: an option that the solver does not use, or a value out of its range.
    """
    uses = dict(USES[config.solver])
    if config.solver == "q-learning" and config.behaviour != "epsilon-greedy":
        del uses["epsilon"], uses["epsilon_final"]
    if config.solver == "mc-basic" and has_chance:
        uses["episodes"] = 100
    if config.alpha is not None and "alpha_power" in uses:
        uses["alpha_power"] = 0.0
    _refuse_unused(config, data, uses)
    given = {name: getattr(config, name) for name in _OWN} | {name: getattr(data, name) for name in _OF_DATA}
    taken = {name: uses[name] if given[name] is None else given[name] for name in uses}
    if "epsilon" in uses and taken["epsilon_final"] is None:
        taken["epsilon_final"] = taken["epsilon"]
    _check_ranges(taken)
    return (
        dataclasses.replace(config, **{name: value for name, value in taken.items() if name in _OWN}),
        dataclasses.replace(data, **{name: value for name, value in taken.items() if name in _OF_DATA}),
    )


def _refuse_unused(config: GridWorldConfig, data: ExperienceData, uses: dict[str, Any]) -> None:
    for owner, names, prefix in ((config, _OWN, "--"), (data, _OF_DATA, "--data.")):
        for name in names:
            if getattr(owner, name) is not None and name not in uses:
                option = f"{prefix}{name.replace('_', '-')}"
                if config.solver == "q-learning" and name.startswith("epsilon"):
                    raise RecipeError(f"{option} needs --behaviour epsilon-greedy: a uniform behaviour has no ε")
                able = ", ".join(solver for solver, options in USES.items() if name in options)
                raise RecipeError(f"{option} is not used by --solver {config.solver}, but by {able}; leave it out")


def _check_ranges(taken: dict[str, Any]) -> None:
    for name, value in taken.items():
        option = ("--data." if name in _OF_DATA else "--") + name.replace("_", "-")
        if name in _POSITIVE and not 0 < value < float("inf"):
            raise RecipeError(f"{option} is {value}; it must be positive and finite")
        if name in ("epsilon", "epsilon_final") and not 0 <= value <= 1:
            raise RecipeError(f"{option} is {value}; a share lies in [0, 1]")
        if name == "alpha_power" and not value >= 0:
            raise RecipeError(f"{option} is {value}; it must not be negative")


def step_size(config: GridWorldConfig) -> StepSize:
    """Return the step sizes of resolved options."""
    assert config.alpha is not None and config.alpha_power is not None
    return StepSize(config.alpha, config.alpha_power)


def open_world(config: GridWorldConfig) -> tuple[GridWorldConfig, World]:
    """Return the world of the options, and these with the map's rules filled in.

    Raises:
        DataError: the map cannot be used.
        RecipeError: map and environment at once, options of the one for the other, or an unknown environment.
    """
    given = {name: getattr(config, name) for name in RULES if getattr(config, name) is not None}
    if config.env:
        if config.map:
            raise RecipeError(f"--map {config.map} and --env {config.env}: a run has one world; leave one out")
        if given:
            option = next(iter(given)).replace("_", "-")
            raise RecipeError(f"--{option} belongs to a map; --env {config.env} has rewards of its own")
        return config, gymnasium_world(config.env, config.env_options, config.discount)
    if config.env_options:
        raise RecipeError("--env-options are for --env, which is not given")
    rules = GridRules(**given)
    return dataclasses.replace(config, **dataclasses.asdict(rules)), grid_world(config.map, rules, config.discount)
