"""What people touch of a run of this room."""

from __future__ import annotations

from pathlib import Path

import torch

from odonata.language import language_model
from odonata.language.language_model import LanguageModel
from odonata.posttrain.judge import Judge
from odonata.weights.scorers import is_scorer

JUDGES = ("reward", "prm")
"""Methods whose runs score answers."""


def recognises(path: Path) -> bool:
    """Return whether a directory of published weights holds a reward model."""
    return path.is_dir() and is_scorer(path)


def load(path: Path, method: str | None, device: torch.device, which: str = "best") -> LanguageModel | Judge:
    """Return the language model that a run made; the judge of a reward model's run, or of a directory of one.

    Raises:
        WeightsError: its weights do not fit its description.
    """
    if method in JUDGES or (method is None and is_scorer(path)):
        return Judge.load(path, device, which)
    return language_model.load(path, method, device, which)
