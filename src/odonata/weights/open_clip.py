"""open_clip's checkpoints: CLIP names, or a SigLIP trunk of timm with a text tower beside it.

Notable: the weights do not tell which GELU they were trained with; it stands in `open_clip_config.json`. A file without
that configuration is read only if the caller says `quick_gelu=True` or `False`. timm builds SigLIP with the exact
GELU where the name says nothing else, although big_vision trained with the tanh approximation; so does this reader.

Source: open_clip 3.3.0 `model.py` (CLIPVisionCfg, CLIPTextCfg), `factory.py`; timm 1.0.31 `vision_transformer.py`.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from odonata.errors import WeightsError
from odonata.weights import clip_names, openai_clip
from odonata.weights.layout import Files, Layout, Plain, Plan, ReadOptions, require
from odonata.weights.maps import KeyMap
from odonata.weights.read import Raw
from odonata.weights.timm_siglip import infer_trunk, timm_name, trunk_rules

_CONFIG, _WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
# Fields that change the network and that no tower here has; a value other than the default is refused by name.
_UNSUPPORTED_VISION: Plain = {
    "ls_init_value": None,
    "attentional_pool": False,
    "pos_embed_type": "learnable",
    "final_ln_after_pool": False,
    "pool_type": "tok",
    "block_type": None,
    "qk_norm": False,
    "scaled_cosine_attn": False,
    "scale_heads": False,
    "scale_attn_inner": False,
    "scale_attn": False,
    "scale_fc": False,
}
_UNSUPPORTED_TEXT: Plain = {
    "ls_init_value": None,
    "embed_cls": False,
    "final_ln_after_pool": False,
    "use_pad_mask": False,
    "hf_model_name": None,
    "block_type": None,
    "qk_norm": False,
    "scaled_cosine_attn": False,
    "scale_heads": False,
    "scale_attn_inner": False,
    "scale_attn": False,
    "scale_fc": False,
}
_POOLS = {"argmax": "argmax", "eos": "eot", "last": "last", "first": "first"}


def recognises(raw: Raw) -> bool:
    """A folder with open_clip's configuration, or bare weights in its names."""
    names = ("visual.proj", "visual.attnpool.c_proj.weight", "visual.trunk.patch_embed.proj.weight")
    return raw.config_name == _CONFIG or (raw.config is None and any(name in raw.state for name in names))


def plan(raw: Raw, options: ReadOptions) -> Plan:
    """Reads the configuration, or what the shapes and the caller say, and returns how to read the weights."""
    if raw.config_name != _CONFIG:
        return _plan_bare(raw, options)
    assert raw.config is not None
    model = raw.config.get("model_cfg", raw.config)
    require("vision_cfg" in model and "text_cfg" in model, f"{raw.path}: {_CONFIG} has no vision_cfg or text_cfg")
    quick = bool(model.get("quick_gelu", False))
    if options.quick_gelu is not None and options.quick_gelu != quick:
        raise WeightsError(f"{raw.path}: {_CONFIG} says quick_gelu={quick}, you say {options.quick_gelu}")
    prefix = _text_prefix(raw)
    text = _text_from_cfg(model["text_cfg"], quick, raw.path)
    visual = _visual_from_cfg(raw, model["vision_cfg"], quick)
    bias = model.get("init_logit_bias")
    config: Plain = {
        "visual": visual,
        "text": text,
        "embed_dim": model["embed_dim"],
        "visual_projection": visual["kind"] == "vit" and visual["pool"] == "class",
        "text_projection": _text_projection(model["text_cfg"]),
        "logit_bias_init": float(bias) if bias is not None else 0.0 if "logit_bias" in raw.state else None,
    }
    if "init_logit_scale" in model:
        config["logit_scale_init"] = float(model["init_logit_scale"])
    preprocess: Plain = {"source": "open_clip", "config": raw.config.get("preprocess_cfg", {})}
    notes = [f"activation from {_CONFIG}: image {visual.get('activation', 'relu')}, text {text['activation']}"]
    tokenizer: Plain = {
        "kind": "sentencepiece" if visual.get("pool") == "map" else "clip_bpe",
        "context_length": text["context_length"],
        "name": model["text_cfg"].get("hf_tokenizer_name"),
        "options": model["text_cfg"].get("tokenizer_kwargs") or {},
        "files": {},
    }
    return Plan(config, key_map(config, prefix), preprocess, tokenizer, notes)


