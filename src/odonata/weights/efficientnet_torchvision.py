"""torchvision's EfficientNets.

Notable: they pad symmetrically. Epsilon is 1e-5 for B0 … B4, and TensorFlow's 1e-3 (momentum .01) for B5 … B7, whose
weights come from there.
Source: torchvision `models/efficientnet.py`; sizes of its `IMAGENET1K_V1` weights.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from odonata.weights.efficientnet_names import (
    IMAGENET,
    Names,
    classes_of,
    infer,
    is_counted,
    key_map,
    require_strides,
    size_of,
)
from odonata.weights.layout import Files, Plain, require
from odonata.weights.read import Raw
from odonata.weights.towers import Hints, TowerLayout, TowerPlan

_PREPROCESS = {
    "b0": (224, 256),
    "b1": (240, 256),
    "b2": (288, 288),
    "b3": (300, 320),
    "b4": (380, 384),
    "b5": (456, 456),
    "b6": (528, 528),
    "b7": (600, 600),
}
"""Crop, and the shorter side before it."""


def _parts(*parts: str) -> dict[str, str]:
    named: dict[str, str] = {}
    for i, part in enumerate(parts):
        if part == "squeeze":
            named |= {"squeeze_reduce": f"block.{i}.fc1", "squeeze_expand": f"block.{i}.fc2"}
        else:
            named |= {part: f"block.{i}.0", f"{part}_norm": f"block.{i}.1"}
    return named


NAMES = Names(
    stem=("features.0.0", "features.0.1"),
    top=("features.8.0", "features.8.1"),
    head="classifier.1",
    pattern=r"features\.([1-7])\.(\d+)\.",
    block=lambda stage, number, total: f"features.{stage + 1}.{number}.",
    parts=_parts("expand", "depthwise", "squeeze", "project"),
    plain_parts=_parts("depthwise", "squeeze", "project"),
    expands="block.3.0",
)


def recognises(raw: Raw) -> bool:
    """torchvision's numbered features with squeeze-and-excitation in the first block."""
    return {"features.0.0.weight", "features.1.0.block.1.fc1.weight", "features.8.0.weight"} <= raw.state.keys()


def _norm(config: Plain) -> Plain:
    large = config["width"] >= 1.6
    return {"norm_eps": 1e-3, "norm_momentum": 0.01} if large else {"norm_eps": 1e-5, "norm_momentum": 0.1}


def plan(raw: Raw, hints: Hints) -> TowerPlan:
    """Returns how to read the checkpoint."""
    config = infer(raw.state, NAMES, raw.path)
    config |= _norm(config) | {"padding": "symmetric"}
    size = size_of(config)
    preprocess: Plain | None = None
    if size is not None:
        crop, side = _PREPROCESS[size]
        preprocess = IMAGENET | {"size": crop, "resize_size": side, "interpolation": "bicubic"}
    classes = classes_of(raw.state, NAMES)
    notes = [f"symmetric padding, epsilon {config['norm_eps']:g}, as torchvision's {size or 'small networks'}"]
    rules = key_map(NAMES, config, classes, is_counted(raw.state))
    return TowerPlan(config, rules, "torchvision EfficientNet", classes, preprocess, (), notes)


def write(state: Mapping[str, Tensor], config: Plain, classes: int, preprocess: Plain | None) -> Files:
    """Returns the file that torchvision's `efficientnet_b*().load_state_dict` reads."""
    require_strides(config, "torchvision")
    require(
        config["padding"] == "symmetric", "torchvision layout: torchvision pads symmetrically, this tower as TensorFlow"
    )
    eps = _norm(config)["norm_eps"]
    require(config["norm_eps"] == eps, f"torchvision layout: its epsilon is {eps:g} here, not {config['norm_eps']:g}")
    return Files("model.safetensors", key_map(NAMES, config, classes).from_ours(state))


TOWER = TowerLayout("torchvision", "efficientnet", recognises, plan, write)
