"""Vision Transformers under timm's names, which DeiT, MAE, MoCo v3, DINO and iBOT use as well: `blocks.N.attn.qkv`.

Notable: heads cannot be seen in shapes. Width / 64 is taken where every published tower of that width has it, or the
number that they have; at width 384 (6 heads of DeiT and DINO, 12 of MoCo v3) and 1536 the file's origin decides, or
the caller. Fixed sine-cosine positions are read as parameters, for so they are fine-tuned; a tower that holds them
fixed can be written.

Sources: timm 1.0.31 `vision_transformer.py`, `deit.py`; facebookresearch/{deit,mae,moco-v3,dino}.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, cast

import torch
from torch import Tensor

from odonata.errors import WeightsError
from odonata.nn.positions import sincos_2d
from odonata.weights.layout import Files, Plain, require, shape_of
from odonata.weights.maps import KeyMap, Rule, depth_of, layers, pair, rename, reshape, split
from odonata.weights.read import Raw
from odonata.weights.towers import Hints, TowerLayout, TowerPlan

IMAGENET: Plain = {
    "size": 224,
    "resize_size": 256,
    "interpolation": "bicubic",
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
}
"""Preprocessing of DeiT, MAE, MoCo v3 and the DINOs."""
_HEADS = {192: 3, 768: 12, 1024: 16, 1152: 16, 1280: 16, 1408: 16, 1664: 16}
"""Heads of published towers by width, where all agree."""
_AMBIGUOUS = {384: "6 heads (DeiT, DINO, timm) and 12 (MoCo v3)", 1536: "24 heads (DINOv2 g) and 16 (SigLIP 2 gopt)"}
LEFT_OUT = ("decoder*", "mask_token", "dino_head.*", "ibot_head.*", "head.mlp.*", "head.last_layer.*")
"""What training files hold beside the tower."""


@dataclass(frozen=True)
class Names:
    """What the code bases with these names call differently."""

    registers: str = "reg_token"
    swiglu: Literal["fc1", "w12", "w1"] = "fc1"
    """How the gated MLP is called: packed in `fc1` (timm) or `w12` (DINOv2), or apart, `w1` and `w2` (DINOv3)."""


def recognises(raw: Raw) -> bool:
    """Blocks with packed projections after a patch projection."""
    return {"blocks.0.attn.qkv.weight", "patch_embed.proj.weight"} <= raw.state.keys()


def key_map(config: Plain, classes: int, names: Names = Names()) -> KeyMap:
    """Returns the map for a plain `ViTConfig`."""
    width = config["width"]
    rules = [rename("patch_embed.proj.weight", "patch_embed.proj.weight")]
    if config["patch_bias"]:
        rules.append(rename("patch_embed.proj.bias", "patch_embed.proj.bias"))
    if config["positions"] != "rope":
        rules.append(reshape("pos_embed", "positions", (1, -1, width), (-1, width)))
    if config["class_token"]:
        rules.append(reshape("cls_token", "class_token", (1, 1, width), (width,)))
    if config["distilled"]:
        rules.append(reshape("dist_token", "distillation_token", (1, 1, width), (width,)))
    if config["registers"]:
        rules.append(reshape(names.registers, "register_tokens", (1, -1, width), (-1, width)))
    rules += layers(_block(config, names), config["depth"])
    norm = "fc_norm" if config["fc_norm"] else "norm"
    rules += pair(norm, norm)
    if classes:
        rules += pair("head", "head")
        rules += pair("head_dist", "head_distilled") if config["distilled"] else []
    return KeyMap(rules)


def _block(config: Plain, names: Names) -> list[Rule]:
    source, target = "blocks.{i}", "transformer.layers.{i}"
    rules = [
        *pair(f"{source}.norm1", f"{target}.norm1"),
        *pair(f"{source}.norm2", f"{target}.norm2"),
        split(f"{source}.attn.qkv.weight", [f"{target}.attn.{part}.weight" for part in "qkv"]),
        *pair(f"{source}.attn.proj", f"{target}.attn.proj"),
    ]
    if config["qkv_bias"] == "all":
        rules.append(split(f"{source}.attn.qkv.bias", [f"{target}.attn.{part}.bias" for part in "qkv"]))
    if config["qkv_bias"] == "no_key":
        rules.append(_masked_bias(f"{source}.attn.qkv", f"{target}.attn"))
    if config["qk_norm"]:
        rules += [rule for part in "qk" for rule in pair(f"{source}.attn.{part}_norm", f"{target}.attn.{part}_norm")]
    if config["layer_scale"] is not None:
        rules += [rename(f"{source}.ls{i}.gamma", f"{target}.scale{i}.scale") for i in (1, 2)]
    return rules + _mlp(config, names, f"{source}.mlp", f"{target}.mlp")


def _mlp(config: Plain, names: Names, source: str, target: str) -> list[Rule]:
    if config["mlp"] == "mlp":
        return [*pair(f"{source}.fc1", f"{target}.fc1"), *pair(f"{source}.fc2", f"{target}.fc2")]
    if names.swiglu == "w1":
        named = zip(("w1", "w2", "w3"), ("gate", "up", "down"), strict=True)
        return [rule for theirs, ours in named for rule in pair(f"{source}.{theirs}", f"{target}.{ours}")]
    packed, out = ("fc1", "fc2") if names.swiglu == "fc1" else ("w12", "w3")
    halves = [split(f"{source}.{packed}.{part}", [f"{target}.{name}.{part}" for name in ("gate", "up")])
              for part in ("weight", "bias")]  # fmt: skip
    return [*halves, *pair(f"{source}.{out}", f"{target}.down")]


def _masked_bias(theirs: str, ours: str) -> Rule:
    """DINOv3's packed bias, whose part for the keys a mask sets to zero: ours has no such part."""

    def to_ours(tensors: list[Tensor]) -> list[Tensor]:
        q, _, v = tensors[0].chunk(3)
        expected = torch.cat([torch.ones_like(q), torch.zeros_like(q), torch.ones_like(q)])
        if not torch.equal(tensors[1].to(expected), expected):
            raise ValueError("the mask hides other biases than those of the keys")
        return [q.clone(), v.clone()]

    def from_ours(tensors: list[Tensor]) -> list[Tensor]:
        q, v = tensors
        ones, zeros = torch.ones_like(q), torch.zeros_like(q)
        return [torch.cat([q, zeros, v]), torch.cat([ones, zeros, ones])]

    return Rule((f"{theirs}.bias", f"{theirs}.bias_mask"), (f"{ours}.q.bias", f"{ours}.v.bias"), to_ours, from_ours)


