"""RetinaNets under torchvision's names, v1 and v2. Outputs are numbered by COCO's ids, with an unused output 0.

Notable: names and shapes tell v1 from v2: a norm in the head. The box loss (L1, GIoU) follows from that. Files from
before 0.14 number a head's convolutions among its rectifiers. torchvision's own COCO weights for v1 are such a file,
and were trained with an epsilon of 0 in the frozen norms; an old file with 91 outputs is taken for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from odonata.weights.coco_names import table
from odonata.weights.detectors import ModelLayout, ModelPlan
from odonata.weights.layout import Files, Plain, require, shape_of
from odonata.weights.maps import KeyMap, Rule, depth_of, pair, rename
from odonata.weights.read import Raw
from odonata.weights.torchvision_pyramid import has_trunk, trunk, written_trunk

_HEAD = "head.classification_head."
_CONVENTIONS: Plain = {
    "point_offset": 0.0,
    "stride_rule": "picture",
    "whole_anchors": True,
    "anchor_scale": 4.0,
    "normalizer": "picture",
    "max_detections": 300,
    "framing": {"size": 800, "max_size": 1333},
}
_ANCHORS = 9


def recognises(raw: Raw) -> bool:
    """A torchvision trunk with one head for classes and one for boxes, and no centerness."""
    names = (f"{_HEAD}cls_logits.weight", "head.regression_head.bbox_reg.weight")
    return (
        has_trunk(raw)
        and all(name in raw.state for name in names)
        and "head.regression_head.bbox_ctrness.weight" not in raw.state
    )


def head_rules(depth: int, normed: bool, nested: bool) -> list[Rule]:
    """The head's rules.

    Args:
        depth: convolutions of each tower.
        normed: whether each is followed by a group norm (v2), and then has no bias.
        nested: whether a convolution lies in a block of its own (0.14 and later).
    """
    rules: list[Rule] = []
    for theirs, ours in (("classification_head", "class_tower"), ("regression_head", "box_tower")):
        for layer in range(depth):
            conv = f"head.{theirs}.conv.{layer}.0" if nested else f"head.{theirs}.conv.{2 * layer}"
            if normed:
                rules.append(rename(f"{conv}.weight", f"head.{ours}.{3 * layer}.weight"))
                rules += pair(f"head.{theirs}.conv.{layer}.1", f"head.{ours}.{3 * layer + 1}")
            else:
                rules += pair(conv, f"head.{ours}.{2 * layer}")
    rules += pair(f"{_HEAD}cls_logits", "head.class_logits")
    return rules + pair("head.regression_head.bbox_reg", "head.box_deltas")


def plan(raw: Raw) -> ModelPlan:
    """Returns how to read the checkpoint."""
    state, where = raw.state, raw.path
    rules, fields = trunk(raw)
    nested = f"{_HEAD}conv.0.0.weight" in state
    normed = f"{_HEAD}conv.0.1.weight" in state
    depth = depth_of(state, f"{_HEAD}conv.")
    each = shape_of(state, "head.regression_head.bbox_reg.weight", where)[0] // 4
    require(each == _ANCHORS, f"{where}: {each} anchors a cell; torchvision's RetinaNets have {_ANCHORS}")
    classes = shape_of(state, f"{_HEAD}cls_logits.weight", where)[0] // each
    head: Plain = {"head_norm": "none", "head_bias": True, "box_loss": "l1"}
    notes = ["anchors on whole pixels at cells' corners, losses picture by picture, as torchvision has them"]
    if normed:
        head = {"head_norm": "group", "head_bias": False, "box_loss": "giou"}
        notes.append("a norm in the head: torchvision's v2, whose boxes learn by GIoU")
    if not nested and classes == 91 and ":norm=frozen_batch" in fields["backbone"]:
        fields = {**fields, "backbone": f"{fields['backbone']},norm_eps=0.0"}
        notes.append("taken for torchvision's COCO weights of v1, which want an epsilon of 0 in the frozen norms")
    config = {**_CONVENTIONS, **head, **fields, "tower_depth": depth}
    key_map = KeyMap(rules + head_rules(depth, normed, nested))
    return ModelPlan(config, key_map, "torchvision RetinaNet", classes, table(classes), notes=notes)


def write(state: Mapping[str, Tensor], config: Any, categories: Sequence[tuple[int | str, str]]) -> Files:
    """Returns the file that torchvision's `retinanet_resnet50_fpn(…)` or `…_v2(…)` reads by `load_state_dict`."""
    require(
        config.octaves * len(config.ratios) == _ANCHORS,
        f"torchvision layout: its RetinaNets have {_ANCHORS} anchors a cell",
    )
    normed = config.head_norm == "group"
    require(
        config.head_norm == "none" or (normed and not config.head_bias),
        "torchvision layout: its heads have no norm, or group norms after convolutions without a bias "
        "(--head-norm group --no-head-bias)",
    )
    rules = written_trunk(state, config) + head_rules(config.tower_depth, normed, True)
    return Files("model.safetensors", KeyMap(rules).from_ours(state))


MODEL = ModelLayout("torchvision", "retinanet", recognises, plan, write)
