"""Published decoder language models in and out: directories as transformers writes them.

Only a local directory is read: its config.json, safetensors (in one file or in shards), and the tokenizer's files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor

from odonata.errors import WeightsError
from odonata.weights import decoder_gpt2, decoder_llama
from odonata.weights.layout import Files, Plain
from odonata.weights.read import read_json, read_state

_FAMILIES: dict[str, ModuleType] = {kind: module for module in (decoder_llama, decoder_gpt2) for kind in module.TYPES}
SHARD_BYTES = 5 * 2**30
"""As large as transformers lets a file grow."""


@dataclass
class PublishedDecoder:
    """A directory, read."""

    fields: Plain
    """Of `odonata.language.decoder.DecoderConfig`."""
    state: dict[str, Tensor]
    """Weights under our names, in the precision of the file."""
    config: Plain
    """Their config.json, as it stands."""
    generation: Plain
    """Their generation_config.json; empty where there is none."""
    notes: list[str] = field(default_factory=list[str])


def is_decoder(folder: Path) -> bool:
    """Whether a directory holds a decoder of a known architecture, or of an unknown one that calls itself causal."""
    file = folder / "config.json"
    if not file.is_file():
        return False
    try:
        config = read_json(file)
    except WeightsError:
        return False
    names = [str(name) for name in config.get("architectures") or ()]
    if any(name.endswith(("ForSequenceClassification", "ForTokenClassification")) for name in names):
        return False  # it scores texts and writes none: see `odonata.weights.scorers`
    causal = any("CausalLM" in name or "LMHead" in name for name in names)
    return config.get("model_type") in _FAMILIES or causal


def read_decoder(folder: Path) -> PublishedDecoder:
    """Read a directory.

    Raises:
        WeightsError: names the file that is missing, the architecture that is unknown, or the tensor that does not fit.
    """
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise WeightsError(f"{folder} {what}: a language model is a local directory with config.json and safetensors")
    file = folder / "config.json"
    if not file.is_file():
        raise WeightsError(f"{folder} lacks config.json, which says what the model is")
    config = read_json(file)
    family = family_of(config, file)
    weights = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
    if not any((folder / name).is_file() for name in weights):
        raise WeightsError(f"{folder} lacks {' and '.join(weights[:2])}: one of them holds, or lists, the weights")
    fields = family.fields_of(config, str(file))
    raw = read_state(folder)
    state = with_prefix(raw.state, family)
    vocab, name = fields["vocab_size"], "wte.weight" if family is decoder_gpt2 else "embed_tokens.weight"
    rows = next((value.shape[0] for key, value in state.items() if key.endswith(name)), vocab)
    if rows != vocab:
        raise WeightsError(f"{file}: vocab_size is {vocab}, but the embedding has {rows} rows")
    ours, _ = family.key_map(fields).to_ours(state, str(folder))
    generation = folder / "generation_config.json"
    return PublishedDecoder(
        fields, ours, config, read_json(generation) if generation.is_file() else {}, list(raw.notes)
    )


def files_of(state: Mapping[str, Tensor], fields: Plain, config: Plain | None = None) -> Files:
    """Return the files of a decoder in the published layout.

    Args:
        state: ours.
        fields: of its configuration, all of them.
        config: the config.json that it came with, if it came with one; its vocabulary and precision are brought up
            to date.

    Raises:
        WeightsError: no published architecture has its options.
    """
    gpt2 = fields["positions"] == "learned"
    family = family_of(config, "config.json") if config else decoder_gpt2 if gpt2 else decoder_llama
    written: dict[str, Any] = dict(config) if config else family.config_of(fields)
    written["vocab_size"] = fields["vocab_size"]
    precision = str(next(iter(state.values())).dtype).removeprefix("torch.")
    written |= {key: precision for key in ("torch_dtype", "dtype") if key in written}
    theirs = family.key_map(fields).from_ours(state)
    return Files("model.safetensors", theirs, {"config.json": written}, shard_bytes=SHARD_BYTES)


def family_of(config: Plain, where: object) -> ModuleType:
    """Return the module that knows a model_type; WeightsError if none does."""
    kind = config.get("model_type")
    if kind not in _FAMILIES:
        raise WeightsError(f"{where}: model_type is {kind!r}; known are {', '.join(sorted(_FAMILIES))}")
    return _FAMILIES[kind]


def with_prefix(state: dict[str, Tensor], family: ModuleType) -> dict[str, Tensor]:
    """Some files leave out the name of the trunk before all names but the head's."""
    prefix = "transformer." if family is decoder_gpt2 else "model."
    if any(key.startswith(prefix) for key in state):
        return state
    return {key if key.startswith("lm_head") else prefix + key: value for key, value in state.items()}
