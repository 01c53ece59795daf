"""MoCo's claims: the encoder of the keys must be slow; a longer queue is better, and costs next to nothing."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from odonata.backbones.resnet import ResNet
from odonata.claims.claim import Claim, Comparison, Figures, Plot, Trial
from odonata.claims.represent_toy import (
    CELL_PREPROCESS,
    CELLS_DATA,
    TOWER,
    Pictures,
    cells,
    flat_pixels,
    learning,
    measure,
    moco_view,
    pooled,
    train,
)
from odonata.data.pictures import ViewBatch
from odonata.represent.moco import MoCo, MoCoConfig

BATCH = 64
STEPS = 600
DIM = 64
QUEUE = 1024
SLOW = 0.99
TAIL = 50
"""Last steps whose loss is averaged."""
MOMENTA = {"m = 0.99": SLOW, "m = 0": 0.0}
BASELINES = ("random tower", "pixels")
DATA = CELLS_DATA.format(colours="white")
_GRID = ({"lr": 0.06}, {"lr": 0.2})


def make(queue: int, momentum: float) -> MoCo:
    """Return MoCo v2 on a small tower."""
    config = MoCoConfig(dim=DIM, queue=queue, momentum=momentum, temperature=0.2, mlp=True, augmentation="v2")
    return MoCo(config, ResNet(TOWER), CELL_PREPROCESS)


def sgd(method: MoCo, lr: float) -> torch.optim.Optimizer:
    """Return MoCo's optimiser."""
    return torch.optim.SGD(learning(method), lr=lr, momentum=0.9, weight_decay=1e-4)


def run(trial: Trial, queue: int, momentum: float) -> Figures:
    """Train MoCo and measure its features."""
    seen, measured = cells(trial, "train", coloured=False), cells(trial, trial.split, coloured=False)
    torch.manual_seed(trial.seed)
    method = make(queue, momentum)
    optimizer = sgd(method, trial.setting["lr"])
    losses = train(
        method, [moco_view, moco_view], seen, steps=trial.steps(STEPS), batch=BATCH, optimizer=optimizer,
        seed=trial.seed,
    )  # fmt: skip
    tail = losses[-TAIL:]
    figures = measure(lambda images: pooled(method.backbone, images), seen, measured, trial.seed)
    return {**figures, "loss": sum(tail) / len(tail)}


def baseline(trial: Trial) -> Figures:
    """Measure the tower as it is drawn, or the pixels."""
    seen, measured = cells(trial, "train", coloured=False), cells(trial, trial.split, coloured=False)
    torch.manual_seed(trial.seed)
    tower = ResNet(TOWER)
    encode = flat_pixels if trial.variant == "pixels" else lambda images: pooled(tower, images)
    return measure(encode, seen, measured, trial.seed)


def slow_encoder_trial(trial: Trial) -> Figures:
    """Train with one momentum, or measure a baseline."""
    return baseline(trial) if trial.variant in BASELINES else run(trial, QUEUE, MOMENTA[trial.variant])


def queue_trial(trial: Trial) -> Figures:
    """Train with one length of the queue, or measure a baseline."""
    return baseline(trial) if trial.variant in BASELINES else run(trial, int(trial.variant.removeprefix("K = ")), SLOW)


_SCALED = (
    "The paper trains ResNet-50 on ImageNet for 200 epochs, batches of 256; here ResNet-8, {what}, 600 steps of 64 "
    "pictures, temperature 0.2, a projector of two layers. Two rates are tried for each variant."
)
_SLOW_VARIANTS = (*MOMENTA, *BASELINES)
_SLOW_WHERE = f"queue of {QUEUE}"

