"""RetinaNets under mmdet's names (2.x and 3.x): `backbone.`, `neck.`, `bbox_head.`; labels from 0 in COCO's order.

Notable: a file does not tell how its pictures were prepared. Networks of style `pytorch`, with torchvision's means in
RGB, are taken; those of style `caffe` (stride in the 1 × 1, BGR, standard deviation 1) cannot be told by names or
shapes, so their conventions must be set by hand. P7 is made of P6 as it is, without a rectifier.

Source: mmdet 3.3.0, `models/necks/fpn.py`, `models/dense_heads/retina_head.py`, `configs/_base_/models/
retinanet_r50_fpn.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from odonata.weights.coco_names import table
from odonata.weights.detectors import ModelLayout, ModelPlan, within
from odonata.weights.layout import Files, Plain, require, shape_of
from odonata.weights.maps import KeyMap, Rule, depth_of, pair
from odonata.weights.read import Raw
from odonata.weights.resnet_torchvision import infer, key_map
from odonata.weights.torchvision_pyramid import resnet_fields, tower_name

BODY, NECK, HEAD = "backbone.", "neck.", "bbox_head."
_CONVENTIONS: Plain = {
    "point_offset": 0.0,
    "anchor_scale": 4.0,
    "head_norm": "none",
    "box_loss": "l1",
    "framing": {"size": 800, "max_size": 1333, "rounding": "nearest"},
}


def recognises(raw: Raw) -> bool:
    """The two outputs that only mmdet's RetinaNet has, on a residual network."""
    names = (f"{HEAD}retina_cls.weight", f"{HEAD}retina_reg.weight", f"{BODY}layer1.0.conv1.weight")
    return all(name in raw.state for name in names)


def rules_of(tower: Plain, counted: bool, levels: int, extra: int, depth: int) -> list[Rule]:
    """All rules of a RetinaNet.

    Args:
        tower: plain fields of the residual network.
        counted: whether batches are counted.
        levels: maps of the tower that the pyramid stands on.
        extra: levels above those, 0 or 2.
        depth: convolutions of each tower of the head.
    """
    rules = within(key_map(tower, 0, counted).rules, BODY, "trunk.backbone.")
    for level in range(levels):
        rules += pair(f"{NECK}lateral_convs.{level}.conv", f"trunk.fpn.laterals.{level}.conv")
        rules += pair(f"{NECK}fpn_convs.{level}.conv", f"trunk.fpn.outputs.{level}.conv")
    for number in range(extra):
        rules += pair(f"{NECK}fpn_convs.{levels + number}.conv", f"trunk.fpn.p{6 + number}")
    for theirs, ours in (("cls_convs", "class_tower"), ("reg_convs", "box_tower")):
        for layer in range(depth):
            rules += pair(f"{HEAD}{theirs}.{layer}.conv", f"head.{ours}.{2 * layer}")
    rules += pair(f"{HEAD}retina_cls", "head.class_logits")
    return rules + pair(f"{HEAD}retina_reg", "head.box_deltas")


def plan(raw: Raw) -> ModelPlan:
    """Returns how to read the checkpoint."""
    state, where = raw.state, raw.path
    body = replace(raw, state={k[len(BODY) :]: v for k, v in state.items() if k.startswith(BODY)})
    counted = any(name.endswith("num_batches_tracked") for name in body.state)
    tower = infer(body)
    levels = depth_of(state, f"{NECK}lateral_convs.")
    extra = depth_of(state, f"{NECK}fpn_convs.") - levels
    require(extra == 2, f"{where}: {extra} levels above the tower's; RetinaNets have 2")
    p6 = shape_of(state, f"{NECK}fpn_convs.{levels}.conv.weight", where)
    c5 = tower["widths"][-1] * (4 if tower["block"] == "bottleneck" else 1)
    each = shape_of(state, f"{HEAD}retina_reg.weight", where)[0] // 4
    require(each == 9, f"{where}: {each} anchors a cell; 9 are known, 3 sizes of 3 ratios")
    classes = shape_of(state, f"{HEAD}retina_cls.weight", where)[0] // each
    depth = depth_of(state, f"{HEAD}cls_convs.")
    config: Plain = {
        **_CONVENTIONS,
        "backbone": tower_name(tower, counted, where),
        "layers": list(range(4 - levels, 4)),
        "fpn": {"channels": p6[0], "extra": "p6p7-c5" if p6[1] == c5 else "p6p7-p5", "rectified_p6": False},
        "tower_depth": depth,
    }
    notes = ["taken for a network of style 'pytorch': RGB, torchvision's means, stride in the 3 × 3"]
    key_map_ = KeyMap(rules_of(tower, counted, levels, extra, depth))
    return ModelPlan(config, key_map_, "mmdet RetinaNet", classes, table(classes), notes=notes)


def write(state: Mapping[str, Tensor], config: Any, categories: Sequence[tuple[int | str, str]]) -> Files:
    """Returns the tensors that mmdet's RetinaNet reads, as safetensors without its `meta`."""
    require(config.head_norm == "none", "mmdet layout: its RetinaNet's head has no norms; set --head-norm none")
    require(config.fpn.norm == "none" and config.fpn.top_down, "mmdet layout: its pyramid is plain and top-down")
    require(
        config.fpn.extra_levels == 2 and not config.fpn.rectified_p6,
        "mmdet layout: its P7 is made of P6 as it is (preset mmdet-r50)",
    )
    require(config.octaves * len(config.ratios) == 9, "mmdet layout: its RetinaNet has 9 anchors a cell")
    tower = resnet_fields(state, config.backbone, "trunk.backbone.")
    counted = any(k.startswith("trunk.backbone.") and k.endswith("num_batches_tracked") for k in state)
    rules = rules_of(tower, counted, len(config.layers), 2, config.tower_depth)
    return Files("model.safetensors", KeyMap(rules).from_ours(state))


MODEL = ModelLayout("mmdet", "retinanet", recognises, plan, write)
