"""Jigsaw's claim: who has learned to put the pieces of pictures in order has learned to tell what is on them."""

from __future__ import annotations

import torch

from odonata.backbones.resnet import ResNet
from odonata.claims.claim import Claim, Comparison, Figures, Plot, Trial
from odonata.claims.represent_toy import (
    CELL,
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
from odonata.represent.jigsaw import Jigsaw, JigsawConfig

BATCH = 64
STEPS = 400
WHERE = "digits"
VARIANTS = ("jigsaw", "random tower", "pixels")


def look(images: Images) -> Images:
    """A crop that leaves most of the picture."""
    return crops(images, (0.8, 1.0))


def trial(trial: Trial) -> Figures:
    """Learn puzzles or nothing, and measure the features of whole pictures, or the pixels."""
    seen, measured = cells(trial, "train", coloured=False), cells(trial, trial.split, coloured=False)
    if trial.variant == "pixels":
        return measure(flat_pixels, seen, measured, trial.seed)
    torch.manual_seed(trial.seed)
    tower = ResNet(TOWER)
    figures: dict[str, float] = {}
    if trial.variant == "jigsaw":
        config = JigsawConfig(image_size=CELL, tile_size=5, channel_shift=0, permutations=int(trial.setting["orders"]))
        method = Jigsaw(config, tower, CELL_PREPROCESS)
        optimizer = torch.optim.AdamW(learning(method), lr=2e-3, betas=(0.9, 0.999), weight_decay=0.05)
        losses = train(
            method, [look], seen, steps=trial.steps(STEPS), batch=BATCH, optimizer=optimizer, seed=trial.seed
        )
        figures["loss"] = sum(losses[-50:]) / len(losses[-50:])
    return {**figures, **measure(lambda images: pooled(tower, images), seen, measured, trial.seed)}


CLAIM = Claim(
    name="jigsaw-transfer",
    room="represent",
    methods=("jigsaw",),
    source="Noroozi and Favaro 2016, arXiv:1603.09246, section 4 (features of a tower that solves puzzles transfer "
    "better than random ones)",
    hypothesis="Features of a tower that learned to put nine pieces of a picture in order tell digits better than "
    "those of the same tower at random, by a linear probe and by nearest neighbours.",
    data=CELLS_DATA.format(colours="white"),
    scaled_down="The paper cuts 225 pixels into pieces of 64; here pieces are 5 pixels of 16 and leave no gap, so that "
    "edges can tell their order. ResNet-8, 400 steps of 64 pictures. Whether 10 or 100 orders are told apart is chosen "
    "on validation.",
    trial=trial,
    conditions=(WHERE,),
    variants=VARIANTS,
    comparisons=(
        *(Comparison(f"jigsaw against random tower, by {name}", f"jigsaw@{WHERE}", f"random tower@{WHERE}", name, ">")
          for name in ("probe", "knn")),
        *(Comparison(f"jigsaw against pixels, by {name}", f"jigsaw@{WHERE}", f"pixels@{WHERE}", name, ">",
                     primary=False) for name in ("probe", "knn")),
    ),
    plots=(Plot("probe", "linear probe, %"), Plot("knn", "nearest neighbours, %")),
    grid=dict.fromkeys(VARIANTS, ({"orders": 10}, {"orders": 100})),
    tune_by="probe",
    seeds=(1, 2, 3),
)  # fmt: skip
