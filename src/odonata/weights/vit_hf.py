"""transformers' Vision Transformers: ViT, DeiT, ViTMAE's encoder, DINOv2 with and without registers, DINOv3.

Notable:
- Two generations of names: files hold the older ones (`encoder.layer.N.attention.attention.query`), which transformers
  5 still writes; its modules' own (`layers.N.attention.q_proj`) are read as well. The older ones are written.
- Epsilons stand in the configuration; where it is silent, transformers' default counts, 1e-12 for ViT, DeiT and MAE.
- Google's ViT is normalised with 0.5, all others with ImageNet's statistics, unless preprocessor_config.json says
  otherwise.
- Which kind is written follows from the tower: rotary → DINOv3, registers or layer scale → DINOv2, distilled → DeiT,
  else ViT.

Source: transformers 5.23 `models/{vit,deit,vit_mae,dinov2,dinov2_with_registers,dinov3_vit}`, `conversion_mapping.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from odonata.nn.swiglu import swiglu_width
from odonata.weights import hf_names
from odonata.weights.hf_vit import encoder
from odonata.weights.layout import Files, Plain, require, shape_of
from odonata.weights.maps import KeyMap, Rule, layers, pair, rename, reshape, split
from odonata.weights.read import Raw, read_json
from odonata.weights.towers import Hints, TowerLayout, TowerPlan
from odonata.weights.vit_timm import IMAGENET, plain_state, renamed

HALF: Plain = {"resize": "squash", "interpolation": "bilinear", "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
_PREFIX = {"vit": "vit.", "deit": "deit.", "vit_mae": "vit.", "dinov2": "dinov2.",
           "dinov2_with_registers": "dinov2_with_registers.", "dinov3_vit": ""}  # fmt: skip
_NAMES = {"vit": "ViT", "deit": "DeiT", "vit_mae": "ViTMAE", "dinov2": "Dinov2",
          "dinov2_with_registers": "Dinov2WithRegisters", "dinov3_vit": "DINOv3ViT"}  # fmt: skip
_DEFAULTS: Plain = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 16,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
}
_OTHER_DEFAULTS: dict[str, Plain] = {
    "dinov2": {"patch_size": 14, "layer_norm_eps": 1e-6},
    "dinov2_with_registers": {"patch_size": 16, "layer_norm_eps": 1e-6},
    "dinov3_vit": {"hidden_size": 384, "intermediate_size": 1536, "num_attention_heads": 6, "layer_norm_eps": 1e-5},
}
_IGNORED = ("*pooler.*", "*mask_token", "decoder.*", "*rope_embeddings.*", "*inv_freq")
# transformers 5's own names of what its files call otherwise, the longer first.
_MODERN = {
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}
_PATTERN = "|".join(name.replace(".", r"\.") for name in _MODERN)


def recognises(raw: Raw) -> bool:
    """A configuration of one of these model types."""
    return raw.config_name == "config.json" and (raw.config or {}).get("model_type") in _PREFIX


def key_map(config: Plain, kind: str, prefix: str, heads: tuple[str, ...] = (), modern: bool = False) -> KeyMap:
    """Returns the map for a plain `ViTConfig`.

    Args:
        config: the tower.
        kind: transformers' model type.
        prefix: what stands before the tower's names; empty for a bare model.
        heads: names of the classifiers.
        modern: whether the names are those of transformers 5's modules.
    """
    if kind == "dinov3_vit":
        return KeyMap(_dinov3(config, prefix))
    width, embeddings = config["width"], f"{prefix}embeddings"
    rules = [
        reshape(f"{embeddings}.cls_token", "class_token", (1, 1, width), (width,)),
        reshape(f"{embeddings}.position_embeddings", "positions", (1, -1, width), (-1, width)),
        *pair(f"{embeddings}.patch_embeddings.projection", "patch_embed.proj"),
    ]
    if config["distilled"]:
        rules.append(reshape(f"{embeddings}.distillation_token", "distillation_token", (1, 1, width), (width,)))
    if config["registers"]:
        rules.append(reshape(f"{embeddings}.register_tokens", "register_tokens", (1, -1, width), (-1, width)))
    rules += _dinov2(config, prefix, modern) if kind.startswith("dinov2") else encoder(prefix, "", config["depth"])
    for theirs, ours in zip(heads, ("head", "head_distilled"), strict=False):
        rules += pair(theirs, ours)
    if config["qkv_bias"] == "none":
        unbiased = tuple(f".attn.{part}.bias" for part in "qkv")
        rules = [rule for rule in rules if not rule.ours[0].endswith(unbiased)]
    found = KeyMap(rules)
    if not modern:
        return found
    found = renamed(found, _PATTERN, _MODERN)
    return found if kind.startswith("dinov2") else renamed(found, r"encoder\.layer\.", {"encoder.layer.": "layers."})


def _dinov2(config: Plain, prefix: str, modern: bool) -> list[Rule]:
    source, target = prefix + "encoder.layer.{i}", "transformer.layers.{i}"
    rules = [
        *pair(f"{source}.norm1", f"{target}.norm1"),
        *pair(f"{source}.norm2", f"{target}.norm2"),
        *pair(f"{source}.attention.output.dense", f"{target}.attn.proj"),
        *(rename(f"{source}.layer_scale{i}.lambda1", f"{target}.scale{i}.scale") for i in (1, 2)),
    ]
    for name, letter in (("query", "q"), ("key", "k"), ("value", "v")):
        rules += pair(f"{source}.attention.attention.{name}", f"{target}.attn.{letter}")
    if config["mlp"] == "mlp":
        rules += [*pair(f"{source}.mlp.fc1", f"{target}.mlp.fc1"), *pair(f"{source}.mlp.fc2", f"{target}.mlp.fc2")]
    elif modern:
        rules += _gated(f"{source}.mlp", f"{target}.mlp")
    else:
        rules += [split(f"{source}.mlp.weights_in.{part}", [f"{target}.mlp.{half}.{part}" for half in ("gate", "up")])
                  for part in ("weight", "bias")]  # fmt: skip
        rules += pair(f"{source}.mlp.weights_out", f"{target}.mlp.down")
    return [*layers(rules, config["depth"]), *pair(f"{prefix}layernorm", "norm")]


def _gated(source: str, target: str) -> list[Rule]:
    return [rule for name in ("gate", "up", "down") for rule in pair(f"{source}.{name}_proj", f"{target}.{name}")]


def _dinov3(config: Plain, prefix: str) -> list[Rule]:
    """`prefix` is what stands before `layer.N`: nothing in files, `model.` in transformers 5's modules."""
    width, source, target = config["width"], prefix + "layer.{i}", "transformer.layers.{i}"
    rules = [
        *pair(f"{source}.norm1", f"{target}.norm1"),
        *pair(f"{source}.norm2", f"{target}.norm2"),
        *pair(f"{source}.attention.o_proj", f"{target}.attn.proj"),
        *(rename(f"{source}.layer_scale{i}.lambda1", f"{target}.scale{i}.scale") for i in (1, 2)),
        *(rename(f"{source}.attention.{part}_proj.weight", f"{target}.attn.{part}.weight") for part in "qkv"),
    ]
    biased = {"all": "qkv", "no_key": "qv", "none": ""}[config["qkv_bias"]]
    rules += [rename(f"{source}.attention.{part}_proj.bias", f"{target}.attn.{part}.bias") for part in biased]
    if config["mlp"] == "swiglu":
        rules += _gated(f"{source}.mlp", f"{target}.mlp")
    else:
        named = (("up_proj", "fc1"), ("down_proj", "fc2"))
        rules += [rule for a, b in named for rule in pair(f"{source}.mlp.{a}", f"{target}.mlp.{b}")]
    tops = [reshape("embeddings.cls_token", "class_token", (1, 1, width), (width,)),
            *pair("embeddings.patch_embeddings", "patch_embed.proj"), *pair("norm", "norm")]  # fmt: skip
    if config["registers"]:
        tops.append(reshape("embeddings.register_tokens", "register_tokens", (1, -1, width), (-1, width)))
    return [*tops, *layers(rules, config["depth"])]


