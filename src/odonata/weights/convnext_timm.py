"""timm's ConvNeXt and ConvNeXt V2.

Notable: halvings are part of their stages. Small ones of version 2 (atto to nano) have 1 × 1 convolutions where the
others have Linears, and so do their files; both are read, and the width decides what is written.

Source: timm 1.0.31 `models/convnext.py` (`conv_mlp`, `_cfg`).
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from odonata.weights.convnext_official import IMAGENET, has_four_stages, infer, is_one_version, version
from odonata.weights.layout import Files, Plain
from odonata.weights.maps import KeyMap, Rule, depth_of, pair, rename, reshape
from odonata.weights.read import Raw
from odonata.weights.towers import Hints, TowerLayout, TowerPlan


def recognises(raw: Raw) -> bool:
    """A stem, and blocks with `conv_dw`."""
    return {"stem.0.weight", "stages.0.blocks.0.conv_dw.weight"} <= raw.state.keys()


def key_map(config: Plain, classes: int, conv_mlp: bool = False) -> KeyMap:
    """Returns the map for a plain `ConvNeXtConfig`; `conv_mlp` if its MLPs are stored as 1 × 1 convolutions."""
    rules = [*pair("stem.0", "stem.conv"), *pair("stem.1", "stem.norm")]
    for stage, (depth, width) in enumerate(zip(config["depths"], config["widths"], strict=True)):
        if stage:
            rules += pair(f"stages.{stage}.downsample.0", f"stages.{stage}.downsample.norm")
            rules += pair(f"stages.{stage}.downsample.1", f"stages.{stage}.downsample.conv")
        for number in range(depth):
            theirs, ours = f"stages.{stage}.blocks.{number}", f"stages.{stage}.layers.{number}"
            rules += [*pair(f"{theirs}.conv_dw", f"{ours}.conv"), *pair(f"{theirs}.norm", f"{ours}.norm")]
            rules += _linear(f"{theirs}.mlp.fc1", f"{ours}.fc1", 4 * width, width, conv_mlp)
            rules += _linear(f"{theirs}.mlp.fc2", f"{ours}.fc2", width, 4 * width, conv_mlp)
            if config["layer_scale"] is not None:
                rules.append(rename(f"{theirs}.gamma", f"{ours}.scale.scale"))
            if config["response_norm"]:
                rules += pair(f"{theirs}.mlp.grn", f"{ours}.response_norm")
    return KeyMap([*rules, *pair("head.norm", "norm"), *(pair("head.fc", "head") if classes else [])])


def _linear(theirs: str, ours: str, out: int, width: int, convolution: bool) -> list[Rule]:
    if not convolution:
        return pair(theirs, ours)
    weight = reshape(f"{theirs}.weight", f"{ours}.weight", (out, width, 1, 1), (out, width))
    return [weight, rename(f"{theirs}.bias", f"{ours}.bias")]


def plan(raw: Raw, hints: Hints) -> TowerPlan:
    """Returns how to read the checkpoint."""
    blocks = [f"stages.{stage}.blocks." for stage in range(depth_of(raw.state, "stages."))]
    config = infer(raw, "stem.0", blocks, "conv_dw", "gamma")
    weight = raw.state.get("head.fc.weight")
    classes = 0 if weight is None else weight.shape[0]
    first = raw.state.get("stages.0.blocks.0.mlp.fc1.weight")
    conv_mlp = first is not None and first.ndim == 4
    notes = ["MLPs stored as 1 × 1 convolutions"] * conv_mlp
    return TowerPlan(
        config, key_map(config, classes, conv_mlp), f"timm {version(config)}", classes, IMAGENET, (), notes
    )


def write(state: Mapping[str, Tensor], config: Plain, classes: int, preprocess: Plain | None) -> Files:
    """Returns the file that timm's `ConvNeXt.load_state_dict` reads."""
    has_four_stages(config, "timm")
    is_one_version(config, "timm")
    conv_mlp = config["response_norm"] and config["widths"][0] <= 80
    return Files("model.safetensors", key_map(config, classes, conv_mlp).from_ours(state))


TOWER = TowerLayout("timm", "convnext", recognises, plan, write)
