"""SSD300 and SSD512 on VGG16 under two sets of names: torchvision's, and those of the port ssd.pytorch.

Notable:
- Output 0 is the background on all sides; the table of categories begins after it. torchvision numbers the rest by
  COCO's ids, ssd.pytorch's models of VOC by its 20 names.
- torchvision cuts width and height of default boxes to the picture, ssd.pytorch their middles too; the Caffe code
  neither.
- A ssd.pytorch file tells its default boxes by its classes only: those of VOC (21 outputs) or of COCO.
- Two layouts in one file: both are the same network, and differ in names and in four conventions.

Sources: torchvision `models/detection/ssd.py`; amdegroot/ssd.pytorch `ssd.py`, `data/config.py`,
`layers/functions/prior_box.py`, `data/__init__.py` (`base_transform`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from odonata.weights.coco_names import COCO_80, COCO_91
from odonata.weights.detectors import ModelLayout, ModelPlan
from odonata.weights.layout import Files, Plain, require, shape_of
from odonata.weights.maps import KeyMap, Rule, depth_of, pair, rename
from odonata.weights.read import Raw

VOC_20: tuple[tuple[int, str], ...] = tuple(
    enumerate(
        "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person pottedplant "
        "sheep sofa train tvmonitor".split(),
        1,
    )
)
"""(number, name) of Pascal VOC's categories."""

_CONVOLUTIONS = {0: (0, 2), 1: (5, 7), 2: (10, 12, 14), 3: (17, 19, 21), 4: (24, 26, 28)}
"""Stage → numbers of its convolutions among VGG16's layers."""
_EXTRAS_300 = [[256, 512, 3, 2, 1], [128, 256, 3, 2, 1], [128, 256, 3, 1, 0], [128, 256, 3, 1, 0]]
_EXTRAS_512 = [[256, 512, 3, 2, 1], *[[128, 256, 3, 2, 1]] * 3, [128, 256, 4, 1, 1]]
_MEAN, _STD = [0.48235, 0.45882, 0.40784], [1 / 255] * 3
"""123, 117 and 104 of 255, as torchvision writes them."""
_VGG: Plain = {"backbone": "vgg16-ssd", "layers": [6, 11], "extra_norm": "none", "l2_scale": 20.0}
_SCALES = {
    (300, "voc"): [0.1, 0.2, 0.37, 0.54, 0.71, 0.88, 1.05],
    (300, "coco"): [0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05],
    (512, "voc"): [0.07, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9, 1.05],
    (512, "coco"): [0.04, 0.1, 0.26, 0.42, 0.58, 0.74, 0.9, 1.06],
}
_STEPS = {300: [8, 16, 32, 64, 100, 300], 512: [8, 16, 32, 64, 128, 256, 512]}


def _at(size: int, extras: list[list[int]]) -> Plain:
    """Fields of the network for pictures of this size."""
    middle = len(extras) - 1
    framing = {"resize": "squash", "size": size, "divisor": 1, "mean": _MEAN, "std": _STD}
    ratios = [[2.0], *[[2.0, 3.0]] * middle, [2.0], [2.0]]
    return {**_VGG, "extras": extras, "ratios": ratios, "box_steps": _STEPS[size], "framing": framing}


def _outputs(raw: Raw, logits: str, deltas: str) -> int:
    """Outputs of a default box, the background among them."""
    return shape_of(raw.state, logits, raw.path)[0] * 4 // shape_of(raw.state, deltas, raw.path)[0]


def recognises_torchvision(raw: Raw) -> bool:
    """A scale of lengths beside VGG16's layers and lists of outputs."""
    return "backbone.scale_weight" in raw.state and "head.classification_head.module_list.0.weight" in raw.state


def torchvision_rules(extras: int) -> list[Rule]:
    """The rules for so many further levels."""
    rules = [rename("backbone.scale_weight", "trunk.length")]
    for stage, numbers in _CONVOLUTIONS.items():
        for layer, number in enumerate(numbers):
            # The fifth stack follows the fourth pooling, which is number 23 of VGG16's layers, in the first block.
            theirs = f"backbone.features.{number}" if stage < 4 else f"backbone.extra.0.{number - 23}"
            rules += pair(theirs, f"trunk.backbone.stages.{stage}.layers.{layer}.conv")
    rules += pair("backbone.extra.0.7.1", "trunk.backbone.fc6") + pair("backbone.extra.0.7.3", "trunk.backbone.fc7")
    for number in range(extras):
        rules += pair(f"backbone.extra.{number + 1}.0", f"trunk.extras.{number}.reduce")
        rules += pair(f"backbone.extra.{number + 1}.2", f"trunk.extras.{number}.conv")
    for level in range(extras + 2):
        rules += pair(f"head.classification_head.module_list.{level}", f"head.class_logits.{level}")
        rules += pair(f"head.regression_head.module_list.{level}", f"head.box_deltas.{level}")
    return rules