def key_map(config: Plain, text_prefix: str) -> KeyMap:
    """Returns the map for a configuration; `text_prefix` is `text.` for open_clip's CustomTextCLIP."""
    visual = config["visual"]
    if visual["kind"] == "modified_resnet":
        tower = clip_names.resnet(config)
    elif visual["pool"] == "map":
        tower = trunk_rules(config)
    else:
        tower = clip_names.vit(config)
    return KeyMap(tower + clip_names.text(config, text_prefix) + clip_names.scalars(config), clip_names.IGNORED)


def _plan_bare(raw: Raw, options: ReadOptions) -> Plan:
    if "visual.trunk.patch_embed.proj.weight" in raw.state:
        raise WeightsError(
            f"{raw.path}: a bare SigLIP file of open_clip tells neither heads nor activation; "
            f"put {_CONFIG} beside it (open_clip's model_configs hold it)"
        )
    if options.quick_gelu is None:
        raise WeightsError(
            f"{raw.path}: the weights do not tell which GELU they were trained with. Pass quick_gelu=True "
            "(OpenAI's weights, DFN, '-quickgelu' models) or quick_gelu=False (LAION, DataComp), "
            f"or put {_CONFIG} beside the file"
        )
    bare = _without_text_prefix(raw)
    config = openai_clip.infer(bare, "quick_gelu" if options.quick_gelu else "gelu")
    notes = [f"activation {config['text']['activation']}, as quick_gelu={options.quick_gelu} says"]
    key = key_map(config, _text_prefix(raw))
    return Plan(config, key, openai_clip.PREPROCESS, openai_clip.tokenizer(config), notes + openai_clip.INFERENCES)


def _text_prefix(raw: Raw) -> str:
    return "text." if "text.token_embedding.weight" in raw.state else ""


def _without_text_prefix(raw: Raw) -> Raw:
    state = {key.removeprefix("text."): value for key, value in raw.state.items()}
    return Raw(raw.path, state, kind=raw.kind)


def _refuse(cfg: Plain, defaults: Plain, section: str, where: object) -> None:
    for name, default in defaults.items():
        if cfg.get(name, default) != default:
            raise WeightsError(f"{where}: {section}.{name} = {cfg[name]!r} is not supported (only {default!r})")


def _activation(cfg: Plain, quick: bool, where: object) -> str:
    options: dict[str, Any] = cfg.get("act_kwargs") or {}
    if options not in ({}, {"approximate": "tanh"}, {"approximate": "none"}):
        raise WeightsError(f"{where}: act_kwargs {options} is not supported")
    if quick:
        require(not options, f"{where}: act_kwargs {options} does not go with quick_gelu")
        return "quick_gelu"
    return "gelu_tanh" if options.get("approximate") == "tanh" else "gelu"


def _norm_eps(cfg: Plain) -> float:
    return float((cfg.get("norm_kwargs") or {}).get("eps", 1e-5))


def _text_projection(cfg: Plain) -> str:
    if cfg.get("proj_type", "linear") == "none":
        return "none"
    return "linear_bias" if cfg.get("proj_bias") else "linear"


def _text_from_cfg(cfg: Plain, quick: bool, where: object) -> Plain:
    _refuse(cfg, _UNSUPPORTED_TEXT, "text_cfg", where)
    pool = cfg.get("pool_type", "argmax")
    require(pool in _POOLS, f"{where}: text_cfg.pool_type {pool!r} is not supported")
    width, causal = cfg.get("width", 512), not cfg.get("no_causal_mask", False)
    vocabulary = cfg.get("vocab_size", 49408)
    return {
        "vocab_size": vocabulary,
        "context_length": cfg.get("context_length", 77),
        "width": width,
        "depth": cfg.get("layers", 12),
        "num_heads": cfg.get("heads", 8),
        "mlp_width": int(width * cfg.get("mlp_ratio", 4.0)),
        "activation": _activation(cfg, quick, where),
        "causal": causal,
        "pool": _POOLS[pool],
        "eot_id": cfg.get("eos_id", 2) if pool == "eos" else vocabulary - 1 if pool == "argmax" else 1,
        "pad_id": cfg.get("pad_id", 0) if causal or vocabulary == 256000 else 1,
        "norm_eps": _norm_eps(cfg),
        "init": "clip" if causal else "siglip",
    }


