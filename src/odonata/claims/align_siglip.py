"""SigLIP's claims: the sigmoid at small batches, and the start of its bias."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from odonata.align.losses import sigmoid_loss, softmax_loss
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
PAIRS = 20_000
SAMPLES = 200_000
DIM = 32
MAX_LOG_SCALE = math.log(100)

DATA = (
    "Strips of four cells, each a real handwritten digit (UCI, 1,797 exemplars) in one of 8 colours on a noisy ground, "
    "with generated captions that name the cells in order: 20,000 training pairs, R@1 among 1,000 pairs of handwriting "
    "never seen. As in LiT the image tower is frozen (a small convolutional net trained with labels on training "
    "handwriting); a linear image head and a one-block text transformer learn."
)
SCALED_DOWN = (
    "The paper trains SigLiT on billions of web pairs with batches of 512 to 10⁶; here 200,000 samples of 20,000 pairs "
    "are seen, with batches of 16 to 256."
)


@dataclass
class Heads:
    """What learns on frozen features, and the scalars of the loss."""

    image: nn.Linear
    text: TextTower
    logit_scale: nn.Parameter
    logit_bias: nn.Parameter

    @classmethod
    def fresh(cls, pairs: Pairs, log_scale: float, bias: float) -> Heads:
        """Return heads for these pairs; the same for the same state of torch's generator."""
        image = nn.Linear(pairs.images.shape[1], DIM)
        text = TextTower(CELLS, DIM)
        return cls(image, text, nn.Parameter(torch.tensor(log_scale)), nn.Parameter(torch.tensor(bias)))

    def embed(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """Return unit-length embeddings."""
        return F.normalize(self.image(pairs.images), dim=-1), F.normalize(self.text(pairs.captions), dim=-1)

    def clamp(self) -> None:
        """Keep the scale in [1, 100]."""
        with torch.no_grad():
            self.logit_scale.clamp_(0, MAX_LOG_SCALE)

    def recall(self, pairs: Pairs) -> float:
        """Return R@1 in percent."""
        with torch.no_grad():
            return recall_at_1(*self.embed(pairs))


def _train(
    trial: Trial, heads: Heads, pairs: Pairs, batch: int, lr: float, sigmoid: bool, fixed_bias: bool
) -> list[float]:
    def loss_of(rows: Tensor) -> Tensor:
        image, text = heads.embed(pairs.at(rows))
        if sigmoid:
            return sigmoid_loss(image, text, heads.logit_scale, heads.logit_bias, process_group="local")
        return softmax_loss(image, text, heads.logit_scale, process_group="local")

    scalars = [heads.logit_scale] if fixed_bias or not sigmoid else [heads.logit_scale, heads.logit_bias]
    scalar_lr = lr * trial.setting.get("scalar_lr_factor", 1.0)
    steps = trial.steps(SAMPLES // batch)
    groups: list[dict[str, object]] = [
        {"params": [*heads.image.parameters(), *heads.text.parameters()], "lr": lr},
        {"params": scalars, "lr": scalar_lr, "weight_decay": 0.0},
    ]
    return optimise(groups, steps, shuffled_batches(len(pairs), batch, steps, trial.seed), loss_of, heads.clamp)


def batch_size_trial(trial: Trial) -> Figures:
    """Train heads with one loss at one batch size."""
    batch = int(trial.condition)
    torch.manual_seed(trial.seed)
    pairs = frozen_pairs(trial, PAIRS, CELLS, "train")
    heads = Heads.fresh(pairs, math.log(trial.setting["scale_init"]), -10.0)
    # The rate that suits a batch grows like its root; the grid stands for a batch of 16.
    lr = trial.setting["lr_at_16"] * math.sqrt(batch / 16)
    _train(trial, heads, pairs, batch, lr, trial.variant == "sigmoid", fixed_bias=False)
    recall = heads.recall(frozen_pairs(trial, TEST_PAIRS, CELLS, trial.split))
    return {"r1": recall, "scale": heads.logit_scale.exp().item(), "bias": heads.logit_bias.item()}


_BATCH_SIZE_GRID = tuple(
    {"lr_at_16": lr, "scale_init": scale, "scalar_lr_factor": factor}
    for lr in (5e-4, 1e-3, 2e-3)
    for scale in (10.0, 20.0)
    for factor in (1.0, 10.0)
)

BATCH_SIZE = Claim(
    name="siglip-batch-size",
    room="align",
    methods=("siglip", "clip"),
    source="Zhai et al. 2023, arXiv:2303.15343, section 4.2 and figure 2",
    hypothesis="Seeing equally many samples, the sigmoid loss retrieves better than the softmax loss at small batches, "
    "and its lead shrinks as the batch grows.",
    data=DATA,
    scaled_down=SCALED_DOWN
    + " Both losses are tuned over one grid of 12: rate × first scale × rate of the scalars; the "
    "sigmoid's bias starts at the paper's −10 and is not tuned. The paper's sigmoid leads below 16 k pairs.",
    trial=batch_size_trial,
    conditions=("16", "64", "256"),
    variants=("sigmoid", "softmax"),
    comparisons=(
        Comparison("sigmoid ahead at batch 16", "sigmoid@16", "softmax@16", "r1", ">"),
        Comparison("sigmoid ahead at batch 64", "sigmoid@64", "softmax@64", "r1", ">"),
        Comparison("lead shrinks from 16 to 256", "sigmoid@16 - softmax@16", "sigmoid@256 - softmax@256", "r1", ">"),
        Comparison("sigmoid ahead at batch 256", "sigmoid@256", "softmax@256", "r1", ">", primary=False),
    ),
    plots=(Plot("r1", "R@1 among 1,000 pairs, %"), Plot("scale", "learned scale t", log=True)),
    axis="batch size, pairs",
    grid={"sigmoid": _BATCH_SIZE_GRID, "softmax": _BATCH_SIZE_GRID},
    tune_by="r1",
    prepare=prepare_features,
)

BIAS_BATCH = 64
_BIASES = {"b = -10": -10.0, "b = -ln B": -math.log(BIAS_BATCH), "b = 0": 0.0, "no bias": 0.0}
_BIAS_GRID = tuple({"lr": lr, "scale_init": 10.0} for lr in (1e-3, 2e-3, 4e-3, 8e-3))


def bias_init_trial(trial: Trial) -> Figures:
    """Train heads with the sigmoid loss and one start of the bias."""
    torch.manual_seed(trial.seed)
    pairs = frozen_pairs(trial, PAIRS, CELLS, "train")
    heads = Heads.fresh(pairs, math.log(trial.setting["scale_init"]), _BIASES[trial.variant])
    losses = _train(trial, heads, pairs, BIAS_BATCH, trial.setting["lr"], True, fixed_bias=trial.variant == "no bias")
    recall = heads.recall(frozen_pairs(trial, TEST_PAIRS, CELLS, trial.split))
    early = losses[:100]
    return {"r1": recall, "early_loss": sum(early) / len(early), "bias": heads.logit_bias.item()}


BIAS_INIT = Claim(
    name="siglip-bias-init",
    room="align",
    methods=("siglip",),
    source="Zhai et al. 2023, arXiv:2303.15343, section 3.2 and the ablation of the bias term",
    hypothesis="With a bias that starts at −10 the first steps are spared the loss of the many negatives, and the "
    "model ends better than with a bias that starts at 0, or with none.",
    data=DATA,
    scaled_down=SCALED_DOWN + " The batch is 64, where b = −ln 64 = −4.2 would be calibrated; the "
    "paper's −10 is meant for batches of 10⁴. Each variant's rate is tuned over the same four.",
    trial=bias_init_trial,
    conditions=("batch 64",),
    variants=tuple(_BIASES),
    comparisons=(
        Comparison("less loss in the first 100 steps than from 0", "b = -10@batch 64", "b = 0@batch 64",
                   "early_loss", "<", 1.0, ratio=True),
        Comparison("better in the end than from 0", "b = -10@batch 64", "b = 0@batch 64", "r1", ">"),
        Comparison("better in the end than without a bias", "b = -10@batch 64", "no bias@batch 64", "r1", ">"),
        Comparison("better in the end than from −ln B", "b = -10@batch 64", "b = -ln B@batch 64", "r1", ">",
                   primary=False),
    ),
    plots=(Plot("r1", "R@1 among 1,000 pairs, %"), Plot("early_loss", "mean loss of steps 1–100, nats", log=True)),
    grid=dict.fromkeys(_BIASES, _BIAS_GRID),
    tune_by="r1",
    prepare=prepare_features,
)  # fmt: skip
