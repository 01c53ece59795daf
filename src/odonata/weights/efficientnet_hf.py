"""transformers' EfficientNets (`EfficientNetModel`, `EfficientNetForImageClassification`).

Notable:
- `depthwise_padding` lists the blocks that meet an odd map at the native size, so it is right at that size only; ours
  follows the input. It is computed on writing and not needed on reading.
- `batch_norm_momentum` is TensorFlow's .99, which transformers hands to PyTorch as it is: its running statistics are
  nearly the last batch's. Read, it becomes .01 here.
- It has no shortcut in the first block of a stage, where the original has one if the shape stays. In B0 … B7 it never
  does; narrower towers are refused.
- Its processor divides by the root of the deviation twice (`include_top`), which is ImageNet's deviation once.
Source: transformers 5.23 `models/efficientnet`, and its conversion script for the published values.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from odonata.nn.efficientnet_sizes import STRIDES, round_channels, round_repeats
from odonata.weights.efficientnet_names import IMAGENET, Names, classes_of, key_map
from odonata.weights.layout import Files, Plain, require
from odonata.weights.read import Raw
from odonata.weights.towers import Hints, TowerLayout, TowerPlan

_PARTS = {
    "expand": "expansion.expand_conv",
    "expand_norm": "expansion.expand_bn",
    "depthwise": "depthwise_conv.depthwise_conv",
    "depthwise_norm": "depthwise_conv.depthwise_norm",
    "squeeze_reduce": "squeeze_excite.reduce",
    "squeeze_expand": "squeeze_excite.expand",
    "project": "projection.project_conv",
    "project_norm": "projection.project_bn",
}


def names(prefix: str = "efficientnet.") -> Names:
    """Returns transformers' names; the prefix is empty for a bare `EfficientNetModel`."""
    return Names(
        stem=(f"{prefix}embeddings.convolution", f"{prefix}embeddings.batchnorm"),
        top=(f"{prefix}encoder.top_conv", f"{prefix}encoder.top_bn"),
        head="classifier",
        pattern=rf"{prefix}encoder\.blocks\.(\d+)\.",
        block=lambda stage, number, total: f"{prefix}encoder.blocks.{total}.",
        parts=_PARTS,
        plain_parts=_PARTS,
        expands="expansion.expand_conv",
    )


def recognises(raw: Raw) -> bool:
    """A configuration of model type `efficientnet`."""
    return raw.config_name == "config.json" and (raw.config or {}).get("model_type") == "efficientnet"


def plan(raw: Raw, hints: Hints) -> TowerPlan:
    """Returns how to read the checkpoint."""
    hf = raw.config or {}
    where = f"{raw.path}: config.json"
    require(
        hf.get("hidden_act", "swish") in ("swish", "silu"), f"{where}: hidden_act is {hf.get('hidden_act')}, not swish"
    )
    require(hf.get("pooling_type", "mean") == "mean", f"{where}: pooling_type is not mean")
    size = hf.get("image_size", 600)
    config = _config(hf, size if isinstance(size, int) else size[0])
    _require_shortcuts(config, where)
    stem = round_channels(32 * config["width"], config["divisor"])
    in_channels = [round_channels(w * config["width"], config["divisor"]) for w in hf.get("in_channels", (32,))]
    require(in_channels[0] == stem, f"{where}: in_channels begins with {hf.get('in_channels')}, the stem gives {stem}")
    layout = names("efficientnet." if any(name.startswith("efficientnet.") for name in raw.state) else "")
    classes = classes_of(raw.state, layout)
    # Resized to the native square without a crop, as its published processors do.
    preprocess = IMAGENET | {"size": config["resolution"], "resize": "squash", "interpolation": "bicubic"}
    notes = [
        "padding from the input's size; depthwise_padding, right at the native size only, is not needed",
        f"momentum {config['norm_momentum']:g}, one minus TensorFlow's in batch_norm_momentum",
    ]
    return TowerPlan(
        config, key_map(layout, config, classes), "transformers EfficientNet", classes, preprocess, (), notes
    )


