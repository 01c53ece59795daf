"""torchvision's Vision Transformers: packed projections, `encoder.layers.encoder_layer_N`.

Notable: the tower itself refuses images of another size; `interpolate_embeddings`, which fits its weights to one, maps
corners onto corners, and so does the convention taken here.

Source: torchvision 0.28 `models/vision_transformer.py`.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from odonata.weights.layout import Files, Plain, require, shape_of, square_side
from odonata.weights.maps import KeyMap, depth_of, layers, packed_attention, pair, reshape
from odonata.weights.read import Raw
from odonata.weights.towers import Hints, TowerLayout, TowerPlan
from odonata.weights.vit_timm import IMAGENET, heads, plain_state

_BLOCK = "encoder.layers.encoder_layer_"


def recognises(raw: Raw) -> bool:
    """A patch projection named `conv_proj`, and numbered encoder layers."""
    return {"conv_proj.weight", f"{_BLOCK}0.self_attention.in_proj_weight"} <= raw.state.keys()


def key_map(config: Plain, classes: int, mlp: tuple[str, str] = ("0", "3")) -> KeyMap:
    """Returns the map for a plain `ViTConfig`; `mlp` names its two Linears (`linear_1`, `linear_2` in old files)."""
    width, source, target = config["width"], _BLOCK + "{i}", "transformer.layers.{i}"
    block = [
        *pair(f"{source}.ln_1", f"{target}.norm1"),
        *pair(f"{source}.ln_2", f"{target}.norm2"),
        *packed_attention(f"{source}.self_attention", f"{target}.attn"),
        *pair(f"{source}.mlp.{mlp[0]}", f"{target}.mlp.fc1"),
        *pair(f"{source}.mlp.{mlp[1]}", f"{target}.mlp.fc2"),
    ]
    rules = [
        reshape("class_token", "class_token", (1, 1, width), (width,)),
        reshape("encoder.pos_embedding", "positions", (1, -1, width), (-1, width)),
        *pair("conv_proj", "patch_embed.proj"),
        *layers(block, config["depth"]),
        *pair("encoder.ln", "norm"),
        *(pair("heads.head", "head") if classes else []),
    ]
    return KeyMap(rules)


def plan(raw: Raw, hints: Hints) -> TowerPlan:
    """Returns how to read the checkpoint."""
    state, where = raw.state, raw.path
    width, channels, patch, _ = shape_of(state, "conv_proj.weight", where)
    mlp = ("0", "3") if f"{_BLOCK}0.mlp.0.weight" in state else ("linear_1", "linear_2")
    tokens = shape_of(state, "encoder.pos_embedding", where)[1]
    config: Plain = {
        "family": "vit",
        "image_size": square_side(tokens - 1, "encoder.pos_embedding", where) * patch,
        "patch_size": patch,
        "width": width,
        "depth": depth_of(state, _BLOCK),
        "mlp_width": shape_of(state, f"{_BLOCK}0.mlp.{mlp[0]}.weight", where)[0],
        "channels": channels,
        "position_convention": "torchvision",
        "norm_eps": 1e-6,
        "init": "timm",
    }
    config["num_heads"], note = heads(raw, config, hints)
    weight = state.get("heads.head.weight")
    classes = 0 if weight is None else weight.shape[0]
    notes = [note, "norm epsilon 1e-6, as torchvision has it", "positions resized as torchvision"]
    prepared = IMAGENET | {"size": config["image_size"], "interpolation": "bilinear"}
    prepared["resize_size"] = config["image_size"] * 256 // 224
    return TowerPlan(config, key_map(config, classes, mlp), "torchvision ViT", classes, prepared, (), notes)


def write(state: Mapping[str, Tensor], config: Plain, classes: int, preprocess: Plain | None) -> Files:
    """Returns the file that torchvision's `VisionTransformer(…).load_state_dict` reads."""
    require_bare(config, "torchvision")
    return Files("model.safetensors", key_map(config, classes).from_ours(plain_state(state, config)))


def require_bare(config: Plain, layout: str) -> None:
    """Refuses every option that came after the first Vision Transformer."""
    plain = {
        "class_token": True,
        "class_position": True,
        "distilled": False,
        "registers": 0,
        "pre_norm": False,
        "patch_bias": True,
        "pool": "class",
        "fc_norm": False,
        "layer_scale": None,
        "qkv_bias": "all",
        "qk_norm": False,
        "mlp": "mlp",
        "activation": "gelu",
    }
    for name, wanted in plain.items():
        require(config[name] == wanted, f"{layout} layout: {name} is {wanted!r} there, here {config[name]!r}")
    require(config["positions"] not in ("rope", "naflex"), f"{layout} layout: no positions {config['positions']!r}")


TOWER = TowerLayout("torchvision", "vit", recognises, plan, write)
