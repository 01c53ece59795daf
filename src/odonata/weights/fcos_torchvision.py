"""FCOS under torchvision's names. Its outputs are numbered by COCO's ids, with an unused output 0."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from odonata.weights.coco_names import table
from odonata.weights.detectors import ModelLayout, ModelPlan
from odonata.weights.layout import Files, Plain, require, shape_of
from odonata.weights.maps import KeyMap, Rule, depth_of, pair
from odonata.weights.read import Raw
from odonata.weights.torchvision_pyramid import has_trunk, trunk, written_trunk

_CONVENTIONS: Plain = {
    "point_offset": 0.0,
    "stride_rule": "picture",
    "scales": False,
    "weight_by_centerness": False,
    "threshold_on": "score",
    "score_threshold": 0.2,
    "framing": {"size": 800, "max_size": 1333},
}


def recognises(raw: Raw) -> bool:
    """A torchvision trunk with a centerness output."""
    return has_trunk(raw) and "head.regression_head.bbox_ctrness.weight" in raw.state


def head_rules(depth: int) -> list[Rule]:
    """The head's rules, for towers of so many convolutions."""
    rules: list[Rule] = []
    for theirs, ours in (("classification_head", "class_tower"), ("regression_head", "box_tower")):
        for layer in range(depth):
            # Convolution, norm and rectifier stand in one sequence on both sides.
            for part in (3 * layer, 3 * layer + 1):
                rules += pair(f"head.{theirs}.conv.{part}", f"head.{ours}.{part}")
    rules += pair("head.classification_head.cls_logits", "head.class_logits")
    rules += pair("head.regression_head.bbox_reg", "head.box_distances")
    return rules + pair("head.regression_head.bbox_ctrness", "head.centerness")


def plan(raw: Raw) -> ModelPlan:
    """Returns how to read the checkpoint."""
    rules, fields = trunk(raw)
    depth = depth_of(raw.state, "head.classification_head.conv.") // 2
    classes = shape_of(raw.state, "head.classification_head.cls_logits.weight", raw.path)[0]
    config = {**_CONVENTIONS, **fields, "tower_depth": depth}
    note = "points at cells' corners, no learned scales, threshold 0.2 on the score, as torchvision has them"
    return ModelPlan(
        config, KeyMap(rules + head_rules(depth)), "torchvision FCOS", classes, table(classes), notes=[note]
    )


def write(state: Mapping[str, Tensor], config: Any, categories: Sequence[tuple[int | str, str]]) -> Files:
    """Returns the file that torchvision's `fcos_resnet50_fpn(…).load_state_dict` reads."""
    require(not config.scales, "torchvision layout: torchvision's FCOS has no learned scales; train with --no-scales")
    require(config.centerness_on == "box", "torchvision layout: centerness stands beside the box")
    rules = written_trunk(state, config) + head_rules(config.tower_depth)
    return Files("model.safetensors", KeyMap(rules).from_ours(state))


MODEL = ModelLayout("torchvision", "fcos", recognises, plan, write)