def infer(raw: Raw, names: Names = Names()) -> Plain:
    """Returns what names and shapes tell: all but heads, activation, epsilon and the resizing of positions.

    Raises:
        WeightsError: tensors are missing, or it has parts that this tower has not.
    """
    state, where = raw.state, raw.path
    kernel = shape_of(state, "patch_embed.proj.weight", where)
    require(len(kernel) == 4, f"{where}: patch_embed.proj.weight has shape {list(kernel)}: a tower for videos")
    for part, what in (
        ("norm_pre.weight", "a norm before its blocks, as CLIP's; read open_clip's own file of it"),
        ("attn_pool.latent", "attention pooling, as SigLIP's; read open_clip's own file of it"),
        ("blocks.0.attn.relative_position_bias_table", "relative positions, as BEiT's, which the tower here has not"),
    ):
        require(part not in state, f"{where}: a ViT with {what}")
    block = "blocks.0."
    swiglu = f"{block}mlp.w3.weight" in state
    out = shape_of(state, f"{block}mlp.{'w3' if swiglu else 'fc2'}.weight", where)
    swiglu = swiglu or shape_of(state, f"{block}mlp.fc1.weight", where)[0] == 2 * out[1]
    bias = f"{block}attn.qkv.bias" in state
    registers = state.get(names.registers)
    config: Plain = {
        "family": "vit",
        "patch_size": kernel[2],
        "width": kernel[0],
        "depth": depth_of(state, "blocks."),
        "mlp_width": out[1],
        "mlp": "swiglu" if swiglu else "mlp",
        "activation": "silu" if swiglu else "gelu",
        "channels": kernel[1],
        "class_token": "cls_token" in state,
        "distilled": "dist_token" in state,
        "registers": 0 if registers is None else registers.shape[1],
        "patch_bias": "patch_embed.proj.bias" in state,
        "fc_norm": "fc_norm.weight" in state,
        "qkv_bias": "none" if not bias else "no_key" if f"{block}attn.qkv.bias_mask" in state else "all",
        "qk_norm": f"{block}attn.q_norm.weight" in state,
        "layer_scale": 1e-5 if f"{block}ls1.gamma" in state else None,
        "norm_eps": 1e-6,
        "init": "timm",
    }
    config["pool"] = "patches" if config["fc_norm"] else "class" if config["class_token"] else "mean"
    return config | _grid(raw, config)


