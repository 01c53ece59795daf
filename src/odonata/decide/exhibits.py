"""Pictures for a run's report, by the type of its method's configuration."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from odonata.decide.control_drawing import exhibits as drawn_episodes
from odonata.decide.ppo_control import PPOControlConfig
from odonata.decide.tables_config import GridWorldConfig
from odonata.decide.tables_drawing import exhibits as drawn_tables

EXHIBITORS: dict[type, Callable[[Any, Path, int], Iterable[tuple[str, list[str]]]]] = {
    GridWorldConfig: drawn_tables,
    PPOControlConfig: drawn_episodes,
}
"""Configuration → what shows a run of it."""


def exhibits(recipe: Any, run: Path, count: int) -> Iterable[tuple[str, list[str]]]:
    """Return pictures of a run, each a `data:` address with lines of text."""
    return EXHIBITORS[type(recipe.method)](recipe, run, count)
