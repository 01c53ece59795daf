"""`odonata predict`: what a model says of pictures depends on its room."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path

from odonata.app.commands.arguments import parse
from odonata.errors import RecipeError

_LABELS = ("odonata.app.commands.predict_labels", "LabelArguments", "predict_labels")
_OBJECTS = ("odonata.app.commands.predict_objects", "ObjectArguments", "predict_objects")
ROOMS = {"align": _LABELS, "represent": _LABELS, "distill": _LABELS, "detect": _OBJECTS, "segment": _OBJECTS}
"""Room → module, its arguments, and its function."""


def predict(arguments: Sequence[str]) -> None:
    """Print what a model says, or write it where the options say."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return
    if arguments[0].startswith("-"):
        raise RecipeError(f"the model comes first: odonata predict MODEL {arguments[0]} …")
    module, kind, function = ROOMS[room_named(arguments[0])]
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


def room_named(model: str) -> str:
    """Return the room of a model: a path, or a method's name.

    Raises:
        WeightsError: nothing there, or nothing that a room knows.
    """
    if not Path(model).exists():
        from odonata.app.catalog import methods

        for entry in methods():
            if entry.name == model:
                return entry.room
    from odonata.app.api import room_of

    return room_of(Path(model))
