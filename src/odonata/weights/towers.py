"""Published backbones in and out, whatever their layout.

Each layout is a module with one `TowerLayout`: how its checkpoints are told from all others, what their tensors mean,
and how they are written. What a file leaves open (heads cannot be seen in shapes) is asked for, never guessed.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path

from torch import Tensor

from odonata.errors import WeightsError
from odonata.weights.layout import Files, Plain
from odonata.weights.maps import KeyMap
from odonata.weights.nested import unwrap
from odonata.weights.read import Raw, describe, read_state

_MODULES = (
    "resnet_torchvision",
    "resnet_hf",
    "resnet_cifar",
    "efficientnet_timm",
    "efficientnet_lukemelas",
    "efficientnet_torchvision",
    "efficientnet_hf",
    "squeezenet_torchvision",
    "darknet_towers",
    "vgg_torchvision",
    "swin_hf",
    "swin_torchvision",
    "swin_timm",
    "swin_official",
    "convnext_hf",
    "convnext_torchvision",
    "convnext_timm",
    "convnext_official",
    "vit_hf",
    "vit_torchvision",
    "vit_dino",
    "vit_timm",
)
"""Modules of this package with a `TOWER`, each asked in turn whether a checkpoint is its own."""


@dataclass(frozen=True)
class Hints:
    """What a checkpoint may leave open, said by the caller."""

    num_heads: int | None = None
    """Attention heads: 12 × 32 and 6 × 64 have the same shapes."""
    part: str | None = None
    """Which network of a training checkpoint: `teacher`, `student`, `encoder_q`, …; None takes the usual one."""
    convention: str | None = None
    """What a network was trained with where shapes do not tell: `tf` or `torch` for an EfficientNet of timm, `caffe` or
    `torchvision` for a SqueezeNet. None takes what a file's name or configuration says, or the likelier."""


@dataclass
class TowerPlan:
    """How one checkpoint is to be read."""

    config: Plain
    """Fields of the family's configuration, and `family`."""
    key_map: KeyMap
    source: str
    """Where such files come from, in words: `torchvision ResNet`."""
    classes: int = 0
    """Rows of the classifier; 0: there is none."""
    preprocess: Plain | None = None
    """Fields of `odonata.data.preprocess.Preprocess` that the source is known to use; others keep their defaults."""
    left_out: tuple[str, ...] = ()
    """Patterns of tensors that are no part of the tower: decoders, projectors, queues. They are reported."""
    notes: list[str] = field(default_factory=list[str])
    """Conventions that were inferred, one a line."""


@dataclass(frozen=True)
class TowerLayout:
    """One published layout of one family.

    Args:
        name: how users call it in `--to`: `torchvision`, `timm`, `hf`, ….
        family: of backbones.
        recognises: whether a checkpoint is of this layout.
        plan: how to read it.
        write: turns (our state, configuration, classes, preprocessing) into files; raises WeightsError where the layout
            cannot say what the tower is.
    """

    name: str
    family: str
    recognises: Callable[[Raw], bool]
    plan: Callable[[Raw, Hints], TowerPlan]
    write: Callable[[Mapping[str, Tensor], Plain, int, Plain | None], Files]


@dataclass
class PublishedTower:
    """A published backbone, read."""

    layout: str
    source: str
    config: Plain
    """For `odonata.backbones.create.from_plain`."""
    state: dict[str, Tensor]
    """Weights under our names, those of the classifier under `head` where there is one."""
    classes: int
    preprocess: Plain | None
    rest: dict[str, Tensor]
    """Tensors that are no part of the tower, under their own names."""
    notes: list[str]
    """Every inference and convention that was used, and what was not."""


def layouts() -> list[TowerLayout]:
    """Returns every layout, in the order in which a checkpoint is tried."""
    found: list[TowerLayout] = []
    for module in _MODULES:
        towers = importlib.import_module(f"odonata.weights.{module}").TOWER
        found += towers if isinstance(towers, tuple) else (towers,)
    return found


def read_tower(path: str | Path, hints: Hints | None = None) -> PublishedTower:
    """Reads a published backbone.

    Args:
        path: file or folder; see `odonata.weights.read.read_state`.
        hints: what the file may leave open.

    Raises:
        WeightsError: unreadable, unknown, incomplete, or open in a way that the caller must settle.
    """
    hints = hints or Hints()
    raw = unwrap(read_state(path, part=hints.part), hints.part)
    for layout in layouts():
        if layout.recognises(raw):
            return _read(raw, layout, hints)
    raise WeightsError(f"{path}: no published backbone that is known ({describe(raw)})")


def is_tower(path: str | Path) -> bool:
    """Whether a file or folder holds a published backbone.

    Raises:
        WeightsError: unreadable.
    """
    raw = unwrap(read_state(path))
    return any(layout.recognises(raw) for layout in layouts())


def _read(raw: Raw, layout: TowerLayout, hints: Hints) -> PublishedTower:
    plan = layout.plan(raw, hints)
    mine: dict[str, Tensor] = {}
    rest = dict(raw.beside)
    for name, value in raw.state.items():
        (rest if any(fnmatchcase(name, pattern) for pattern in plan.left_out) else mine)[name] = value
    state, unused = plan.key_map.to_ours(mine, str(raw.path))
    notes = [f"source: {plan.source}", *raw.notes, *plan.notes]
    notes.append(f"classes: {plan.classes}" if plan.classes else "classifier: none")
    if left := sorted([*rest, *unused]):
        shown = ", ".join(left[:6]) + (f" and {len(left) - 6} more" if len(left) > 6 else "")
        notes.append(f"not used: {shown}")
    return PublishedTower(layout.name, plan.source, plan.config, state, plan.classes, plan.preprocess, rest, notes)


def write_tower(
    state: Mapping[str, Tensor], config: Plain, classes: int, layout: str, preprocess: Plain | None = None
) -> Files:
    """Returns the files of a backbone in a published layout.

    Args:
        state: weights under our names.
        config: of the tower, with `family`.
        classes: rows of `head`; 0: there is none.
        layout: its name.
        preprocess: fields of the preprocessing.

    Raises:
        WeightsError: no such layout for this family, or it cannot say what this tower is.
    """
    family = config["family"]
    known = [candidate for candidate in layouts() if candidate.family == family]
    for candidate in known:
        if candidate.name == layout:
            return candidate.write(state, config, classes, preprocess)
    names = ", ".join(dict.fromkeys(candidate.name for candidate in known)) or "none"
    raise WeightsError(f"no layout {layout!r} for backbones of the family {family}; there are {names}")


def without_prefix(raw: Raw, prefix: str) -> Raw:
    """Returns the part of a checkpoint whose names begin so, under the rest of their names."""
    state = {name[len(prefix) :]: value for name, value in raw.state.items() if name.startswith(prefix)}
    return replace(raw, state=state)
