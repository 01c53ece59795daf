"""Faster R-CNN under mmdet's names (2.x and 3.x): `backbone.`, `neck.`, `rpn_head.`, `roi_head.bbox_head.`.

Notable: a file does not tell how its pictures were prepared, nor how its regions were pooled. The family's own defaults
are taken: networks of style `pytorch` with torchvision's means in RGB, RoIAlign with the half cell and adaptive
samples, and L1 losses. Its first files, of 1.x, put the background first; here it is last.

Source: mmdet 3.3.0, `configs/_base_/models/faster-rcnn_r50_fpn.py`, `models/dense_heads/rpn_head.py`,
`models/roi_heads/bbox_heads/convfc_bbox_head.py`.
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

BODY, NECK, RPN, HEAD = "backbone.", "neck.", "rpn_head.", "roi_head.bbox_head."
_RPN: Plain = {
    "anchor_sizes": [32.0, 64.0, 128.0, 256.0, 512.0],
    "anchor_rounded": False,
    "samples": 256,
    "beta": 0.0,
    "pre_nms_train": 2000,
    "post_nms_train": 1000,
    "post_nms": 1000,
    "min_size": 0.0,
}
_ROI: Plain = {"canonical_size": 224.0, "sampling_ratio": 0, "aligned": True, "beta": 0.0, "samples": 512}


def recognises(raw: Raw) -> bool:
    """One box head with shared dense layers on a pyramid, and no masks."""
    names = (
        f"{RPN}rpn_cls.weight",
        f"{HEAD}fc_cls.weight",
        f"{HEAD}shared_fcs.0.weight",
        f"{BODY}layer1.0.conv1.weight",
    )
    return all(name in raw.state for name in names) and not any(k.startswith("roi_head.mask") for k in raw.state)


def rules_of(tower: Plain, counted: bool, levels: int, fcs: int) -> list[Rule]:
    """All rules of a Faster R-CNN.

    Args:
        tower: plain fields of the residual network.
        counted: whether batches are counted.
        levels: maps of the tower that the pyramid stands on.
        fcs: dense layers of the head.
    """
    rules = within(key_map(tower, 0, counted).rules, BODY, "trunk.backbone.")
    for level in range(levels):
        rules += pair(f"{NECK}lateral_convs.{level}.conv", f"trunk.fpn.laterals.{level}.conv")
        rules += pair(f"{NECK}fpn_convs.{level}.conv", f"trunk.fpn.outputs.{level}.conv")
    rules += pair(f"{RPN}rpn_conv", "rpn.convs.0") + pair(f"{RPN}rpn_cls", "rpn.objectness")
    rules += pair(f"{RPN}rpn_reg", "rpn.deltas")
    for number in range(fcs):
        rules += pair(f"{HEAD}shared_fcs.{number}", f"roi_head.fcs.{number}")
    return rules + pair(f"{HEAD}fc_cls", "roi_head.class_logits") + pair(f"{HEAD}fc_reg", "roi_head.box_deltas")


def plan(raw: Raw) -> ModelPlan:
    """Returns how to read the checkpoint."""
    state, where = raw.state, raw.path
    body = replace(raw, state={k[len(BODY) :]: v for k, v in state.items() if k.startswith(BODY)})
    counted = any(name.endswith("num_batches_tracked") for name in body.state)
    tower, levels = infer(body), depth_of(state, f"{NECK}lateral_convs.")
    fcs, classes = depth_of(state, f"{HEAD}shared_fcs."), shape_of(state, f"{HEAD}fc_cls.weight", where)[0] - 1
    anchors = shape_of(state, f"{RPN}rpn_cls.weight", where)[0]
    require(anchors == 3, f"{where}: {anchors} anchors a cell; 3 are known, one size a level in 3 ratios")
    boxes = shape_of(state, f"{HEAD}fc_reg.weight", where)[0] // 4
    require(
        boxes in (1, classes), f"{where}: {boxes} boxes for {classes} classes; mmdet has one, or one for each class"
    )
    width, outputs = shape_of(state, f"{HEAD}shared_fcs.0.weight", where)[0], "one" if boxes == 1 else "classes"
    config: Plain = {
        "backbone": tower_name(tower, counted, where),
        "layers": list(range(4 - levels, 4)),
        "fpn": {"channels": shape_of(state, f"{NECK}lateral_convs.0.conv.weight", where)[0], "extra": "pool"},
        "rpn": _RPN,
        "roi": {**_ROI, "fcs": fcs, "width": width, "box_outputs": outputs},
        "framing": {"size": 800, "max_size": 1333, "rounding": "nearest"},
    }
    notes = ["taken for a network of style 'pytorch': RGB, torchvision's means, stride in the 3 × 3; background last"]
    key_map_ = KeyMap(rules_of(tower, counted, levels, fcs))
    return ModelPlan(config, key_map_, "mmdet Faster R-CNN", classes, table(classes), notes=notes)


def write(state: Mapping[str, Tensor], config: Any, categories: Sequence[tuple[int | str, str]]) -> Files:
    """Returns the tensors that mmdet's Faster R-CNN reads, as safetensors without its `meta`."""
    roi = config.roi
    require(config.pyramid and config.fpn.norm == "none", "mmdet layout: its Faster R-CNN stands on a plain pyramid")
    require(config.rpn.depth == 1 and roi.convs == 0, "mmdet layout: one convolution proposes, and the head has none")
    require(
        roi.background == "last" and roi.box_outputs != "all",
        "mmdet layout: the background is the last class and has no box; train with --roi.background last",
    )
    tower = resnet_fields(state, config.backbone, "trunk.backbone.")
    counted = any(k.startswith("trunk.backbone.") and k.endswith("num_batches_tracked") for k in state)
    return Files("model.safetensors", KeyMap(rules_of(tower, counted, len(config.layers), roi.fcs)).from_ours(state))


MODEL = ModelLayout("mmdet", "faster-rcnn", recognises, plan, write)
