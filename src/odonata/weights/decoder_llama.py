"""Llama, Qwen2, Qwen2.5, Qwen3 and what shares their files, such as DeepSeek's R1 distilled into Qwen2.

Notable: transformers 5 writes `rope_parameters`, `dtype` and `layer_types` where version 4 wrote `rope_theta`,
`rope_scaling` and `torch_dtype`. Both are read; both are written, so that either reads what is written here.

Source: transformers, `models/{llama,qwen2,qwen3}/configuration_*.py` and `modeling_*.py`.
"""

from __future__ import annotations

from typing import Any

from odonata.errors import WeightsError
from odonata.weights.layout import Plain
from odonata.weights.maps import KeyMap, layers, rename

TYPES = ("qwen2", "qwen3", "llama")
_ARCHITECTURES = {"qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM", "llama": "LlamaForCausalLM"}
_ROPE_KINDS = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
"""Ways of stretching positions, with the keys that each needs."""


def fields_of(config: Plain, where: str) -> Plain:
    """Return the fields of `odonata.language.decoder.DecoderConfig` that a config.json of theirs means.

    Raises:
        WeightsError: names a key that is absent, or a value that is not supported.
    """
    kind = config["model_type"]
    heads = _needed(config, "num_attention_heads", where)
    width = _needed(config, "hidden_size", where)
    if config.get("use_sliding_window") and _slides(config):
        raise WeightsError(f"{where}: use_sliding_window is true: attention in windows is not supported")
    act = config.get("hidden_act", "silu")
    if act != "silu":
        raise WeightsError(f"{where}: hidden_act is {act!r}; known is silu")
    # Qwen2's code has biases of its own choice, whatever its configuration says; only Llama's has them in the MLP.
    everywhere = kind != "qwen2" and bool(config.get("attention_bias", False))
    theta, scaling = _rope(config, where)
    return {
        "vocab_size": _needed(config, "vocab_size", where),
        "hidden_size": width,
        "num_hidden_layers": _needed(config, "num_hidden_layers", where),
        "num_attention_heads": heads,
        "num_key_value_heads": config.get("num_key_value_heads") or heads,
        "head_dim": config.get("head_dim") or (128 if kind == "qwen3" else width // heads),
        "intermediate_size": _needed(config, "intermediate_size", where),
        "max_position_embeddings": config.get("max_position_embeddings", 32768),
        "norm_eps": config.get("rms_norm_eps", 1e-6),
        "rope_theta": theta,
        "rope_scaling": scaling,
        "qkv_bias": kind == "qwen2" or everywhere,
        "output_bias": everywhere,
        "mlp_bias": kind == "llama" and bool(config.get("mlp_bias", False)),
        "qk_norm": kind == "qwen3",
        "tie_word_embeddings": bool(config.get("tie_word_embeddings", False)),
    }


def _slides(config: Plain) -> bool:
    """Whether any layer attends in a window: newer files list each layer's type, older ones how many do not."""
    types = config.get("layer_types")
    if types is None:
        return config.get("max_window_layers", 28) < config["num_hidden_layers"]
    return any(kind != "full_attention" for kind in types)


def _rope(config: Plain, where: str) -> tuple[float, Plain]:
    """Return theta and the scaling's fields, from the keys of version 5 or of version 4."""
    new: dict[str, Any] = config.get("rope_parameters") or {}
    old: dict[str, Any] = config.get("rope_scaling") or {}
    found = new or old
    theta = float(new.get("rope_theta") or config.get("rope_theta") or 10_000.0)
    kind = found.get("rope_type") or found.get("type") or "default"
    if kind not in _ROPE_KINDS:
        raise WeightsError(f"{where}: rope_type is {kind!r}; known are {', '.join(_ROPE_KINDS)}")
    lacking = [name for name in _ROPE_KINDS[kind] if name not in found]
    if lacking:
        raise WeightsError(f"{where}: rope_type {kind!r} lacks {', '.join(lacking)}")
    part = found.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0
    if part != 1.0:
        raise WeightsError(f"{where}: partial_rotary_factor is {part}; known is 1.0, whole heads are turned")
    return theta, {"kind": kind, **{name: found[name] for name in _ROPE_KINDS[kind]}}


def config_of(fields: Plain) -> Plain:
    """Return a config.json for a decoder of ours that no file of theirs stood behind.

    Raises:
        WeightsError: none of their architectures has its options.
    """
    kind = _kind_of(fields)
    theta, scaling = fields["rope_theta"], fields["rope_scaling"]
    rope = {"rope_type": scaling["kind"], "rope_theta": theta}
    extra = {name: scaling[name] for name in _ROPE_KINDS[scaling["kind"]]}
    config = {
        "architectures": [_ARCHITECTURES[kind]],
        "model_type": kind,
        "hidden_act": "silu",
        **{name: fields[name] for name in (
            "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
            "intermediate_size", "max_position_embeddings", "tie_word_embeddings",
        )},
        "rms_norm_eps": fields["norm_eps"],
        "rope_theta": theta,
        "rope_scaling": {**extra, "rope_type": scaling["kind"]} if extra else None,
        "rope_parameters": {**rope, **extra},
        "torch_dtype": "float32",
        "dtype": "float32",
        "use_cache": True,
    }  # fmt: skip
    if kind != "qwen2":
        config["attention_bias"] = fields["qkv_bias"]
    if kind == "llama":
        config["mlp_bias"] = fields["mlp_bias"]
    else:
        config["use_sliding_window"] = False
    return config


def _kind_of(fields: Plain) -> str:
    rotary = fields["positions"] == "rotary" and fields["norm"] == "rms" and fields["mlp"] == "gated"
    biases = (fields["qkv_bias"], fields["output_bias"], fields["mlp_bias"])
    if rotary and fields["activation"] == "silu":
        if fields["qk_norm"] and biases in ((False, False, False), (True, True, False)):
            return "qwen3"
        if not fields["qk_norm"] and biases == (True, False, False):
            return "qwen2"
        if not fields["qk_norm"] and biases[0] == biases[1]:
            return "llama"
    raise WeightsError("no published architecture has this decoder's options: keep it as a run")


def key_map(fields: Plain) -> KeyMap:
    """Return the map between their tensors and ours."""
    rules = [rename("model.embed_tokens.weight", "embed_tokens.weight"), rename("model.norm.weight", "norm.weight")]
    if not fields["tie_word_embeddings"]:
        rules.append(rename("lm_head.weight", "lm_head.weight"))
    theirs, ours = "model.layers.{i}", "layers.{i}"
    names = ["input_layernorm.weight", "post_attention_layernorm.weight"]
    biased = {"q_proj": "qkv_bias", "k_proj": "qkv_bias", "v_proj": "qkv_bias", "o_proj": "output_bias"}
    for part, bias in biased.items():
        names += [f"self_attn.{part}.weight"] + ([f"self_attn.{part}.bias"] if fields[bias] else [])
    names += ["self_attn.q_norm.weight", "self_attn.k_norm.weight"] if fields["qk_norm"] else []
    for part in ("gate_proj", "up_proj", "down_proj"):
        names += [f"mlp.{part}.weight"] + ([f"mlp.{part}.bias"] if fields["mlp_bias"] else [])
    block = [rename(f"{theirs}.{name}", f"{ours}.{name}") for name in names]
    tied = ("lm_head.weight",) if fields["tie_word_embeddings"] else ()  # a copy of the embedding, in some files
    return KeyMap(rules + layers(block, fields["num_hidden_layers"]), (*tied, "*.rotary_emb.inv_freq"))


def _needed(config: Plain, key: str, where: str) -> Any:
    if key not in config:
        raise WeightsError(f"{where}: {key} is missing")
    return config[key]
