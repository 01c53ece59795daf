"""`odonata predict`: what a model says of pictures depends on its room."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path

from odonata.app.commands.arguments import parse
from odonata.errors import RecipeError, WeightsError

_LABELS = ("odonata.app.commands.predict_labels", "LabelArguments", "predict_labels")
_OBJECTS = ("odonata.app.commands.predict_objects", "ObjectArguments", "predict_objects")
ROOMS = {"align": _LABELS, "represent": _LABELS, "distill": _LABELS, "detect": _OBJECTS, "segment": _OBJECTS}
"""Room → module, its arguments, and its function."""


def predict(arguments: Sequence[str]) -> None:
    """Print what a model says, or write it where the options say."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return
    room = room_of_model(arguments)
    if room in ("language", "posttrain"):
        raise RecipeError("a language model says nothing of pictures: use `odonata generate MODEL PROMPT`, or chat")
    if room not in ROOMS:
        raise RecipeError(f"a model of {room}/ says nothing of pictures")
    module, kind, function = ROOMS[room]
    found = importlib.import_module(module)
    getattr(found, function)(parse(getattr(found, kind), "predict", arguments))


def usage() -> str:
    """Return the help of `odonata predict` itself."""
    return """usage: odonata predict MODEL PICTURES [options]

Says what pictures show. MODEL is a run folder, published weights, or a method's name with --weights; what can be asked
depends on what it is; `odonata predict MODEL --help` tells.
  pictures and words   --labels "a dog" "a cat"
  classifiers          classes with their probabilities
  detectors            --draw out/, --json results.json, --tile 640, --score 0.5; videos too
  segmenters           --draw out/, --json results.json"""


def room_of_model(arguments: Sequence[str]) -> str:
    """Return the room of the model that is named among arguments in any order: a path, or a method's name.

    Raises:
        RecipeError: no model is named.
        WeightsError: what stands first is none.
    """
    from odonata.app.api import room_of
    from odonata.app.catalog import methods

    rooms = {entry.name: entry.room for entry in methods()}
    named = [argument for argument in arguments if not argument.startswith("-")]
    if not named:
        raise RecipeError("name a model: odonata predict MODEL PICTURES …")
    first: WeightsError | None = None
    for argument in named:
        if not Path(argument).exists() and argument in rooms:
            return rooms[argument]
        if argument is not named[0] and not Path(argument).exists():
            continue
        try:
            return room_of(Path(argument))
        except WeightsError as error:
            first = first or error
    assert first is not None
    raise first
