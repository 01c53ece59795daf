"""The focal loss's claims: it beats cross-entropy where objects are rare, and a prior keeps the first steps sane."""

from __future__ import annotations

from typing import Any

import torch

from odonata.claims.claim import Claim, Comparison, Figures, Plot, Trial
from odonata.claims.detect_toy import BATCH, CLASSES, DATA, World, fcos_config, items, measure, train
from odonata.data.object_batches import to_batch
from odonata.detect.fcos import FCOS

STEPS = 500
RARE = World(objects=(1, 2))
LOSSES: dict[str, dict[str, Any]] = {
    "focal": {"gamma": 2.0, "alpha": 0.25},
    "cross-entropy": {"gamma": 0.0, "alpha": -1.0},
    "balanced": {"gamma": 0.0, "alpha": 0.75},
}
"""Table 1 of the paper: its best γ and α, none, and the best α without focus."""
PRIORS = {"prior 0.01": 0.01, "no prior": 0.0}
_GRID = ({"lr": 2e-3}, {"lr": 6e-3})


def detector(seed: int, **changes: Any) -> FCOS:
    """Return FCOS with fresh weights that the seed alone decides."""
    torch.manual_seed(seed)
    return FCOS(fcos_config(**changes), CLASSES)


def focal_trial(trial: Trial) -> Figures:
    """Train with one loss of the classes."""
    learns = detector(trial.seed, **LOSSES[trial.variant])
    rows = train(learns, items(trial, "train", RARE), steps=trial.steps(STEPS), lr=trial.setting["lr"], seed=trial.seed)
    return {**measure(learns, trial, RARE), "first loss": rows[0]["class"]}


def prior_trial(trial: Trial) -> Figures:
    """Take the class loss of the first batch, then train shortly; cross-entropy, as the paper tells it."""
    learns = detector(trial.seed, gamma=0.0, alpha=-1.0, prior=PRIORS[trial.variant])
    seen = items(trial, "train")
    with torch.no_grad():
        first = float(learns.loss(to_batch(seen[:BATCH], 32))["class"])
    train(learns, seen, steps=trial.steps(300), lr=4e-3, seed=trial.seed)
    return {**measure(learns, trial), "first loss": first}


_WHERE = "one or two objects"

FOCAL = Claim(
    name="focal-loss",
    room="detect",
    methods=("retinanet", "fcos"),
    source="Lin et al. 2017, arXiv:1708.02002, table 1: cross-entropy 30.2 AP, α-balanced 31.1, focal 34.0",
    hypothesis="Where objects are rare the focal loss (γ = 2, α = 0.25) detects better than cross-entropy, and better "
    "than cross-entropy balanced by α = 0.75.",
    data=DATA.replace("one to four", "one or two"),
    scaled_down="The paper trains RetinaNet-50 on COCO for 90,000 steps; here a thin FCOS, 500 steps of 16 "
    "pictures, all "
    "arms with the prior of 0.01. Two rates are tried for each loss, because the three begin at very different sizes.",
    trial=focal_trial,
    conditions=(_WHERE,),
    variants=tuple(LOSSES),
    comparisons=(
        Comparison("focal against cross-entropy", f"focal@{_WHERE}", f"cross-entropy@{_WHERE}", "AP", ">"),
        Comparison("focal against α-balanced", f"focal@{_WHERE}", f"balanced@{_WHERE}", "AP", ">"),
        *(Comparison(f"focal against {other}, {size}", f"focal@{_WHERE}", f"{other}@{_WHERE}", size, ">", primary=False)
          for other in ("cross-entropy", "balanced") for size in ("AP_S", "AP50")),
    ),
    plots=(Plot("AP", "AP, %"), Plot("AP_S", "AP of small objects, %"),
           Plot("first loss", "class loss at the start", log=True)),
    grid=dict.fromkeys(LOSSES, _GRID),
    tune_by="AP",
    seeds=(1, 2, 3),
)  # fmt: skip

_PRIOR_WHERE = "cross-entropy"

PRIOR = Claim(
    name="prior-bias",
    room="detect",
    methods=("retinanet", "fcos"),
    source="Lin et al. 2017, arXiv:1708.02002, section 4.1: without the prior training diverges; with it, 30.2 AP",
    hypothesis="Biases that begin every answer at a probability of 0.01 make the first class loss at least ten times "
    "smaller than biases of zero, and detection after a short training better.",
    data=DATA,
    scaled_down="A thin FCOS, 300 steps of 16 pictures by AdamW with clipped gradients, which do not diverge either "
    "way.",
    trial=prior_trial,
    conditions=(_PRIOR_WHERE,),
    variants=tuple(PRIORS),
    comparisons=(
        Comparison("first loss without against with", f"no prior@{_PRIOR_WHERE}", f"prior 0.01@{_PRIOR_WHERE}",
                   "first loss", ">", margin=10.0, ratio=True),
        Comparison("AP with against without", f"prior 0.01@{_PRIOR_WHERE}", f"no prior@{_PRIOR_WHERE}", "AP", ">"),
    ),
    plots=(Plot("first loss", "class loss at the start", log=True), Plot("AP", "AP, %")),
    seeds=(1, 2, 3, 4, 5),
)  # fmt: skip
