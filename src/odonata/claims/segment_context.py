"""PSPNet's claim: pooling over the whole picture lets the scene decide, which a plain dilated network lacks."""

from __future__ import annotations

import torch

from odonata.claims.claim import Claim, Comparison, Figures, Plot, Trial
from odonata.claims.segment_toy import CLASSES, FRAMING, maps_of, measure, train
from odonata.segment.fcn import FCN, FCN32sConfig
from odonata.segment.pspnet import PSPNet, PSPNetConfig
from odonata.segment.segmenter import Segmenter

STEPS = 400
LR = 4e-3
VARIANTS = ("PSPNet", "no pooling", "FCN-32s")


def make(variant: str, classes: int) -> Segmenter:
    """Return PSPNet, the same network without its poolings, or FCN-32s."""
    if variant == "FCN-32s":
        return FCN(FCN32sConfig(framing=FRAMING), classes)
    bins = (1, 2, 3, 6) if variant == "PSPNet" else ()
    return PSPNet(PSPNetConfig(framing=FRAMING, bins=bins, align_corners=False), classes)


def run(trial: Trial) -> Figures:
    """Train one network in one world."""
    torch.manual_seed(trial.seed)
    learns = make(trial.variant, CLASSES[trial.condition])
    train(learns, maps_of(trial, "train", trial.condition), steps=trial.steps(STEPS), lr=LR, seed=trial.seed)
    return measure(learns, maps_of(trial, trial.split, trial.condition))


CLAIM = Claim(
    name="pspnet-context",
    room="segment",
    methods=("pspnet", "fcn-32s"),
    source="Zhao et al. 2016, arXiv:1612.01105, table 1: dilated FCN 37.2 mIoU, with pyramid pooling 41.7 (ADE20K)",
    hypothesis="Pyramid pooling segments better than the same network without it where the scene decides what small "
    "things "
    "are called, and better than FCN-32s.",
    data="Pictures of 96 × 96 with real handwritten digits on textured grounds. `scene`: small digits are called by "
    "the "
    "colour of the largest one. `digits`: eleven classes that need no context. 1,000 training pictures, 250 to test "
    "on.",
    scaled_down="The paper trains ResNet-50 on ADE20K; here a thin ResNet of stride 8, 400 steps of 16 pictures, the "
    "auxiliary output in both arms; FCN-32s on a thin VGG.",
    trial=run,
    conditions=("scene", "digits"),
    axis="world",
    variants=VARIANTS,
    comparisons=(
        Comparison("pooling against none, scene", "PSPNet@scene", "no pooling@scene", "mIoU", ">"),
        Comparison("PSPNet against FCN-32s, scene", "PSPNet@scene", "FCN-32s@scene", "mIoU", ">"),
        Comparison("pooling against none, digits", "PSPNet@digits", "no pooling@digits", "mIoU", ">", primary=False),
        Comparison("PSPNet against FCN-32s, digits", "PSPNet@digits", "FCN-32s@digits", "mIoU", ">", primary=False),
    ),
    plots=(Plot("mIoU", "mean IoU, %"), Plot("pixel accuracy", "pixel accuracy, %")),
    seeds=(1, 2, 3),
)  # fmt: skip
