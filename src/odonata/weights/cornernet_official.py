"""CornerNet under its authors' names (princeton-vl/CornerNet, `CornerNet_500000.pkl`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from odonata.weights.coco_names import table
from odonata.weights.detectors import ModelLayout, ModelPlan
from odonata.weights.hourglass_cornernet import SIGN, branch, conv_norm, counted, tower_name, tower_rules, tower_shape
from odonata.weights.layout import Files, Plain, shape_of
from odonata.weights.maps import KeyMap, Rule
from odonata.weights.read import Raw

COCO_FRAMING: Plain = {
    "resize": "keep",
    "size": 512,
    "mean": [0.47026115, 0.44719302, 0.40789654],
    "std": [0.27809835, 0.27408164, 0.28863828],
    "order": "bgr",
}
"""Framing of CornerNet's and CenterNet's weights."""
_OUTPUTS = (("heats", "class_logits"), ("tags", "tag"), ("regrs", "offset"))
_POOL = (
    ("p1_conv1.conv", "p1_conv1.bn", "vertical"),
    ("p2_conv1.conv", "p2_conv1.bn", "horizontal"),
    ("p_conv1", "p_bn1", "pooled"),
    ("conv1", "bn1", "skip"),
    ("conv2.conv", "conv2.bn", "output"),
)


def recognises(raw: Raw) -> bool:
    """Hourglasses with heat maps of left upper corners."""
    return SIGN in raw.state and "tl_heats.0.1.weight" in raw.state


def rules_of(backbone: str) -> list[Rule]:
    """Returns the rules for a tower of this name.

    Raises:
        WeightsError: CornerNet cannot stand on it.
    """
    config = tower_shape(backbone, "official")
    rules = tower_rules(config, "backbone.")
    for theirs, ours in (("tl", "left_upper"), ("br", "right_lower")):
        for stack in range(config.stacks):
            for conv, bn, name in _POOL:
                part = f"{theirs}_cnvs.{stack}."
                rules += conv_norm(part + conv, part + bn, f"{ours}.{stack}.pool.{name}")
            for part, name in _OUTPUTS:
                rules += branch(f"{theirs}_{part}.{stack}", f"{ours}.{stack}.{name}")
    return rules


def plan(raw: Raw) -> ModelPlan:
    """Returns how to read the checkpoint."""
    backbone = tower_name(raw)
    classes = shape_of(raw.state, "tl_heats.0.1.weight", raw.path)[0]
    config: Plain = {
        "backbone": backbone,
        "pool_width": shape_of(raw.state, "tl_cnvs.0.p1_conv1.conv.weight", raw.path)[0],
        "head_width": shape_of(raw.state, "tl_heats.0.0.conv.weight", raw.path)[0],
        "framing": COCO_FRAMING,
        "flip_test": True,
        "pad_bits": 127,
        "score_threshold": 0.0,
    }
    note = "pictures in their own size, centred in frames of (side | 127), mirrored as well, as the authors test"
    rules = counted(rules_of(backbone), raw.state)
    return ModelPlan(config, KeyMap(rules), "CornerNet", classes, table(classes), notes=[note])


def write(state: Mapping[str, Tensor], config: Any, categories: Sequence[tuple[int | str, str]]) -> Files:
    """Returns the file that the authors' model reads, once `module.` stands before each name."""
    return Files("model.safetensors", KeyMap(rules_of(config.backbone)).from_ours(state))


MODEL = ModelLayout("official", "cornernet", recognises, plan, write)
