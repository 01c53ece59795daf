"""What people touch of this room, by the name of the method: tables that act, or a policy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from odonata.decide import control_policy, tables_file
from odonata.decide.solution import load_tables

LOADERS: dict[str, Callable[..., Any]] = {"gridworld": load_tables, "ppo-control": control_policy.load}
"""Method → `load(path, name, device)`."""


def load(path: Path, name: str | None, device: torch.device, **options: Any) -> Any:
    """Return what a run of this room learned, or what was written from one.

    Args:
        path: a run folder, or what `convert` wrote.
        name: of the run's method; None for what is no run.
        device: where a network goes; tables stay in memory.
        options: of the loader of that method.

    Raises:
        WeightsError: the files cannot be read, or do not fit one another.
    """
    if name is None and control_policy.recognises(path):
        return control_policy.load(path, None, device, **options)
    return LOADERS[name or "gridworld"](path, name, device, **options)


def recognises(path: Path) -> bool:
    """Return whether tables of this room are there, or a policy for control."""
    return tables_file.is_tables(path) or control_policy.recognises(path)
