"""The default recipe of this room: it trains on the embedded digits within minutes on a laptop."""

from __future__ import annotations

from odonata.data.pictures import PictureData
from odonata.distill.distill import DistillConfig
from odonata.engine.recipe import SGD, Clip, Recipe, Schedule
from odonata.represent.evaluation import RepresentEvaluation


def distill() -> Recipe:
    """RepDistiller's optimiser and schedule at laptop length.

    There: SGD 0.05 for batches of 64, 240 epochs of CIFAR-100, a tenth at 150, 180 and 210, weight decay 5e-4.
    """
    return Recipe(
        name="distill",
        method=DistillConfig(lr_per=64),
        data=PictureData(batch_size=64),
        evaluation=RepresentEvaluation(),
        optim=SGD(lr=0.05, weight_decay=5e-4),
        schedule=Schedule(kind="steps", warmup=0.0, milestones=(0.625, 0.75, 0.875)),
        clip=Clip("none"),
        steps=600,
    )