SLOW_ENCODER = Claim(
    name="moco-slow-encoder",
    room="represent",
    methods=("moco-v1", "moco-v2"),
    source="He et al. 2019, arXiv:1911.05722, section 4.1, ablation: momentum (m = 0 fails to converge, 0.99 works)",
    hypothesis="With a key encoder that follows slowly (m = 0.99) features are better than with one that is the "
    "query's own (m = 0), by nearest neighbours and by a linear probe.",
    data=DATA,
    scaled_down=_SCALED.format(what="a queue of 1,024"),
    trial=slow_encoder_trial,
    conditions=(_SLOW_WHERE,),
    variants=_SLOW_VARIANTS,
    comparisons=(
        *(Comparison(f"slow against m = 0, by {name}", f"m = 0.99@{_SLOW_WHERE}", f"m = 0@{_SLOW_WHERE}", name, ">")
          for name in ("knn", "probe")),
        *(Comparison(f"slow against the random tower, by {name}", f"m = 0.99@{_SLOW_WHERE}",
                     f"random tower@{_SLOW_WHERE}", name, ">", primary=False) for name in ("knn", "probe")),
        *(Comparison(f"m = 0 against the random tower, by {name}", f"m = 0@{_SLOW_WHERE}",
                     f"random tower@{_SLOW_WHERE}", name, ">", primary=False) for name in ("knn", "probe")),
        *(Comparison(f"slow against pixels, by {name}", f"m = 0.99@{_SLOW_WHERE}", f"pixels@{_SLOW_WHERE}", name, ">",
                     primary=False) for name in ("knn", "probe")),
        Comparison("loss at the end", f"m = 0.99@{_SLOW_WHERE}", f"m = 0@{_SLOW_WHERE}", "loss", "<", primary=False),
    ),
    plots=(Plot("knn", "nearest neighbours, %"), Plot("probe", "linear probe, %"), Plot("loss", "loss at the end")),
    grid=dict.fromkeys(_SLOW_VARIANTS, _GRID),
    tune_by="knn",
    seeds=(1, 2, 3),
)  # fmt: skip

_QUEUE_VARIANTS = ("K = 64", "K = 512", "K = 4096", *BASELINES)
_QUEUE_WHERE = "batch of 64"

QUEUE_LENGTH = Claim(
    name="moco-queue",
    room="represent",
    methods=("moco-v1", "moco-v2"),
    source="He et al. 2019, arXiv:1911.05722, section 4.1 and figure 3 (accuracy grows with K)",
    hypothesis="With a queue of 4,096 keys features are better than with one of 64, by nearest neighbours.",
    data=DATA,
    scaled_down=_SCALED.format(what="momentum 0.99") + " In the paper K grows from 256 to 65,536.",
    trial=queue_trial,
    conditions=(_QUEUE_WHERE,),
    variants=_QUEUE_VARIANTS,
    comparisons=(
        Comparison("4,096 against 64, by knn", f"K = 4096@{_QUEUE_WHERE}", f"K = 64@{_QUEUE_WHERE}", "knn", ">"),
        Comparison("4,096 against 64, by probe", f"K = 4096@{_QUEUE_WHERE}", f"K = 64@{_QUEUE_WHERE}", "probe", ">",
                   primary=False),
        Comparison("512 against 64, by knn", f"K = 512@{_QUEUE_WHERE}", f"K = 64@{_QUEUE_WHERE}", "knn", ">",
                   primary=False),
        Comparison("4,096 against the random tower, by knn", f"K = 4096@{_QUEUE_WHERE}",
                   f"random tower@{_QUEUE_WHERE}", "knn", ">", primary=False),
        Comparison("4,096 against pixels, by knn", f"K = 4096@{_QUEUE_WHERE}", f"pixels@{_QUEUE_WHERE}", "knn", ">",
                   primary=False),
    ),
    plots=(Plot("knn", "nearest neighbours, %"), Plot("probe", "linear probe, %")),
    grid=dict.fromkeys(_QUEUE_VARIANTS, _GRID),
    tune_by="knn",
    seeds=(1, 2, 3),
)  # fmt: skip


