"""DINO's claim: centring and sharpening each prevent one collapse, and neither suffices alone."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from statistics import fmean
from typing import Literal

import torch
from torch import Tensor

from odonata.backbones.vit import ViT, ViTConfig
from odonata.claims.claim import Claim, Comparison, Figures, Plot, Trial
from odonata.claims.represent_toy import (
    CELL,
    CELL_PREPROCESS,
    CELLS_DATA,
    CLASSES,
    Images,
    accuracy,
    cells,
    colours,
    crops,
    flat_pixels,
    learning,
    pooled,
    train,
)
from odonata.metrics.knn import knn_scores
from odonata.represent.dino import DINO, DINOConfig
from odonata.represent.monitor import diagnose

BATCH = 64
STEPS = 200
TAIL = 20
"""Last steps whose figures are averaged."""
PROTOTYPES = 256
STUDENT = 0.1
SHARP = 0.02
WHERE = f"{PROTOTYPES} prototypes"
VIT = ViTConfig(image_size=CELL, patch_size=4, width=64, depth=3, num_heads=4, mlp_width=256)
BOTH, UNCENTRED, UNSHARPENED, FLAT = "both", "no centring", "no sharpening", "no sharpening, T = 1"
TEACHERS = {BOTH: (SHARP, True), UNCENTRED: (SHARP, False), UNSHARPENED: (STUDENT, True), FLAT: (1.0, True)}
"""The teacher's temperature, and whether its scores are centred."""
ONE_ANSWER, UNIFORM = "one answer for all pictures", "uniform targets"


def make(variant: str) -> DINO:
    """Return DINO on a small tower, with or without its two precautions."""
    temperature, centred = TEACHERS[variant]
    config = DINOConfig(
        small_crops=2, prototypes=PROTOTYPES, head_hidden=256, head_dim=64, temperature=STUDENT,
        teacher_temperature=temperature, teacher_temperature_start=temperature, momentum=0.99,
        centering="centre" if centred else "none",
    )  # fmt: skip
    return DINO(config, ViT(VIT), CELL_PREPROCESS)


def large(images: Images) -> Images:
    """A large crop."""
    return colours(crops(images, (0.5, 1.0)))


