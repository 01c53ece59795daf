"""transformers' Swin Transformers (`SwinModel`, `SwinForImageClassification`, the tower of `…ForMaskedImageModeling`).

Notable: files hold the names of version 4, which version 5 still writes and reads; its own are read, too. Positions
added to the patches (`use_absolute_embeddings`) are refused. `layer_norm_eps` must be 1e-5, which the norms of the
embedding and of the merging have in any case.

Source: transformers 5.23 `models/swin`, `conversion_mapping.py`; the preprocessor of
microsoft/swin-tiny-patch4-window7-224.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from odonata.nn.positions import relative_position_index
from odonata.weights.hf_names import one_size
from odonata.weights.layout import Files, Plain, require
from odonata.weights.maps import KeyMap, Rule, pair, rename
from odonata.weights.read import Raw
from odonata.weights.swin_official import COMPUTED, MEAN, STD, merging
from odonata.weights.towers import Hints, TowerLayout, TowerPlan

_DEFAULTS: Plain = {
    "image_size": 224,
    "patch_size": 4,
    "num_channels": 3,
    "embed_dim": 96,
    "depths": [2, 2, 6, 2],
    "num_heads": [3, 6, 12, 24],
    "window_size": 7,
    "mlp_ratio": 4.0,
    "qkv_bias": True,
    "hidden_act": "gelu",
    "use_absolute_embeddings": False,
    "layer_norm_eps": 1e-5,
}
_NAMES = {
    4: ("attention.self.{part}", "attention.self", "attention.output.dense", "intermediate.dense", "output.dense"),
    5: ("attention.{part}_proj", "attention.relative_position_bias", "attention.o_proj", "mlp.fc1", "mlp.fc2"),
}
"""Version of transformers → names of projections, table, output and MLP in a block."""
_LEFT_OUT = ("*embeddings.mask_token", "decoder.*")


def recognises(raw: Raw) -> bool:
    """A configuration of model type `swin`."""
    return raw.config_name == "config.json" and (raw.config or {}).get("model_type") == "swin"


def key_map(config: Plain, classes: int, prefix: str = "swin.", version: int = 4) -> KeyMap:
    """Returns the map for a plain `SwinConfig`.

    Args:
        config: the tower.
        classes: whether there is a classifier.
        prefix: empty for a bare `SwinModel`.
        version: of transformers, whose names it are: 4 or 5.
    """
    embeddings = f"{prefix}embeddings"
    rules = [
        *pair(f"{embeddings}.patch_embeddings.projection", "patch_embed"),
        *pair(f"{embeddings}.norm", "patch_norm"),
    ]
    for stage, depth in enumerate(config["depths"]):
        for number in range(depth):
            theirs, ours = f"{prefix}encoder.layers.{stage}.blocks.{number}", f"stages.{stage}.layers.{number}"
            rules += _block(theirs, ours, version)
        if stage:
            rules += merging(f"{prefix}encoder.layers.{stage - 1}.downsample", f"stages.{stage}.merge")
    rules += pair(f"{prefix}layernorm", "norm")
    return KeyMap(rules + (pair("classifier", "head") if classes else []), COMPUTED)


def _block(theirs: str, ours: str, version: int) -> list[Rule]:
    projection, table, output, fc1, fc2 = _NAMES[version]
    rules = [
        *pair(f"{theirs}.layernorm_before", f"{ours}.norm1"),
        rename(f"{theirs}.{table}.relative_position_bias_table", f"{ours}.attn.relative_position_bias_table"),
        *pair(f"{theirs}.{output}", f"{ours}.attn.proj"),
        *pair(f"{theirs}.layernorm_after", f"{ours}.norm2"),
        *pair(f"{theirs}.{fc1}", f"{ours}.mlp.fc1"),
        *pair(f"{theirs}.{fc2}", f"{ours}.mlp.fc2"),
    ]
    for part in ("query", "key", "value") if version == 4 else ("q", "k", "v"):
        rules += pair(f"{theirs}.{projection.replace('{part}', part)}", f"{ours}.attn.{part[0]}")
    return rules


def plan(raw: Raw, hints: Hints) -> TowerPlan:
    """Returns how to read the checkpoint."""
    hf = _DEFAULTS | (raw.config or {})
    where = f"{raw.path}: config.json"
    require(hf["hidden_act"] == "gelu", f"{where}: hidden_act is {hf['hidden_act']!r}; the tower here has gelu")
    require(bool(hf["qkv_bias"]), f"{where}: qkv_bias is false; the tower here has these biases")
    require(not hf["use_absolute_embeddings"], f"{where}: use_absolute_embeddings is true; the tower here has none")
    require(
        hf["layer_norm_eps"] == 1e-5, f"{where}: layer_norm_eps is {hf['layer_norm_eps']}; the tower here has 1e-05"
    )
    config: Plain = {
        "family": "swin",
        "embed_dim": hf["embed_dim"],
        "depths": list(hf["depths"]),
        "num_heads": list(hf["num_heads"]),
        "windows": [hf["window_size"]] * len(hf["depths"]),
        "patch_size": one_size(hf["patch_size"], "patch_size"),
        "mlp_ratio": float(hf["mlp_ratio"]),
        "channels": hf["num_channels"],
    }
    prefix = "swin." if any(name.startswith("swin.") for name in raw.state) else ""
    version = 4 if any(".attention.self." in name for name in raw.state) else 5
    weight = raw.state.get("classifier.weight")
    classes = 0 if weight is None else weight.shape[0]
    size = one_size(hf["image_size"], "image_size")
    preprocess: Plain = {"size": size, "resize": "squash", "interpolation": "bicubic", "mean": MEAN, "std": STD}
    notes = [f"names of transformers {version}", "odd map sizes: as the official code"]
    rules = key_map(config, classes, prefix, version)
    return TowerPlan(config, rules, "transformers Swin Transformer", classes, preprocess, _LEFT_OUT, notes)


def write(state: Mapping[str, Tensor], config: Plain, classes: int, preprocess: Plain | None) -> Files:
    """Returns `config.json` and safetensors that `SwinForImageClassification.from_pretrained` reads."""
    require(len(set(config["windows"])) == 1, "hf layout: transformers has one size of windows in all stages")
    size = preprocess.get("size", 224) if preprocess else 224
    hf: Plain = {
        "architectures": ["SwinForImageClassification" if classes else "SwinModel"],
        "model_type": "swin",
        "image_size": list(size) if isinstance(size, list | tuple) else size,
        "patch_size": config["patch_size"],
        "num_channels": config["channels"],
        "embed_dim": config["embed_dim"],
        "depths": list(config["depths"]),
        "num_heads": list(config["num_heads"]),
        "window_size": config["windows"][0],
        "mlp_ratio": config["mlp_ratio"],
        "qkv_bias": True,
        "hidden_act": "gelu",
        "use_absolute_embeddings": False,
        "layer_norm_eps": 1e-5,
        "drop_path_rate": config["drop_path"],
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    if classes:
        hf |= {"id2label": {str(i): f"class {i}" for i in range(classes)}}
    made = key_map(config, classes, "swin." if classes else "").from_ours(state)
    # Version 4 stores what it looks the table up with; version 5 does not read it.
    ending, index = "relative_position_bias_table", relative_position_index(config["windows"][0])
    tables = [name for name in made if name.endswith(ending)]
    made |= {f"{name.removesuffix(ending)}relative_position_index": index.clone() for name in tables}
    return Files("model.safetensors", made, {"config.json": hf})


TOWER = TowerLayout("hf", "swin", recognises, plan, write)
