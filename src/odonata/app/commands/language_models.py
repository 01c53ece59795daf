"""What the commands that let a language model speak have in common: opening it, and how its tokens are drawn."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from odonata.errors import RecipeError

if TYPE_CHECKING:
    from odonata.language.language_model import LanguageModel
    from odonata.language.sampling import Sampling

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True, kw_only=True)
class SpeakingOptions:
    """How tokens are drawn, and where."""

    temperature: float = 1.0
    """Scores are divided by it; 0 takes the likeliest token."""
    top_k: int = 0
    """Only the k likeliest tokens (0 = all)."""
    top_p: float = 1.0
    """Only the fewest tokens whose probabilities reach this sum."""
    min_p: float = 0.0
    """Only tokens at least this times as likely as the likeliest."""
    max_new_tokens: int = 256
    """Of a completion at most, its end included."""
    seed: int = 0
    """Of all chance: the same seed says the same."""
    template: Literal["auto", "chatml", "llama3", "plain"] = "auto"
    """How conversations are written: auto is the model's own chat template, or plain words where it has none."""
    which: Literal["best", "last"] = "best"
    """Which checkpoint of a run."""
    device: Device = "auto"
    """Where to compute."""
    dtype: Precision = "fp32"
    """Precision of weights and states; bf16 halves the memory and rounds."""

    def sampling(self) -> Sampling:
        """Return how tokens are drawn.

        Raises:
            RecipeError: names an option out of its range.
        """
        from odonata.language.sampling import Sampling

        chosen = Sampling(self.temperature, self.top_k, self.top_p, self.min_p)
        chosen.check()
        if self.max_new_tokens < 1:
            raise RecipeError(f"--max-new-tokens is {self.max_new_tokens}; it must be at least 1")
        return chosen


def open_language_model(
    path: Path, *, device: Device = "auto", dtype: Precision = "fp32", which: str = "best", template: str = "auto"
) -> LanguageModel:
    """Return the model of a run, or of a directory as transformers writes it.

    Args:
        path: run folder or directory.
        device: `auto` takes a GPU where there is one.
        dtype: precision that it is cast to.
        which: checkpoint of a run, `best` or `last`.
        template: chat template, `auto` or the name of one.

    Raises:
        OdonataError: it is not there, or no language model.
    """
    import torch

    from odonata.app.api import load
    from odonata.language import language_model

    if (path / "config.yaml").is_file():
        model = load(path, device=device, which=which)
    else:
        place = torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")
        model = language_model.load(path, None, place)
    if not isinstance(model, language_model.LanguageModel):
        raise RecipeError(f"{path} is no language model that writes: it is a {type(model).__name__}")
    if dtype == "bf16":
        model.decoder.to(torch.bfloat16)
    if template != "auto":
        model.assets = dataclasses.replace(model.assets, template=template)
    return model