def plan_torchvision(raw: Raw) -> ModelPlan:
    """Returns how to read the checkpoint."""
    levels = depth_of(raw.state, "head.classification_head.module_list.")
    require(levels == 6, f"{raw.path}: {levels} levels; torchvision's ssd300_vgg16 has 6")
    outputs = _outputs(raw, *(f"head.{h}_head.module_list.0.weight" for h in ("classification", "regression")))
    config = {
        **_at(300, _EXTRAS_300),
        "scales": _SCALES[300, "coco"],
        "clip_boxes": "sizes",
    }
    table = COCO_91[1:] if outputs == len(COCO_91) else None
    note = "output 0 is the background; default boxes cut in width and height, as torchvision has them"
    return ModelPlan(config, KeyMap(torchvision_rules(4)), "torchvision SSD300", outputs - 1, table, notes=[note])


def write_torchvision(state: Mapping[str, Tensor], config: Any, categories: Sequence[tuple[int | str, str]]) -> Files:
    """Returns the file that torchvision's `ssd300_vgg16(…).load_state_dict` reads."""
    _require_vgg(config, "torchvision", [_EXTRAS_300])
    return Files("model.safetensors", KeyMap(torchvision_rules(4)).from_ours(state))


def recognises_pytorch(raw: Raw) -> bool:
    """The port's lists of layers."""
    return all(name in raw.state for name in ("L2Norm.weight", "vgg.0.weight", "loc.0.weight", "conf.0.weight"))


def pytorch_rules(extras: int) -> list[Rule]:
    """The rules for so many further levels."""
    rules = [rename("L2Norm.weight", "trunk.length")]
    for stage, numbers in _CONVOLUTIONS.items():
        for layer, number in enumerate(numbers):
            rules += pair(f"vgg.{number}", f"trunk.backbone.stages.{stage}.layers.{layer}.conv")
    rules += pair("vgg.31", "trunk.backbone.fc6") + pair("vgg.33", "trunk.backbone.fc7")
    for number in range(extras):
        rules += pair(f"extras.{2 * number}", f"trunk.extras.{number}.reduce")
        rules += pair(f"extras.{2 * number + 1}", f"trunk.extras.{number}.conv")
    for level in range(extras + 2):
        rules += pair(f"conf.{level}", f"head.class_logits.{level}")
        rules += pair(f"loc.{level}", f"head.box_deltas.{level}")
    return rules


def plan_pytorch(raw: Raw) -> ModelPlan:
    """Returns how to read the checkpoint."""
    extras = depth_of(raw.state, "extras.") // 2
    require(extras in (4, 5), f"{raw.path}: {extras} further levels; SSD300 has 4 and SSD512 has 5")
    outputs = _outputs(raw, "conf.0.weight", "loc.0.weight")
    kind = "coco" if outputs == 81 else "voc"
    size, layers = (300, _EXTRAS_300) if extras == 4 else (512, _EXTRAS_512)
    config = {
        **_at(size, layers),
        "scales": _SCALES[size, kind],
        "clip_boxes": "all",
    }
    notes = [f"default boxes of {kind.upper()} at {size} px, all cut to the picture, as ssd.pytorch has them"]
    if outputs not in (21, 81):
        notes.append("neither VOC's nor COCO's number of classes: VOC's default boxes are taken; --scales sets others")
    table = {21: VOC_20, 81: COCO_80}.get(outputs)
    return ModelPlan(config, KeyMap(pytorch_rules(extras)), "ssd.pytorch", outputs - 1, table, notes=notes)


def write_pytorch(state: Mapping[str, Tensor], config: Any, categories: Sequence[tuple[int | str, str]]) -> Files:
    """Returns the tensors that ssd.pytorch's `build_ssd(…).load_weights` reads, as safetensors."""
    _require_vgg(config, "ssd-pytorch", [_EXTRAS_300, _EXTRAS_512])
    return Files("model.safetensors", KeyMap(pytorch_rules(len(config.extras))).from_ours(state))


def _require_vgg(config: Any, layout: str, extras: list[list[list[int]]]) -> None:
    require(
        config.backbone == "vgg16-ssd" and list(config.layers) == [6, 11] and config.extra_norm == "none",
        f"{layout} layout: the tower is VGG16 (--backbone vgg16-ssd --layers 6,11), the further levels without norms; "
        f"this is {config.backbone}",
    )
    own = [list(extra) for extra in config.extras]
    require(own in extras, f"{layout} layout: its further levels are others than {own}")
    require(bool(config.l2_scale), f"{layout} layout: the first map's length has a learned scale; set --l2-scale 20")


MODEL = (
    ModelLayout("torchvision", "ssd", recognises_torchvision, plan_torchvision, write_torchvision),
    ModelLayout("ssd-pytorch", "ssd", recognises_pytorch, plan_pytorch, write_pytorch),
)
