"""Presets: named sets of values for a method's options."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from odonata.errors import RecipeError


def with_preset(
    config: Any, presets: Mapping[str, Mapping[str, Any]] | None = None, untouched: Any = None
) -> Any:  # fmt: skip
    """Return the options with those of their preset filled in; fields that were changed by hand stay as they are.

    Args:
        config: a frozen dataclass with a field `preset` and, for all of its kind, `presets`: name → fields.
        presets: name → fields; None: those of the class.
        untouched: the options before anything was changed by hand; None: the defaults of the class.

    Raises:
        RecipeError: there is no such preset.
    """
    if not config.preset:
        return config
    known: Mapping[str, Mapping[str, Any]] = config.presets if presets is None else presets
    if config.preset not in known:
        raise RecipeError(f"--preset {config.preset!r} is unknown; there are {', '.join(known) or 'none'}")
    untouched = type(config)() if untouched is None else untouched
    filled = {
        name: value for name, value in known[config.preset].items() if getattr(config, name) == getattr(untouched, name)
    }
    return dataclasses.replace(config, **filled, preset="")
