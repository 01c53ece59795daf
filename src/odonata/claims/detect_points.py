"""Claims of the detectors of points: CenterNet needs no suppression, CornerNet needs its pooling, SSD its hard "
"negatives."""

from __future__ import annotations

from dataclasses import replace

import torch

from odonata.claims.claim import Claim, Comparison, Figures, Plot, Trial
from odonata.claims.detect_toy import CLASSES, DATA, FRAMING, SIDE, items, measure, train
from odonata.data.framing import Framing
from odonata.detect.centernet import CenterNet, CenterNetConfig
from odonata.detect.cornernet import CornerNet, CornerNetConfig
from odonata.detect.ssd import SSD, SSDConfig

STEPS = 300
CORNER_STEPS = 200
"""Of CornerNet, whose hourglasses cost three times as much."""
LR = 3e-3
MARGIN = 1.0
"""AP points that suppression may add at most; set before any trial."""


def centernet_trial(trial: Trial) -> Figures:
    """Train CenterNet, and measure it with or without suppression."""
    config = CenterNetConfig(framing=FRAMING, neck_width=48, head_width=48, nms=trial.variant == "with NMS")
    torch.manual_seed(trial.seed)
    learns = CenterNet(config, CLASSES)
    train(learns, items(trial, "train"), steps=trial.steps(STEPS), lr=LR, seed=trial.seed)
    return measure(learns, trial)


def cornernet_trial(trial: Trial) -> Figures:
    """Train CornerNet with or without corner pooling."""
    config = CornerNetConfig(framing=replace(FRAMING, divisor=32), corner_pooling=trial.variant == "corner pooling")
    torch.manual_seed(trial.seed)
    learns = CornerNet(config, CLASSES)
    train(learns, items(trial, "train"), steps=trial.steps(CORNER_STEPS), lr=LR, seed=trial.seed)
    return measure(learns, trial)


def ssd_trial(trial: Trial) -> Figures:
    """Train SSD with three hard negatives for each positive, or with all."""
    negatives = 3.0 if trial.variant == "hard negatives" else 1e9
    config = SSDConfig(framing=Framing("squash", size=SIDE), negatives=negatives)
    torch.manual_seed(trial.seed)
    learns = SSD(config, CLASSES)
    train(learns, items(trial, "train"), steps=trial.steps(STEPS), lr=LR, seed=trial.seed)
    return measure(learns, trial)


_WHERE = "300 steps"
_PLOTS = tuple(Plot(name, f"{name}, %") for name in ("AP", "AP_S", "AP_L"))

NO_SUPPRESSION = Claim(
    name="centernet-no-nms",
    room="detect",
    methods=("centernet",),
    source="Zhou et al. 2019, arXiv:1904.07850, section 4 and appendix: peaks of the map do without NMS, which adds "
    "0.0 to "
    "0.2 AP",
    hypothesis="With the same training, suppression adds less than 1 AP to CenterNet's peaks.",
    data=DATA,
    scaled_down="A thin ResNet with a pyramid in place of deconvolutions, 300 steps of 16 pictures.",
    trial=centernet_trial,
    conditions=(_WHERE,),
    variants=("with NMS", "peaks alone"),
    comparisons=(
        Comparison("what suppression adds", f"with NMS@{_WHERE}", f"peaks alone@{_WHERE}", "AP", "<", margin=MARGIN),
    ),
    plots=_PLOTS,
    seeds=(1, 2, 3),
)  # fmt: skip

_CORNER_WHERE = "200 steps"

CORNER_POOLING = Claim(
    name="corner-pooling",
    room="detect",
    methods=("cornernet",),
    source="Law and Deng 2018, arXiv:1808.01244, table 1: 36.5 AP without corner pooling, 38.4 with it; most for "
    "large objects",
    hypothesis="With corner pooling CornerNet detects better than with the same layers without it.",
    data=DATA,
    scaled_down="A thin stack of hourglasses, 200 steps of 16 pictures; the paper's Hourglass-104 learns for 500,000.",
    trial=cornernet_trial,
    conditions=(_CORNER_WHERE,),
    variants=("corner pooling", "none"),
    comparisons=(
        Comparison("with pooling against without", f"corner pooling@{_CORNER_WHERE}", f"none@{_CORNER_WHERE}",
                   "AP", ">"),
        Comparison("the same, large", f"corner pooling@{_CORNER_WHERE}", f"none@{_CORNER_WHERE}", "AP_L", ">",
                   primary=False),
    ),
    plots=_PLOTS,
    seeds=(1, 2, 3),
)  # fmt: skip

HARD_NEGATIVES = Claim(
    name="ssd-hard-negatives",
    room="detect",
    methods=("ssd",),
    source="Liu et al. 2016, arXiv:1512.02325, section 2.2: three hard negatives for a positive optimise faster and "
    "train more "
    "stably than all of them",
    hypothesis="In equal steps SSD detects better with three hard negatives for each positive than with all negatives.",
    data=DATA,
    scaled_down="A thin VGG, pictures of 96 pixels, 300 steps of 16; the paper's is VGG16 from ImageNet at 300.",
    trial=ssd_trial,
    conditions=(_WHERE,),
    variants=("hard negatives", "all negatives"),
    comparisons=(
        Comparison("hard against all", f"hard negatives@{_WHERE}", f"all negatives@{_WHERE}", "AP", ">"),
    ),
    plots=_PLOTS,
    seeds=(1, 2, 3),
)  # fmt: skip