def plan(raw: Raw, hints: Hints) -> TowerPlan:
    """Returns how to read the checkpoint."""
    hf = _DEFAULTS | _OTHER_DEFAULTS.get((raw.config or {})["model_type"], {}) | (raw.config or {})
    kind = hf["model_type"]
    config = _shared(hf) | (_late(raw, hf, kind) if kind.startswith("dino") else {})
    modern = any(".attention.q_proj." in name for name in raw.state)
    prefix = _PREFIX[kind] if any(name.startswith(_PREFIX[kind]) for name in raw.state) else ""
    if kind == "dinov3_vit":
        prefix = "model." if any(name.startswith("model.layer.") for name in raw.state) else ""
    config["distilled"] = any(name.endswith("embeddings.distillation_token") for name in raw.state)
    found = [
        name for name in ("classifier", "cls_classifier", "distillation_classifier") if f"{name}.weight" in raw.state
    ]
    classes = raw.state[f"{found[0]}.weight"].shape[0] if found else 0
    require(
        not config["distilled"] or found != ["classifier"],
        f"{raw.path}: a DeiTForImageClassification asks its class token alone, the tower here the mean of both heads; "
        "read its DeiTForImageClassificationWithTeacher, or take the classifier out",
    )
    if kind.startswith("dinov2") and classes:
        config["pool"] = "class_mean"
    rules = key_map(config, kind, prefix, tuple(found), modern)
    notes = [
        f"heads: {config['num_heads']}, as config.json says",
        f"norm epsilon {config['norm_eps']:g}, as config.json or transformers' default says",
        "rotary positions" if kind == "dinov3_vit" else f"positions resized as {config['position_convention']}",
    ]
    prepared = _preprocess(raw, kind, config["image_size"], notes)
    left_out = _IGNORED + (() if config["registers"] else ("*.register_tokens",))  # DINOv3 without registers holds none
    return TowerPlan(config, rules, f"transformers {_NAMES[kind]}", classes, prepared, left_out, notes)


