"""VGGs under torchvision's names, and under those of PyTorch's ports of Caffe's FCN.

Notable:
- torchvision numbers convolutions, norms, ReLUs and poolings in one row; a gap in the numbers is a pooling.
- torchvision's weights for SSD (`VGG16_Weights.IMAGENET1K_FEATURES`, from Caffe) have a classifier of NaN and want RGB
  minus Caffe's means at 255 times ImageNet's usual scale. They are known by the NaN.
- pytorch-fcn's names are the paper's (`conv1_1` … `fc7`). Padding 100 and poolings that round up come with them; score
  layers and upsampling are no part of the tower. Its pictures are BGR as Caffe's; here they are RGB, so the first
  convolution's input channels are turned round.

Sources: torchvision `models/vgg.py`; wkentaro/pytorch-fcn `torchfcn/models/fcn32s.py`, `torchfcn/datasets/voc.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from odonata.weights.layout import Files, Plain, require, shape_of
from odonata.weights.maps import KeyMap, Rule, pair
from odonata.weights.read import Raw
from odonata.weights.resnet_torchvision import IMAGENET, norm
from odonata.weights.towers import Hints, TowerLayout, TowerPlan

_FEATURES: Plain = IMAGENET | {"mean": [0.48235, 0.45882, 0.40784], "std": [1 / 255, 1 / 255, 1 / 255]}
_CAFFE: Plain = IMAGENET | {"mean": [122.67891434, 116.66876762, 104.00698793], "std": [1.0] * 3, "rescale": 1.0}
_NAME = re.compile(r"(features|classifier)\.\d+\.(weight|bias|running_mean|running_var|num_batches_tracked)")


def recognises(raw: Raw) -> bool:
    """Plain layers by number, the first a 3 × 3 convolution."""
    first = raw.state.get("features.0.weight")
    return first is not None and first.shape[2:] == (3, 3) and all(_NAME.fullmatch(name) for name in raw.state)


def key_map(config: Plain, classes: int, num_batches: bool = True) -> KeyMap:
    """Returns the map for a plain `VGGConfig`.

    Args:
        config: the tower.
        classes: whether there is a classifier.
        num_batches: whether the file counts batches of norms; old ones do not.
    """
    rules: list[Rule] = []
    number = 0
    for stage, depth in enumerate(config["depths"]):
        for layer in range(depth):
            ours = f"stages.{stage}.layers.{layer}"
            rules += pair(f"features.{number}", f"{ours}.conv")
            if config["norm"] == "batch":
                rules += norm(f"features.{number + 1}", f"{ours}.norm")
            number += 3 if config["norm"] == "batch" else 2
        number += 1
    if config["top"] == "dense":
        rules += [*pair("classifier.0", "fc6"), *pair("classifier.3", "fc7")]
    if classes:
        rules += pair("classifier.6", "head")
    if not num_batches:
        rules = [rule for rule in rules if not rule.theirs[0].endswith("num_batches_tracked")]
    return KeyMap(rules)


def plan(raw: Raw, hints: Hints) -> TowerPlan:
    """Returns how to read the checkpoint."""
    state, where = raw.state, raw.path
    found = sorted(int(name.split(".")[1]) for name, value in state.items()
                   if name.startswith("features.") and name.endswith(".weight") and value.ndim == 4)  # fmt: skip
    shapes = [shape_of(state, f"features.{number}.weight", where) for number in found]
    norms = "features.1.weight" in state
    depths, widths = [1], [shapes[0][0]]
    for before, number, shape in zip(found, found[1:], shapes[1:], strict=False):
        if number - before == (3 if norms else 2):
            depths[-1] += 1
        else:
            depths.append(1)
            widths.append(shape[0])
    config: Plain = {"family": "vgg", "depths": depths, "widths": widths, "channels": shapes[0][1]}
    config |= {"norm": "batch" if norms else "none", "top": "none"}
    weight = state.get("classifier.0.weight")
    empty = weight is not None and bool(weight.isnan().any())
    notes: list[str] = []
    if weight is not None and not empty:
        kernel = round((weight.shape[1] / widths[-1]) ** 0.5)
        config |= {"top": "dense", "fc_width": weight.shape[0], "fc6_kernel": kernel}
    if empty:
        notes.append("the classifier holds NaN: torchvision's weights for SSD, with Caffe's preprocessing")
    head = None if empty else state.get("classifier.6.weight")
    classes = 0 if head is None else int(head.shape[0])
    counted = any(name.endswith("num_batches_tracked") for name in state)
    left_out = ("classifier.*",) if empty else ()
    preprocess = _FEATURES if empty else IMAGENET
    return TowerPlan(config, key_map(config, classes, counted), "torchvision VGG", classes, preprocess, left_out, notes)


def write(state: Mapping[str, Tensor], config: Plain, classes: int, preprocess: Plain | None) -> Files:
    """Returns the file that torchvision's `vgg…().load_state_dict` reads."""
    require(config["top"] == "dense", "torchvision layout: its VGGs have dense layers; this tower has none")
    require(classes > 0, "torchvision layout: it always has a classifier; this tower has none")
    require(config["norm"] in ("none", "batch"), f"torchvision layout: norm {config['norm']!r} is not torchvision's")
    require(
        config["first_padding"] == 1 and not config["ceil_pools"] and config["last_pool"] == "2x2",
        "torchvision layout: padding and poolings of this tower are not torchvision's",
    )
    return Files("model.safetensors", key_map(config, classes).from_ours(state))


