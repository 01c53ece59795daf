"""What belongs to a language model besides its weights: sizes, tokenizer, template, adapters."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from odonata.engine.run import write_atomically
from odonata.errors import WeightsError
from odonata.language.decoder import Decoder, DecoderConfig
from odonata.nn.lora import add_lora
from odonata.text.text_tokenizer import TextTokenizer

LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""All Linears of the layers: as good as full fine-tuning where the rank is enough (Hu et al. 2021; QLoRA, sec. 4)."""


@dataclass(frozen=True)
class LoRA:
    """Low-rank updates beside frozen weights (2106.09685)."""

    rank: int = 0
    """Rank of the updates (0 = all weights are trained)."""
    alpha: float = 32.0
    """Their scale times the rank."""
    dropout: float = 0.0
    """Dropout of their input."""
    targets: tuple[str, ...] = LORA_TARGETS
    """Last parts of the names of the Linears that get them."""


@dataclass(frozen=True)
class DecoderAssets:
    """Written into a run's `assets/`."""

    config: DecoderConfig
    tokenizer: TextTokenizer
    template: str = "auto"
    """The chat template: `auto`, or a name of `odonata.text.chat.TEMPLATES`."""
    published: dict[str, Any] = field(default_factory=dict[str, Any])
    """The config.json that the weights came with."""
    generation: dict[str, Any] = field(default_factory=dict[str, Any])
    """The generation_config.json that they came with."""
    lora: LoRA = field(default_factory=LoRA)

    def make(self) -> Decoder:
        """Return a decoder of these sizes, with adapters if there are any."""
        decoder = Decoder(self.config)
        if self.lora.rank:
            adapt(decoder, self.lora)
        return decoder

    def save(self, folder: Path) -> None:
        """Write `decoder.json` and the tokenizer's files."""
        self.tokenizer.save(folder)
        lora = {name: getattr(self.lora, name) for name in ("rank", "alpha", "dropout", "targets")}
        plain = {
            "architecture": self.config.to_dict(),
            "eos_ids": list(self.tokenizer.eos_ids),
            "template": self.template,
            "published": self.published,
            "generation": self.generation,
            "lora": lora,
        }
        write_atomically(folder / "decoder.json", json.dumps(plain, indent=1))

    @classmethod
    def load(cls, folder: Path) -> DecoderAssets:
        """Read what `save` wrote.

        Raises:
            WeightsError: the files are missing or not what they should be.
        """
        path = folder / "decoder.json"
        try:
            plain = json.loads(path.read_text(encoding="utf-8"))
            lora = plain["lora"]
            return cls(
                DecoderConfig.from_dict(plain["architecture"]),
                TextTokenizer.load(folder, plain["eos_ids"]),
                plain["template"],
                plain["published"],
                plain["generation"],
                LoRA(lora["rank"], lora["alpha"], lora["dropout"], tuple(lora["targets"])),
            )
        except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
            raise WeightsError(f"{path}: cannot read the model's description: {error}") from error

    def without_lora(self) -> DecoderAssets:
        """Return the same of a model whose adapters were merged."""
        return replace(self, lora=LoRA())


def adapt(decoder: Decoder, lora: LoRA) -> list[str]:
    """Give a decoder adapters, in place, and freeze the rest; return the names of the adapted Linears.

    Raises:
        WeightsError: none of the targets is there, or the rank does not fit.
    """
    try:
        return add_lora(decoder, lora.rank, lora.alpha, lora.targets, lora.dropout)
    except ValueError as error:
        raise WeightsError(f"--lora: {error}") from error