def _shared(hf: Plain) -> Plain:
    defaults = {name: hf[name] for name in _DEFAULTS}
    return hf_names.tower_from_hf(hf, defaults, "config.json") | {
        "family": "vit",
        "image_size": hf_names.one_size(hf["image_size"], "image_size"),
        "patch_size": hf_names.one_size(hf["patch_size"], "patch_size"),
        "channels": hf["num_channels"],
        "qkv_bias": "all" if hf.get("qkv_bias", True) else "none",
        "position_convention": "hf",
        "registers": 0,
        "mlp": "mlp",
        "layer_scale": None,
    }


def _late(raw: Raw, hf: Plain, kind: str) -> Plain:
    """What the DINOs have beyond a plain tower."""
    config: Plain = {"layer_scale": hf.get("layerscale_value", 1.0), "init": "timm"}
    if kind == "dinov3_vit":
        biases = (bool(hf.get("query_bias", True)), bool(hf.get("key_bias", False)), bool(hf.get("value_bias", True)))
        known = {(True, True, True): "all", (True, False, True): "no_key", (False, False, False): "none"}
        require(biases in known and hf.get("proj_bias", True) and hf.get("mlp_bias", True),
                f"{raw.path}: config.json: biases of query, key, value {biases}, which ours cannot have")  # fmt: skip
        gated = bool(hf.get("use_gated_mlp"))
        return config | {
            "qkv_bias": known[biases],
            "positions": "rope",
            "rope_base": hf.get("rope_theta", 100.0),
            "rope_shift": hf.get("pos_embed_shift"),
            "rope_jitter": hf.get("pos_embed_jitter"),
            "rope_rescale": hf.get("pos_embed_rescale", 2.0),
            "registers": hf.get("num_register_tokens", 0),
            "mlp": "swiglu" if gated else "mlp",
        }
    if hf.get("use_swiglu_ffn"):
        out = next(n for n in raw.state if n.endswith(("0.mlp.weights_out.weight", "0.mlp.down_proj.weight")))
        config |= {"mlp": "swiglu", "activation": "silu", "mlp_width": shape_of(raw.state, out, raw.path)[1]}
    else:
        config["mlp_width"] = int(hf["hidden_size"] * hf.get("mlp_ratio", 4))
    if kind == "dinov2_with_registers":
        config |= {"registers": hf.get("num_register_tokens", 4), "position_convention": "open_clip"}
    return config


