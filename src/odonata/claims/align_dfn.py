"""DFN's claim: a filter trained on few clean pairs finds the good part of a noisy pool."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from torch import Tensor, nn

from odonata.align.losses import softmax_loss
from odonata.claims.align_toy import (
    TEST_PAIRS,
    Pairs,
    TextTower,
    frozen_pairs,
    optimise,
    prepare_features,
    recall_at_1,
    shuffled_batches,
)
from odonata.claims.claim import Claim, Comparison, Figures, Plot, Trial

CELLS = 4
POOL_PAIRS = 20_000
CLEAN_PAIRS = 1_500
NOISY = 0.6
KEPT = 0.4
SAMPLES = 100_000
BATCH = 256
DIM = 32


class Model(nn.Module):
    """Trainable heads on frozen features: filter and induced model are of one kind, as in the paper."""

    def __init__(self, pairs: Pairs) -> None:
        super().__init__()
        self.image = nn.Linear(pairs.images.shape[1], DIM)
        self.text = TextTower(CELLS, DIM)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def embed(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """Return unit-length embeddings."""
        return F.normalize(self.image(pairs.images), dim=-1), F.normalize(self.text(pairs.captions), dim=-1)

    @torch.no_grad()
    def recall(self, pairs: Pairs) -> float:
        """Return R@1 in percent."""
        return recall_at_1(*self.embed(pairs))

    @torch.no_grad()
    def scores(self, pairs: Pairs) -> Tensor:
        """Return the cosine of every pair."""
        image, text = self.embed(pairs)
        return (image * text).sum(1)


def _train(trial: Trial, pairs: Pairs) -> Model:
    torch.manual_seed(trial.seed)
    model = Model(pairs)

    def loss_of(rows: Tensor) -> Tensor:
        return softmax_loss(*model.embed(pairs.at(rows)), model.logit_scale, process_group="local")

    def clamp() -> None:
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))

    steps = trial.steps(SAMPLES // BATCH)
    batches = shuffled_batches(len(pairs), BATCH, steps, trial.seed)
    optimise([{"params": [*model.parameters()], "lr": trial.setting["lr"]}], steps, batches, loss_of, clamp)
    return model


def spoil(
    captions: Int[Tensor, "pairs cells"], how: str, generator: torch.Generator
) -> tuple[Int[Tensor, "pairs cells"], Bool[Tensor, " pairs"]]:
    """Return captions of which a share is wrong, and which are.

    Args:
        captions: true ones.
        how: "shuffled" exchanges whole captions; "near miss" changes the digit or the colour of one cell.
        generator: chooses.
    """
    count, cells = captions.shape
    bad = torch.rand(count, generator=generator) < NOISY
    wrong = captions.clone()
    if how == "shuffled":
        rows = bad.nonzero().flatten()
        wrong[rows] = captions[rows[torch.randperm(len(rows), generator=generator)]]
    else:
        place = torch.randint(cells, (count, 1), generator=generator)
        old = captions.gather(1, place)
        digit = (old // 10) * 10 + (old + torch.randint(1, 10, old.shape, generator=generator)) % 10
        colour = (old + 10 * torch.randint(1, 8, old.shape, generator=generator)) % 80
        new = torch.where(torch.rand(old.shape, generator=generator) < 0.5, digit, colour)
        wrong = torch.where(bad[:, None], captions.scatter(1, place, new), captions)
    return wrong, bad & (wrong != captions).any(1)


def trial(trial: Trial) -> Figures:
    """Choose a training set from the noisy pool, train on it, and measure."""
    generator = torch.Generator().manual_seed(50_000 + trial.seed)
    everything = frozen_pairs(trial, POOL_PAIRS + CLEAN_PAIRS, CELLS, "train")
    clean = everything.at(torch.arange(POOL_PAIRS, POOL_PAIRS + CLEAN_PAIRS))
    captions, bad = spoil(everything.captions[:POOL_PAIRS], trial.condition.removesuffix(" captions"), generator)
    pool = Pairs(everything.images[:POOL_PAIRS], captions)
    measured = frozen_pairs(trial, TEST_PAIRS, CELLS, trial.split)
    figures: Figures = {}
    kept = int(KEPT * POOL_PAIRS)
    if trial.variant == "filtered":
        chooser = _train(trial, clean)
        rows = chooser.scores(pool).topk(kept).indices
        figures["filter_r1"] = chooser.recall(measured)
    elif trial.variant == "random":
        rows = torch.randperm(POOL_PAIRS, generator=generator)[:kept]
    elif trial.variant == "oracle":
        rows = (~bad).nonzero().flatten()[:kept]
    else:
        rows = torch.arange(POOL_PAIRS)
    figures["r1"] = _train(trial, pool.at(rows)).recall(measured)
    figures["purity"] = 100 * (~bad[rows]).float().mean().item()
    if "filter_r1" in figures:
        figures["above_filter"] = figures["r1"] - figures["filter_r1"]
    return figures


_CONDITIONS = ("shuffled captions", "near miss captions")
_VARIANTS = ("filtered", "random", "everything", "oracle")


def _both(name: str, treatment: str, control: str, primary: bool = True) -> list[Comparison]:
    return [
        Comparison(f"{name}, {where}", f"{treatment}@{where}", f"{control}@{where}", "r1", ">", primary=primary)
        for where in _CONDITIONS
    ]


CLAIM = Claim(
    name="dfn-filter",
    room="align",
    methods=("dfn",),
    source="Fang et al. 2023, arXiv:2309.17425, sections 3 and 4",
    hypothesis="A filter trained on 1,500 clean pairs keeps 40 % of a pool of which 60 % is wrong, and the model "
    "trained on that is better than one trained on as many pairs at random, and than one trained on the whole pool.",
    data="Strips of four coloured handwritten digits with generated captions, as frozen features (see "
    "siglip-batch-size): a pool of 20,000 pairs, 60 % of them with wrong captions, and 1,500 clean pairs; R@1 among "
    "1,000 clean pairs of handwriting never seen. Wrong captions are those of other pictures (shuffled), or differ "
    "in one digit or colour (near miss).",
    scaled_down="The paper filters billions of web pairs with a filter trained on some 350 M; noise here is "
    "artificial and its share known. Each model, and the filter, sees 100,000 samples; its rate is tuned over the "
    "same three.",
    trial=trial,
    conditions=_CONDITIONS,
    variants=_VARIANTS,
    comparisons=(
        *_both("better than as many at random", "filtered", "random"),
        *_both("better than the whole pool", "filtered", "everything"),
        *_both("as good as the clean part (oracle)", "filtered", "oracle", primary=False),
        Comparison("better than the filter itself, shuffled", "filtered@shuffled captions", 0.0, "above_filter", ">",
                   primary=False),
        Comparison("purer than the pool (40 %), near miss", "filtered@near miss captions", 100 * (1 - NOISY), "purity",
                   ">", primary=False),
    ),
    plots=(Plot("r1", "R@1 among 1,000 pairs, %"), Plot("purity", "true captions in the training set, %")),
    axis="what is wrong with 60 % of the pool",
    grid=dict.fromkeys(_VARIANTS, tuple({"lr": lr} for lr in (2e-3, 4e-3, 8e-3))),
    tune_by="r1",
    prepare=prepare_features,
)  # fmt: skip
