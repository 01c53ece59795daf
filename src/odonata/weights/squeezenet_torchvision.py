"""SqueezeNets under torchvision's names: torchvision's own, and the authors' Caffe weights brought under them.

Notable: the authors' weights want RGB bytes minus (123, 117, 104) at 227 pixels, torchvision's want ImageNet's mean and
deviation at 224. Names and shapes are the same. torchvision publishes no `.npz`, so that one is taken for Caffe's; the
hint `convention` overrides it. Caffe squashed to 256 × 256 before the crop; here the aspect is kept.
Sources: torchvision `models/squeezenet.py`; Caffe's `SqueezeNet_v1.0/train_val.prototxt`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from torch import Tensor

from odonata.weights.layout import Files, Plain, require, shape_of
from odonata.weights.maps import KeyMap, Rule, pair, reshape
from odonata.weights.read import Raw
from odonata.weights.towers import Hints, TowerLayout, TowerPlan

PREPROCESS: dict[str, Plain] = {
    "torchvision": {
        "size": 224,
        "resize_size": 256,
        "interpolation": "bilinear",
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
    },
    "caffe": {
        "size": 227,
        "resize_size": 256,
        "interpolation": "bilinear",
        "mean": [123.0, 117.0, 104.0],
        "std": [1.0, 1.0, 1.0],
        "rescale": 1.0,
    },
}
"""What weights of each origin expect."""


def recognises(raw: Raw) -> bool:
    """A first convolution and fire modules."""
    return {"features.0.weight", "features.3.squeeze.weight", "features.3.expand3x3.weight"} <= raw.state.keys()


def key_map(depths: Sequence[int], classes: int) -> KeyMap:
    """Returns the map for fire modules in groups of `depths`; a pooling takes a number between two groups."""
    rules: list[Rule] = pair("features.0", "stem")
    number = 3
    for stage, depth in enumerate(depths):
        for layer in range(depth):
            for part in ("squeeze", "expand1x1", "expand3x3"):
                rules += pair(f"features.{number}.{part}", f"stages.{stage}.layers.{layer}.{part}")
            number += 1
        number += 1
    if classes:
        weight, bias = pair("classifier.1", "head")
        rules += [reshape(weight.theirs[0], weight.ours[0], (classes, -1, 1, 1), (classes, -1)), bias]
    return KeyMap(rules)


def plan(raw: Raw, hints: Hints) -> TowerPlan:
    """Returns how to read the checkpoint."""
    state, where = raw.state, raw.path
    found = sorted(int(m[1]) for name in state if (m := re.fullmatch(r"features\.(\d+)\.squeeze\.weight", name)))
    stem = shape_of(state, "features.0.weight", where)
    depths: list[int] = []
    for before, number in zip([1, *found], found, strict=False):
        if number == before + 1:
            depths[-1] += 1
        else:
            depths.append(1)
    config: Plain = {
        "family": "squeezenet",
        "depths": depths,
        "squeeze": [shape_of(state, f"features.{n}.squeeze.weight", where)[0] for n in found],
        "expand": [shape_of(state, f"features.{n}.expand3x3.weight", where)[0] for n in found],
        "stem_width": stem[0],
        "stem_kernel": stem[2],
        "channels": stem[1],
    }
    convention = hints.convention or ("caffe" if raw.kind == "npz" else "torchvision")
    require(convention in PREPROCESS, f"convention {convention!r} is unknown; it is {' or '.join(PREPROCESS)}")
    known = "as the caller says" if hints.convention else "by the kind of file"
    weight = state.get("classifier.1.weight")
    classes = 0 if weight is None else int(weight.shape[0])
    notes = [f"convention: {convention}, {known}: it decides the preprocessing"]
    source = "SqueezeNet (Caffe's weights)" if convention == "caffe" else "torchvision SqueezeNet"
    return TowerPlan(config, key_map(depths, classes), source, classes, PREPROCESS[convention], (), notes)


def write(state: Mapping[str, Tensor], config: Plain, classes: int, preprocess: Plain | None) -> Files:
    """Returns the file that torchvision's `squeezenet…().load_state_dict` reads."""
    require(classes > 0, "torchvision layout: it always has a classifier; this tower has none")
    return Files("model.safetensors", key_map(config["depths"], classes).from_ours(state))


TOWER = TowerLayout("torchvision", "squeezenet", recognises, plan, write)
