"""MoCo v3's claim: the predictor on one side helps."""

from __future__ import annotations

import torch
from torch import nn

from odonata.backbones.resnet import ResNet
from odonata.claims.claim import Claim, Comparison, Figures, Plot, Trial
from odonata.claims.represent_toy import (
    CELL_PREPROCESS,
    CELLS_DATA,
    TOWER,
    cells,
    flat_pixels,
    learning,
    measure,
    moco_view,
    pooled,
    train,
)
from odonata.represent.moco_v3 import MoCoV3, MoCoV3Config

BATCH = 128
STEPS = 250
WHERE = "250 steps"
WITH, WITHOUT = "with predictor", "without"
VARIANTS = (WITH, WITHOUT, "random tower", "pixels")


def trial(trial: Trial) -> Figures:
    """Train with or without the predictor, or not at all, and measure the features; or measure the pixels."""
    seen, measured = cells(trial, "train", coloured=False), cells(trial, trial.split, coloured=False)
    if trial.variant == "pixels":
        return measure(flat_pixels, seen, measured, trial.seed)
    torch.manual_seed(trial.seed)
    config = MoCoV3Config(dim=64, hidden=128, temperature=trial.setting["temperature"])
    method = MoCoV3(config, ResNet(TOWER), CELL_PREPROCESS)
    if trial.variant == WITHOUT:
        method.predictor = nn.Sequential()
    figures: Figures = {}
    if trial.variant in (WITH, WITHOUT):
        optimizer = torch.optim.AdamW(learning(method), lr=2e-3, weight_decay=0.05)
        torch.manual_seed(trial.seed)
        losses = train(
            method, [moco_view, moco_view], seen, steps=trial.steps(STEPS), batch=BATCH, optimizer=optimizer,
            seed=trial.seed,
        )  # fmt: skip
        figures["loss"] = sum(losses[-20:]) / len(losses[-20:])
    return figures | measure(lambda images: pooled(method.encoder, images), seen, measured, trial.seed)


CLAIM = Claim(
    name="moco-v3-predictor",
    room="represent",
    methods=("moco-v3",),
    source="Chen, Xie and He 2021, arXiv:2104.02057, the ablation of the prediction head (it helps by about a point "
    "and is not essential)",
    hypothesis="With the predictor features are better than without it, by a linear probe, and without it they still "
    "are better than those of the random tower.",
    data=CELLS_DATA.format(colours="white"),
    scaled_down="The paper ablates ViT-B/16 on ImageNet; here ResNet-8, 250 steps of 128 pictures by AdamW, heads 128 "
    "wide, embeddings of 64, momentum 0.99 on a half cosine. Two temperatures are tried for each.",
    trial=trial,
    conditions=(WHERE,),
    variants=VARIANTS,
    comparisons=(
        Comparison("probe: with predictor against without", f"{WITH}@{WHERE}", f"{WITHOUT}@{WHERE}", "probe", ">"),
        Comparison("probe: without against the random tower", f"{WITHOUT}@{WHERE}", f"random tower@{WHERE}", "probe",
                   ">"),
        Comparison("knn: with predictor against without", f"{WITH}@{WHERE}", f"{WITHOUT}@{WHERE}", "knn", ">",
                   primary=False),
        *(Comparison(f"{name}: with predictor against {other}", f"{WITH}@{WHERE}", f"{other}@{WHERE}", name, ">",
                     primary=False) for other in ("random tower", "pixels") for name in ("probe", "knn")),
    ),
    plots=(Plot("probe", "linear probe, %"), Plot("knn", "nearest neighbours, %")),
    grid=dict.fromkeys(VARIANTS, ({"temperature": 0.2}, {"temperature": 1.0})),
    tune_by="probe",
    seeds=(1, 2, 3),
)  # fmt: skip
