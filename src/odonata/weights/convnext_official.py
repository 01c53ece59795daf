"""ConvNeXt and ConvNeXt V2 under the names of facebookresearch/ConvNeXt and ConvNeXt-V2.

Notable: stem and halvings stand apart from the stages, in `downsample_layers`. Response normalisation is stored as
[1, 1, 1, channels], in `grn.gamma` and `grn.beta`; `gamma` in a block is the layer scale of version 1.

Source: facebookresearch/ConvNeXt `models/convnext.py`, `datasets.py`; ConvNeXt-V2 `models/convnextv2.py`.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from odonata.weights.layout import Files, Plain, require, shape_of
from odonata.weights.maps import KeyMap, Rule, depth_of, pair, rename, reshape
from odonata.weights.read import Raw
from odonata.weights.towers import Hints, TowerLayout, TowerPlan

IMAGENET: Plain = {
    "size": 224,
    "resize_size": 256,
    "interpolation": "bicubic",
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
}
"""Evaluation at 224 pixels in the original, timm and transformers: bicubic to 224 / 0.875, then a crop."""


def recognises(raw: Raw) -> bool:
    """A stem in `downsample_layers`."""
    return {"downsample_layers.0.0.weight", "stages.0.0.dwconv.weight"} <= raw.state.keys()


def key_map(config: Plain, classes: int) -> KeyMap:
    """Returns the map for a plain `ConvNeXtConfig`."""
    rules = [*pair("downsample_layers.0.0", "stem.conv"), *pair("downsample_layers.0.1", "stem.norm")]
    for stage, (depth, width) in enumerate(zip(config["depths"], config["widths"], strict=True)):
        if stage:
            rules += pair(f"downsample_layers.{stage}.0", f"stages.{stage}.downsample.norm")
            rules += pair(f"downsample_layers.{stage}.1", f"stages.{stage}.downsample.conv")
        for number in range(depth):
            theirs, ours = f"stages.{stage}.{number}", f"stages.{stage}.layers.{number}"
            for their_part, our_part in (("dwconv", "conv"), ("norm", "norm"), ("pwconv1", "fc1"), ("pwconv2", "fc2")):
                rules += pair(f"{theirs}.{their_part}", f"{ours}.{our_part}")
            if config["layer_scale"] is not None:
                rules.append(rename(f"{theirs}.gamma", f"{ours}.scale.scale"))
            if config["response_norm"]:
                rules += response_norm(f"{theirs}.grn", ours, 4 * width, ("gamma", "beta"))
    return KeyMap([*rules, *pair("norm", "norm"), *(pair("head", "head") if classes else [])])


def response_norm(theirs: str, block: str, width: int, names: tuple[str, str] = ("weight", "bias")) -> list[Rule]:
    """Response normalisation stored as [1, 1, 1, channels]; `names` of its scale and offset."""
    return [
        reshape(f"{theirs}.{name}", f"{block}.response_norm.{part}", (1, 1, 1, width), (width,))
        for name, part in zip(names, ("weight", "bias"), strict=True)
    ]


def infer(raw: Raw, stem: str, blocks: list[str], convolution: str, scale: str) -> Plain:
    """Returns the configuration that names and shapes tell.

    Args:
        raw: the checkpoint.
        stem: name of its convolution.
        blocks: how the names of each stage's blocks begin, before their number.
        convolution: name of a block's convolution.
        scale: name of a block's layer scale.

    Raises:
        WeightsError: tensors are missing, or the convolutions are not 7 × 7.
    """
    _, channels, patch_size, _ = shape_of(raw.state, f"{stem}.weight", raw.path)
    shapes = [shape_of(raw.state, f"{start}0.{convolution}.weight", raw.path) for start in blocks]
    sizes = {shape[-1] for shape in shapes}
    require(sizes == {7}, f"{raw.path}: convolutions of {sizes} per channel; the tower here has 7 × 7")
    return {
        "family": "convnext",
        "depths": [depth_of(raw.state, start) for start in blocks],
        "widths": [shape[0] for shape in shapes],
        "patch_size": patch_size,
        "layer_scale": 1e-6 if f"{blocks[0]}0.{scale}" in raw.state else None,
        "response_norm": any(".grn." in name for name in raw.state),
        "channels": channels,
    }


def version(config: Plain) -> str:
    """Returns what the tower is called."""
    return "ConvNeXt V2" if config["response_norm"] else "ConvNeXt"


def has_four_stages(config: Plain, layout: str) -> None:
    """Raises WeightsError unless the tower has four stages."""
    require(len(config["depths"]) == 4, f"{layout} layout: its networks have four stages, not {len(config['depths'])}")


def is_one_version(config: Plain, layout: str) -> None:
    """Raises WeightsError unless the tower has layer scale (version 1) or response normalisation (version 2)."""
    one = (config["layer_scale"] is not None) != config["response_norm"]
    require(
        one, f"{layout} layout: a block has layer scale (version 1) or response normalisation (version 2), not both"
    )


def plan(raw: Raw, hints: Hints) -> TowerPlan:
    """Returns how to read the checkpoint."""
    blocks = [f"stages.{stage}." for stage in range(depth_of(raw.state, "stages."))]
    config = infer(raw, "downsample_layers.0.0", blocks, "dwconv", "gamma")
    weight = raw.state.get("head.weight")
    classes = 0 if weight is None else weight.shape[0]
    return TowerPlan(config, key_map(config, classes), f"{version(config)} (facebook's names)", classes, IMAGENET)


def write(state: Mapping[str, Tensor], config: Plain, classes: int, preprocess: Plain | None) -> Files:
    """Returns the file that the original's `ConvNeXt.load_state_dict` reads."""
    has_four_stages(config, "official")
    is_one_version(config, "official")
    return Files("model.safetensors", key_map(config, classes).from_ours(state))


TOWER = TowerLayout("official", "convnext", recognises, plan, write)
