"""FLIP's claim: half of the patches give the same accuracy in half of the time."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from odonata.align.losses import softmax_loss
from odonata.backbones.vit import ViT, ViTConfig
from odonata.claims.align_toy import (
    TEST_PAIRS,
    Pairs,
    TextTower,
    optimise,
    paint_grids,
    recall_at_1,
    shuffled_batches,
)
from odonata.claims.claim import Claim, Comparison, Figures, Plot, Trial

CELLS = 4
NOISE = 30.0
PAIRS = 20_000
BATCH = 128
STEPS = 300
TAIL = 15
"""Of the masked variants' steps, the last ones see every patch (unmasked tuning), at a tenth of the rate."""
MASKED = 0.5
DIM = 64
VIT = ViTConfig(
    image_size=16, patch_size=2, width=48, depth=2, num_heads=4, mlp_width=192, class_token=False, pool="mean",
    positions="sincos_2d",
)  # fmt: skip


class TwoTowers(nn.Module):
    """A small ViT and a text transformer."""

    def __init__(self, masked: float) -> None:
        super().__init__()
        self.visual = ViT(VIT)
        self.visual.patch_dropout.ratio = masked
        self.visual_projection = nn.Linear(VIT.width, DIM, bias=False)
        self.text = TextTower(CELLS, DIM, width=32)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def embed(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """Return unit-length embeddings."""
        image = self.visual_projection(self.visual(pairs.images))
        return F.normalize(image, dim=-1), F.normalize(self.text(pairs.captions), dim=-1)

    def loss(self, pairs: Pairs) -> Tensor:
        """Return CLIP's loss."""
        return softmax_loss(*self.embed(pairs), self.logit_scale, process_group="local")

    def clamp(self) -> None:
        """Keep the scale in [1, 100]."""
        with torch.no_grad():
            self.logit_scale.clamp_(0, math.log(100))

    @torch.no_grad()
    def recall(self, pairs: Pairs) -> float:
        """Return R@1 in percent, with every patch."""
        self.eval()
        recall = recall_at_1(*self.embed(pairs))
        self.train()
        return recall


def step_time_ratio(pairs: Pairs) -> float:
    """Return how many masked steps cost as much CPU time as one unmasked: 12 of each by turns, after a warm-up."""
    models = [TwoTowers(0.0), TwoTowers(MASKED)]
    optimizers = [torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True) for model in models]
    spent = [0.0, 0.0]
    batch = pairs.at(torch.arange(BATCH))
    for turn in range(14):
        for number, model in enumerate(models):
            start = time.process_time()
            optimizers[number].zero_grad()
            model.loss(batch).backward()
            optimizers[number].step()
            if turn >= 2:
                spent[number] += time.process_time() - start
    return spent[0] / spent[1]


def _train(model: TwoTowers, pairs: Pairs, steps: int, lr: float, batches: Iterator[Tensor]) -> float:
    """Train, and return the CPU seconds."""
    groups: list[dict[str, object]] = [{"params": [*model.parameters()], "lr": lr}]
    start = time.process_time()
    optimise(groups, steps, (next(batches) for _ in range(steps)), lambda rows: model.loss(pairs.at(rows)), model.clamp)
    return time.process_time() - start


def trial(trial: Trial) -> Figures:
    """Train two towers, with every patch or with half of them, and measure time and accuracy."""
    masked = trial.variant != "all patches"
    pairs = paint_grids(PAIRS, "train", trial.seed, NOISE)
    measured = paint_grids(TEST_PAIRS, trial.split, trial.seed, NOISE)
    full, tail = trial.steps(STEPS), trial.steps(TAIL) if masked else 0
    # Measured in every trial, though only one variant uses it: so each begins with a process that is warm.
    ratio = step_time_ratio(pairs)
    steps = full - tail
    if trial.variant == "half, equal time":
        steps = round(steps * ratio)
    torch.manual_seed(trial.seed)
    model = TwoTowers(MASKED if masked else 0.0)
    batches = shuffled_batches(PAIRS, BATCH, steps + tail, trial.seed)
    lr = trial.setting["lr"]
    seconds = _train(model, pairs, steps, lr, batches)
    figures = {"r1": model.recall(measured), "steps": steps + tail}
    if masked:
        figures["r1_before_tuning"] = figures["r1"]
        model.visual.patch_dropout.ratio = 0.0
        seconds += _train(model, pairs, tail, lr / 10, batches)
        figures["r1"] = model.recall(measured)
        figures["gain_of_tuning"] = figures["r1"] - figures["r1_before_tuning"]
    return {**figures, "training_cpu_seconds": seconds}


_VARIANTS = ("all patches", "half, equal steps", "half, equal time")
_WHERE = "16 px"

CLAIM = Claim(
    name="flip-masking",
    room="align",
    methods=("flip",),
    source="Li et al. 2022, arXiv:2212.00794, table 1 (masking ratio 50 %) and figure 1",
    hypothesis="With half of the patches dropped, equally many steps take less than 0.6 of the time and cost no more "
    "than 2 points of R@1, and in equal time the model is better than with all patches.",
    data="Pictures of 16 × 16 pixels: two by two real handwritten digits (UCI, 8 × 8 pixels each) in one of 8 "
    "colours on a noisy ground, with generated captions that name them in order; 20,000 training pairs, R@1 among "
    "1,000 pairs of handwriting never seen. The image tower is a ViT of two blocks with 64 patches of 2 × 2, from "
    "scratch.",
    scaled_down="The paper trains ViT-L/16 on 400 M pairs; here a ViT of 60,000 weights sees 38,000 samples. At "
    "equal time the number of masked steps is set by timing a few steps of either kind at the start of the trial. "
    "The last 15 masked steps see all patches at a tenth of the rate. Rates are tuned over the same three.",
    trial=trial,
    conditions=(_WHERE,),
    variants=_VARIANTS,
    comparisons=(
        Comparison("time of equally many steps", f"half, equal steps@{_WHERE}", f"all patches@{_WHERE}",
                   "training_cpu_seconds", "<", 0.6, ratio=True),
        Comparison("accuracy at equal steps", f"half, equal steps@{_WHERE}", f"all patches@{_WHERE}", "r1", ">", -2.0),
        Comparison("accuracy in equal time", f"half, equal time@{_WHERE}", f"all patches@{_WHERE}", "r1", ">"),
        Comparison("the two times are equal (above 0.9)", f"half, equal time@{_WHERE}", f"all patches@{_WHERE}",
                   "training_cpu_seconds", ">", 0.9, ratio=True, primary=False),
        Comparison("the two times are equal (below 1.1)", f"half, equal time@{_WHERE}", f"all patches@{_WHERE}",
                   "training_cpu_seconds", "<", 1.1, ratio=True, primary=False),
        Comparison("unmasked tuning helps", f"half, equal steps@{_WHERE}", 0.0, "gain_of_tuning", ">", primary=False),
    ),
    plots=(Plot("r1", "R@1 among 1,000 pairs, %"), Plot("training_cpu_seconds", "CPU time of training, s")),
    axis="side of the pictures",
    grid=dict.fromkeys(_VARIANTS, tuple({"lr": lr} for lr in (1e-3, 2e-3, 4e-3))),
    tune_by="r1",
)  # fmt: skip
