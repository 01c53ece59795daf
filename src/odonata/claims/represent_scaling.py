"""EfficientNet's claim: scale depth, width and resolution together, and the same cost buys more accuracy."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from odonata.backbones.compound import macs, scale, scale_one_axis
from odonata.backbones.efficientnet import EfficientNet, EfficientNetConfig, build
from odonata.claims.align_toy import set_rate, shuffled_batches
from odonata.claims.claim import Claim, Comparison, Figures, Plot, Trial
from odonata.claims.represent_toy import (
    CLASSES,
    SIDE,
    Images,
    Pictures,
    accuracy,
    learning,
    pictures,
    prepare_pictures,
    shifts,
)

BATCH = 64
STEPS = 400
BASE = EfficientNetConfig(
    widths=(8, 16, 24), repeats=(1, 2, 2), expansions=(4, 4, 4), kernels=(3, 3, 3), strides=(1, 2, 2), stem_width=8,
    stem_stride=1, top_width=64, divisor=2, resolution=16, dropout=0.0, drop_connect=0.0, norm_momentum=0.1,
)  # fmt: skip
"""A small EfficientNet for 16 pixels; channels are rounded to multiples of 2, so that costs can be met."""
PHI = 2
WHERE = "3.7 times the cost"


@functools.cache
def configs() -> dict[str, EfficientNetConfig]:
    """Return the base, the base scaled by the paper's coefficients with φ = 2, and by one axis to the same cost."""
    # 1.2, 1.1 and 1.15 to the second power, but 20 pixels instead of 21, so that no map has an odd side.
    compound = scale(BASE, 1.2**PHI, 1.1**PHI, 20 / 16)
    cost = macs(compound)
    return {
        "base": BASE,
        "compound": compound,
        "depth": scale_one_axis(BASE, "depth", cost)[0],
        "width": scale_one_axis(BASE, "width", cost)[0],
        # 32 / 16 costs 8 % more than the compound one; what would cost the same, 30 pixels, has maps of odd sides.
        "resolution": scale(BASE, 1.0, 1.0, 2.0),
    }


def at_resolution(images: Images, side: int) -> Tensor:
    """Return pictures in [-1, 1] at a side of so many pixels."""
    x = images.float() / 127.5 - 1
    return x if side == SIDE else F.interpolate(x, (side, side), mode="bilinear", antialias=True)


@torch.no_grad()
def top_1(tower: EfficientNet, measured: Pictures) -> float:
    """Return the accuracy in percent."""
    tower.eval()
    side = tower.config.resolution
    return accuracy(torch.cat([tower(at_resolution(part, side)) for part in measured.images.split(250)]), measured)


def trial(trial: Trial) -> Figures:
    """Train one network, with labels, for equally many steps as any other."""
    seen, measured = pictures(trial, "train"), pictures(trial, trial.split)
    config = configs()[trial.variant]
    torch.manual_seed(trial.seed)
    tower = build(config)
    tower.reset_head(CLASSES)
    optimizer = torch.optim.AdamW(learning(tower), lr=trial.setting["lr"], weight_decay=0.05)
    tower.train()
    steps = trial.steps(STEPS)
    for step, rows in enumerate(shuffled_batches(len(seen), BATCH, steps, trial.seed)):
        set_rate(optimizer, step, steps)
        loss = F.cross_entropy(tower(at_resolution(shifts(seen.images[rows]), config.resolution)), seen.labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {
        "top1": top_1(tower, measured),
        "macs": macs(config) / 1e6,
        "parameters": float(sum(p.numel() for p in tower.parameters())),
        "loss": loss.item(),  # pyright: ignore[reportPossiblyUnboundVariable]
    }


VARIANTS = ("base", "compound", "depth", "width", "resolution")

CLAIM = Claim(
    name="compound-scaling",
    room="represent",
    methods=("classify",),
    source="Tan and Le 2019, arXiv:1905.11946, section 3.3 and table 7 (at 1.8 billion multiply-adds: depth 79.0, "
    "width 78.9, resolution 79.1, compound 81.1)",
    hypothesis="At equal cost a network scaled in depth, width and resolution together is more accurate than one "
    "scaled in depth alone, in width alone, or in resolution alone.",
    data="Pictures of 32 × 32 pixels: one real handwritten digit (UCI) in one of 8 colours, at a random place and size "
    "on a textured ground with dashes, seen at the network's resolution; 10 classes. 4,000 training pictures, 1,500 of "
    "handwriting never seen to test on.",
    scaled_down="The paper scales B0 on ImageNet; here an EfficientNet of 5 blocks for 16 pixels, with φ = 2, and 400 "
    "steps of 64 pictures for each. The paper's coefficients are taken as they are. Blocks, channels and pixels are "
    "whole, so the costs differ by up to 8 %. So short a training may favour what learns fast over what holds more.",
    trial=trial,
    conditions=(WHERE,),
    variants=VARIANTS,
    comparisons=(
        *(Comparison(f"compound against {axis} alone", f"compound@{WHERE}", f"{axis}@{WHERE}", "top1", ">")
          for axis in ("depth", "width", "resolution")),
        Comparison("compound against the base", f"compound@{WHERE}", f"base@{WHERE}", "top1", ">", primary=False),
        *(Comparison(f"{axis} alone: cost at least 0.9 of compound's", f"{axis}@{WHERE}", f"compound@{WHERE}", "macs",
                     ">", 0.9, ratio=True, primary=False) for axis in ("depth", "width", "resolution")),
        *(Comparison(f"{axis} alone: cost at most 1.1 of compound's", f"{axis}@{WHERE}", f"compound@{WHERE}", "macs",
                     "<", 1.1, ratio=True, primary=False) for axis in ("depth", "width", "resolution")),
    ),
    plots=(Plot("top1", "accuracy, %"), Plot("macs", "million multiply-adds", log=True)),
    grid=dict.fromkeys(VARIANTS, ({"lr": 3e-3}, {"lr": 6e-3})),
    tune_by="top1",
    seeds=(1, 2, 3),
    prepare=prepare_pictures,
)  # fmt: skip
