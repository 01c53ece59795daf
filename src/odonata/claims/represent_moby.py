"""MoBY's claim: MoCo v2's queue and BYOL's asymmetry together, against each of the two alone."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from odonata.backbones.resnet import ResNet
from odonata.claims.claim import Claim, Comparison, Figures, Plot, Trial
from odonata.claims.represent_toy import (
    CELL_PREPROCESS,
    CELLS_DATA,
    TOWER,
    cells,
    flat_pixels,
    learning,
    measure,
    moco_view,
    pooled,
    train,
)
from odonata.data.pictures import ViewBatch
from odonata.represent.moby import MoBY, MoBYConfig
from odonata.represent.representation import embedding_spread

BATCH = 64
STEPS = 300
QUEUE = 1024
BASELINES = ("random tower", "pixels")
WHERE = "300 steps"


class WithoutPredictor(MoBY):
    """MoCo v2, both views queries in turn: MoBY less BYOL's predictor.

    Args:
        config: the method's options.
    """

    def __init__(self, config: MoBYConfig) -> None:
        super().__init__(config, ResNet(TOWER), CELL_PREPROCESS)
        self.predictor = nn.Sequential()


class WithoutQueue(MoBY):
    """BYOL (Grill et al. 2020, eq. 2): MoBY's networks, which agree on each picture and are compared with no other.

    Args:
        config: the method's options.
    """

    def __init__(self, config: MoBYConfig) -> None:
        super().__init__(config, ResNet(TOWER), CELL_PREPROCESS)

    def loss(self, batch: ViewBatch) -> dict[str, Tensor]:
        """Return the sum over both views of 2 − 2 cos."""
        views = [self.pixels(view) for view in batch.views]
        queries = [F.normalize(self.predictor(self.projector(self.backbone(view))), dim=1) for view in views]
        with torch.no_grad():
            keys = [F.normalize(self.slow_projector(self.slow_backbone(view)), dim=1) for view in views]
        cosines = [(query * key).sum(1).mean() for query, key in zip(queries, reversed(keys), strict=True)]
        return {"loss": 4 - 2 * (cosines[0] + cosines[1]), "spread": embedding_spread(queries[0])}


def make(variant: str) -> MoBY:
    """Return MoBY or one of its parents, with equal towers and heads."""
    config = MoBYConfig(dim=64, hidden=128, queue=QUEUE, momentum=0.99, temperature=0.2)
    if variant == "MoCo v2":
        return WithoutPredictor(config)
    if variant == "BYOL":
        return WithoutQueue(config)
    return MoBY(config, ResNet(TOWER), CELL_PREPROCESS)


def trial(trial: Trial) -> Figures:
    """Train MoBY or a parent, and measure its features; or measure a baseline."""
    seen, measured = cells(trial, "train", coloured=False), cells(trial, trial.split, coloured=False)
    if trial.variant == "pixels":
        return measure(flat_pixels, seen, measured, trial.seed)
    torch.manual_seed(trial.seed)
    method = make(trial.variant)
    figures: Figures = {}
    if trial.variant not in BASELINES:
        last: dict[str, Tensor] = {}
        optimizer = torch.optim.AdamW(learning(method), lr=trial.setting["lr"], weight_decay=0.05)
        torch.manual_seed(trial.seed)  # heads draw numbers when they are made: views must not depend on that
        train(
            method, [moco_view, moco_view], seen, steps=trial.steps(STEPS), batch=BATCH, optimizer=optimizer,
            seed=trial.seed, watch=last.update,
        )  # fmt: skip
        figures["spread"] = last["spread"].item()
    return figures | measure(lambda images: pooled(method.encoder, images), seen, measured, trial.seed)


_PARENTS = ("MoCo v2", "BYOL")
_VARIANTS = ("MoBY", *_PARENTS, *BASELINES)

CLAIM = Claim(
    name="moby-parents",
    room="represent",
    methods=("moby",),
    source="Xie et al. 2021, arXiv:2105.04553, section 3.1 (MoBY combines MoCo v2's queue and contrastive loss with "
    "BYOL's asymmetric encoders); its tables stand beside MoCo v3 and DINO, not beside these two",
    hypothesis="After equally many steps MoBY's features are no more than a point below those of either parent, by "
    "nearest neighbours.",
    data=CELLS_DATA.format(colours="white"),
    scaled_down="The paper trains DeiT-S and Swin-T on ImageNet for 300 epochs; here ResNet-8, because so short a run "
    "teaches a transformer nothing, and 300 steps of 64 pictures by AdamW. Each parent is MoBY less what the other "
    "gave: MoCo v2 without the predictor, BYOL with the cosine in place of the queues. Both views are queries in turn "
    "for all three; heads of two layers with batch normalisation, K = 1,024, temperature 0.2, momentum 0.99 on a half "
    "cosine. Two rates are tried for each.",
    trial=trial,
    conditions=(WHERE,),
    variants=_VARIANTS,
    comparisons=(
        *(Comparison(f"knn: MoBY against {parent}", f"MoBY@{WHERE}", f"{parent}@{WHERE}", "knn", ">", -1.0)
          for parent in _PARENTS),
        *(Comparison(f"{by}: MoBY is better than {parent}", f"MoBY@{WHERE}", f"{parent}@{WHERE}", by, ">",
                     primary=False) for parent in _PARENTS for by in ("knn", "probe")),
        *(Comparison(f"{by}: MoBY against {other}", f"MoBY@{WHERE}", f"{other}@{WHERE}", by, ">", primary=False)
          for other in BASELINES for by in ("knn", "probe")),
        Comparison("BYOL's embeddings have not collapsed", f"BYOL@{WHERE}", 0.05, "spread", ">", primary=False),
    ),
    plots=(Plot("knn", "nearest neighbours, %"), Plot("probe", "linear probe, %")),
    grid=dict.fromkeys(_VARIANTS, ({"lr": 1e-3}, {"lr": 4e-3})),
    tune_by="knn",
    seeds=(1, 2, 3),
)  # fmt: skip
