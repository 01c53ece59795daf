"""Presets: named sets of values for a method's options."""

from __future__ import annotations

import dataclasses
from typing import Any

from odonata.errors import RecipeError


def with_preset(config: Any) -> Any:
    """Return the options with those of their preset filled in; fields that were changed by hand stay as they are.

    Args:
        config: a frozen dataclass with a field `preset` and, for all of its kind, `presets`: name → fields.

    Raises:
        RecipeError: there is no such preset.
    """
    if not config.preset:
        return config
    if config.preset not in config.presets:
        raise RecipeError(f"--preset {config.preset!r} is unknown; there are {', '.join(config.presets) or 'none'}")
    untouched = type(config)()
    filled = {
        name: value
        for name, value in config.presets[config.preset].items()
        if getattr(config, name) == getattr(untouched, name)
    }
    return dataclasses.replace(config, **filled, preset="")
