"""transformers' ConvNeXt and ConvNeXt V2 (`ConvNextForImageClassification`, `ConvNextV2Model`, …).

Notable: `layer_norm_eps` is the final norm's alone, 1e-12 unless the file says otherwise; all other norms have 1e-6.
Bare towers have no `convnext.` or `convnextv2.` before their names.

Source: transformers 5.23 `models/convnext`, `models/convnextv2`; the preprocessor of facebook/convnext-tiny-224.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from odonata.weights.convnext_official import IMAGENET, is_one_version, response_norm, version
from odonata.weights.hf_names import one_size
from odonata.weights.layout import Files, Plain, require
from odonata.weights.maps import KeyMap, pair, rename
from odonata.weights.read import Raw
from odonata.weights.towers import Hints, TowerLayout, TowerPlan

_DEFAULTS: Plain = {
    "num_channels": 3,
    "patch_size": 4,
    "hidden_sizes": [96, 192, 384, 768],
    "depths": [3, 3, 9, 3],
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "layer_scale_init_value": 1e-6,
    "image_size": 224,
}
_PARTS = (("dwconv", "conv"), ("layernorm", "norm"), ("pwconv1", "fc1"), ("pwconv2", "fc2"))


def recognises(raw: Raw) -> bool:
    """A configuration of model type `convnext` or `convnextv2`."""
    return raw.config_name == "config.json" and (raw.config or {}).get("model_type") in ("convnext", "convnextv2")


def key_map(config: Plain, classes: int, prefix: str = "convnext.") -> KeyMap:
    """Returns the map for a plain `ConvNeXtConfig`; `prefix` is empty for a bare tower."""
    rules = [
        *pair(f"{prefix}embeddings.patch_embeddings", "stem.conv"),
        *pair(f"{prefix}embeddings.layernorm", "stem.norm"),
    ]
    for stage, (depth, width) in enumerate(zip(config["depths"], config["widths"], strict=True)):
        start = f"{prefix}encoder.stages.{stage}"
        if stage:
            rules += pair(f"{start}.downsampling_layer.0", f"stages.{stage}.downsample.norm")
            rules += pair(f"{start}.downsampling_layer.1", f"stages.{stage}.downsample.conv")
        for number in range(depth):
            theirs, ours = f"{start}.layers.{number}", f"stages.{stage}.layers.{number}"
            for their_part, our_part in _PARTS:
                rules += pair(f"{theirs}.{their_part}", f"{ours}.{our_part}")
            if config["layer_scale"] is not None:
                rules.append(rename(f"{theirs}.layer_scale_parameter", f"{ours}.scale.scale"))
            if config["response_norm"]:
                rules += response_norm(f"{theirs}.grn", ours, 4 * width)
    return KeyMap([*rules, *pair(f"{prefix}layernorm", "norm"), *(pair("classifier", "head") if classes else [])])


def plan(raw: Raw, hints: Hints) -> TowerPlan:
    """Returns how to read the checkpoint."""
    hf = _DEFAULTS | (raw.config or {})
    require(hf["hidden_act"] == "gelu", f"{raw.path}: config.json: hidden_act is {hf['hidden_act']!r}, not gelu")
    second = hf["model_type"] == "convnextv2"
    scaled = not second and hf["layer_scale_init_value"] > 0
    config: Plain = {
        "family": "convnext",
        "depths": list(hf["depths"]),
        "widths": list(hf["hidden_sizes"]),
        "patch_size": one_size(hf["patch_size"], "patch_size"),
        "layer_scale": hf["layer_scale_init_value"] if scaled else None,
        "response_norm": second,
        "head_norm_eps": hf["layer_norm_eps"],
        "channels": hf["num_channels"],
    }
    prefix = f"{hf['model_type']}." if any(name.startswith("convnext") for name in raw.state) else ""
    weight = raw.state.get("classifier.weight")
    classes = 0 if weight is None else weight.shape[0]
    size = one_size(hf["image_size"], "image_size")
    preprocess = IMAGENET | {"size": size, "resize_size": int(size / 0.875), "crop_rounding": "hf"}
    if size >= 384:
        preprocess = {k: v for k, v in IMAGENET.items() if k != "resize_size"} | {"size": size, "resize": "squash"}
    notes = [f"final norm's epsilon {hf['layer_norm_eps']}"]
    source = f"transformers {version(config)}"
    return TowerPlan(config, key_map(config, classes, prefix), source, classes, preprocess, (), notes)


def write(state: Mapping[str, Tensor], config: Plain, classes: int, preprocess: Plain | None) -> Files:
    """Returns `config.json` and safetensors that `ConvNext…ForImageClassification.from_pretrained` reads."""
    if config["response_norm"]:
        is_one_version(config, "hf")
    kind, model_type = ("ConvNextV2", "convnextv2") if config["response_norm"] else ("ConvNext", "convnext")
    hf: Plain = {
        "architectures": [f"{kind}ForImageClassification" if classes else f"{kind}Model"],
        "model_type": model_type,
        "num_channels": config["channels"],
        "patch_size": config["patch_size"],
        "num_stages": len(config["depths"]),
        "depths": list(config["depths"]),
        "hidden_sizes": list(config["widths"]),
        "hidden_act": "gelu",
        "layer_norm_eps": config["head_norm_eps"],
        "layer_scale_init_value": config["layer_scale"] or 0.0,
        "drop_path_rate": config["drop_path"],
    }
    if config["response_norm"]:
        del hf["layer_scale_init_value"]
    if classes:
        hf |= {"id2label": {str(i): f"class {i}" for i in range(classes)}}
    made = key_map(config, classes, f"{model_type}." if classes else "").from_ours(state)
    return Files("model.safetensors", made, {"config.json": hf})


TOWER = TowerLayout("hf", "convnext", recognises, plan, write)
