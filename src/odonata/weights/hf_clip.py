"""transformers' CLIP folders: `config.json` and safetensors or `.bin`, sharded or not.

Notable: `pre_layrnorm` is misspelt there and stays so. `eos_token_id: 2` in old configurations is wrong and means "the
largest id"; any other value means its first occurrence. Fields that a file leaves out take transformers' defaults.

Source: transformers 5.23 `models/clip/configuration_clip.py`, `modeling_clip.py`.
"""

from collections.abc import Mapping

from torch import Tensor

from odonata.weights import hf_names
from odonata.weights.layout import Files, Layout, Plain, Plan, ReadOptions, require
from odonata.weights.maps import KeyMap, Rule, pair, rename, reshape
from odonata.weights.read import Raw

_VISION: Plain = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
_TEXT: Plain = {
    "vocab_size": 49408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "pad_token_id": 1,
    "eos_token_id": 49407,
}


def key_map(config: Plain) -> KeyMap:
    """Returns the map for a configuration."""
    rules: list[Rule] = [
        rename("vision_model.embeddings.class_embedding", "visual.class_token"),
        rename("vision_model.embeddings.patch_embedding.weight", "visual.patch_embed.proj.weight"),
        rename("vision_model.embeddings.position_embedding.weight", "visual.positions"),
        *pair("vision_model.pre_layrnorm", "visual.norm_pre"),
        *hf_names.blocks("vision_model", "visual.transformer.layers", config["visual"]["depth"]),
        *pair("vision_model.post_layernorm", "visual.norm"),
        rename("visual_projection.weight", "visual_projection.weight"),
        *hf_names.text(config),
        rename("text_projection.weight", "text_projection.weight"),
        reshape("logit_scale", "logit_scale", (), ()),
    ]
    return KeyMap(rules, hf_names.IGNORED)


def recognises(raw: Raw) -> bool:
    """A configuration of model type `clip`."""
    return raw.config_name == "config.json" and (raw.config or {}).get("model_type") == "clip"


def plan(raw: Raw, options: ReadOptions) -> Plan:
    """Reads the configuration and returns how to read the weights."""
    hf = raw.config or {}
    # Old files repeat the sections under a second name, which transformers lets win.
    vision = (hf.get("vision_config") or {}) | (hf.get("vision_config_dict") or {})
    text = (hf.get("text_config") or {}) | (hf.get("text_config_dict") or {})
    end = (_TEXT | text)["eos_token_id"]
    end = end[0] if isinstance(end, list) else end
    vocabulary = (_TEXT | text)["vocab_size"]
    visual = hf_names.tower_from_hf(vision, _VISION, "config.json: vision_config") | {
        "kind": "vit",
        "image_size": hf_names.one_size((_VISION | vision)["image_size"], "vision_config.image_size"),
        "patch_size": hf_names.one_size((_VISION | vision)["patch_size"], "vision_config.patch_size"),
        "channels": (_VISION | vision)["num_channels"],
        "class_token": True,
        "pre_norm": True,
        "patch_bias": False,
        "pool": "class",
        "positions": "learned",
        "position_convention": "hf",
        "init": "clip",
    }
    config: Plain = {
        "visual": visual,
        "text": hf_names.tower_from_hf(text, _TEXT, "config.json: text_config")
        | {
            "vocab_size": vocabulary,
            "context_length": (_TEXT | text)["max_position_embeddings"],
            "causal": True,
            "pool": "argmax" if end == 2 else "eot",
            "eot_id": vocabulary - 1 if end == 2 else end,
            "pad_id": (_TEXT | text)["pad_token_id"] or 0,
            "init": "clip",
        },
        "embed_dim": hf.get("projection_dim", 512),
        "visual_projection": True,
        "text_projection": "linear",
        "logit_bias_init": None,
    }
    rule = "the largest id (legacy eos_token_id 2)" if end == 2 else f"the first token of id {end}"
    notes = [
        f"activation from config.json: image {visual['activation']}, text {config['text']['activation']}",
        f"text feature read at {rule}",
        "positions resized as transformers does (bicubic, no antialias) for other image sizes",
    ]
    tokenizer: Plain = {"kind": "clip_bpe", "context_length": config["text"]["context_length"]}
    return Plan(config, key_map(config), None, tokenizer, notes)


def write(state: Mapping[str, Tensor], config: Plain, preprocess: Plain | None) -> Files:
    """Writes `config.json` and safetensors that `CLIPModel.from_pretrained` reads."""
    visual, text = config["visual"], config["text"]
    require(visual["kind"] == "vit", "hf layout: transformers' CLIPModel has no ResNet tower; use openai or open_clip")
    require(
        visual["pool"] == "class" and visual["pre_norm"] and not visual["patch_bias"],
        "hf layout: CLIPModel has a class token, a norm before the blocks and no patch bias",
    )
    require(visual["positions"] == "learned", "hf layout: CLIPModel has learned positions")
    require(
        text["causal"] and text["pool"] in ("argmax", "eot") and config["text_projection"] == "linear",
        "hf layout: CLIPModel's text tower is causal, read at its end token and projected without bias",
    )
    require(config.get("logit_bias_init") is None, "hf layout: CLIPModel has no logit bias")
    # Written as 2, transformers' legacy rule, only where the end token is read as the largest id.
    end = 2 if text["pool"] == "argmax" else text["eot_id"]
    dim = config["embed_dim"]
    hf: Plain = {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": dim,
        "vision_config": hf_names.tower_to_hf(visual)
        | {
            "model_type": "clip_vision_model",
            "image_size": visual["image_size"],
            "patch_size": visual["patch_size"],
            "num_channels": visual.get("channels", 3),
            "projection_dim": dim,
        },
        "text_config": hf_names.tower_to_hf(text)
        | {
            "model_type": "clip_text_model",
            "vocab_size": text["vocab_size"],
            "max_position_embeddings": text["context_length"],
            "bos_token_id": text["eot_id"] - 1,
            "eos_token_id": end,
            "pad_token_id": text.get("pad_id", 0),
            "projection_dim": dim,
        },
    }
    texts = {"config.json": hf} | ({"preprocessor_config.json": preprocess} if preprocess else {})
    return Files("model.safetensors", key_map(config).from_ours(state), texts)


LAYOUT = Layout("hf_clip", recognises, plan, write)
