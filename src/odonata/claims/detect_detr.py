"""DETR's claim against itself: set prediction by a transformer starts slowly."""

from __future__ import annotations

from dataclasses import replace

import torch

from odonata.claims.claim import Claim, Comparison, Figures, Plot, Trial
from odonata.claims.detect_toy import CLASSES, DATA, SIDE, fcos_config, items, measure, train
from odonata.data.framing import Framing
from odonata.detect.detr import DETR, DETRConfig
from odonata.detect.fcos import FCOS

FULL = 600
FIFTH = FULL // 5
STEPS = {f"{FIFTH} steps": FIFTH, f"{FULL} steps": FULL}


def run(trial: Trial) -> Figures:
    """Train one detector for one length, each length with a schedule of its own."""
    torch.manual_seed(trial.seed)
    if trial.variant == "FCOS":
        learns: FCOS | DETR = FCOS(fcos_config(), CLASSES)
    else:
        config = DETRConfig(
            framing=Framing("keep", size=SIDE, max_size=SIDE, divisor=16), score_threshold=0.0, queries=12
        )
        learns = DETR(replace(config), CLASSES)
    seen = items(trial, "train")
    train(learns, seen, steps=trial.steps(STEPS[trial.condition]), lr=trial.setting["lr"], seed=trial.seed)
    return measure(learns, trial)


_SHORT, _LONG = STEPS

CLAIM = Claim(
    name="detr-slow-start",
    room="detect",
    methods=("detr", "fcos"),
    source="Carion et al. 2020, arXiv:2005.12872, section 4.1: 500 epochs, where Faster R-CNN takes 37 or 109",
    hypothesis="A fully convolutional detector finds more after a fifth of the steps than DETR after all of them.",
    data=DATA,
    scaled_down="A thin FCOS for 120 steps of 16 pictures against a small DETR (the laptop default: a map of stride "
    "16, no encoder, three "
    "decoder layers, 12 queries) for 600; each length has its own schedule, and two rates are tried for each.",
    trial=run,
    conditions=(_SHORT, _LONG),
    axis="steps",
    variants=("FCOS", "DETR"),
    comparisons=(
        Comparison("FCOS after a fifth against DETR", f"FCOS@{_SHORT}", f"DETR@{_LONG}", "AP", ">"),
        Comparison("at the full length", f"FCOS@{_LONG}", f"DETR@{_LONG}", "AP", ">", primary=False),
        Comparison("at a fifth", f"FCOS@{_SHORT}", f"DETR@{_SHORT}", "AP", ">", primary=False),
        Comparison("what DETR gains by length", f"DETR@{_LONG}", f"DETR@{_SHORT}", "AP", ">", primary=False),
    ),
    plots=(Plot("AP", "AP, %"), Plot("AP50", "AP50, %")),
    grid={"FCOS": ({"lr": 2e-3}, {"lr": 6e-3}), "DETR": ({"lr": 3e-4}, {"lr": 1e-3})},
    tune_by="AP",
    seeds=(1, 2, 3),
)  # fmt: skip
