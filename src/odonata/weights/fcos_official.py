"""FCOS under its authors' names (tianzhi0549/FCOS, on maskrcnn-benchmark): BGR pixels, strides in the 1 × 1.

Notable: normalisations are frozen and have no epsilon; each level's factor is a tensor of its own. Whether a file was
trained by the paper's recipe or by the improved one cannot be seen in its tensors: its name says it (`imprv`), or the
paper's is taken, and said.

Source: `fcos_core/modeling/rpn/fcos/fcos.py`, `fcos_core/modeling/backbone/{resnet,fpn}.py`, `configs/fcos`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from odonata.weights.coco_names import table
from odonata.weights.detectors import ModelLayout, ModelPlan, within
from odonata.weights.layout import Files, Plain, require, shape_of
from odonata.weights.maps import KeyMap, Rule, depth_of, pair
from odonata.weights.read import Raw
from odonata.weights.resnet_torchvision import infer, key_map
from odonata.weights.torchvision_pyramid import resnet_fields, tower_name

BODY, HEAD = "backbone.body.", "rpn.head."
_STEM = ("conv1.", "bn1.")
_FRAMING: Plain = {
    "size": 800,
    "max_size": 1333,
    "rounding": "detr",
    "antialias": True,
    "mean": [102.9801 / 255, 115.9465 / 255, 122.7717 / 255],
    "std": [1 / 255, 1 / 255, 1 / 255],
    "order": "bgr",
}
_PAPER: Plain = {"radius": 0.0, "distance": "exp", "unit": "pixels", "iou": "log-iou", "centerness_on": "class"}


def recognises(raw: Raw) -> bool:
    """A stem of maskrcnn-benchmark's and a centerness output."""
    return f"{BODY}stem.conv1.weight" in raw.state and f"{HEAD}centerness.weight" in raw.state


def rules(tower: Plain, levels: int, depth: int) -> list[Rule]:
    """The rules of the whole network.

    Args:
        tower: plain fields of the residual network.
        levels: of the pyramid.
        depth: convolutions of the head's towers.
    """
    made: list[Rule] = []
    for rule in key_map(tower, 0, False).rules:
        stem = rule.theirs[0].startswith(_STEM)
        made += within([rule], f"{BODY}stem." if stem else BODY, "trunk.backbone.")
    for number in range(levels - 2):
        for theirs, ours in (("fpn_inner", "laterals"), ("fpn_layer", "outputs")):
            made += pair(f"backbone.fpn.{theirs}{number + 2}", f"trunk.fpn.{ours}.{number}.conv")
    for name in ("p6", "p7"):
        made += pair(f"backbone.fpn.top_blocks.{name}", f"trunk.fpn.{name}")
    for theirs, ours in (("cls_tower", "class_tower"), ("bbox_tower", "box_tower")):
        for layer in range(depth):
            for part in (3 * layer, 3 * layer + 1):
                made += pair(f"{HEAD}{theirs}.{part}", f"head.{ours}.{part}")
    for theirs, ours in (("cls_logits", "class_logits"), ("bbox_pred", "box_distances"), ("centerness", "centerness")):
        made += pair(f"{HEAD}{theirs}", f"head.{ours}")
    factors = tuple(f"{HEAD}scales.{level}.scale" for level in range(levels))
    made.append(Rule(factors, ("head.scales",), lambda parts: [torch.cat(parts)], lambda own: list(own[0].split(1))))
    return made


def plan(raw: Raw) -> ModelPlan:
    """Returns how to read the checkpoint."""
    body: dict[str, Tensor] = {}
    for name, value in raw.state.items():
        if name.startswith(BODY):
            body[name[len(BODY) :].removeprefix("stem.")] = value
    tower = infer(replace(raw, state=body))
    tower["shortcut"] = "conv"
    levels = depth_of(raw.state, f"{HEAD}scales.")
    depth = depth_of(raw.state, f"{HEAD}cls_tower.") // 2
    classes = shape_of(raw.state, f"{HEAD}cls_logits.weight", raw.path)[0]
    name = tower_name(tower, False, raw.path) + ",stride_in=1x1,norm_eps=0.0"
    improved = any("imprv" in part for part in raw.path.parts[-2:])
    config: Plain = {
        "backbone": name,
        "fpn": {"channels": shape_of(raw.state, f"{HEAD}cls_logits.weight", raw.path)[1], "extra": "p6p7-p5"},
        "layers": [1, 2, 3],
        "tower_depth": depth,
        "framing": _FRAMING,
        **({} if improved else _PAPER),
    }
    note = "the improved recipe, by the file's name" if improved else "the paper's recipe: its name has no 'imprv'"
    notes = [note, "labels 0 to 79 are COCO's categories in the order of their ids"]
    key_map_ = KeyMap(rules(tower, levels, depth))
    return ModelPlan(config, key_map_, "FCOS (tianzhi0549)", classes, table(classes), notes=notes)


def write(state: Mapping[str, Tensor], config: Any, categories: Sequence[tuple[int | str, str]]) -> Files:
    """Returns the file that the authors' code reads."""
    require(config.scales, "official layout: the authors' FCOS has learned scales; this model has none")
    require(config.fpn.norm == "none" and config.fpn.top_down, "official layout: a plain pyramid is wanted")
    require(config.fpn.extra == "p6p7-p5" and len(config.layers) == 3, "official layout: levels P3 to P7 are wanted")
    tower = resnet_fields(state, config.backbone, "trunk.backbone.")
    counted = any(k.startswith("trunk.backbone.") and k.endswith("num_batches_tracked") for k in state)
    require(not counted, "official layout: normalisations of the tower are frozen there; train with norm=frozen_batch")
    written = KeyMap(rules(tower, 5, config.tower_depth)).from_ours(state)
    return Files("model.pth", {f"module.{name}": value for name, value in written.items()}, entry="model")


MODEL = ModelLayout("official", "fcos", recognises, plan, write)
