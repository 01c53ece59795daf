"""Adapters alone, in the files and names of Hugging Face's PEFT, which vLLM and transformers read beside a base.

Source: PEFT 0.21, `LoraConfig` and `get_peft_model_state_dict`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from odonata.errors import WeightsError
from odonata.weights.layout import Files, Plain

_NAMES = {"lora_a": "lora_A", "lora_b": "lora_B"}


def peft_files(
    state: Mapping[str, Tensor], fields: Plain, *, rank: int, alpha: float, dropout: float, targets: Sequence[str]
) -> Files:
    """Return `adapter_config.json` and `adapter_model.safetensors`.

    Args:
        state: adapters under our names, `layers.0.self_attn.q_proj.lora_a`.
        fields: of the decoder's configuration.
        rank, alpha, dropout, targets: of the adapters.

    Raises:
        WeightsError: the decoder's published form stores queries, keys and values as one matrix (GPT-2).
    """
    if fields["positions"] == "learned":
        raise WeightsError(
            "GPT-2's files hold queries, keys and values as one matrix, and adapters of each do not fit it; "
            "write the model with its adapters merged, --to hf"
        )
    found = {stem for stem, _, _ in (key.rpartition(".") for key in state)}
    config: Plain = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": dropout,
        "target_modules": [name for name in targets if any(stem.endswith(f".{name}") for stem in found)],
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    theirs: dict[str, Tensor] = {}
    for key, value in state.items():
        stem, _, last = key.rpartition(".")
        theirs[f"base_model.model.model.{stem}.{_NAMES[last]}.weight"] = value
    return Files("adapter_model.safetensors", theirs, {"adapter_config.json": config})
