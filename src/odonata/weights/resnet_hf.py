"""transformers' residual networks (`ResNetModel`, `ResNetForImageClassification`).

Notable: `downsample_in_bottleneck` false (the default) is v1.5, true is v1. Its `pooler_output` is (B, C, 1, 1).
Source: transformers 5.23 `models/resnet`.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from odonata.weights.layout import Files, Plain, require
from odonata.weights.maps import KeyMap, Rule, pair, rename
from odonata.weights.read import Raw
from odonata.weights.resnet_torchvision import IMAGENET, norm
from odonata.weights.towers import Hints, TowerLayout, TowerPlan


def recognises(raw: Raw) -> bool:
    """A configuration of model type `resnet`."""
    return raw.config_name == "config.json" and (raw.config or {}).get("model_type") == "resnet"


def key_map(config: Plain, classes: int, prefix: str = "resnet.") -> KeyMap:
    """Returns the map for a plain `ResNetConfig`; `prefix` is empty for a bare `ResNetModel`."""
    rules = _conv(f"{prefix}embedder.embedder", "stem.convs.0", "stem.norms.0")
    width, bottleneck = config["stem_width"], config["block"] == "bottleneck"
    for stage, (depth, planes) in enumerate(zip(config["depths"], config["widths"], strict=True)):
        for block in range(depth):
            theirs, ours = f"{prefix}encoder.stages.{stage}.layers.{block}", f"stages.{stage}.layers.{block}"
            for number in range(3 if bottleneck else 2):
                rules += _conv(f"{theirs}.layer.{number}", f"{ours}.conv{number + 1}", f"{ours}.norm{number + 1}")
            if block == 0 and (stage > 0 or width != planes * (4 if bottleneck else 1)):
                rules += _conv(f"{theirs}.shortcut", f"{ours}.shortcut.conv", f"{ours}.shortcut.norm")
    if classes:
        rules += pair("classifier.1", "head")
    return KeyMap(rules)


def _conv(theirs: str, conv: str, bn: str) -> list[Rule]:
    return [rename(f"{theirs}.convolution.weight", f"{conv}.weight"), *norm(f"{theirs}.normalization", bn)]


def plan(raw: Raw, hints: Hints) -> TowerPlan:
    """Returns how to read the checkpoint."""
    hf = raw.config or {}
    block = hf.get("layer_type", "bottleneck")
    expansion = 4 if block == "bottleneck" else 1
    config: Plain = {
        "family": "resnet",
        "block": block,
        "depths": list(hf.get("depths", (3, 4, 6, 3))),
        "widths": [size // expansion for size in hf.get("hidden_sizes", (256, 512, 1024, 2048))],
        "stem_width": hf.get("embedding_size", 64),
        "stride_in": "1x1" if hf.get("downsample_in_bottleneck") else "3x3",
        "channels": hf.get("num_channels", 3),
    }
    require(not hf.get("downsample_in_first_stage"), f"{raw.path}: config.json: downsample_in_first_stage is true")
    require(hf.get("hidden_act", "relu") == "relu", f"{raw.path}: config.json: hidden_act is not relu")
    prefix = "resnet." if any(name.startswith("resnet.") for name in raw.state) else ""
    weight = raw.state.get("classifier.1.weight")
    classes = 0 if weight is None else weight.shape[0]
    notes = [f"stride in the {config['stride_in']}, by downsample_in_bottleneck"] * (block == "bottleneck")
    return TowerPlan(config, key_map(config, classes, prefix), "transformers ResNet", classes, IMAGENET, (), notes)


def write(state: Mapping[str, Tensor], config: Plain, classes: int, preprocess: Plain | None) -> Files:
    """Returns `config.json` and safetensors that `ResNetForImageClassification.from_pretrained` reads."""
    require(
        config["stem"] == "imagenet", f"hf layout: transformers' ResNet has ImageNet's stem, not {config['stem']!r}"
    )
    require(config["norm"] == "batch" and config["groups"] == 1 and config["width_per_group"] == 64,
            "hf layout: transformers' ResNet is neither wide nor grouped, and has batch normalisation")  # fmt: skip
    require(config["output_stride"] == 32, "hf layout: transformers' ResNet does not dilate")
    expansion = 4 if config["block"] == "bottleneck" else 1
    hf: Plain = {
        "architectures": ["ResNetForImageClassification" if classes else "ResNetModel"],
        "model_type": "resnet",
        "layer_type": config["block"],
        "depths": list(config["depths"]),
        "hidden_sizes": [width * expansion for width in config["widths"]],
        "embedding_size": config["stem_width"],
        "downsample_in_bottleneck": config["stride_in"] == "1x1",
        "num_channels": config["channels"],
        "hidden_act": "relu",
    }
    if classes:
        hf |= {"id2label": {str(i): f"class {i}" for i in range(classes)}}
    return Files(
        "model.safetensors",
        key_map(config, classes, "resnet." if classes else "").from_ours(state),
        {"config.json": hf},
    )


TOWER = TowerLayout("hf", "resnet", recognises, plan, write)
