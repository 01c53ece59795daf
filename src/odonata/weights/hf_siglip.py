"""transformers' SigLIP folders, and SigLIP 2's: fixed size (model type `siglip`) and NaFlex (`siglip2`).

Notable: scale and bias have shape [1]; the attention pooling is a packed `MultiheadAttention`; NaFlex has a Linear over
flat patches and says how many positions it has, not how large an image is. `SiglipModel` starts both scalars at zero
when it trains from scratch, which is not the paper's recipe; a checkpoint overrides that.

Source: transformers 5.23 `models/siglip` and `models/siglip2`, configuration and modeling files.
"""

import math
from collections.abc import Mapping

from torch import Tensor

from odonata.weights import hf_names
from odonata.weights.layout import Files, Layout, Plain, Plan, ReadOptions, require, square_side
from odonata.weights.maps import KeyMap, Rule, packed_attention, pair, rename, reshape
from odonata.weights.read import Raw

_SHARED: Plain = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
}
_VISION: Plain = _SHARED | {
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 16,
    "num_patches": 256,
    "vision_use_head": True,
}
_TEXT: Plain = _SHARED | {"vocab_size": 32000, "max_position_embeddings": 64, "pad_token_id": 1, "eos_token_id": 49407}


def key_map(config: Plain) -> KeyMap:
    """Returns the map for a configuration."""
    pool, head = "visual.pool", "vision_model.head"
    rules: list[Rule] = [
        *pair("vision_model.embeddings.patch_embedding", "visual.patch_embed.proj"),
        rename("vision_model.embeddings.position_embedding.weight", "visual.positions"),
        *hf_names.blocks("vision_model", "visual.transformer.layers", config["visual"]["depth"]),
        *pair("vision_model.post_layernorm", "visual.norm"),
        rename(f"{head}.probe", f"{pool}.probe"),
        *packed_attention(f"{head}.attention", f"{pool}.attn"),
        *pair(f"{head}.layernorm", f"{pool}.norm"),
        *pair(f"{head}.mlp.fc1", f"{pool}.mlp.fc1"),
        *pair(f"{head}.mlp.fc2", f"{pool}.mlp.fc2"),
        *hf_names.text(config),
        *pair("text_model.head", "text_projection"),
        reshape("logit_scale", "logit_scale", (1,), ()),
        reshape("logit_bias", "logit_bias", (1,), ()),
    ]
    return KeyMap(rules, hf_names.IGNORED)


def recognises(raw: Raw) -> bool:
    """A configuration of model type `siglip` or `siglip2`."""
    return raw.config_name == "config.json" and (raw.config or {}).get("model_type") in ("siglip", "siglip2")


def plan(raw: Raw, options: ReadOptions) -> Plan:
    """Reads the configuration and returns how to read the weights."""
    hf = raw.config or {}
    naflex = hf.get("model_type") == "siglip2"
    vision, text = _VISION | (hf.get("vision_config") or {}), _TEXT | (hf.get("text_config") or {})
    require(
        vision["vision_use_head"], f"{raw.path}: vision_config.vision_use_head is false: there is nothing to pool with"
    )
    patch = hf_names.one_size(vision["patch_size"], "vision_config.patch_size")
    if naflex:
        size = patch * square_side(vision["num_patches"], "vision_config.num_patches", raw.path)
    else:
        size = hf_names.one_size(vision["image_size"], "vision_config.image_size")
    visual = hf_names.tower_from_hf(vision, _VISION, "config.json: vision_config") | {
        "kind": "vit",
        "image_size": size,
        "patch_size": patch,
        "channels": vision["num_channels"],
        "class_token": False,
        "pre_norm": False,
        "patch_bias": True,
        "pool": "map",
        "positions": "naflex" if naflex else "learned",
        "position_convention": "naflex" if naflex else "hf",
        "init": "siglip",
    }
    pad = 0 if text["vocab_size"] == 256000 else text["pad_token_id"]
    end = text["eos_token_id"]
    config: Plain = {
        "visual": visual,
        "text": hf_names.tower_from_hf(text, _TEXT, "config.json: text_config")
        | {
            "vocab_size": text["vocab_size"],
            "context_length": text["max_position_embeddings"],
            "causal": False,
            "pool": "last",
            "eot_id": end if isinstance(end, int) and end < text["vocab_size"] else 1,
            "pad_id": 1 if pad is None else pad,
            "init": "siglip",
        },
        "embed_dim": vision["hidden_size"],
        "visual_projection": False,
        "text_projection": "linear_bias",
        "logit_scale_init": math.log(10),
        "logit_bias_init": -10.0,
    }
    notes = [
        f"activation from config.json: image {visual['activation']}, text {config['text']['activation']}",
        f"text feature read at the last of {text['max_position_embeddings']} positions, padded with id {pad}",
    ]
    if pad != text["pad_token_id"]:
        notes.append("pad_id 0 is SigLIP 2's tokenizer's (vocabulary 256,000); config.json keeps transformers' default")
    tokenizer: Plain = {"kind": "sentencepiece", "context_length": config["text"]["context_length"]}
    return Plan(config, key_map(config), None, tokenizer, notes)


def write(state: Mapping[str, Tensor], config: Plain, preprocess: Plain | None) -> Files:
    """Writes `config.json` and safetensors that `SiglipModel` or `Siglip2Model.from_pretrained` reads."""
    visual, text = config["visual"], config["text"]
    require(
        visual["kind"] == "vit" and visual["pool"] == "map" and not visual["class_token"] and visual["patch_bias"],
        "hf layout: SiglipModel's image tower pools by attention, without class token",
    )
    require(not visual["pre_norm"] and not config["visual_projection"], "hf layout: SiglipModel projects the text only")
    require(visual["positions"] != "sincos_2d", "hf layout: SiglipModel has learned positions")
    require(
        not text["causal"] and text["pool"] == "last" and config["text_projection"] == "linear_bias",
        "hf layout: SiglipModel's text tower is bidirectional, read at its last position and projected with bias",
    )
    require(not text.get("mask_padding", False), "hf layout: SiglipModel does not mask padding")
    require(config.get("logit_bias_init") is not None, "hf layout: SiglipModel has a logit bias")
    naflex = visual["positions"] == "naflex"
    kind, name = ("siglip2", "Siglip2") if naflex else ("siglip", "Siglip")
    side = visual["image_size"] // visual["patch_size"]
    hf: Plain = {
        "architectures": [f"{name}Model"],
        "model_type": kind,
        "vision_config": hf_names.tower_to_hf(visual)
        | {
            "model_type": f"{kind}_vision_model",
            "patch_size": visual["patch_size"],
            "num_channels": visual.get("channels", 3),
            **({"num_patches": side * side} if naflex else {"image_size": visual["image_size"]}),
        },
        "text_config": hf_names.tower_to_hf(text)
        | {
            "model_type": f"{kind}_text_model",
            "vocab_size": text["vocab_size"],
            "max_position_embeddings": text["context_length"],
            "projection_size": config["embed_dim"],
            "bos_token_id": text["eot_id"],
            "eos_token_id": text["eot_id"],
            "pad_token_id": text.get("pad_id", 1),
        },
    }
    texts = {"config.json": hf} | ({"preprocessor_config.json": preprocess} if preprocess else {})
    return Files("model.safetensors", key_map(config).from_ours(state), texts)


LAYOUT = Layout("hf_siglip", recognises, plan, write)
