"""Recipes as YAML and back: plain values, one class name where a field may hold one of several types. No torch."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from pathlib import Path
from typing import Any

import yaml

from odonata.engine.recipe import Recipe
from odonata.errors import RecipeError

_KIND = "_"  # the key that holds the class name of a node


def to_plain(value: Any) -> Any:
    """Return dataclasses, tuples and dicts as what YAML and JSON can hold; a dataclass carries its name under `_`."""
    if dataclasses.is_dataclass(value):
        fields = {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {_KIND: type(value).__name__, **fields}
    if isinstance(value, (list, tuple)):
        return [to_plain(v) for v in typing.cast(list[Any], value)]
    if isinstance(value, dict):
        return {k: to_plain(v) for k, v in typing.cast(dict[str, Any], value).items()}
    return value


def from_plain(plain: dict[str, Any], default: Any, where: str) -> Any:
    """Return `default` (a dataclass) with the fields that `plain` names replaced.

    Args:
        plain: what `to_plain` made, possibly only a part of it.
        default: supplies the types, and the values of what is not named.
        where: the file, for messages.

    Raises:
        RecipeError: an unknown field (with the nearest names) or class, or a value of another type.
    """
    kind = plain.get(_KIND, type(default).__name__)
    hints = typing.get_type_hints(type(default), include_extras=False)
    known = {f.name: f for f in dataclasses.fields(default)}
    if kind != type(default).__name__:
        raise RecipeError(f"{where}: expected a {type(default).__name__}, found a {kind}")
    changes: dict[str, Any] = {}
    for name, value in plain.items():
        if name == _KIND:
            continue
        if name not in known:
            near = difflib.get_close_matches(name, known, 3)
            hint = f"; did you mean {' or '.join(near)}?" if near else f"; it has {', '.join(known)}"
            raise RecipeError(f"{where}: {kind} has no field {name!r}{hint}")
        changes[name] = _value(value, hints[name], getattr(default, name), f"{where}: {name}")
    return dataclasses.replace(default, **changes)


def _value(value: Any, hint: Any, current: Any, where: str) -> Any:
    if dataclasses.is_dataclass(current) and isinstance(value, dict) and _KIND not in value:
        # Written by hand: fields of what stands there by default.
        return from_plain(typing.cast(dict[str, Any], value), current, where)
    if isinstance(value, dict) and _KIND in value:
        candidates: list[Any] = [type(current)] if dataclasses.is_dataclass(current) else []
        candidates += [c for c in _members(hint) if dataclasses.is_dataclass(c)]
        for candidate in candidates:
            if candidate.__name__ == value[_KIND]:
                base = current if type(current) is candidate else candidate()
                return from_plain(typing.cast(dict[str, Any], value), base, where)
        names = ", ".join(c.__name__ for c in candidates)
        raise RecipeError(f"{where}: {value[_KIND]!r} is none of {names}")
    if dataclasses.is_dataclass(current) and not (value is None and types.NoneType in _members(hint)):
        raise RecipeError(f"{where} is {value!r}, which is not a mapping with the fields of {type(current).__name__}")
    return _plain_value(value, hint, where)


def _members(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _plain_value(value: Any, hint: Any, where: str) -> Any:
    for member in _members(hint):
        origin = typing.get_origin(member)
        if member is Any:
            return value
        if origin is typing.Literal and value in typing.get_args(member):
            return value
        if (origin or member) is tuple and isinstance(value, list):
            return _tuple(typing.cast(list[Any], value), typing.get_args(member), where)
        if (origin or member) in (dict, list) and isinstance(value, origin or member):
            return value
        if member is float and isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
        if member is float and isinstance(value, str) and (number := _exponent(value)) is not None:
            return number
        if member is bool or member is str or member is types.NoneType:
            if isinstance(value, member):
                return value
        elif member is int and isinstance(value, int) and not isinstance(value, bool):
            return value
    wanted = " | ".join(getattr(m, "__name__", str(m)) for m in _members(hint))
    raise RecipeError(f"{where} is {value!r}, which is not {wanted}")


def _tuple(items: list[Any], kinds: tuple[Any, ...], where: str) -> tuple[Any, ...]:
    """Check a list against `tuple[float, float]` or `tuple[float, ...]`."""
    if not kinds:
        return tuple(tuple(item) if isinstance(item, list) else item for item in items)
    if kinds[-1] is Ellipsis:
        kinds = (kinds[0],) * len(items)
    if len(items) != len(kinds):
        raise RecipeError(f"{where} has {len(items)} entries: {items!r}; it takes {len(kinds)}")
    return tuple(
        _plain_value(item, kind, f"{where}[{i}]") for i, (item, kind) in enumerate(zip(items, kinds, strict=True))
    )


def _exponent(text: str) -> float | None:
    """YAML 1.1 reads `1e-4` as text, for want of a point."""
    try:
        return float(text)
    except ValueError:
        return None


def write_recipe(recipe: Recipe, path: Path) -> None:
    """Write the resolved recipe. The run folder is left out: a saved recipe makes a new run."""
    plain = to_plain(dataclasses.replace(recipe, out=""))
    path.write_text(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True), encoding="utf-8")


def read_recipe_name(path: Path) -> tuple[str, dict[str, Any]]:
    """Return the method's name and the plain content of a saved recipe.

    Raises:
        RecipeError: no such file, not YAML, or without a name.
    """
    if not path.is_file():
        raise RecipeError(f"{path}: no such recipe file")
    try:
        plain = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"{path}: cannot read the recipe: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: not YAML: {error}") from error
    if not isinstance(plain, dict) or "name" not in plain:
        raise RecipeError(f"{path}: a recipe is a mapping with the method's name under 'name'")
    return str(plain["name"]), typing.cast(dict[str, Any], plain)
