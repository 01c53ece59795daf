"""From a recipe of this room to what the engine trains: by the type of its method's configuration."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from odonata.decide.control_task import build as build_control
from odonata.decide.ppo_control import PPOControlConfig
from odonata.decide.tables import build as build_tables
from odonata.decide.tables_config import GridWorldConfig
from odonata.engine.recipe import Recipe
from odonata.engine.task import Task

BUILDERS: dict[type, Callable[[Recipe, Path | None], Task]] = {
    GridWorldConfig: build_tables,
    PPOControlConfig: build_control,
}
"""Configuration → what builds its task."""


def build(recipe: Recipe, folder: Path | None = None) -> Task:
    """Return the task of a recipe.

    Args:
        recipe: of a method of this room.
        folder: the `assets/` of a run that is resumed.

    Raises:
        OdonataError: the map, the environment or the options cannot be used.
    """
    return BUILDERS[type(recipe.method)](recipe, folder)
