"""TridentNet's claim: branches with ranges of their own beat the same branches that all learn from everything."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from odonata.claims.claim import Claim, Comparison, Figures, Plot, Trial
from odonata.claims.detect_toy import CLASSES, DATA, FRAMING, items, measure, train
from odonata.detect.scale_policy import INFINITE
from odonata.detect.tridentnet import TridentNet, TridentNetConfig

STEPS = 400
LR = 4e-3
OPEN = ((0.0, INFINITE),) * 3
VARIANTS: dict[str, dict[str, Any]] = {
    "ranges": {"valid_ranges": ((0.0, 16.0), (10.0, 30.0), (20.0, INFINITE))},
    "open": {"valid_ranges": OPEN},
    "one branch": {"dilations": (1,), "valid_ranges": OPEN[:1]},
    "fast": {"fast": True},
}


def run(trial: Trial) -> Figures:
    """Train one form of the network."""
    base = TridentNetConfig(framing=replace(FRAMING, divisor=16))
    torch.manual_seed(trial.seed)
    learns = TridentNet(replace(base, **VARIANTS[trial.variant]), CLASSES)
    train(learns, items(trial, "train"), steps=trial.steps(STEPS), lr=LR, seed=trial.seed)
    return measure(learns, trial)


_WHERE = "400 steps"

CLAIM = Claim(
    name="trident-ranges",
    room="detect",
    methods=("tridentnet",),
    source="Li et al. 2019, arXiv:1901.01892, table 1: ResNet-101 37.9 AP, three branches 39.0, with ranges of "
    "their own 40.6",
    hypothesis="Three branches of different dilation that each learn from and answer for objects of their own range "
    "detect "
    "better than the same three branches for all objects, and find more small and more large ones.",
    data=DATA,
    scaled_down="A thin ResNet-10 with branches in its second stage, 400 steps of 16 pictures; the paper's have "
    "ResNet-101 "
    "on COCO. The arms with three branches cost the same.",
    trial=run,
    conditions=(_WHERE,),
    variants=tuple(VARIANTS),
    comparisons=(
        *(Comparison(f"ranges against open, {name}", f"ranges@{_WHERE}", f"open@{_WHERE}", name, ">")
          for name in ("AP", "AP_S", "AP_L")),
        Comparison("open against one branch", f"open@{_WHERE}", f"one branch@{_WHERE}", "AP", ">", primary=False),
        Comparison("fast against one branch", f"fast@{_WHERE}", f"one branch@{_WHERE}", "AP", ">", primary=False),
    ),
    plots=tuple(Plot(name, f"{name}, %") for name in ("AP", "AP_S", "AP_M", "AP_L")),
    seeds=(1, 2, 3),
)  # fmt: skip
