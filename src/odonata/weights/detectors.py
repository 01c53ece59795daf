"""Published detectors and segmenters in and out, whatever their layout.

Each layout is a module with one `MODEL`, or several: how its checkpoints are told from all others, which conventions
they were trained with, what their tensors mean, and how they are written. Conventions become named fields of the
method's configuration, so that a model reads the same wherever it came from.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from torch import Tensor

from odonata.errors import WeightsError
from odonata.weights.layout import Files, Plain
from odonata.weights.maps import KeyMap, Rule
from odonata.weights.read import Raw, describe, read_state

_MODULES: dict[str, tuple[str, ...]] = {
    "detect": (
        "fcos_torchvision",
        "fcos_official",
        "faster_rcnn_torchvision",
        "faster_rcnn_mmdet",
        "retinanet_torchvision",
        "retinanet_mmdet",
        "ssd_layouts",
        "detr_official",
        "detr_hf",
        "cornernet_official",
        "centernet_official",
        "yolo_darknet",
        "mtcnn_facenet",
    ),
    "segment": ("fcn_torchvision", "pspnet_semseg", "fcn_pytorch_fcn"),
}
"""Room → modules of this package with a `MODEL`, each asked in turn whether a checkpoint is its own."""


@dataclass
class ModelPlan:
    """How one checkpoint is to be read."""

    config: Plain
    """Fields of the method's configuration that differ from its defaults, values as the configuration has them."""
    key_map: KeyMap
    source: str
    """Where such files come from, in words: `torchvision FCOS`."""
    classes: int
    """Rows of the table of categories."""
    categories: Sequence[tuple[int | str, str]] | None = None
    """The table, id and name, where the file or its source says it."""
    left_out: tuple[str, ...] = ()
    """Patterns of tensors that the model has no use for; they are reported."""
    notes: list[str] = field(default_factory=list[str])
    """Conventions that were inferred, one a line."""


@dataclass(frozen=True)
class ModelLayout:
    """One published layout of one method.

    Args:
        name: how users call it in `--to`: `torchvision`, `mmdet`, ….
        method: as in `odonata list`.
        recognises: whether a checkpoint is of this layout.
        plan: how to read it.
        write: turns (our state, fields of the configuration as plain values, categories (id, name)) into files; raises
            WeightsError where the layout cannot say what the model is.
    """

    name: str
    method: str
    recognises: Callable[[Raw], bool]
    plan: Callable[[Raw], ModelPlan]
    write: Callable[[Mapping[str, Tensor], Any, Sequence[tuple[int | str, str]]], Files]


@dataclass
class PublishedModel:
    """A published detector or segmenter, read."""

    layout: str
    method: str
    plan: ModelPlan
    state: dict[str, Tensor]
    """Weights under our names."""
    notes: list[str]
    """Every inference and convention that was used, and what was not."""


def model_layouts(room: str) -> list[ModelLayout]:
    """Returns every layout of a room, in the order in which a checkpoint is tried."""
    found: list[ModelLayout] = []
    for module in _MODULES[room]:
        models = importlib.import_module(f"odonata.weights.{module}").MODEL
        found += models if isinstance(models, tuple) else (models,)
    return found


def is_model(path: str | Path, room: str) -> bool:
    """Whether a file or folder holds a published model of a room.

    Raises:
        WeightsError: unreadable.
    """
    raw = read_state(path)
    return any(layout.recognises(raw) for layout in model_layouts(room))


def read_model(path: str | Path, room: str) -> PublishedModel:
    """Reads a published detector or segmenter.

    Args:
        path: file or folder; see `odonata.weights.read.read_state`.
        room: `detect` or `segment`.

    Raises:
        WeightsError: unreadable, unknown or incomplete.
    """
    raw = read_state(path)
    for layout in model_layouts(room):
        if layout.recognises(raw):
            return _read(raw, layout)
    raise WeightsError(f"{path}: no published model that is known ({describe(raw)})")


def _read(raw: Raw, layout: ModelLayout) -> PublishedModel:
    plan = layout.plan(raw)
    left = sorted(name for name in raw.state if any(fnmatchcase(name, pattern) for pattern in plan.left_out))
    state, unused = plan.key_map.to_ours({k: v for k, v in raw.state.items() if k not in left}, str(raw.path))
    notes = [f"source: {plan.source}", *raw.notes, *plan.notes, f"classes: {plan.classes}"]
    if unused_all := [*left, *sorted(unused)]:
        shown = ", ".join(unused_all[:6]) + (f" and {len(unused_all) - 6} more" if len(unused_all) > 6 else "")
        notes.append(f"not used: {shown}")
    return PublishedModel(layout.name, layout.method, plan, state, notes)


def write_model(
    state: Mapping[str, Tensor], method: str, config: Any, categories: Sequence[tuple[int | str, str]], layout: str
) -> Files:
    """Returns the files of a model in a published layout.

    Raises:
        WeightsError: no such layout for this method, or it cannot say what this model is.
    """
    known = [found for room in _MODULES for found in model_layouts(room) if found.method == method]
    for candidate in known:
        if candidate.name == layout:
            return candidate.write(state, config, categories)
    names = ", ".join(["odonata", *dict.fromkeys(candidate.name for candidate in known)])
    raise WeightsError(f"no layout {layout!r} for {method}; there are {names}")


def within(rules: Sequence[Rule], theirs: str, ours: str) -> list[Rule]:
    """The rules of a part, for a model that holds it under these prefixes."""
    return [
        replace(
            rule,
            theirs=tuple(theirs + name for name in rule.theirs),
            ours=tuple(ours + name for name in rule.ours),
        )
        for rule in rules
    ]
