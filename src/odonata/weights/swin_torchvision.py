"""torchvision's Swin Transformers: `features.0` is the patch embedding, stages and mergings follow in turn.

Notable: the numbers that look up position biases are stored, flat; they are written, since torchvision wants them.

Source: torchvision 0.28 `models/swin_transformer.py`, and the transforms of its weights.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from odonata.nn.positions import relative_position_index
from odonata.weights.layout import Files, Plain, require
from odonata.weights.maps import KeyMap, pair
from odonata.weights.read import Raw
from odonata.weights.swin_official import COMPUTED, block, classes_of, infer, merging, preprocess_of
from odonata.weights.towers import Hints, TowerLayout, TowerPlan

_RESIZE = {(96, 6): 232, (96, 18): 246, (128, 18): 238}
"""(Width, blocks of the third stage) → shorter side before the crop, which torchvision chose for T, S and B."""


def recognises(raw: Raw) -> bool:
    """A table of position biases in `features.1`."""
    return "features.1.0.attn.relative_position_bias_table" in raw.state


def key_map(config: Plain, classes: int) -> KeyMap:
    """Returns the map for a plain `SwinConfig`."""
    rules = [*pair("features.0.0", "patch_embed"), *pair("features.0.2", "patch_norm")]
    for stage, depth in enumerate(config["depths"]):
        for number in range(depth):
            rules += block(f"features.{2 * stage + 1}.{number}", f"stages.{stage}.layers.{number}", "mlp.0", "mlp.3")
        if stage:
            rules += merging(f"features.{2 * stage}", f"stages.{stage}.merge")
    return KeyMap([*rules, *pair("norm", "norm"), *(pair("head", "head") if classes else [])], COMPUTED)


def plan(raw: Raw, hints: Hints) -> TowerPlan:
    """Returns how to read the checkpoint."""
    features = 1 + max(int(name.split(".")[1]) for name in raw.state if name.startswith("features."))
    config = infer(raw, [f"features.{odd}." for odd in range(1, features, 2)], "features.0.0", "mlp.0")
    config["convention"] = "torchvision"
    classes = classes_of(raw, "head")
    resize = _RESIZE.get((config["embed_dim"], config["depths"][min(2, len(config["depths"]) - 1)]), 256)
    notes = ["odd map sizes: as torchvision"]
    source = "torchvision Swin Transformer"
    return TowerPlan(config, key_map(config, classes), source, classes, preprocess_of(config, resize), (), notes)


def write(state: Mapping[str, Tensor], config: Plain, classes: int, preprocess: Plain | None) -> Files:
    """Returns the file that torchvision's `SwinTransformer.load_state_dict` reads."""
    require(len(set(config["windows"])) == 1, "torchvision layout: torchvision has one size of windows in all stages")
    made = key_map(config, classes).from_ours(state)
    index = relative_position_index(config["windows"][0]).flatten()
    ending = "relative_position_bias_table"
    tables = [name for name in made if name.endswith(ending)]
    made |= {f"{name.removesuffix(ending)}relative_position_index": index.clone() for name in tables}
    return Files("model.safetensors", made)


TOWER = TowerLayout("torchvision", "swin", recognises, plan, write)
