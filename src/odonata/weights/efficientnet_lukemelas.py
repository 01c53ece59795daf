"""EfficientNet-PyTorch (lukemelas), the first conversion of the authors' weights.

Notable: it pads as TensorFlow does, but for the native size only, fixed when the network is built. Ours follows the
input, so the two agree at the size that theirs was built for. AdvProp's weights have the same names and want mean and
deviation 0.5.
Source: EfficientNet-PyTorch 0.7 `model.py`, `utils.py`.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from odonata.nn.efficientnet_sizes import CONVENTIONS
from odonata.weights.efficientnet_names import (
    IMAGENET,
    Names,
    classes_of,
    convention_of,
    infer,
    is_counted,
    key_map,
    require_strides,
    size_of,
)
from odonata.weights.layout import Files, Plain, require
from odonata.weights.read import Raw
from odonata.weights.towers import Hints, TowerLayout, TowerPlan

_PARTS = {
    "expand": "_expand_conv",
    "expand_norm": "_bn0",
    "depthwise": "_depthwise_conv",
    "depthwise_norm": "_bn1",
    "squeeze_reduce": "_se_reduce",
    "squeeze_expand": "_se_expand",
    "project": "_project_conv",
    "project_norm": "_bn2",
}
NAMES = Names(
    stem=("_conv_stem", "_bn0"),
    top=("_conv_head", "_bn1"),
    head="_fc",
    pattern=r"_blocks\.(\d+)\.",
    block=lambda stage, number, total: f"_blocks.{total}.",
    parts=_PARTS,
    plain_parts=_PARTS,
    expands="_expand_conv",
)


def recognises(raw: Raw) -> bool:
    """Its names begin with underscores."""
    return {"_conv_stem.weight", "_blocks.0._depthwise_conv.weight"} <= raw.state.keys()


def plan(raw: Raw, hints: Hints) -> TowerPlan:
    """Returns how to read the checkpoint."""
    config = infer(raw.state, NAMES, raw.path) | CONVENTIONS["tf"]
    classes = classes_of(raw.state, NAMES)
    notes = ["padding from the input's size; the original's is fixed for one size"]
    preprocess: Plain | None = None
    if size_of(config):
        size = config["resolution"]
        preprocess = IMAGENET | {"size": size, "resize_size": size + 32, "interpolation": "bicubic"}
        if raw.path.stem.startswith("adv-"):
            preprocess |= {"mean": [0.5] * 3, "std": [0.5] * 3}
            notes.append("AdvProp, by the file's name: mean and deviation 0.5")
    rules = key_map(NAMES, config, classes, is_counted(raw.state))
    return TowerPlan(config, rules, "EfficientNet-PyTorch (lukemelas)", classes, preprocess, (), notes)


def write(state: Mapping[str, Tensor], config: Plain, classes: int, preprocess: Plain | None) -> Files:
    """Returns the file that `EfficientNet.from_name(…).load_state_dict` reads."""
    require_strides(config, "lukemelas")
    require(convention_of(config) == "tf", "lukemelas layout: it pads as TensorFlow and has epsilon 1e-3")
    return Files("model.safetensors", key_map(NAMES, config, classes).from_ours(state))


TOWER = TowerLayout("lukemelas", "efficientnet", recognises, plan, write)
