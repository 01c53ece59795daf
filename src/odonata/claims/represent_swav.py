"""SwAV's claims: clusters must be balanced, and small crops beside two large ones are worth their cost."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from odonata.backbones.resnet import ResNet
from odonata.claims.claim import Claim, Comparison, Figures, Plot, Trial
from odonata.claims.represent_toy import (
    CELL,
    CELL_PREPROCESS,
    CELLS_DATA,
    TOWER,
    Images,
    Look,
    Pictures,
    cells,
    colours,
    crops,
    flat_pixels,
    learning,
    measure,
    moco_view,
    pooled,
    train,
)
from odonata.data.pictures import ViewBatch
from odonata.represent.swav import SwAV, SwAVConfig

BATCH = 64
STEPS = 300
TAIL = 20
PROTOTYPES = 64
SMALL_CROPS = 4
BASELINES = ("random tower", "pixels")
WHERE = f"{PROTOTYPES} prototypes"
DATA = CELLS_DATA.format(colours="white")


def make(*, small_crops: int = 0, epsilon: float = 0.01, balanced: bool = True) -> SwAV:
    """Return SwAV on a small tower."""
    config = SwAVConfig(
        small_crops=small_crops, hidden=128, dim=64, prototypes=PROTOTYPES, epsilon=epsilon,
        sinkhorn_iterations=3 if balanced else 0,
    )  # fmt: skip
    return SwAV(config, ResNet(TOWER), CELL_PREPROCESS)


def adamw(method: SwAV, lr: float) -> torch.optim.Optimizer:
    """Return the optimiser of the room's recipe."""
    return torch.optim.AdamW(learning(method), lr=lr, weight_decay=1e-4)


