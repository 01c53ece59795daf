"""Faster R-CNN under torchvision's names, in its first form and in its second (`…_v2`).

Output 0 of its classes is the background, the others are numbered by COCO's ids. The first form's head is two dense
layers called fc6 and fc7; the second's is one row of convolutions, norms and a dense layer, numbered with the
flattening between them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from odonata.weights.coco_names import COCO_91
from odonata.weights.detectors import ModelLayout, ModelPlan
from odonata.weights.layout import Files, Plain, require, shape_of
from odonata.weights.maps import KeyMap, Rule, depth_of, pair, rename
from odonata.weights.read import Raw
from odonata.weights.resnet_torchvision import norm
from odonata.weights.torchvision_pyramid import has_trunk, trunk, written_trunk

_SIZES = [32.0, 64.0, 128.0, 256.0, 512.0]
_RPN: Plain = {
    "anchor_sizes": _SIZES,
    "stride_rule": "picture",
    "samples": 256,
    "pre_nms_train": 2000,
    "post_nms_train": 2000,
    "post_nms": 1000,
}
_ROI: Plain = {"canonical_size": 224.0, "background": "first", "box_outputs": "all", "samples": 512}
_SCORES, _HEAD = "roi_heads.box_predictor.cls_score", "roi_heads.box_head"


def recognises(raw: Raw) -> bool:
    """A torchvision trunk with a box predictor, and neither masks nor keypoints."""
    further = any(name.startswith(("roi_heads.mask", "roi_heads.keypoint")) for name in raw.state)
    return has_trunk(raw) and f"{_SCORES}.weight" in raw.state and not further


def stage_rules(depth: int, nested: bool, convs: int, fcs: int) -> list[Rule]:
    """The rules of both stages.

    Args:
        depth: convolutions of the proposing network.
        nested: whether each is in a block of its own (torchvision 0.14 and later).
        convs: convolutions of the head.
        fcs: its dense layers.
    """
    rules: list[Rule] = []
    for number in range(depth):
        rules += pair(f"rpn.head.conv.{number}.0" if nested else "rpn.head.conv", f"rpn.convs.{number}")
    rules += pair("rpn.head.cls_logits", "rpn.objectness") + pair("rpn.head.bbox_pred", "rpn.deltas")
    for number in range(convs):
        theirs, ours = f"{_HEAD}.{number}", f"roi_head.convs.{number}"
        rules += [rename(f"{theirs}.0.weight", f"{ours}.conv.weight"), *norm(f"{theirs}.1", f"{ours}.norm")]
    for number in range(fcs):
        # After the convolutions stands the flattening, and after each dense layer its ReLU.
        theirs = f"{convs + 1 + 2 * number}" if convs else f"fc{6 + number}"
        rules += pair(f"{_HEAD}.{theirs}", f"roi_head.fcs.{number}")
    return (
        rules
        + pair(_SCORES, "roi_head.class_logits")
        + pair("roi_heads.box_predictor.bbox_pred", "roi_head.box_deltas")
    )


def plan(raw: Raw) -> ModelPlan:
    """Returns how to read the checkpoint."""
    rules, fields = trunk(raw)
    nested = "rpn.head.conv.0.0.weight" in raw.state
    depth = depth_of(raw.state, "rpn.head.conv.") if nested else 1
    convs = sum(f"{_HEAD}.{number}.0.weight" in raw.state for number in range(depth_of(raw.state, f"{_HEAD}.")))
    fcs = depth_of(raw.state, f"{_HEAD}.") - convs if convs else 2
    first = f"{_HEAD}.{convs + 1}.weight" if convs else f"{_HEAD}.fc6.weight"
    roi: Plain = {**_ROI, "convs": convs, "fcs": fcs, "width": shape_of(raw.state, first, raw.path)[0]}
    if convs:
        roi |= {"conv_width": shape_of(raw.state, f"{_HEAD}.0.0.weight", raw.path)[0], "conv_norm": "batch"}
    anchors = shape_of(raw.state, "rpn.head.cls_logits.weight", raw.path)[0]
    require(
        anchors == 3, f"{raw.path}: {anchors} anchors a cell; torchvision's feature pyramids have 3, one size a level"
    )
    classes = shape_of(raw.state, f"{_SCORES}.weight", raw.path)[0] - 1
    config: Plain = {**fields, "rpn": {**_RPN, "depth": depth}, "roi": roi, "framing": {"size": 800, "max_size": 1333}}
    note = "anchors of 32 to 512 px, RoIAlign without the half cell, background first, as torchvision has them"
    table = COCO_91[1:] if classes == 90 else None
    key_map = KeyMap(rules + stage_rules(depth, nested, convs, fcs))
    return ModelPlan(config, key_map, "torchvision Faster R-CNN", classes, table, notes=[note])


def write(state: Mapping[str, Tensor], config: Any, categories: Sequence[tuple[int | str, str]]) -> Files:
    """Returns the file that torchvision's `FasterRCNN(…).load_state_dict` reads."""
    roi = config.roi
    require(config.pyramid and roi.head == "layers", "torchvision layout: its Faster R-CNN stands on a pyramid")
    require(config.fpn.extra == "pool", "torchvision layout: its pyramid has one further level, --fpn.extra pool")
    require(
        roi.background == "first" and roi.box_outputs == "all",
        "torchvision layout: the background is output 0 and has a box; train with --roi.background first "
        "--roi.box-outputs all",
    )
    require(
        roi.op == "align" and not roi.aligned and roi.sampling_ratio == 2 and roi.bins == 7,
        "torchvision layout: regions are pooled by RoIAlign, 7 bins, 2 samples, without the half cell",
    )
    require(
        (roi.convs == 0 and roi.fcs == 2) or (roi.convs > 0 and roi.conv_norm == "batch"),
        "torchvision layout: its heads are two dense layers, or convolutions with batch normalisation and dense layers",
    )
    rules = written_trunk(state, config) + stage_rules(config.rpn.depth, True, roi.convs, roi.fcs)
    return Files("model.safetensors", KeyMap(rules).from_ours(state))


MODEL = ModelLayout("torchvision", "faster-rcnn", recognises, plan, write)