@dataclass
class Kept:
    """Counts the bytes that autograd keeps of a forward pass, each storage once."""

    storages: dict[int, tuple[int, Any]] = field(default_factory=dict[int, tuple[int, Any]])

    def keep(self, tensor: Tensor) -> Tensor:
        """Note a tensor that is kept for the backward pass."""
        storage = tensor.untyped_storage()
        # The storage itself is held, so that no later one can get its address.
        self.storages[storage.data_ptr()] = (storage.nbytes(), storage)
        return tensor

    @property
    def mib(self) -> float:
        """Their sum."""
        return sum(size for size, _ in self.storages.values()) / 2**20


def queue_loss(method: MoCo, seen: Pictures, rows: Tensor) -> Tensor:
    """Return MoCo's loss of a batch."""
    images = seen.images[rows]
    return method.loss(ViewBatch([images, images], seen.labels[rows], rows))["loss"]


def end_to_end_loss(method: MoCo, seen: Pictures, rows: Tensor) -> Tensor:
    """Return InfoNCE in the batch, with gradients to both sides; every other picture of the batch is a negative."""
    pixels = method.pixels(seen.images[rows])
    queries, keys = (F.normalize(method.projector(method.backbone(pixels)), dim=1) for _ in range(2))
    return F.cross_entropy(queries @ keys.T / 0.2, torch.arange(len(rows)))


def cost_trial(trial: Trial) -> Figures:
    """Measure the CPU time and the memory of a step with so many negatives."""
    negatives, end_to_end = int(trial.condition), trial.variant == "end to end"
    seen = cells(trial, "train", coloured=False)
    torch.manual_seed(trial.seed)
    method = make(negatives, SLOW).train()
    optimizer = sgd(method, 1e-3)
    batch = negatives + 1 if end_to_end else BATCH
    loss_of = end_to_end_loss if end_to_end else queue_loss
    spent: list[float] = []
    kept = Kept()
    for turn in range(1 + trial.steps(2 if batch > 1000 else 12)):
        rows = torch.randint(len(seen), (batch,))
        start = time.process_time()
        if turn == 0:  # a warm-up, on which the memory is counted
            with torch.autograd.graph.saved_tensors_hooks(kept.keep, lambda tensor: tensor):
                loss = loss_of(method, seen, rows)
        else:
            loss = loss_of(method, seen, rows)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        method.after_update()
        spent.append(time.process_time() - start)
    # The median: a step that the system interrupts looks longer even in CPU time.
    return {"step_ms": 1000 * sorted(spent[1:])[len(spent[1:]) // 2], "graph_mib": kept.mib}


QUEUE_COST = Claim(
    name="moco-queue-cost",
    room="represent",
    methods=("moco-v1", "moco-v2"),
    source="He et al. 2019, arXiv:1911.05722, sections 3.2 and 3.3 (the queue decouples the number of negatives from "
    "the batch; end to end, the batch is the dictionary)",
    hypothesis="64 times as many negatives make a step with a queue less than a quarter longer, and what autograd "
    "keeps less than a quarter larger; end to end they cost at least twenty times as much.",
    data=DATA,
    scaled_down="One step of ResNet-8 on a CPU: a batch of 64 with a queue of K, or end to end a batch of K + 1, both "
    "sides with gradients. Time is CPU time of one thread, the median of a few steps; memory is what autograd keeps of "
    "the forward pass.",
    trial=cost_trial,
    conditions=("64", "512", "4096"),
    variants=("queue", "end to end"),
    comparisons=(
        Comparison("queue: time, 4,096 to 64", "queue@4096", "queue@64", "step_ms", "<", 1.25, ratio=True),
        Comparison("queue: memory, 4,096 to 64", "queue@4096", "queue@64", "graph_mib", "<", 1.25, ratio=True),
        Comparison("end to end: time, 4,096 to 64", "end to end@4096", "end to end@64", "step_ms", ">", 20, ratio=True),
        Comparison("end to end: memory, 4,096 to 64", "end to end@4096", "end to end@64", "graph_mib", ">", 20,
                   ratio=True),
    ),
    plots=(
        Plot("step_ms", "CPU time of a step, ms", log=True),
        Plot("graph_mib", "kept for the backward pass, MiB", log=True),
    ),
    axis="negatives",
    seeds=(1, 2, 3),
)  # fmt: skip