def _grid(raw: Raw, config: Plain) -> Plain:
    if "pos_embed" not in raw.state:
        return {"positions": "rope", "image_size": 224 // config["patch_size"] * config["patch_size"]}
    tokens = shape_of(raw.state, "pos_embed", raw.path)[1]
    prefix = int(config["class_token"]) + int(config["distilled"])
    for placed in (prefix, 0):
        side = round(max(tokens - placed, 0) ** 0.5)
        if side * side == tokens - placed:
            return {
                "positions": "learned",
                "image_size": side * config["patch_size"],
                "class_position": placed == prefix,
            }
    raise WeightsError(f"{raw.path}: pos_embed has {tokens} positions, which is no square grid and {prefix} more")


def fixed_order(raw: Raw, config: Plain) -> Literal["x", "y"] | None:
    """Returns which axis comes first if the positions are fixed sines and cosines: MAE's `x`, MoCo v3's `y`."""
    if config["positions"] == "rope" or config["width"] % 4:
        return None
    side = config["image_size"] // config["patch_size"]
    grid = raw.state["pos_embed"][0, -side * side :].float()
    for first in ("x", "y"):
        if side > 1 and torch.allclose(grid, sincos_2d(config["width"], (side, side), 0, first), atol=1e-4):
            return first
    return None


def heads(raw: Raw, config: Plain, hints: Hints, certain: int | None = None) -> tuple[int, str]:
    """Returns the number of heads, and a note of how it is known.

    Args:
        raw: the checkpoint.
        config: what is known already.
        hints: the caller's word, which wins.
        certain: what the file's origin says.

    Raises:
        WeightsError: shapes leave it open.
    """
    width = config["width"]
    if hints.num_heads:
        return hints.num_heads, f"heads: {hints.num_heads}, as the caller says"
    if certain:
        return certain, f"heads: {certain}, by the origin"
    if width in _AMBIGUOUS:
        raise WeightsError(
            f"{raw.path}: a ViT of width {width} is published with {_AMBIGUOUS[width]}, of equal shapes; say num_heads"
        )
    if width in _HEADS:
        return _HEADS[width], f"heads: {_HEADS[width]}, as all published towers of width {width} have"
    require(width % 64 == 0, f"{raw.path}: width {width} is no multiple of 64, so heads are unknown; say num_heads")
    return width // 64, f"heads: {width // 64}, width / 64"


def _origin(raw: Raw, config: Plain) -> tuple[str, int | None, str, Plain | None]:
    """Source in words, heads where shapes leave them open and it is certain, position convention, preprocessing."""
    small = config["width"] == 384
    order = fixed_order(raw, config)
    trained = raw.part in ("base_encoder", "momentum_encoder")
    card = raw.config or {}
    if isinstance(card.get("architecture"), str):
        found = cast(Plain, card.get("pretrained_cfg") or {})
        stated = {name: found[name] for name in ("mean", "std", "interpolation") if name in found}
        return f"timm {card['architecture']}", 6 if small else None, "open_clip", IMAGENET | stated if stated else None
    if config["layer_scale"] is not None:  # timm's own copies of DINOv2, whose positions timm resizes
        return (
            "ViT with layer scale under timm's names (DINOv2)",
            {384: 6, 1536: 24}.get(config["width"]),
            "open_clip",
            IMAGENET,
        )
    if trained or order == "y":
        return "MoCo v3 ViT", 12 if small else None, "hf", IMAGENET
    if order == "x" or "decoder_embed.weight" in raw.state:
        return "MAE ViT", None, "hf", IMAGENET
    if config["distilled"]:
        return "DeiT with distillation token", 6 if small else None, "hf", IMAGENET
    if raw.entry in ("teacher", "student"):
        return "DINO or iBOT ViT", 6 if small else None, "dino", IMAGENET
    if config["fc_norm"]:
        return "ViT under timm's names, pooled by a mean (MAE's fine-tuning)", None, "open_clip", None
    if "head.weight" not in raw.state:
        return "ViT under timm's names without a classifier, as DINO publishes", None, "dino", IMAGENET
    return "ViT under timm's names", None, "open_clip", None


def plan(raw: Raw, hints: Hints) -> TowerPlan:
    """Returns how to read the checkpoint."""
    config = infer(raw)
    source, certain, convention, preprocess = _origin(raw, config)
    config["num_heads"], note = heads(raw, config, hints, certain)
    config["position_convention"] = convention
    notes = [note, "norm epsilon 1e-6, as timm, MAE, MoCo v3 and DINO have it", f"positions resized as {convention}"]
    if order := fixed_order(raw, config):
        whose = "MAE's" if order == "x" else "MoCo v3's"
        notes.append(f"positions are fixed sines and cosines in {whose} order; read as parameters")
    if not config["class_position"]:
        notes.append("the class token has no position of its own")
    weight = raw.state.get("head.weight")
    classes = 0 if weight is None or raw.part in ("base_encoder", "momentum_encoder") else weight.shape[0]
    left_out = LEFT_OUT + (() if classes else ("head.*", "head_dist.*"))
    size = {"size": config["image_size"], "resize_size": config["image_size"] * 256 // 224}
    prepared = preprocess | size if preprocess else None
    return TowerPlan(config, key_map(config, classes), source, classes, prepared, left_out, notes)


def plain_state(state: Mapping[str, Tensor], config: Plain) -> dict[str, Tensor]:
    """Returns the weights with positions: those of a tower that holds them fixed are computed."""
    if config["positions"] not in ("sincos_2d", "sincos_2d_y"):
        return dict(state)
    side = config["image_size"] // config["patch_size"]
    prefix = (int(config["class_token"]) + int(config["distilled"])) * int(config["class_position"])
    first = "y" if config["positions"] == "sincos_2d_y" else "x"
    return dict(state) | {"positions": sincos_2d(config["width"], (side, side), prefix, first)}


def require_plain(config: Plain, layout: str) -> None:
    """Refuses what no layout with these names can say."""
    require(not config["pre_norm"], f"{layout} layout: no norm before the blocks")
    require(config["pool"] in ("class", "patches", "mean"), f"{layout} layout: no pooling {config['pool']!r}")
    require(
        config["pool"] != "mean" or not config["class_token"], f"{layout} layout: a mean leaves out the class token"
    )
    require(config["positions"] != "naflex", f"{layout} layout: no flat patches")


def write(state: Mapping[str, Tensor], config: Plain, classes: int, preprocess: Plain | None) -> Files:
    """Returns the file that timm's `VisionTransformer(…).load_state_dict` reads."""
    require_plain(config, "timm")
    require(config["positions"] != "rope", "timm layout: rotary towers have other names in timm; write dinov3 or hf")
    require(config["qkv_bias"] != "no_key", "timm layout: query, key and value share one bias")
    require((config["pool"] == "patches") <= config["fc_norm"], "timm layout: a mean of the patches is normed after it")
    return Files("model.safetensors", key_map(config, classes).from_ours(plain_state(state, config)))


def renamed(key_map: KeyMap, pattern: str, change: Mapping[str, str]) -> KeyMap:
    """Returns a map whose published names have the part that `pattern` matches replaced as `change` says."""

    def new(name: str) -> str:
        return re.sub(pattern, lambda found: change.get(found[0], found[0]), name)

    rules = [replace(rule, theirs=tuple(new(name) for name in rule.theirs)) for rule in key_map.rules]
    return KeyMap(rules, key_map.ignored)


TOWER = TowerLayout("timm", "vit", recognises, plan, write)
