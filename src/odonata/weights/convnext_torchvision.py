"""torchvision's ConvNeXt: `features.0` is the stem, stages and halvings follow in turn.

Notable: the layer scale is stored as [channels, 1, 1], and the final norm stands in the classifier. Pictures are
resized bilinearly, to a size of its own for each network.

Source: torchvision 0.28 `models/convnext.py`, and the transforms of its weights.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from odonata.weights.convnext_official import IMAGENET, infer
from odonata.weights.layout import Files, Plain, require
from odonata.weights.maps import KeyMap, pair, reshape
from odonata.weights.read import Raw
from odonata.weights.towers import Hints, TowerLayout, TowerPlan

_RESIZE = {(96, 9): 236, (96, 27): 230, (128, 27): 232, (192, 27): 232}
"""(Width, blocks of the third stage) → shorter side before the crop, which torchvision chose for T, S, B and L."""


def recognises(raw: Raw) -> bool:
    """A layer scale in `features.1`."""
    return {"features.1.0.layer_scale", "features.1.0.block.0.weight"} <= raw.state.keys()


def key_map(config: Plain, classes: int) -> KeyMap:
    """Returns the map for a plain `ConvNeXtConfig`."""
    rules = [*pair("features.0.0", "stem.conv"), *pair("features.0.1", "stem.norm")]
    for stage, (depth, width) in enumerate(zip(config["depths"], config["widths"], strict=True)):
        if stage:
            rules += pair(f"features.{2 * stage}.0", f"stages.{stage}.downsample.norm")
            rules += pair(f"features.{2 * stage}.1", f"stages.{stage}.downsample.conv")
        for number in range(depth):
            theirs, ours = f"features.{2 * stage + 1}.{number}", f"stages.{stage}.layers.{number}"
            for place, part in ((0, "conv"), (2, "norm"), (3, "fc1"), (5, "fc2")):
                rules += pair(f"{theirs}.block.{place}", f"{ours}.{part}")
            rules.append(reshape(f"{theirs}.layer_scale", f"{ours}.scale.scale", (width, 1, 1), (width,)))
    return KeyMap([*rules, *pair("classifier.0", "norm"), *(pair("classifier.2", "head") if classes else [])])


def plan(raw: Raw, hints: Hints) -> TowerPlan:
    """Returns how to read the checkpoint."""
    features = 1 + max(int(name.split(".")[1]) for name in raw.state if name.startswith("features."))
    blocks = [f"features.{odd}." for odd in range(1, features, 2)]
    config = infer(raw, "features.0.0", blocks, "block.0", "layer_scale")
    weight = raw.state.get("classifier.2.weight")
    classes = 0 if weight is None else weight.shape[0]
    size = (config["widths"][0], config["depths"][min(2, len(config["depths"]) - 1)])
    preprocess = IMAGENET | {"resize_size": _RESIZE.get(size, 256), "interpolation": "bilinear"}
    return TowerPlan(config, key_map(config, classes), "torchvision ConvNeXt", classes, preprocess)


def write(state: Mapping[str, Tensor], config: Plain, classes: int, preprocess: Plain | None) -> Files:
    """Returns the file that torchvision's `ConvNeXt.load_state_dict` reads."""
    require(
        config["layer_scale"] is not None and not config["response_norm"],
        "torchvision layout: torchvision's ConvNeXt is the first version, with layer scale",
    )
    return Files("model.safetensors", key_map(config, classes).from_ours(state))


TOWER = TowerLayout("torchvision", "convnext", recognises, plan, write)
