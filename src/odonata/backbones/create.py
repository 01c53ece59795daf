"""A tower by name, and what a tower is as plain values."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import re
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import yaml

from odonata.backbones import FAMILIES
from odonata.backbones.interface import Backbone
from odonata.errors import RecipeError, WeightsError


def family_of(name: str) -> str:
    """Returns the family of a variant.

    Raises:
        RecipeError: no such tower; names the nearest.
    """
    for family, card in FAMILIES.items():
        if name in card.names:
            return family
    names = [known for card in FAMILIES.values() for known in card.names]
    near = difflib.get_close_matches(name, names, 3) or [card.names[0] for card in FAMILIES.values()]
    raise RecipeError(f"no backbone {name!r}; did you mean {' or '.join(near)}?")


def variant(name: str) -> Any:
    """Returns the configuration of a variant, with options: `resnet18:stem=cifar,widths=[16,32,64,128]`.

    Raises:
        RecipeError: no such tower or option.
    """
    name, _, options = name.partition(":")
    config = _module(family_of(name)).VARIANTS[name]
    changes: dict[str, Any] = {}
    for option in filter(None, re.split(r",(?![^\[]*\])", options)):
        key, equals, value = option.partition("=")
        if not equals:
            raise RecipeError(f"backbone {name}: option {option!r} wants the form name=value")
        parsed = yaml.safe_load(value)
        changes[key] = tuple(parsed) if isinstance(parsed, list) else parsed
    return _changed(name, config, changes)


def _changed(name: str, config: Any, changes: Mapping[str, Any]) -> Any:
    fields = {field.name for field in dataclasses.fields(config)}
    if unknown := changes.keys() - fields:
        raise RecipeError(f"{name} has no option {sorted(unknown)[0]!r}; it has {', '.join(sorted(fields))}")
    try:
        return dataclasses.replace(config, **changes)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"backbone {name}: {error}") from error


def create(name: str, **changes: Any) -> Backbone:
    """Builds a tower by name, randomly initialised.

    Args:
        name: a variant, such as `resnet50` or `vit-s16`; with options as in `variant`.
        changes: fields of its configuration with other values.

    Raises:
        RecipeError: no such tower, no such field, or a value that it cannot have.

    >>> create("resnet18", stem="cifar").num_features
    512
    """
    return build(_changed(name, variant(name), changes))


def build(config: Any) -> Backbone:
    """Builds a tower from its configuration."""
    for family, card in FAMILIES.items():
        if type(config).__name__ == card.config:
            return _module(family).build(config)
    raise TypeError(f"{type(config).__name__} is no tower's configuration")


def to_plain(config: Any) -> dict[str, Any]:
    """Returns a configuration as plain values, its family's name under `family`."""
    family = next(name for name, card in FAMILIES.items() if type(config).__name__ == card.config)
    return {"family": family, **dataclasses.asdict(config)}


def from_plain(plain: Mapping[str, Any]) -> Any:
    """Returns the configuration that `to_plain` described.

    Raises:
        WeightsError: no such family or field.
    """
    family = plain.get("family")
    if family not in FAMILIES:
        raise WeightsError(f"no family of backbones {family!r}; there are {', '.join(FAMILIES)}")
    kind = getattr(_module(family), FAMILIES[family].config)
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in plain.items() if k != "family"}
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:
        raise WeightsError(f"not a configuration of {family}: {error}") from error


def _module(family: str) -> ModuleType:
    return importlib.import_module(FAMILIES[family].module)
