"""What belongs to a two-tower model besides its weights: architecture, preprocessing, tokenizer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Int
from torch import Tensor

from odonata.align.dual_encoder import DualEncoderConfig, config_from_dict, config_to_dict
from odonata.data.preprocess import Preprocess
from odonata.engine.run import write_atomically
from odonata.errors import WeightsError
from odonata.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Assets:
    """Written into a run's `assets/`, and beside the weights of a converted model."""

    config: DualEncoderConfig
    preprocess: Preprocess
    tokenizer: Tokenizer | None
    """Absent from some published weights; then no text can be encoded."""
    max_patches: int = 0
    """NaFlex: patches of a picture at most; 0 for fixed squares."""
    lora_rank: int = 0
    """The weights hold low-rank updates of this rank beside the base; 0 for none."""
    lora_alpha: float = 16.0

    def tokenize(self, texts: Sequence[str]) -> Int[Tensor, "batch context"]:
        """Return the ids of texts, padded to the context length.

        Raises:
            WeightsError: the weights came without a tokenizer.
        """
        if self.tokenizer is None:
            raise WeightsError(
                "these weights came without a tokenizer, so text cannot be encoded: give its file with --tokenizer"
            )
        return self.tokenizer.encode(texts)

    def save(self, folder: Path) -> None:
        """Write `model.json` and the tokenizer's files."""
        if self.tokenizer:
            self.tokenizer.save(folder)
        plain = {
            "architecture": config_to_dict(self.config),
            "preprocess": self.preprocess.to_dict(),
            "max_patches": self.max_patches,
            "lora_rank": self.lora_rank,
            "lora_alpha": self.lora_alpha,
        }
        write_atomically(folder / "model.json", json.dumps(plain, indent=1))

    @classmethod
    def load(cls, folder: Path) -> Assets:
        """Read what `save` wrote.

        Raises:
            WeightsError: the files are missing or not what they should be.
        """
        path = folder / "model.json"
        try:
            plain = json.loads(path.read_text())
            return cls(
                config_from_dict(plain["architecture"]),
                Preprocess.from_dict(plain["preprocess"]),
                Tokenizer.load(folder) if (folder / "odonata_tokenizer.json").is_file() else None,
                int(plain["max_patches"]),
                int(plain["lora_rank"]),
                float(plain["lora_alpha"]),
            )
        except (OSError, json.JSONDecodeError, KeyError, ValueError) as error:
            raise WeightsError(f"{path}: cannot read the model's description: {error}") from error