def _config(hf: Plain, resolution: int) -> Plain:
    return {
        "family": "efficientnet",
        "width": float(hf.get("width_coefficient", 2.0)),
        "depth": float(hf.get("depth_coefficient", 3.1)),
        "resolution": resolution,
        "dropout": hf.get("dropout_rate", 0.5),
        "drop_connect": hf.get("drop_connect_rate", 0.2),
        "widths": list(hf.get("out_channels", (16, 24, 40, 80, 112, 192, 320))),
        "repeats": list(hf.get("num_block_repeats", (1, 2, 2, 3, 3, 4, 1))),
        "expansions": list(hf.get("expand_ratios", (1, 6, 6, 6, 6, 6, 6))),
        "kernels": list(hf.get("kernel_sizes", (3, 3, 5, 3, 5, 5, 3))),
        "strides": list(hf.get("strides", STRIDES)),
        "squeeze": hf.get("squeeze_expansion_ratio", 0.25),
        "divisor": hf.get("depth_divisor", 8),
        "padding": "same",
        "norm_eps": hf.get("batch_norm_eps", 1e-3),
        # TensorFlow's is the share of the old statistics, PyTorch's that of the new.
        "norm_momentum": round(1 - hf.get("batch_norm_momentum", 0.99), 6),
        "channels": hf.get("num_channels", 3),
    }


def odd_blocks(config: Plain) -> list[int]:
    """Returns the numbers of the blocks that stride over an odd map at the native size: `depthwise_padding`."""
    size, block = -(-config["resolution"] // config["stem_stride"]), 0
    odd: list[int] = []
    for repeats, stride in zip(config["repeats"], config["strides"], strict=True):
        if stride == 2 and size % 2:
            odd.append(block)
        size, block = -(-size // stride), block + round_repeats(repeats, config["depth"])
    return odd


def _require_shortcuts(config: Plain, where: str) -> None:
    """Raises WeightsError where the original would add a shortcut and transformers does not."""
    widths = [round_channels(w * config["width"], config["divisor"]) for w in (32, *config["widths"])]
    for stage, stride in enumerate(config["strides"]):
        require(
            stride != 1 or widths[stage] != widths[stage + 1],
            f"{where}: stage {stage + 1} begins with a block of {widths[stage]} channels in and out; "
            "the original adds a shortcut there, transformers does not",
        )


def write(state: Mapping[str, Tensor], config: Plain, classes: int, preprocess: Plain | None) -> Files:
    """Returns `config.json` and safetensors that `EfficientNetForImageClassification.from_pretrained` reads."""
    require(config["padding"] == "same", "hf layout: transformers pads as TensorFlow, this tower symmetrically")
    require(config["stem_stride"] == 2 and config["resolution"] % 2 == 0,
            "hf layout: transformers' stem strides by 2 over even images")  # fmt: skip
    require(
        (config["stem_width"], config["top_width"]) == (32, 1280), "hf layout: the stem has 32 channels, the top 1280"
    )
    _require_shortcuts(config, "hf layout")
    require(config["squeeze"] > 0, "hf layout: transformers' blocks have squeeze-and-excitation")
    hf: Plain = {
        "architectures": ["EfficientNetForImageClassification" if classes else "EfficientNetModel"],
        "model_type": "efficientnet",
        "image_size": config["resolution"],
        "width_coefficient": config["width"],
        "depth_coefficient": config["depth"],
        "depth_divisor": config["divisor"],
        "kernel_sizes": list(config["kernels"]),
        "in_channels": [config["stem_width"], *config["widths"][:-1]],
        "out_channels": list(config["widths"]),
        "depthwise_padding": odd_blocks(config),
        "strides": list(config["strides"]),
        "num_block_repeats": list(config["repeats"]),
        "expand_ratios": list(config["expansions"]),
        "squeeze_expansion_ratio": config["squeeze"],
        "hidden_act": "swish",
        "hidden_dim": round_channels(config["top_width"] * config["width"], config["divisor"]),
        "pooling_type": "mean",
        "batch_norm_eps": config["norm_eps"],
        "batch_norm_momentum": round(1 - config["norm_momentum"], 6),
        "dropout_rate": config["dropout"],
        "drop_connect_rate": config["drop_connect"],
        "num_channels": config["channels"],
    }
    if classes:
        hf |= {"id2label": {str(i): f"class {i}" for i in range(classes)}}
    rules = key_map(names("efficientnet." if classes else ""), config, classes)
    return Files("model.safetensors", rules.from_ours(state), {"config.json": hf})


TOWER = TowerLayout("hf", "efficientnet", recognises, plan, write)
