"""Every method of every room by name, from indexes that need no torch."""

from __future__ import annotations

import difflib
import importlib
import importlib.resources
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

from odonata import claims
from odonata.card import MARKS, Card
from odonata.errors import RecipeError

if TYPE_CHECKING:
    from odonata.engine.recipe import Recipe

ROOMS = ("align", "represent", "detect", "segment", "language", "decide", "posttrain", "distill")
"""The rooms that are furnished."""

RECOGNISED_IN = ("decide", "align", "detect", "segment", "posttrain", "language", "represent")
"""Rooms that know published weights, in the order in which they are asked: tables and small policies come first, whose
files have kinds of their own; a detector holds a tower, and a tower alone comes last."""


@dataclass(frozen=True)
class Entry:
    """One method as `odonata list` shows it."""

    name: str
    room: str
    card: Card
    evidence: dict[str, list[str]]
    """Mark → the tests that showed it when last recorded; for `claim`, the recorded claims with their verdicts."""

    @property
    def marks(self) -> dict[str, bool]:
        """Mark → whether anything recorded shows it."""
        return {mark: bool(self.evidence.get(mark)) for mark in MARKS}


def room_index(room: str) -> ModuleType:
    """Return a room's package, whose import needs no torch.

    Raises:
        RecipeError: no such room.
    """
    if room not in ROOMS:
        raise RecipeError(f"no room {room!r}; there are {', '.join(ROOMS)}")
    return importlib.import_module(f"odonata.{room}")


def methods(room: str | None = None) -> list[Entry]:
    """Return all methods, or those of one room, with the marks that were recorded for them.

    Raises:
        RecipeError: no such room.
    """
    tests, verdicts = _recorded_tests(), claims.recorded()
    entries: list[Entry] = []
    for name in [room] if room else ROOMS:
        cards = cast(dict[str, Card], room_index(name).METHODS)
        for method, card in cards.items():
            decided = [f"{claim}: {verdicts[claim]['verdict']}" for claim in card.claims if claim in verdicts]
            entries.append(Entry(method, name, card, {**tests.get(method, {}), "claim": decided}))
    return entries


def _recorded_tests() -> dict[str, dict[str, list[str]]]:
    """Return method → mark → the tests that showed it, as `make record` wrote them."""
    path = importlib.resources.files("odonata.app") / "recorded" / "marks.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def find(name: str) -> Entry:
    """Return one method.

    Raises:
        RecipeError: no such method; names the nearest.
    """
    entries = {entry.name: entry for entry in methods()}
    if name not in entries:
        near = difflib.get_close_matches(name, entries, 3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(entries)}"
        raise RecipeError(f"no method {name!r}; {hint}")
    return entries[name]


def default_recipe(name: str) -> Recipe:
    """Return the default recipe of a method. Imports its module.

    Raises:
        RecipeError: no such method.
    """
    return cast("Callable[[], Recipe]", resolve(find(name).card.recipe))()


def named_presets(name: str) -> Mapping[str, Mapping[str, Any]]:
    """Return what `--preset` takes for a method: name → fields with their values; nothing where there is none.

    Raises:
        RecipeError: no such method.
    """
    room = room_index(find(name).room)
    if hasattr(room, "PRESETS"):
        return resolve(room.PRESETS)(name)
    return getattr(default_recipe(name).method, "presets", {})


def resolve(reference: str) -> Any:
    """Return what `module:attribute` names."""
    module, _, attribute = reference.partition(":")
    return getattr(importlib.import_module(module), attribute)
