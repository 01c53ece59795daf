"""Values and policies as tables: the method behind `odonata train gridworld`.

Notable: a table is a buffer in float64, and there is nothing to differentiate: a step hands the tables to its solver
and takes them back. Chance in step k comes from a generator keyed by (seed, k), and the walk of a temporal difference
is a buffer too, so a run that is killed and resumed ends with the same bits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from odonata.decide import dynamic_programming as dp
from odonata.decide.mdp import MDP, Values
from odonata.decide.solvers import Plan, Tables, advance, empty, policy_named, sought
from odonata.decide.tables_config import open_world, resolved
from odonata.decide.tables_drawing import draw_tables
from odonata.decide.tables_text import table_lines
from odonata.decide.temporal_difference import NOWHERE, Walk
from odonata.decide.world import Legend, World
from odonata.engine.method import Method
from odonata.engine.recipe import Clip, Recipe, Schedule
from odonata.engine.task import Task
from odonata.errors import RecipeError

if TYPE_CHECKING:
    from odonata.engine.fit import Engine

PICTURE = "tables.png"
"""What --draw writes into the run folder."""
LEGEND = "world.json"
"""What the tables' states and actions are, among the assets of a run."""
SLACK = 1e-9
"""By how much two values may differ and count as the same."""


class GridWorld(Method):
    """Tables and the solver that fills them.

    Args:
        plan: process and resolved options.
        seed: of the run; with the number of a step it decides all chance in that step.
        target: what the values should become, if that is known.
    """

    values: Tensor
    policy: Tensor
    q: Tensor
    visits: Tensor
    place: Tensor
    """State, action and age of the walk, iterations made, and whether they have come to rest."""
    pending: Tensor

    def __init__(self, plan: Plan, seed: int, target: Values | None) -> None:
        super().__init__()
        self.plan, self.seed, self.target = plan, seed, target
        self.share, self.change = 0.0, float("nan")
        tables = empty(plan)
        for name in ("values", "policy"):
            self.register_buffer(name, torch.from_numpy(getattr(tables, name).copy()))
        self.register_buffer("q", torch.from_numpy(tables.walk.q))
        self.register_buffer("visits", torch.from_numpy(tables.walk.visits))
        self.register_buffer("place", torch.tensor([NOWHERE, NOWHERE, 0, 0, 0]))
        if plan.config.solver == "n-step":
            self.register_buffer("pending", torch.full((plan.config.n or 1, 3), float(NOWHERE), dtype=torch.float64))

    def tables(self) -> Tables:
        """Return what the buffers hold."""
        state, action, age, iterations, converged = self.place.tolist()
        pending = None
        if self.plan.config.solver == "n-step":
            rows = _array(self.pending)
            pending = rows[rows[:, 0] != NOWHERE]
        walk = Walk(_array(self.q), _array(self.visits), state, action, age, pending)
        return Tables(_array(self.values), _array(self.policy), walk, iterations, bool(converged))

    def keep(self, tables: Tables) -> None:
        """Put tables into the buffers."""
        walk = tables.walk
        for name, array in (
            ("values", tables.values),
            ("policy", tables.policy),
            ("q", walk.q),
            ("visits", walk.visits),
        ):
            getattr(self, name).copy_(torch.from_numpy(array))
        self.place.copy_(torch.tensor([walk.state, walk.action, walk.age, tables.iterations, int(tables.converged)]))
        if self.plan.config.solver == "n-step" and walk.pending is not None:
            self.pending.fill_(NOWHERE)
            self.pending[: len(walk.pending)] = torch.from_numpy(walk.pending)

    def begin_step(self, step: int, steps: int) -> None:
        """Take note of the share of the run that is done."""
        self.share = step / max(1, steps - 1)

    def step(self, batch: Tensor, engine: Engine) -> dict[str, Tensor]:
        """Do one step of the solver.

        Args:
            batch: the number of the step.
            engine: of the run; tables need none of its verbs.

        Returns:
            `change`, the largest of a value; `error`, the largest distance from what the values should become,
            over the states that an episode can come to.
        """
        before = self.tables()
        after = advance(self.plan, before, np.random.default_rng((self.seed, int(batch))), self.share)
        self.keep(after)
        self.change = float(np.abs(after.values - before.values).max())
        figures = {"change": torch.tensor(self.change)}
        if self.target is not None:
            apart = np.abs(after.values - self.target)[self.plan.mdp.reachable]
            figures["error"] = torch.tensor(float(apart.max()))
        return figures

    def loss(self, batch: Any) -> dict[str, Tensor]:
        """Return how far the values are from the equation that they should satisfy, the largest Bellman residual."""
        tables, mdp = self.tables(), self.plan.mdp
        right = dp.sweep(mdp, tables.policy, tables.values)
        return {"loss": torch.tensor(float(np.abs(right - tables.values).max()))}

    def networks(self) -> tuple[nn.Module, ...]:
        """None: nothing here is called by a network's call."""
        return ()

    def optimizers(self, build: Callable[[nn.Module], Optimizer]) -> dict[str, Optimizer]:
        """None."""
        return {}


def _array(buffer: Tensor) -> NDArray[Any]:
    return buffer.cpu().numpy().copy()


