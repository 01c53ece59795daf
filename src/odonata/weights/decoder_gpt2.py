"""GPT-2's files: matrices stored the other way round, and queries, keys and values in one.

Notable: published files hold the causal triangle (`attn.bias`) as a tensor; it is no weight and is left out. Some hold
the names without `transformer.` before them. Dropout, which their configuration sets to 0.1, is not taken over: what is
tuned on top of published weights is read as it will be used.

Source: transformers, `models/gpt2/modeling_gpt2.py` (`Conv1D`); openai/gpt-2, `src/model.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from odonata.errors import WeightsError
from odonata.weights.layout import Plain
from odonata.weights.maps import KeyMap, Rule, layers, pair, rename, split, transpose

TYPES = ("gpt2",)
_ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu", "relu": "relu"}


def fields_of(config: Plain, where: str) -> Plain:
    """Return the fields of `odonata.language.decoder.DecoderConfig` that a config.json of theirs means.

    Raises:
        WeightsError: names a key that is absent, or a value that is not supported.
    """
    for key in ("n_embd", "n_layer", "n_head", "vocab_size"):
        if key not in config:
            raise WeightsError(f"{where}: {key} is missing")
    for key, wanted in (("scale_attn_by_inverse_layer_idx", False), ("scale_attn_weights", True)):
        if config.get(key, wanted) != wanted:
            raise WeightsError(f"{where}: {key} is {config[key]}; known is {wanted}")
    act = config.get("activation_function", "gelu_new")
    if act not in _ACTIVATIONS:
        raise WeightsError(f"{where}: activation_function is {act!r}; known are {', '.join(_ACTIVATIONS)}")
    width, heads = config["n_embd"], config["n_head"]
    if width % heads:
        raise WeightsError(f"{where}: n_embd {width} does not divide by n_head {heads}")
    return {
        "vocab_size": config["vocab_size"],
        "hidden_size": width,
        "num_hidden_layers": config["n_layer"],
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": width // heads,
        "intermediate_size": config.get("n_inner") or 4 * width,
        "max_position_embeddings": config.get("n_positions", 1024),
        "norm_eps": config.get("layer_norm_epsilon", 1e-5),
        "positions": "learned",
        "norm": "layer",
        "mlp": "plain",
        "activation": _ACTIVATIONS[act],
        "qkv_bias": True,
        "output_bias": True,
        "mlp_bias": True,
        "tie_word_embeddings": bool(config.get("tie_word_embeddings", True)),
    }


def config_of(fields: Plain) -> Plain:
    """Return a config.json for a decoder of ours in GPT-2's form."""
    act = {ours: theirs for theirs, ours in reversed(_ACTIVATIONS.items())}[fields["activation"]]
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": fields["vocab_size"],
        "n_embd": fields["hidden_size"],
        "n_layer": fields["num_hidden_layers"],
        "n_head": fields["num_attention_heads"],
        "n_inner": fields["intermediate_size"],
        "n_positions": fields["max_position_embeddings"],
        "layer_norm_epsilon": fields["norm_eps"],
        "activation_function": act,
        "tie_word_embeddings": fields["tie_word_embeddings"],
        "torch_dtype": "float32",
    }


def key_map(fields: Plain) -> KeyMap:
    """Return the map between their tensors and ours."""
    rules = [
        rename("transformer.wte.weight", "embed_tokens.weight"),
        rename("transformer.wpe.weight", "embed_positions.weight"),
        *pair("transformer.ln_f", "norm"),
    ]
    if not fields["tie_word_embeddings"]:
        rules.append(rename("lm_head.weight", "lm_head.weight"))
    theirs, ours = "transformer.h.{i}", "layers.{i}"
    parts = [f"{ours}.self_attn.{part}_proj" for part in "qkv"]
    block = [
        *pair(f"{theirs}.ln_1", f"{ours}.input_layernorm"),
        *pair(f"{theirs}.ln_2", f"{ours}.post_attention_layernorm"),
        _split_transposed(f"{theirs}.attn.c_attn.weight", tuple(f"{part}.weight" for part in parts)),
        split(f"{theirs}.attn.c_attn.bias", [f"{part}.bias" for part in parts]),
    ]
    for name, place in (
        ("attn.c_proj", "self_attn.o_proj"),
        ("mlp.c_fc", "mlp.up_proj"),
        ("mlp.c_proj", "mlp.down_proj"),
    ):
        block.append(transpose(f"{theirs}.{name}.weight", f"{ours}.{place}.weight"))
        block.append(rename(f"{theirs}.{name}.bias", f"{ours}.{place}.bias"))
    tied = ("lm_head.weight",) if fields["tie_word_embeddings"] else ()
    ignored = (*tied, "*.attn.bias", "*.attn.masked_bias")
    return KeyMap(rules + layers(block, fields["num_hidden_layers"]), ignored)


def _split_transposed(theirs: str, ours: tuple[str, ...]) -> Rule:
    def to_ours(tensors: list[Tensor]) -> list[Tensor]:
        return [part.contiguous() for part in tensors[0].T.chunk(3)]

    def from_ours(tensors: list[Tensor]) -> list[Tensor]:
        return [torch.cat(tensors).T.contiguous()]

    return Rule((theirs,), ours, to_ours, from_ours)
