"""The claim of YOLO's later versions: each finds more than the one before, most of all small objects."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from odonata.claims.claim import Claim, Comparison, Figures, Plot, Trial
from odonata.claims.detect_toy import CLASSES, World, items, measure, train
from odonata.data.object_scenes import CATEGORIES, ObjectScenes
from odonata.data.objects import ObjectSource
from odonata.detect.yolo import YOLO, YOLOv1Config, YOLOv2Config, YOLOv3Config, YOLOv3SPPConfig

STEPS = 300
LR = 2e-3
SIDE = 192
DIGITS = World(size=SIDE, sides=(16, 96))
VERSIONS: dict[str, Any] = {
    "v1": YOLOv1Config,
    "v2": YOLOv2Config,
    "v3": YOLOv3Config,
    "v3-spp": YOLOv3SPPConfig,
}


def run(trial: Trial) -> Figures:
    """Train one version on pictures whose anchors k-means has found."""
    scenes = ObjectScenes(200, "train", 10 * trial.seed, SIDE, sides=DIGITS.sides)
    known = ObjectSource([scenes.sample(i) for i in range(scenes.n)], CATEGORIES, "objects", kind="objects")
    base = VERSIONS[trial.variant]()
    config = replace(base, framing=replace(base.framing, size=SIDE)).fitted(known)
    torch.manual_seed(trial.seed)
    learns = YOLO(config, CLASSES)
    train(learns, items(trial, "train", DIGITS), steps=trial.steps(STEPS), lr=LR, seed=trial.seed)
    return measure(learns, trial, DIGITS)


_WHERE = "300 steps"

CLAIM = Claim(
    name="yolo-versions",
    room="detect",
    methods=("yolo-v1", "yolo-v2", "yolo-v3", "yolo-v3-spp"),
    source="Redmon and Farhadi 2016, arXiv:1612.08242, table 2: 63.4 to 78.6 mAP from the first version to the "
    "second; 2018, "
    "arXiv:1804.02767, table 3: AP of small objects 5.0 in the second, 18.3 in the third",
    hypothesis="In equal steps the second version detects better than the first, and the third better than the "
    "second, also "
    "small objects.",
    data="Pictures of 192 × 192 pixels with one to four real handwritten digits (UCI), 16 to 96 pixels high, on "
    "textured "
    "grounds; 10 classes. 1,500 training pictures, 300 with handwriting never seen to test on. Small: below 12 "
    "pixels of √area.",
    scaled_down="Thin forms of the three networks from random weights, 300 steps of 16 pictures; the papers' trunks "
    "come "
    "from ImageNet and learn for 135 to 270 epochs.",
    trial=run,
    conditions=(_WHERE,),
    variants=tuple(VERSIONS),
    comparisons=(
        Comparison("second against first", f"v2@{_WHERE}", f"v1@{_WHERE}", "AP", ">"),
        Comparison("third against second", f"v3@{_WHERE}", f"v2@{_WHERE}", "AP", ">"),
        Comparison("third against second, medium", f"v3@{_WHERE}", f"v2@{_WHERE}", "AP_M", ">", primary=False),
        Comparison("pyramid pooling against none", f"v3-spp@{_WHERE}", f"v3@{_WHERE}", "AP", ">", primary=False),
    ),
    plots=(Plot("AP", "AP, %"), Plot("AP50", "AP50, %"), Plot("AP_M", "AP_M, %")),
    seeds=(1, 2, 3),
)  # fmt: skip