class StepNumbers:
    """The batches of a method that makes its own: the number of each step."""

    def start(self, step: int = 0, rank: int = 0, world: int = 1) -> Iterator[Tensor]:
        """Return the numbers from `step` on."""
        while True:
            yield torch.tensor(step)
            step += 1


def build(recipe: Recipe, folder: Path | None = None) -> Task:
    """Return the task of a recipe.

    Args:
        recipe: of this method.
        folder: the `assets/` of a run that is resumed; map and environment are opened anew, and must be the same.

    Raises:
        OdonataError: the map, the environment or the options cannot be used.
    """
    check_engine_options(recipe)
    config, world = open_world(recipe.method)
    config, data = resolved(config, recipe.data, has_chance=world.mdp.probabilities.shape[2] > 1)
    given = None if config.policy is None else policy_named(config.policy, world.mdp, world.legend.actions)
    plan = Plan(world.mdp, config, data, given)
    target = sought(plan) if recipe.evaluation.exact else None
    method = GridWorld(plan, recipe.seed, target)
    return Task(
        method=method,
        batches=StepNumbers(),
        batch_size=1,
        fingerprint=world.mdp.fingerprint(),
        evaluate=Measures(world.mdp, target) if target is not None else None,
        save_assets=lambda assets: world.legend.save(assets / LEGEND),
        assets=world.legend,
        recipe=dataclasses.replace(recipe, method=config, data=data),
        notes=notes_of(plan, world, recipe, target),
        conclude=lambda trained, run: conclude(trained, run, world.legend),
    )


def check_engine_options(recipe: Recipe) -> None:
    """Refuse options of the engine that tables have no use for.

    Raises:
        RecipeError: names the option.
    """
    plain = Recipe("", None, None, None)
    idle = {
        "--optim": recipe.optim != plain.optim,
        "--schedule": recipe.schedule != Schedule(),
        "--clip": recipe.clip != Clip(),
    }
    idle |= {f"--{name}": getattr(recipe, name) != getattr(plain, name) for name in ("accumulate", "ema", "precision")}
    idle |= {f"--{name}": getattr(recipe, name) != getattr(plain, name) for name in ("devices", "parallel")}
    for option, changed in idle.items():
        if changed:
            raise RecipeError(f"{option}: tables are filled without gradients, in one process; leave it out")
    if recipe.early_stop:
        raise RecipeError("--early-stop: tables have no figure to stop by; dynamic programming rests at --tolerance")
    if recipe.eval_every and not recipe.evaluation.exact:
        raise RecipeError("--eval-every: without --evaluation.exact there is nothing to measure")


def notes_of(plan: Plan, world: World, recipe: Recipe, target: Values | None) -> list[str]:
    """Return what the person should know before the run."""
    mdp, config = plan.mdp, plan.config
    notes = [f"world: {world.legend.origin}, {mdp.states} states, {mdp.actions} actions, discount {mdp.discount:g}"]
    if recipe.evaluation.exact and target is None:
        notes.append("with --discount 1 the exact values are not finite here: nothing to compare with")
    if config.alpha_power == 1 and config.epsilon != config.epsilon_final:
        notes.append(
            "ε falls, and the mean over all visits counts those of policies long given up: --alpha 0.02 keeps a "
            "constant step instead"
        )
    return notes


@dataclasses.dataclass(frozen=True)
class Measures:
    """What is measured of tables; called with the method.

    Args:
        mdp: the process.
        target: what the values should become.
    """

    mdp: MDP
    target: Values

    def __call__(self, method: Method) -> dict[str, float]:
        """Return `error` and `error_rms` of the values, and `policy_gap`: the most that following the policy loses.

        All over the states that an episode can come to.
        """
        assert isinstance(method, GridWorld)
        tables, there = method.tables(), self.mdp.reachable
        apart = (tables.values - self.target)[there]
        figures = {"error": float(np.abs(apart).max()), "error_rms": float(np.sqrt((apart**2).mean()))}
        if self.mdp.discount < 1 or dp.surely_ends(self.mdp, tables.policy).all():
            gap = float((self.target - dp.evaluate_exactly(self.mdp, tables.policy))[there].max())
            figures["policy_gap"] = 0.0 if abs(gap) < SLACK else gap
        return figures


def conclude(method: Method, run: Path | None, legend: Legend) -> list[str]:
    """Return the tables as text and whether they rest; with --draw, write them as a picture into the run folder.

    Args:
        method: trained.
        run: its folder; None where it has none.
        legend: of the world.
    """
    assert isinstance(method, GridWorld)
    tables, config = method.tables(), method.plan.config
    lines = table_lines(tables.values, tables.policy, legend)
    if config.tolerance is not None:
        if tables.converged:
            lines.append(f"at rest after {tables.iterations} iterations: no value changed by {config.tolerance:g}")
        else:
            lines.append(
                f"not at rest: the last of {tables.iterations} iterations changed a value by {method.change:.3g}, and "
                f"--tolerance is {config.tolerance:g}; give it more --steps, or a --discount below "
                f"{method.plan.mdp.discount:g}"
            )
    if config.draw and run is not None:
        draw_tables(tables.values, tables.policy, legend).save(run / PICTURE)
        lines.append(f"drawn: {run / PICTURE}")
    return lines
