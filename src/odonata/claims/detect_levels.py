"""The pyramid's claims: several levels beat one, most for small objects; and the path from the top helps."""

from __future__ import annotations

from typing import Any

import torch

from odonata.backbones.fpn import FPNConfig
from odonata.claims.claim import Claim, Comparison, Figures, Plot, Trial
from odonata.claims.detect_toy import CLASSES, DATA, fcos_config, items, measure, train
from odonata.detect.fcos import FCOS

STEPS = 500
LR = 4e-3
TRUNKS: dict[str, dict[str, Any]] = {
    "pyramid": {},
    "stride 8": {"layers": (1,)},
    "stride 16": {"layers": (2,)},
}
TOP_DOWN: dict[str, dict[str, Any]] = {
    "top-down": {},
    "none": {"fpn": FPNConfig(48, top_down=False)},
}


def run(trial: Trial, changes: dict[str, Any]) -> Figures:
    """Train FCOS on one trunk."""
    torch.manual_seed(trial.seed)
    learns = FCOS(fcos_config(**changes), CLASSES)
    train(learns, items(trial, "train"), steps=trial.steps(STEPS), lr=LR, seed=trial.seed)
    return measure(learns, trial)


def levels_trial(trial: Trial) -> Figures:
    """Train with three levels or one."""
    return run(trial, TRUNKS[trial.variant])


def top_down_trial(trial: Trial) -> Figures:
    """Train with the same levels and parameters, with or without the path from the top."""
    return run(trial, TOP_DOWN[trial.variant])


_WHERE = "500 steps"
_SMALLER = (
    "The papers train ResNet-50 on COCO; here a thin ResNet in FCOS, levels of strides 4, 8 and 16, 500 steps of 16."
)
_SIZES = ("AP_S", "AP_M", "AP_L")

LEVELS = Claim(
    name="several-levels",
    room="detect",
    methods=("fcos", "retinanet", "faster-rcnn"),
    source="Lin et al. 2017 (FPN), arXiv:1612.03144, table 1: a pyramid against C4 or C5 alone, most for small objects",
    hypothesis="A detector on three levels finds more than the same on one level of stride 8 or 16, and more small "
    "objects.",
    data=DATA,
    scaled_down=_SMALLER,
    trial=levels_trial,
    conditions=(_WHERE,),
    variants=tuple(TRUNKS),
    comparisons=(
        *(Comparison(f"three levels against {one}, {name}", f"pyramid@{_WHERE}", f"{one}@{_WHERE}", name, ">")
          for one in ("stride 8", "stride 16") for name in ("AP", "AP_S")),
        *(Comparison(f"three levels against {one}, AP_L", f"pyramid@{_WHERE}", f"{one}@{_WHERE}", "AP_L", ">",
                     primary=False) for one in ("stride 8", "stride 16")),
    ),
    plots=(Plot("AP", "AP, %"), *(Plot(name, f"{name}, %") for name in _SIZES)),
    seeds=(1, 2, 3),
)  # fmt: skip

TOP_DOWN_PATH = Claim(
    name="fpn-top-down",
    room="detect",
    methods=("fcos", "retinanet", "faster-rcnn"),
    source="Lin et al. 2017 (FPN), arXiv:1612.03144, table 1 (d): without the path from the top recall "
    "(AR at 1,000) falls from 56.3 to 49.5",
    hypothesis="The path from the top of the pyramid makes detection better than the same levels without it.",
    data=DATA,
    scaled_down=_SMALLER,
    trial=top_down_trial,
    conditions=(_WHERE,),
    variants=tuple(TOP_DOWN),
    comparisons=(
        Comparison("with the path against without", f"top-down@{_WHERE}", f"none@{_WHERE}", "AP", ">"),
        *(Comparison(f"with the path against without, {name}", f"top-down@{_WHERE}", f"none@{_WHERE}", name, ">",
                     primary=False) for name in _SIZES),
    ),
    plots=(Plot("AP", "AP, %"), *(Plot(name, f"{name}, %") for name in _SIZES)),
    seeds=(1, 2, 3),
)  # fmt: skip
