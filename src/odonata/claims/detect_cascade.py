"""MTCNN's claim: a small network rejects nearly every window, so that large ones look at the few that are left."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from odonata.claims.claim import Claim, Comparison, Figures, Plot, Trial
from odonata.claims.detect_toy import DATA, World, answers, items, train
from odonata.data.item import Item
from odonata.detect.mtcnn import MTCNN, MTCNNConfig
from odonata.metrics.coco import coco_figures
from odonata.metrics.object_matches import Found, Truth

STEPS = 120
LR = 2e-3
DIGITS = World(sides=(14, 48))
MEASURED = 100


def of_one_class(seen: tuple[Item, ...]) -> list[Item]:
    """The same pictures, every digit of one class."""
    return [replace(item, labels=None if item.labels is None else item.labels * 0) for item in seen]


def run(trial: Trial) -> Figures:
    """Train the three networks, or the first, and count what each lets pass on pictures never seen."""
    stage = "pnet" if trial.variant == "P-Net alone" else "all"
    torch.manual_seed(trial.seed)
    learns = MTCNN(MTCNNConfig(min_face=12.0, overlap="square", stage=stage), 1)
    train(learns, of_one_class(items(trial, "train", DIGITS)), steps=trial.steps(STEPS), lr=LR, seed=trial.seed)
    seen = of_one_class(items(trial, trial.split, DIGITS))[:MEASURED]
    found = answers(learns, seen)
    there = [Truth(i.boxes.numpy(), i.labels.numpy()) for i in seen if i.boxes is not None and i.labels is not None]
    said = [Found(a.boxes.numpy(), a.scores.numpy(), a.labels.numpy().astype(np.int64)) for a in found]
    figures = {"AP50": 100 * coco_figures(there, said, ["digit"]).ap50}
    counts = [learns.cascade_counts(item.image) for item in seen]
    windows = sum(count["windows"] for count in counts)
    for name, key in (("reach R-Net", "rnet"), ("reach O-Net", "onet")):
        figures[name] = 100 * sum(count.get(key, 0) for count in counts) / windows
    return figures


_WHERE = "unseen pictures"

CLAIM = Claim(
    name="mtcnn-cascade",
    room="detect",
    methods=("mtcnn",),
    source="Zhang et al. 2016, arXiv:1604.02878, sections II and III: most windows are rejected by the first, cheap "
    "network; "
    "with the published weights 129,146 windows of a group photo leave 606 for R-Net and 49 for O-Net",
    hypothesis="Of all windows of the pyramid less than 5 % reach R-Net and less than 2 % reach O-Net, and the cascade "
    "detects better than its first network alone.",
    data=DATA.replace("8 to 48", "14 to 48").replace("10 classes", "one class"),
    scaled_down="Digits in place of faces, with several in a small picture: 120 steps of 16 pictures, all three "
    "networks at "
    "once; 100 pictures to count on.",
    trial=run,
    conditions=(_WHERE,),
    variants=("cascade", "P-Net alone"),
    comparisons=(
        Comparison("windows that reach R-Net, %", f"cascade@{_WHERE}", 5.0, "reach R-Net", "<"),
        Comparison("windows that reach O-Net, %", f"cascade@{_WHERE}", 2.0, "reach O-Net", "<"),
        Comparison("cascade against P-Net alone", f"cascade@{_WHERE}", f"P-Net alone@{_WHERE}", "AP50", ">"),
    ),
    plots=(Plot("AP50", "AP50, %"), Plot("reach R-Net", "windows that reach R-Net, %"),
           Plot("reach O-Net", "windows that reach O-Net, %")),
    seeds=(1, 2, 3),
)  # fmt: skip
