"""Synthetic claims: their trials cost nothing, and the truth about them is known."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from odonata.claims.claim import Claim, Comparison, Plot, Trial


@pytest.fixture
def toy_claim() -> Callable[..., Claim]:
    """Return a maker of claims: "new" differs from "old" by `effect`, and seeds differ much more than variants do."""

    def make(effect: float = 1.0, noise: float = 0.1, calls: Path | None = None, **changes: Any) -> Claim:
        def trial(trial: Trial) -> dict[str, float]:
            if calls is not None:
                with calls.open("a") as file:
                    file.write(trial.name + "\n")
            luck = 10.0 * trial.seed + noise * ((trial.seed * 7919 + len(trial.variant) * 104729) % 13 - 6)
            bonus = effect if trial.variant == "new" else 0.0
            return {"score": luck + bonus - (trial.setting.get("lr", 1.0) - 1.0) ** 2, "cost": 2.0 + bonus}

        fields: dict[str, Any] = {
            "name": "toy", "room": "align", "methods": ("clip",), "source": "nobody", "hypothesis": "New beats old.",
            "data": "none", "scaled_down": "everything", "trial": trial, "conditions": ("small",),
            "variants": ("new", "old"),
            "comparisons": (Comparison("new beats old", "new@small", "old@small", "score", ">"),),
            "plots": (Plot("score", "score, points"), Plot("cost", "cost, s", log=True)),
        }  # fmt: skip
        return Claim(**{**fields, **changes})

    return make