def small(images: Images) -> Images:
    """A small crop, of half the side."""
    return colours(crops(images, (0.2, 0.5), CELL // 2))


def trial(trial: Trial) -> Figures:
    """Train DINO, and say how its targets are spread at the end and what the collapse watch makes of them."""
    seen, measured = cells(trial, "train", coloured=False), cells(trial, trial.split, coloured=False)
    torch.manual_seed(trial.seed)
    method = make(trial.variant)

    def nearest(encode: Callable[[Images], Tensor]) -> float:
        scores = knn_scores(encode(seen.images), seen.labels, encode(measured.images), classes=CLASSES)
        return accuracy(scores, measured)

    untrained = nearest(lambda images: pooled(method.encoder, images))
    tail: deque[dict[str, Tensor]] = deque(maxlen=TAIL)
    optimizer = torch.optim.AdamW(learning(method), lr=1e-3, weight_decay=0.04)
    torch.manual_seed(trial.seed)
    train(
        method, [large, large, small, small], seen, steps=trial.steps(STEPS), batch=BATCH, optimizer=optimizer,
        seed=trial.seed, watch=tail.append,
    )  # fmt: skip
    scalars = {name: fmean(step[name].item() for step in tail) for name in tail[0]}
    most = math.log(PROTOTYPES)
    found = {finding.name for finding in diagnose(scalars, most)}
    return {
        "target_entropy": scalars["teacher_entropy"] / most,
        "mean_target_entropy": scalars["marginal_entropy"] / most,
        "loss": scalars["loss"] / most,
        "kl": scalars["kl"],
        "spread": scalars["spread"],
        "says_one_answer": float(ONE_ANSWER in found),
        "says_uniform": float(UNIFORM in found),
        "knn": nearest(lambda images: pooled(method.encoder, images)),
        "knn_untrained": untrained,
        "knn_pixels": nearest(flat_pixels),
    }


def _is(
    name: str, variant: str, quantity: str, relation: Literal["<", ">"], bound: float, primary: bool = True
) -> Comparison:
    return Comparison(f"{variant}: {name}", f"{variant}@{WHERE}", bound, quantity, relation, primary=primary)


CLAIM = Claim(
    name="dino-collapse",
    room="represent",
    methods=("dino",),
    source="Caron et al. 2021, arXiv:2104.14294, section 5.3 and figure 7 (entropy of the teacher's answers and KL "
    "divergence, with one of the two left out, tell the two collapses apart)",
    hypothesis="Without centring the teacher gives every picture one and the same prototype: the entropy of its mean "
    "answer falls below 0.15 of ln K. Without sharpening, that is with the student's own temperature, its answers "
    "become flat: their entropy is above 0.95 of ln K, and the KL divergence from the student's below a tenth of the "
    "healthy one. With both neither happens, and the collapse watch names the right cause in each case.",
    data=CELLS_DATA.format(colours="white"),
    scaled_down="The paper trains ViT-S/16 with 65,536 prototypes on ImageNet; here a ViT of three blocks with 16 "
    "patches of 4 × 4, 256 prototypes, two crops of 16 and two of 8 pixels, 200 steps of 64 pictures by AdamW at "
    "1e-3. The student's temperature is 0.1 and the sharp teacher's 0.02 throughout (the paper tries that too; at "
    "0.04 so few steps leave the answers nearly flat, as seen on validation with another seed), momentum 0.99, centre "
    "0.9. Entropies are those of a batch's 128 targets, means of the last 20 steps. A teacher at temperature 1 is flat "
    "because scores are cosines, whatever was learned; it is run to see what the watch says, and decides nothing. "
    "Nearest neighbours are printed and decide nothing: a collapsed head can stand on a tower that is as good as any "
    "at this size.",
    trial=trial,
    conditions=(WHERE,),
    variants=tuple(TEACHERS),
    comparisons=(
        _is("entropy of the mean target, of ln K", UNCENTRED, "mean_target_entropy", "<", 0.15),
        _is("entropy of a target, of ln K", UNCENTRED, "target_entropy", "<", 0.15),
        _is("entropy of a target, of ln K", UNSHARPENED, "target_entropy", ">", 0.95),
        Comparison(f"{UNSHARPENED}: KL against that with both", f"{UNSHARPENED}@{WHERE}", f"{BOTH}@{WHERE}", "kl", "<",
                   0.1, ratio=True),
        _is("entropy of the mean target, of ln K", BOTH, "mean_target_entropy", ">", 0.5),
        _is("entropy of a target, of ln K", BOTH, "target_entropy", "<", 0.95),
        _is("the watch says one answer", UNCENTRED, "says_one_answer", ">", 0.5, primary=False),
        _is("the watch says uniform", UNSHARPENED, "says_uniform", ">", 0.5, primary=False),
        _is("the watch says one answer", BOTH, "says_one_answer", "<", 0.5, primary=False),
        _is("the watch says uniform", BOTH, "says_uniform", "<", 0.5, primary=False),
        _is("the watch says uniform", FLAT, "says_uniform", ">", 0.5, primary=False),
        _is("entropy of a target, of ln K", FLAT, "target_entropy", ">", 0.98, primary=False),
        *(Comparison(f"nearest neighbours: both against {other}", f"{BOTH}@{WHERE}", f"{other}@{WHERE}", "knn", ">",
                     primary=False) for other in (UNCENTRED, UNSHARPENED)),
    ),
    plots=(
        Plot("target_entropy", "entropy of a target, of ln K"),
        Plot("mean_target_entropy", "entropy of the mean target, of ln K"),
        Plot("kl", "KL from the student's answers, nats"),
        Plot("knn", "nearest neighbours, %"),
    ),
    seeds=(1, 2, 3),
)  # fmt: skip
