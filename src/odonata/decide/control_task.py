"""From a recipe of PPO for control to what the engine trains: copies, rollouts, and what is measured."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist

from odonata.decide.control_env import GYMNASIUM, ControlEnv, make_env
from odonata.decide.control_policy import PolicyAssets, play_in
from odonata.decide.ppo_control import PPOControl, PPOControlConfig, RolloutKey, recent_means
from odonata.engine.method import Method
from odonata.engine.presets import with_preset
from odonata.engine.recipe import Recipe
from odonata.engine.task import Task
from odonata.errors import RecipeError

_TRAINING = 0  # apart from the starts of evaluation


@dataclass(frozen=True)
class RolloutData:
    """How much is played between updates."""

    num_envs: int = 4
    """Copies of the environment that step together, over all devices."""
    num_steps: int = 128
    """Steps of each copy in a rollout."""

    def __post_init__(self) -> None:
        for name in ("num_envs", "num_steps"):
            if getattr(self, name) < 1:
                raise RecipeError(f"--data.{name.replace('_', '-')} is {getattr(self, name)}; it must be 1 or more")


@dataclass(frozen=True)
class ControlEvaluation:
    """Whole episodes, with starts that training does not see."""

    episodes: int = 20
    """Played by the likeliest actions, and as many by drawn ones (0 = none)."""

    def __post_init__(self) -> None:
        if self.episodes < 0:
            raise RecipeError(f"--evaluation.episodes is {self.episodes}; it must not be negative")


@dataclass(frozen=True)
class Rollouts:
    """An endless stream of rollouts to play: a step's number and process decide all that is drawn in it."""

    def start(self, step: int = 0, rank: int = 0, world: int = 1) -> Iterator[RolloutKey]:
        """Return this rank's rollouts from `step` on."""
        while True:
            yield RolloutKey(step, rank)
            step += 1


def build(recipe: Recipe, folder: Path | None = None) -> Task:
    """Return the task of a recipe.

    Args:
        recipe: of ppo-control.
        folder: the `assets/` of a run that is resumed; all of it follows from the recipe.

    Raises:
        RecipeError: the environment or the options cannot be used.
    """
    recipe = effective(recipe)
    config, data, episodes = recipe.method, recipe.data, recipe.evaluation.episodes
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    share = data.num_envs // world
    check_split(recipe, share, world)
    env = make_env(config.env, share, (recipe.seed, _TRAINING), first=rank * share)
    env.begin()
    assets = PolicyAssets(config.env, env.dim, env.num_actions, config.hidden)

    def evaluate(method: Method) -> dict[str, float]:
        assert isinstance(method, PPOControl)
        return measure(method, config.env, episodes, recipe.seed)

    return Task(
        method=PPOControl(config, env, data.num_steps, recipe.seed),
        batches=Rollouts(),
        batch_size=data.num_envs * data.num_steps,
        fingerprint=f"{config.env}: {env.dim} numbers, {env.num_actions} actions",
        evaluate=evaluate,
        goal="return_greedy" if episodes else "",
        save_assets=assets.save,
        assets=assets,
        recipe=recipe,
        notes=describe(recipe, env),
    )


def effective(recipe: Recipe) -> Recipe:
    """Return the recipe with its preset filled in and the number of updates that follows from `--timesteps`.

    Raises:
        RecipeError: the preset is unknown, or fewer steps are asked for than one rollout has.
    """
    config: PPOControlConfig = with_preset(recipe.method)
    rollout = recipe.data.num_envs * recipe.data.num_steps
    steps = recipe.steps
    if config.timesteps:
        steps = config.timesteps // rollout
        if not steps:
            raise RecipeError(f"--timesteps {config.timesteps} is less than one rollout of {rollout} steps")
    return dataclasses.replace(recipe, method=dataclasses.replace(config, timesteps=0), steps=steps)


def check_split(recipe: Recipe, share: int, world: int) -> None:
    """Refuse copies that processes cannot share, minibatches that are empty, and sharding.

    Raises:
        RecipeError: names the option.
    """
    copies, rows = recipe.data.num_envs, share * recipe.data.num_steps
    if share * world != copies:
        raise RecipeError(f"--data.num-envs {copies} cannot be shared by {world} processes: make it a multiple")
    if recipe.method.num_minibatches > rows:
        raise RecipeError(f"--num-minibatches {recipe.method.num_minibatches}: a rollout has {rows} steps")
    if recipe.parallel == "fsdp":
        raise RecipeError("--parallel fsdp: two networks this small are not sharded; use --parallel ddp")


def describe(recipe: Recipe, env: ControlEnv) -> list[str]:
    """Return the lines that say what is played and learned."""
    data, config = recipe.data, recipe.method
    rollout = data.num_envs * data.num_steps
    notes = [
        f"environment: {config.env}: {env.dim} numbers seen, {env.num_actions} actions",
        f"effective length: {recipe.steps} updates of {data.num_envs} × {data.num_steps} steps = "
        f"{recipe.steps * rollout:,} steps of the environment",
        f"each rollout is learned from {config.update_epochs} times, in {config.num_minibatches} minibatches",
    ]
    if config.env.startswith(GYMNASIUM):
        notes.append("Gymnasium's environments keep their state to themselves: a resumed run begins new episodes")
    return notes


def measure(method: PPOControl, env: str, episodes: int, seed: int) -> dict[str, float]:
    """Return mean returns: of episodes by the likeliest actions and by drawn ones, and of training's last hundred.

    Args:
        method: whose policy plays.
        env: name of the environment.
        episodes: of each kind.
        seed: of their starts.
    """
    figures: dict[str, float] = {}
    if episodes:
        act = method.policy.acting()
        greedy = play_in(act, env, episodes, seed, greedy=True)
        sampled = play_in(act, env, episodes, seed, greedy=False)
        figures["return_greedy"], figures["length_greedy"] = float(greedy.returns.mean()), float(greedy.lengths.mean())
        figures["return_sampled"] = float(sampled.returns.mean())
    if means := recent_means(method.env):
        figures["return_last_100"] = means[0]
    return figures
