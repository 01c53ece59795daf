"""Small random decoders of transformers, written as directories, and ours read from them."""

import contextlib
import json
from pathlib import Path

import torch
import transformers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from odonata.language.decoder import Decoder, DecoderConfig
from odonata.text.text_bpe import train_text_bpe
from odonata.weights.decoders import read_decoder

transformers.logging.set_verbosity_error()

SIZES = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 50000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}  # fmt: skip
LINEAR = {"rope_type": "linear", "factor": 3.0, "rope_theta": 10000.0}

GPT2_SIZES = {"vocab_size": 97, "n_embd": 48, "n_layer": 3, "n_head": 6, "n_positions": 128}

MODELS = {
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, SIZES | {"tie_word_embeddings": True}),
    "qwen2-untied": (Qwen2ForCausalLM, Qwen2Config, SIZES | {"tie_word_embeddings": False}),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, SIZES | {"head_dim": 16}),
    "qwen3-biased": (Qwen3ForCausalLM, Qwen3Config, SIZES | {"head_dim": 16, "attention_bias": True}),
    "llama": (LlamaForCausalLM, LlamaConfig, SIZES),
    "llama-llama3": (LlamaForCausalLM, LlamaConfig, SIZES | {"rope_parameters": LLAMA3}),
    "llama-linear": (LlamaForCausalLM, LlamaConfig, SIZES | {"rope_parameters": LINEAR}),
    "llama-biases": (LlamaForCausalLM, LlamaConfig, SIZES | {"attention_bias": True, "mlp_bias": True}),
    "llama-one-key-head": (LlamaForCausalLM, LlamaConfig, SIZES | {"num_key_value_heads": 1}),
    "gpt2": (GPT2LMHeadModel, GPT2Config, GPT2_SIZES),
}  # fmt: skip
BIT_EQUAL = tuple(name for name in MODELS if name != "gpt2")


def theirs(name: str, **changes):
    """A model of transformers with random weights, none of them zero or one."""
    kind, config, sizes = MODELS[name]
    torch.manual_seed(0)
    with contextlib.redirect_stderr(None):
        model = kind(config(**sizes, **changes, bos_token_id=1, eos_token_id=2, pad_token_id=0)).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            noise = torch.randn_like(parameter) * 0.05
            parameter.copy_((1 + noise) if "norm" in key or (".ln_" in key and "weight" in key) else noise)
    return model


def add_tokenizer(folder: Path) -> None:
    """Give a directory a byte-level tokenizer."""
    train_text_bpe(["the quick brown fox"], 259).save(folder)


def written(model, folder: Path, tokenizer: bool = False, **options) -> Path:
    """Write a model as transformers does."""
    model.save_pretrained(folder, **options)
    if tokenizer:
        add_tokenizer(folder)
    return folder


def ours(folder: Path) -> Decoder:
    """Our decoder with the weights of a directory."""
    found = read_decoder(folder)
    decoder = Decoder(DecoderConfig.from_dict(found.fields))
    decoder.load_state_dict(found.state)
    return decoder.eval()


def both(name: str, folder: Path):
    """A model of theirs, and ours with its weights."""
    model = theirs(name)
    return model, ours(written(model, folder))


def edit_config(folder: Path, drop=(), **changes) -> None:
    """Change keys of a directory's config.json."""
    file = folder / "config.json"
    config = {key: value for key, value in json.loads(file.read_text()).items() if key not in drop}
    file.write_text(json.dumps(config | changes))


def ids_of(*shape: int, vocab: int = 97, seed: int = 1) -> torch.Tensor:
    return torch.randint(3, vocab, shape, generator=torch.Generator().manual_seed(seed))
