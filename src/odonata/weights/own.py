"""Odonata's own layout: safetensors under our names, and `odonata.json` with the configuration."""

from collections.abc import Mapping

from torch import Tensor

from odonata.weights.layout import Files, Layout, Plain, Plan, ReadOptions, require
from odonata.weights.maps import KeyMap, rename
from odonata.weights.read import Raw

_CONFIG = "odonata.json"


def recognises(raw: Raw) -> bool:
    """A folder with `odonata.json`."""
    return raw.config_name == _CONFIG


def plan(raw: Raw, options: ReadOptions) -> Plan:
    """Takes configuration and names as they are."""
    content = raw.config or {}
    model = content.get("model", {})
    require(
        "visual" in model and "text" in model, f"{raw.path}: {_CONFIG} has no entry 'model' with 'visual' and 'text'"
    )
    preprocess = content.get("preprocess")
    return Plan(
        model,
        KeyMap([rename(name, name) for name in raw.state]),
        None if preprocess is None else {"source": "odonata", "config": preprocess},
        {"kind": "tokenizer.json", "context_length": model["text"].get("context_length", 77)},
    )


def write(state: Mapping[str, Tensor], config: Plain, preprocess: Plain | None) -> Files:
    """Writes `odonata.json` and safetensors."""
    texts: dict[str, Plain] = {_CONFIG: {"model": config, "preprocess": preprocess}}
    return Files("model.safetensors", dict(state), texts)


LAYOUT = Layout("odonata", recognises, plan, write)
