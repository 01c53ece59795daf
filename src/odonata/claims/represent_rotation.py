"""RotNet's claim: who has learned to tell how pictures were turned has learned to tell what is on them."""

from __future__ import annotations

import torch

from odonata.backbones.resnet import ResNet
from odonata.claims.claim import Claim, Comparison, Figures, Plot, Trial
from odonata.claims.represent_toy import (
    CELL_PREPROCESS,
    CELLS_DATA,
    TOWER,
    Images,
    cells,
    crops,
    flat_pixels,
    learning,
    measure,
    pooled,
    train,
)
from odonata.represent.rotation import Rotation, RotationConfig, first_stages

BATCH = 32
STEPS = 800
LR = 4e-3
WHERE = "digits"
VARIANTS = ("rotation", "random tower", "pixels")


def look(images: Images) -> Images:
    """A crop that leaves something to orient by."""
    return crops(images, (0.6, 1.0))


def trial(trial: Trial) -> Figures:
    """Learn turns or nothing, and measure the features of so many stages, or the pixels."""
    seen, measured = cells(trial, "train"), cells(trial, trial.split)
    if trial.variant == "pixels":
        return measure(flat_pixels, seen, measured, trial.seed)
    torch.manual_seed(trial.seed)
    tower = ResNet(TOWER)
    figures: dict[str, float] = {}
    if trial.variant == "rotation":
        method = Rotation(RotationConfig(mirror=0.0), tower, CELL_PREPROCESS)
        optimizer = torch.optim.AdamW(learning(method), lr=LR, betas=(0.9, 0.999), weight_decay=0.05)
        losses = train(
            method, [look], seen, steps=trial.steps(STEPS), batch=BATCH, optimizer=optimizer, seed=trial.seed
        )
        figures["loss"] = sum(losses[-50:]) / len(losses[-50:])
    part = first_stages(tower, int(trial.setting["stages"]))
    return {**figures, **measure(lambda images: pooled(part, images), seen, measured, trial.seed)}


CLAIM = Claim(
    name="rotation-transfer",
    room="represent",
    methods=("rotation",),
    source="Gidaris et al. 2018, arXiv:1803.07728, tables 1 and 3 (features of rotation prediction against random "
    "ones, and which block's are best)",
    hypothesis="Features of a tower that learned which of four quarter turns a picture was turned by tell digits "
    "better than those of the same tower at random, and than pixels, by a linear probe and by nearest neighbours.",
    data=CELLS_DATA.format(colours="one of 8 colours"),
    scaled_down="The paper trains a network in network on CIFAR-10 and AlexNet on ImageNet; here ResNet-8, 800 steps "
    "of 32 pictures, each in its four turns. Whether two stages are measured or all three is chosen on validation, for "
    "the random tower as well. Some digits look the same upside down, which gives the task a ceiling.",
    trial=trial,
    conditions=(WHERE,),
    variants=VARIANTS,
    comparisons=tuple(
        Comparison(f"rotation against {control}, by {name}", f"rotation@{WHERE}", f"{control}@{WHERE}", name, ">")
        for control in ("random tower", "pixels")
        for name in ("probe", "knn")
    ),
    plots=(Plot("probe", "linear probe, %"), Plot("knn", "nearest neighbours, %")),
    grid=dict.fromkeys(VARIANTS, ({"stages": 2}, {"stages": 3})),
    tune_by="probe",
    seeds=(1, 2, 3),
)
