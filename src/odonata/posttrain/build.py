"""From a recipe of this room to what the engine trains."""

from __future__ import annotations

import importlib
from pathlib import Path

from odonata.engine.recipe import Recipe
from odonata.engine.task import Task
from odonata.posttrain.doctor import watch

BUILDERS = {
    "SFTOptions": "odonata.posttrain.build_offline:build_sft",
    "DPOOptions": "odonata.posttrain.build_offline:build_preference",
    "IPOOptions": "odonata.posttrain.build_offline:build_preference",
    "SimPOOptions": "odonata.posttrain.build_offline:build_preference",
    "KTOOptions": "odonata.posttrain.build_offline:build_kto",
    "RewardOptions": "odonata.posttrain.build_scorers:build_reward",
    "PRMOptions": "odonata.posttrain.build_scorers:build_prm",
    "PPOOptions": "odonata.posttrain.build_scorers:build_ppo",
    "GRPOOptions": "odonata.posttrain.build_online:build_grpo",
}
"""Options of a method → what builds it."""


def build(recipe: Recipe, folder: Path | None = None) -> Task:
    """Return the task of a recipe.

    Args:
        recipe: of a method of this room.
        folder: the `assets/` of a run that is resumed.

    Raises:
        OdonataError: the data, weights, rewards or options cannot be used.
    """
    module, _, function = BUILDERS[type(recipe.method).__name__].partition(":")
    task: Task = getattr(importlib.import_module(module), function)(recipe, folder)
    task.watch = task.watch or watch(task.recipe or recipe)
    return task
