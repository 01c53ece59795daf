"""Published reward models in and out: decoders with a linear head to a score, or to a label for each token.

A reward model is transformers' `…ForSequenceClassification` with one label: `score.weight`, without a bias, at the last
token that is no padding. A process reward model is `…ForTokenClassification` with two, bad and good: `score` with a
bias; GPT-2 calls it `classifier`. Neither file holds a head over the vocabulary.

Notable: transformers finds the last token by comparing ids with `pad_token_id`. Where padding is the end token, it
scores the token before the end instead; masks are used here, so the two then differ.

Source: transformers 5.23, `modeling_layers.py` and `models/gpt2/modeling_gpt2.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from odonata.errors import WeightsError
from odonata.weights import decoder_gpt2
from odonata.weights.decoders import SHARD_BYTES, family_of, with_prefix
from odonata.weights.layout import Files, Plain
from odonata.weights.read import read_json, read_state

ScorerKind = Literal["reward", "steps"]
"""One score for a text, or bad and good for each token that ends a step."""
OUTPUTS: Mapping[ScorerKind, int] = {"reward": 1, "steps": 2}
_SUFFIXES: Mapping[str, ScorerKind] = {"ForSequenceClassification": "reward", "ForTokenClassification": "steps"}
_LABELS: Mapping[ScorerKind, list[str]] = {"reward": ["LABEL_0"], "steps": ["LABEL_0", "LABEL_1"]}


@dataclass
class PublishedScorer:
    """A directory, read."""

    kind: ScorerKind
    fields: Plain
    """Of `odonata.language.decoder.DecoderConfig`; the head over the vocabulary counts as tied, for there is none."""
    state: dict[str, Tensor]
    """Of the decoder, under our names."""
    head: dict[str, Tensor]
    """`weight`, and `bias` where there is one."""
    config: Plain
    notes: list[str] = field(default_factory=list[str])


def is_scorer(folder: Path) -> bool:
    """Whether a directory holds a decoder that classifies sequences or tokens."""
    file = folder / "config.json"
    if not file.is_file():
        return False
    try:
        return _kind_of(read_json(file)) is not None
    except WeightsError:
        return False


def read_scorer(folder: Path) -> PublishedScorer:
    """Read a directory.

    Raises:
        WeightsError: it holds another kind of model, or another number of labels; or a tensor does not fit.
    """
    file = folder / "config.json"
    if not file.is_file():
        raise WeightsError(
            f"{folder}: no config.json: a reward model is a run, or a directory as transformers writes it"
        )
    config = read_json(file)
    kind = _kind_of(config)
    if kind is None:
        raise WeightsError(
            f"{file}: architectures is {config.get('architectures')}; a reward model is a {' or '.join(_SUFFIXES)}"
        )
    family = family_of(config, file)
    fields = family.fields_of(config, str(file)) | {"tie_word_embeddings": True}
    raw = read_state(folder)
    name = _head_name(family, kind)
    head = {key.removeprefix(name + "."): value for key, value in raw.state.items() if key.startswith(name + ".")}
    if "weight" not in head:
        raise WeightsError(f"{folder}: {name}.weight is missing: there is no head that scores")
    if (seen := head["weight"].shape[0]) != (wanted := OUTPUTS[kind]):
        raise WeightsError(f"{folder}: {name}.weight has {seen} labels; a model that scores {kind} has {wanted}")
    trunk = with_prefix({key: value for key, value in raw.state.items() if not key.startswith(name + ".")}, family)
    ours, _ = family.key_map(fields).to_ours(trunk, str(folder))
    return PublishedScorer(kind, fields, ours, head, config, list(raw.notes))


def files_of_scorer(
    state: Mapping[str, Tensor],
    head: Mapping[str, Tensor],
    kind: ScorerKind,
    fields: Plain,
    config: Plain | None = None,
) -> Files:
    """Return the files of a reward model in the published layout.

    Args:
        state: of the decoder, ours, without a head over the vocabulary.
        head: `weight`, and `bias` where there is one.
        kind: what it scores.
        fields: of the decoder's configuration, all of them.
        config: the config.json that the decoder came with, if it came with one.

    Raises:
        WeightsError: no published architecture has its options.
    """
    fields = fields | {"tie_word_embeddings": True}
    gpt2 = fields["positions"] == "learned"
    family = decoder_gpt2 if gpt2 else family_of(config or {"model_type": "llama"}, "config.json")
    written: dict[str, Any] = dict(config) if config else family.config_of(fields)
    causal = str((written.get("architectures") or ["ForCausalLM"])[0])
    suffix = next(name for name, found in _SUFFIXES.items() if found == kind)
    for known in (*_SUFFIXES, "ForCausalLM", "LMHeadModel"):
        causal = causal.removesuffix(known)
    labels = _LABELS[kind]
    written |= {
        "architectures": [causal + suffix],
        "vocab_size": fields["vocab_size"],
        "num_labels": len(labels),
        "id2label": {str(number): label for number, label in enumerate(labels)},
        "label2id": {label: number for number, label in enumerate(labels)},
    }
    name = _head_name(family, kind)
    theirs = family.key_map(fields).from_ours(state) | {f"{name}.{key}": value for key, value in head.items()}
    return Files("model.safetensors", theirs, {"config.json": written}, shard_bytes=SHARD_BYTES)


def _kind_of(config: Plain) -> ScorerKind | None:
    names = [str(name) for name in config.get("architectures") or ()]
    return next((kind for suffix, kind in _SUFFIXES.items() if any(name.endswith(suffix) for name in names)), None)


def _head_name(family: object, kind: ScorerKind) -> str:
    return "classifier" if family is decoder_gpt2 and kind == "steps" else "score"
