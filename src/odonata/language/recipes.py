"""The default recipe of this room: what `odonata train decoder` runs."""

from __future__ import annotations

from odonata.data.texts import TextData
from odonata.engine.recipe import AdamW, Clip, Recipe, Schedule
from odonata.language.evaluation import TextEvaluation
from odonata.language.next_token import DecoderOptions


def decoder() -> Recipe:
    """A decoder of 96 thousand weights on sums of digits: the base that rewards are tried on."""
    return Recipe(
        name="decoder",
        method=DecoderOptions(),
        data=TextData(),
        evaluation=TextEvaluation(),
        optim=AdamW(lr=3e-3, weight_decay=0.01, betas=(0.9, 0.98)),
        schedule=Schedule("linear", warmup=100, final=0.1),
        clip=Clip("norm", 1.0),
        steps=1500,
        log_every=50,
    )


def by_name(name: str) -> Recipe:
    """Return the default recipe of a method of this room."""
    return globals()[name.replace("-", "_")]()