def recognises_fcn(raw: Raw) -> bool:
    """The paper's names, `fc6` a convolution."""
    fc6 = raw.state.get("fc6.weight")
    return "conv1_1.weight" in raw.state and fc6 is not None and fc6.ndim == 4


def fcn_key_map(config: Plain) -> KeyMap:
    """Returns the map of a plain `VGGConfig` whose dense layers are convolutions."""
    rules: list[Rule] = []
    for stage, depth in enumerate(config["depths"]):
        for layer in range(depth):
            rules += pair(f"conv{stage + 1}_{layer + 1}", f"stages.{stage}.layers.{layer}.conv")
    rules[0] = Rule(rules[0].theirs, rules[0].ours, _turned, _turned)
    return KeyMap([*rules, *pair("fc6", "fc6"), *pair("fc7", "fc7")])


def _turned(tensors: list[Tensor]) -> list[Tensor]:
    return [tensors[0].flip(1)]


def plan_fcn(raw: Raw, hints: Hints) -> TowerPlan:
    """Returns how to read the checkpoint."""
    state, where = raw.state, raw.path
    numbers = sorted((int(m[1]), int(m[2])) for name in state if (m := re.fullmatch(r"conv(\d)_(\d)\.weight", name)))
    count = numbers[-1][0]
    fc6 = shape_of(state, "fc6.weight", where)
    config: Plain = {
        "family": "vgg",
        "depths": [sum(stage == i + 1 for stage, _ in numbers) for i in range(count)],
        "widths": [shape_of(state, f"conv{i + 1}_1.weight", where)[0] for i in range(count)],
        "channels": shape_of(state, "conv1_1.weight", where)[1],
        "top": "convolutions",
        "fc_width": fc6[0],
        "fc6_kernel": fc6[2],
        "first_padding": 100,
        "ceil_pools": list(range(1, count + 1)),
    }
    notes = ["padding 100 and poolings that round up, as FCN has them; names and shapes do not tell"]
    left_out = ("score*", "upscore*")
    return TowerPlan(config, fcn_key_map(config), "FCN's VGG (pytorch-fcn)", 0, _CAFFE, left_out, notes)


def write_fcn(state: Mapping[str, Tensor], config: Plain, classes: int, preprocess: Plain | None) -> Files:
    """Returns the tower's part of the file that pytorch-fcn reads."""
    require(config["top"] == "convolutions", "pytorch-fcn layout: fc6 and fc7 are convolutions there")
    require(config["norm"] == "none", "pytorch-fcn layout: there are no norms")
    require(config["first_padding"] == 100, "pytorch-fcn layout: the first convolution pads by 100 pixels")
    require(classes == 0, "pytorch-fcn layout: a tower has no classifier there")
    return Files("model.safetensors", fcn_key_map(config).from_ours(state))


TOWER = (
    TowerLayout("torchvision", "vgg", recognises, plan, write),
    TowerLayout("pytorch-fcn", "vgg", recognises_fcn, plan_fcn, write_fcn),
)