def _visual_from_cfg(raw: Raw, cfg: Plain, quick: bool) -> Plain:
    _refuse(cfg, _UNSUPPORTED_VISION, "vision_cfg", raw.path)
    size = cfg.get("image_size", 224)
    size = size[0] if isinstance(size, list) and len(set(size)) == 1 else size
    if not isinstance(size, int):
        raise WeightsError(f"{raw.path}: vision_cfg.image_size {size} is not square")
    if cfg.get("timm_model_name"):
        return infer_trunk(raw, cfg, size)
    width = cfg.get("width", 768)
    if isinstance(cfg.get("layers"), list):
        inferred = openai_clip.infer_resnet(raw.state, raw.path)
        return inferred | {"image_size": size, "num_heads": width * 32 // cfg.get("head_width", 64)}
    inferred = openai_clip.infer_vit(raw.state, raw.path, _activation(cfg, quick, raw.path))
    heads = width // cfg.get("head_width", 64)
    return inferred | {"image_size": size, "num_heads": heads, "norm_eps": _norm_eps(cfg)}


def write(state: Mapping[str, Tensor], config: Plain, preprocess: Plain | None) -> Files:
    """Writes `open_clip_config.json` and safetensors; a model that open_clip cannot build is refused."""
    visual, text = config["visual"], config["text"]
    siglip = visual["kind"] == "vit" and visual["pool"] == "map"
    quick = text["activation"] == "quick_gelu"
    model: Plain = {
        "embed_dim": config["embed_dim"],
        "quick_gelu": quick,
        "vision_cfg": _cfg_of_siglip(visual) if siglip else _cfg_of_clip(visual, quick),
        "text_cfg": _cfg_of_text(config),
    }
    if siglip:
        model["custom_text"] = True
    if config.get("logit_bias_init") is not None:
        model["init_logit_bias"] = config["logit_bias_init"]
    theirs = key_map(config, "text." if siglip else "").from_ours(state)
    return Files(_WEIGHTS, theirs, {_CONFIG: {"model_cfg": model, "preprocess_cfg": preprocess or {}}})


def _cfg_of_siglip(visual: Plain) -> Plain:
    return {
        "image_size": visual["image_size"],
        "timm_model_name": timm_name(visual),
        "timm_model_pretrained": False,
        "timm_pool": "map",
        "timm_proj": "none",
    }


def _cfg_of_clip(visual: Plain, quick: bool) -> Plain:
    width, heads = visual["width"], visual["num_heads"]
    if visual["kind"] == "modified_resnet":
        common: Plain = {"image_size": visual["image_size"], "width": width}
        return common | {"layers": list(visual["layers"]), "patch_size": None, "head_width": width * 32 // heads}
    require(
        visual["pool"] == "class"
        and visual["pre_norm"]
        and not visual["patch_bias"]
        and visual["positions"] == "learned",
        "open_clip layout: the image tower must have class token, learned positions, pre_norm and no patch bias",
    )
    require(
        (visual["activation"] == "quick_gelu") == quick,
        "open_clip layout: both towers must use QuickGELU or neither",
    )
    cfg: Plain = {
        "image_size": visual["image_size"],
        "patch_size": visual["patch_size"],
        "width": width,
        "layers": visual["depth"],
        "head_width": width // heads,
        "mlp_ratio": visual["mlp_width"] / width,
    }
    return cfg | _exceptions(visual)


def _cfg_of_text(config: Plain) -> Plain:
    text = config["text"]
    pools = {ours: theirs for theirs, ours in _POOLS.items()}
    cfg: Plain = {
        "context_length": text["context_length"],
        "vocab_size": text["vocab_size"],
        "width": text["width"],
        "heads": text["num_heads"],
        "layers": text["depth"],
        "mlp_ratio": text["mlp_width"] / text["width"],
        "pool_type": pools[text["pool"]],
        "pad_id": text.get("pad_id", 0),
    }
    if text["pool"] == "eot":
        cfg["eos_id"] = text["eot_id"]
    if not text["causal"]:
        cfg["no_causal_mask"] = True
    if config["text_projection"] == "none":
        cfg["proj_type"] = "none"
    if config["text_projection"] == "linear_bias":
        cfg["proj_bias"] = True
    return cfg | _exceptions(text)


def _exceptions(tower: Plain) -> Plain:
    cfg: Plain = {}
    if tower["activation"] == "gelu_tanh":
        cfg["act_kwargs"] = {"approximate": "tanh"}
    require(
        tower["activation"] in ("quick_gelu", "gelu", "gelu_tanh"),
        f"open_clip layout: activation {tower['activation']} cannot be said",
    )
    if tower["norm_eps"] != 1e-5:
        cfg["norm_kwargs"] = {"eps": tower["norm_eps"]}
    return cfg


LAYOUT = Layout("open_clip", recognises, plan, write)