def small_view(images: Images) -> Images:
    """A crop of a quarter to six tenths of the picture, of half its side."""
    return colours(crops(images, (0.25, 0.6), CELL // 2))


@torch.no_grad()
def prototypes_used(method: SwAV, images: Images) -> int:
    """Return how many prototypes are the nearest of some picture."""
    embeddings = F.normalize(method.projector.eval()(pooled(method.encoder, images)), dim=1)
    nearest = (embeddings @ F.normalize(method.prototypes.weight, dim=1).T).argmax(1)
    return len(nearest.unique())


def baseline(trial: Trial) -> Figures:
    """Measure the tower as it is drawn, or the pixels."""
    seen, measured = cells(trial, "train", coloured=False), cells(trial, trial.split, coloured=False)
    torch.manual_seed(trial.seed)
    tower = ResNet(TOWER)
    encode = flat_pixels if trial.variant == "pixels" else lambda images: pooled(tower, images)
    return measure(encode, seen, measured, trial.seed)


def equipartition_trial(trial: Trial) -> Figures:
    """Train SwAV with codes that are balanced or not, and count the prototypes that are left in use."""
    if trial.variant in BASELINES:
        return baseline(trial)
    seen, measured = cells(trial, "train", coloured=False), cells(trial, trial.split, coloured=False)
    torch.manual_seed(trial.seed)
    method = make(epsilon=trial.setting["epsilon"], balanced=trial.variant == "Sinkhorn")
    losses = train(
        method, [moco_view, moco_view], seen, steps=trial.steps(STEPS), batch=BATCH, optimizer=adamw(method, 4e-3),
        seed=trial.seed,
    )  # fmt: skip
    tail = losses[-TAIL:]
    return {
        "prototypes_used": prototypes_used(method, measured.images),
        "loss": sum(tail) / len(tail) / math.log(PROTOTYPES),
        **measure(lambda images: pooled(method.encoder, images), seen, measured, trial.seed),
    }


_CODES = ("Sinkhorn", "plain softmax", *BASELINES)

EQUIPARTITION = Claim(
    name="swav-equipartition",
    room="represent",
    methods=("swav",),
    source="Caron et al. 2020, arXiv:2006.09882, section 3.1 (the equipartition keeps codes of different pictures "
    "distinct and prevents the trivial solution in which all have the same)",
    hypothesis="With codes that Sinkhorn's algorithm balances more than half of the prototypes are the nearest of some "
    "test picture after training; with codes by a plain softmax fewer than a tenth are, and the loss falls below a "
    "tenth of ln K.",
    data=DATA,
    scaled_down="The paper trains ResNet-50 with 3,000 prototypes on ImageNet; here ResNet-8 with 64, two crops, 300 "
    "steps of 64 pictures by AdamW at 4e-3, no queue. The temperature of the codes, ε, is tuned over the same two for "
    "both. What the collapse does to nearest neighbours and probe is printed and decides nothing.",
    trial=equipartition_trial,
    conditions=(WHERE,),
    variants=_CODES,
    comparisons=(
        Comparison("Sinkhorn: prototypes in use", f"Sinkhorn@{WHERE}", 0.5 * PROTOTYPES, "prototypes_used", ">"),
        Comparison("plain softmax: prototypes in use", f"plain softmax@{WHERE}", 0.1 * PROTOTYPES, "prototypes_used",
                   "<"),
        Comparison("plain softmax: loss, of ln K", f"plain softmax@{WHERE}", 0.1, "loss", "<"),
        *(Comparison(f"{by}: Sinkhorn against {other}", f"Sinkhorn@{WHERE}", f"{other}@{WHERE}", by, ">",
                     primary=False) for other in _CODES[1:] for by in ("knn", "probe")),
    ),
    plots=(
        Plot("prototypes_used", f"prototypes in use, of {PROTOTYPES}"),
        Plot("loss", "loss at the end, of ln K"),
        Plot("knn", "nearest neighbours, %"),
    ),
    grid=dict.fromkeys(_CODES, ({"epsilon": 0.05}, {"epsilon": 0.01})),
    tune_by="knn",
    seeds=(1, 2, 3),
)  # fmt: skip


@dataclass(frozen=True)
class Crops:
    """How pictures are looked at."""

    small: int
    equal_time: bool = False

    @property
    def looks(self) -> Sequence[Look]:
        """Large crops first."""
        return [moco_view, moco_view, *[small_view] * self.small]


TWO, MORE, IN_TIME = "2 × 16", "2 × 16 + 4 × 8", "2 × 16 + 4 × 8, equal time"
CROPS = {TWO: Crops(0), MORE: Crops(SMALL_CROPS), IN_TIME: Crops(SMALL_CROPS, equal_time=True)}


def step_time_ratio(seen: Pictures, turns: int) -> float:
    """Return the CPU time of a step with two crops, of one with small ones beside them: by turns, after a warm-up."""
    kinds = [(make(small_crops=kind.small), kind.looks) for kind in (CROPS[TWO], CROPS[MORE])]
    spent = [0.0, 0.0]
    rows = torch.arange(BATCH)
    images = seen.images[rows]
    for turn in range(2 + turns):
        for number, (method, looks) in enumerate(kinds):
            start = time.process_time()
            method.loss(ViewBatch([look(images) for look in looks], seen.labels[rows], rows))["loss"].backward()
            if turn >= 2:
                spent[number] += time.process_time() - start
    return spent[0] / spent[1]


def multi_crop_trial(trial: Trial) -> Figures:
    """Train SwAV with two crops or with small ones beside them, for as many steps or for as long."""
    if trial.variant in BASELINES:
        return baseline(trial)
    seen, measured = cells(trial, "train", coloured=False), cells(trial, trial.split, coloured=False)
    kind, steps = CROPS[trial.variant], trial.steps(STEPS)
    # Measured in every trial, though only one variant uses it: so each begins with a process that is warm.
    ratio = step_time_ratio(seen, trial.steps(12))
    if kind.equal_time:
        steps = max(2, round(steps * ratio))
    torch.manual_seed(trial.seed)
    method = make(small_crops=kind.small)
    start = time.process_time()
    losses = train(
        method, kind.looks, seen, steps=steps, batch=BATCH, optimizer=adamw(method, trial.setting["lr"]),
        seed=trial.seed,
    )  # fmt: skip
    tail = losses[-TAIL:]
    return {
        "training_cpu_seconds": time.process_time() - start,
        "steps": steps,
        "prototypes_used": prototypes_used(method, measured.images),
        "loss": sum(tail) / len(tail) / math.log(PROTOTYPES),
        **measure(lambda images: pooled(method.encoder, images), seen, measured, trial.seed),
    }


_CROPPED = (*CROPS, *BASELINES)

MULTI_CROP = Claim(
    name="swav-multi-crop",
    room="represent",
    methods=("swav",),
    source="Caron et al. 2020, arXiv:2006.09882, section 3.2 and figure 3 (multi-crop gains 2 to 4 points on ImageNet "
    "at about the cost of two full crops)",
    hypothesis="With four small crops beside the two large ones, features are better by nearest neighbours than with "
    "the two alone, trained for as long.",
    data=DATA,
    scaled_down="The paper trains ResNet-50 on ImageNet for hundreds of epochs and makes room for the small crops by "
    "shrinking the large ones to 160 pixels; here ResNet-8 learns for 300 steps of 64 pictures, small crops of 8 "
    "beside 16 pixels, and at equal time the number of steps is what falls, set by timing a few steps of either kind "
    "at the start of the trial. 64 prototypes, ε 0.01, AdamW. Two rates are tried for each.",
    trial=multi_crop_trial,
    conditions=(WHERE,),
    variants=_CROPPED,
    comparisons=(
        Comparison("knn: small crops too, in equal time", f"{IN_TIME}@{WHERE}", f"{TWO}@{WHERE}", "knn", ">"),
        Comparison("probe: small crops too, in equal time", f"{IN_TIME}@{WHERE}", f"{TWO}@{WHERE}", "probe", ">",
                   primary=False),
        *(Comparison(f"{by}: small crops too, in equally many steps", f"{MORE}@{WHERE}", f"{TWO}@{WHERE}", by, ">",
                     primary=False) for by in ("knn", "probe")),
        *(Comparison(f"{by}: two crops against {other}", f"{TWO}@{WHERE}", f"{other}@{WHERE}", by, ">",
                     primary=False) for other in BASELINES for by in ("knn", "probe")),
        Comparison("the two times are equal (above 0.85)", f"{IN_TIME}@{WHERE}", f"{TWO}@{WHERE}",
                   "training_cpu_seconds", ">", 0.85, ratio=True, primary=False),
        Comparison("the two times are equal (below 1.15)", f"{IN_TIME}@{WHERE}", f"{TWO}@{WHERE}",
                   "training_cpu_seconds", "<", 1.15, ratio=True, primary=False),
    ),
    plots=(
        Plot("knn", "nearest neighbours, %"),
        Plot("probe", "linear probe, %"),
        Plot("training_cpu_seconds", "CPU time of training, s"),
    ),
    grid=dict.fromkeys(_CROPPED, ({"lr": 2e-3}, {"lr": 6e-3})),
    tune_by="knn",
    seeds=(1, 2, 3),
)  # fmt: skip
