"""The default recipes of this room."""

from __future__ import annotations

from odonata.decide.control_task import ControlEvaluation, RolloutData
from odonata.decide.ppo_control import PPOControlConfig
from odonata.decide.tables_config import ExperienceData, GridWorldConfig, TableEvaluation
from odonata.engine.recipe import AdamW, Clip, Recipe, Schedule


def gridworld() -> Recipe:
    """Value iteration on the book's grid.

    500 steps suit every solver there: dynamic programming rests after 133 of them at most, MC Basic needs about 60, and
    the others see half a million transitions or more, which takes about a second.
    """
    return Recipe(
        name="gridworld",
        method=GridWorldConfig(),
        data=ExperienceData(),
        evaluation=TableEvaluation(),
        steps=500,
    )


def ppo_control() -> Recipe:
    """PPO on CartPole-v1 with CleanRL's settings: 976 updates of 4 × 128 steps, which is half a million steps.

    Adam at 2.5e-4 with ε = 1e-5 and without weight decay, the rate falling to 0 from one rollout to the next, gradients
    clipped to a norm of 0.5.
    """
    return Recipe(
        name="ppo-control",
        method=PPOControlConfig(),
        data=RolloutData(),
        evaluation=ControlEvaluation(),
        optim=AdamW(lr=2.5e-4, weight_decay=0.0, betas=(0.9, 0.999), eps=1e-5),
        schedule=Schedule(kind="linear", warmup=0.0),
        clip=Clip("norm", 0.5),
        steps=976,
    )