def _preprocess(raw: Raw, kind: str, size: int, notes: list[str]) -> Plain:
    file = (raw.path if raw.path.is_dir() else raw.path.parent) / "preprocessor_config.json"
    usual = HALF if kind == "vit" else IMAGENET
    prepared = usual | {"size": size, "resize_size": size * 256 // 224 if usual is IMAGENET else None}
    stated: dict[str, Any] = read_json(file) if file.is_file() else {}
    for ours, theirs in (("mean", "image_mean"), ("std", "image_std")):
        if theirs in stated:
            prepared[ours] = list(stated[theirs])
    notes.append(
        f"normalised with mean {prepared['mean']}" + ("" if stated else f", as transformers' {_NAMES[kind]} is")
    )
    return prepared


def _kind(config: Plain) -> str:
    if config["positions"] == "rope":
        return "dinov3_vit"
    if config["layer_scale"] is not None or config["registers"] or config["mlp"] == "swiglu":
        return "dinov2_with_registers" if config["registers"] else "dinov2"
    return "deit" if config["distilled"] else "vit"


def write(state: Mapping[str, Tensor], config: Plain, classes: int, preprocess: Plain | None) -> Files:
    """Returns `config.json` and safetensors that transformers reads."""
    return _write(state, config, classes, preprocess, _kind(config))


def write_mae(state: Mapping[str, Tensor], config: Plain, classes: int, preprocess: Plain | None) -> Files:
    """Returns what `ViTMAEModel.from_pretrained` reads."""
    require(_kind(config) == "vit" and not classes, "hf_mae layout: MAE's encoder is a plain ViT without a classifier")
    return _write(state, config, 0, preprocess, "vit_mae")


def _write(state: Mapping[str, Tensor], config: Plain, classes: int, preprocess: Plain | None, kind: str) -> Files:
    _require(config, classes, kind)
    teacher = config["distilled"] and classes > 0
    heads = ("cls_classifier", "distillation_classifier") if teacher else ("classifier",) if classes else ()
    prefix = _PREFIX[kind] if classes else ""
    suffix = "ForImageClassification" + ("WithTeacher" if teacher else "") if classes else "Model"
    hf: Plain = hf_names.tower_to_hf(config) | {
        "architectures": [_NAMES[kind] + suffix],
        "model_type": kind,
        "image_size": config["image_size"],
        "patch_size": config["patch_size"],
        "num_channels": config["channels"],
        "qkv_bias": config["qkv_bias"] == "all",
    }
    if classes:
        hf["id2label"] = {str(i): f"class {i}" for i in range(classes)}
        hf["label2id"] = {f"class {i}": i for i in range(classes)}
    theirs = key_map(config, kind, prefix, heads).from_ours(plain_state(state, config))
    if kind.startswith("dino"):
        hf |= _late_to_hf(config, kind)
    if kind == "dinov3_vit":
        empty = {"embeddings.register_tokens": torch.zeros(1, 0, config["width"])}
        theirs = empty | theirs | {"embeddings.mask_token": torch.zeros(1, 1, config["width"])}
    elif kind.startswith("dinov2"):
        theirs[f"{prefix}embeddings.mask_token"] = torch.zeros(1, config["width"])
    texts = {"config.json": hf}
    if preprocess:
        size = {"height": config["image_size"], "width": config["image_size"]}
        texts["preprocessor_config.json"] = {
            "image_processor_type": "ViTImageProcessor", "size": size, "do_resize": True, "do_rescale": True,
            "do_normalize": True, "image_mean": list(preprocess["mean"]), "image_std": list(preprocess["std"]),
        }  # fmt: skip
    return Files("model.safetensors", theirs, texts)


def _require(config: Plain, classes: int, kind: str) -> None:
    where = f"hf layout: transformers' {_NAMES[kind]}"
    dino = kind.startswith("dinov2")
    require(config["class_token"] and config["class_position"] and config["patch_bias"],
            f"{where} has a class token with a position, and a patch bias")  # fmt: skip
    require(not config["pre_norm"] and not config["fc_norm"] and not config["qk_norm"],
            f"{where} has one norm, after the blocks, and none of queries and keys")  # fmt: skip
    require(config["pool"] == ("class_mean" if dino and classes else "class"), f"{where} pools otherwise")
    require(config["positions"] not in ("naflex",), f"{where} has no flat patches")
    require(config["qkv_bias"] != "no_key" or kind == "dinov3_vit", f"{where} has biases of keys where others have")
    require(not config["distilled"] or kind == "deit", f"{where} has no distillation token")
    require(not kind.startswith("dino") or config["layer_scale"] is not None, f"{where} has a layer scale")
    require(kind != "dinov3_vit" or not classes, f"{where} has no classifier")


def _late_to_hf(config: Plain, kind: str) -> Plain:
    hf: Plain = {"layerscale_value": config["layer_scale"]}
    if kind == "dinov3_vit":
        biased = config["qkv_bias"]
        return hf | {
            "query_bias": biased != "none",
            "key_bias": biased == "all",
            "value_bias": biased != "none",
            "rope_theta": config["rope_base"],
            "pos_embed_shift": config["rope_shift"],
            "pos_embed_jitter": config["rope_jitter"],
            "pos_embed_rescale": config["rope_rescale"],
            "num_register_tokens": config["registers"],
            "use_gated_mlp": config["mlp"] == "swiglu",
        }
    gated = config["mlp"] == "swiglu"
    if gated:
        wide = swiglu_width(4 * config["width"])
        require(
            config["mlp_width"] == wide and config["activation"] == "silu",
            f"hf layout: transformers' gated MLP has a silu and is {wide} wide here, not {config['mlp_width']}",
        )
        hf["hidden_act"] = "gelu"
    else:
        require(config["mlp_width"] % config["width"] == 0, "hf layout: transformers' DINOv2 has whole MLP ratios")
    ratio = 4 if gated else config["mlp_width"] // config["width"]
    hf |= {"mlp_ratio": ratio, "use_swiglu_ffn": gated}
    return hf | ({"num_register_tokens": config["registers"]} if config["registers"] else {})


TOWER = (
    TowerLayout("hf", "vit", recognises, plan, write),
    TowerLayout("hf_mae", "vit", lambda raw: False, plan, write_mae),
)
