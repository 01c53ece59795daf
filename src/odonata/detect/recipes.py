"""The default recipes of this room: each trains on the embedded objects within minutes on a laptop.

The papers' own settings stand in the comments, and as presets of the methods.
"""

from __future__ import annotations

from odonata.data.object_batches import ObjectData
from odonata.detect.evaluation import DetectEvaluation
from odonata.detect.fcos import FCOSConfig
from odonata.engine.recipe import AdamW, Clip, Recipe, Schedule


def fcos() -> Recipe:
    """FCOS at laptop size. The paper: ResNet-50, SGD 0.01 for 16, 90,000 steps, decay 1e-4, falls at 60,000 and 80,000."""
    return Recipe(
        name="fcos",
        method=FCOSConfig(),
        data=ObjectData(),
        evaluation=DetectEvaluation(),
        optim=AdamW(lr=2e-3, weight_decay=0.05, betas=(0.9, 0.999)),
        schedule=Schedule(warmup=0.05),
        clip=Clip("norm", 10.0),
        steps=900,
    )


def by_name(name: str) -> Recipe:
    """Return the default recipe of a method of this room."""
    return globals()[name.replace("-", "_")]()
