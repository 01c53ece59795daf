"""How the field measures frozen features: each protocol by its name, because they differ by points.

Every probe here learns on features computed once, without augmentation: minutes instead of hours on a CPU, and lower by
what crops and flips give. Steps, rates and schedules are the sources'. What each protocol does is data, so that
`odonata evaluate` can print in what they differ.

Sources: DINO `eval_knn.py`, `eval_linear.py` (Caron et al. 2021, app. F.1, F.2); MoCo `main_lincls.py` (He et al. 2019,
sec. 4.1); MAE `main_linprobe.py` (He et al. 2021, app. A.1, table 10); DINOv2 `eval/linear.py` (Oquab et al. 2023, app.
B.3); lightly `benchmarks` (kNN with k = 200, T = 0.1, as Wu et al. 2018); CLIP app. A.3 for `lbfgs`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from odonata.engine.lars import LARS
from odonata.errors import DataError
from odonata.metrics.probe import sweep_linear_probe

Tapping = Literal["pooled", "class_x4", "class_and_mean", "class_x4_and_mean"]


@dataclass(frozen=True)
class KNNProtocol:
    """Nearest neighbours by cosine, votes weighed by exp(cosine / temperature)."""

    k: int
    temperature: float
    source: str


@dataclass(frozen=True)
class ProbeProtocol:
    """A linear classifier on frozen features."""

    taps: Tapping
    """Pooled features; for plain transformers also the class tokens of the last blocks, and the mean of the patches."""
    optimizer: Literal["lbfgs", "sgd", "lars"]
    rates: tuple[float, ...]
    """Base rates for a batch of 256; more than one: the best on a held-out part of the training pictures."""
    epochs: int
    batch: int
    schedule: Literal["cosine", "steps", "none"]
    weight_decay: float
    normed: bool
    """Batch normalisation without affine parameters before the classifier."""
    source: str


KNN: dict[str, KNNProtocol] = {
    "dino": KNNProtocol(20, 0.07, "DINO eval_knn.py"),
    "lightly": KNNProtocol(200, 0.1, "lightly benchmarks; Wu et al. 2018"),
    "moco": KNNProtocol(200, 0.07, "InstDisc and MoCo's CIFAR demo"),
}

_DINOV2_RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)
_STRENGTHS = tuple(10.0**exponent for exponent in range(-3, 4))
PROBES: dict[str, ProbeProtocol] = {
    "lbfgs": ProbeProtocol("pooled", "lbfgs", (), 0, 0, "none", 0.0, False, "CLIP app. A.3; standardised, 7 penalties"),
    "mae": ProbeProtocol("pooled", "lars", (0.1,), 90, 16384, "cosine", 0.0, True, "MAE main_linprobe.py"),
    "moco": ProbeProtocol("pooled", "sgd", (30.0,), 100, 256, "steps", 0.0, False, "MoCo main_lincls.py"),
    "dino": ProbeProtocol("class_x4", "sgd", (1e-3,), 100, 1024, "cosine", 0.0, False, "DINO eval_linear.py, ViT-S"),
    "dinov2": ProbeProtocol(
        "class_x4_and_mean",
        "sgd",
        _DINOV2_RATES,
        10,
        1024,
        "cosine",
        0.0,
        False,
        "DINOv2 eval/linear.py, its grid of rates",
    ),
}
"""Protocols by name."""


def differences(names: list[str]) -> list[tuple[str, list[str]]]:
    """Return, for each field in which the named probes differ, its values in their order."""
    protocols = [PROBES[name] for name in names]
    rows: list[tuple[str, list[str]]] = []
    for field in ("taps", "optimizer", "rates", "epochs", "batch", "schedule", "normed", "source"):
        values = [str(getattr(protocol, field)) for protocol in protocols]
        if len(set(values)) > 1 or len(names) == 1:
            rows.append((field, values))
    return rows


def probe_scores(
    train: Float[Tensor, "train dim"],
    labels: Int[Tensor, " train"],
    test: Float[Tensor, "batch dim"],
    protocol: ProbeProtocol,
    *,
    classes: int,
    seed: int = 0,
) -> tuple[Float[Tensor, "batch classes"], str]:
    """Train a probe by a protocol and return its scores of the test features, and the setting that was chosen.

    Args:
        train: frozen features.
        labels: their classes.
        test: features of the pictures to classify.
        protocol: how.
        classes: their number.
        seed: of order and of the part on which a setting is chosen.

    Raises:
        DataError: a class has no training picture.
    """
    missing = sorted(set(range(classes)) - set(labels.tolist()))
    if missing:
        raise DataError(f"class number {missing[0]} has no training picture")
    fitting, choosing = _hold_out(labels, seed)
    if protocol.optimizer == "lbfgs":
        train, test = _standardised(train, test)
        probe, accuracy = sweep_linear_probe(
            train[fitting], labels[fitting], train[choosing], labels[choosing], sweep=_STRENGTHS, max_iterations=200
        )
        return probe.scores(test), f"l2 = {probe.l2:g} of {len(accuracy)}"
    if len(protocol.rates) == 1:
        return _descend(train, labels, test, protocol, protocol.rates[0], classes, seed), f"rate {protocol.rates[0]:g}"
    best, best_rate = -1.0, protocol.rates[0]
    for rate in protocol.rates:
        scores = _descend(train[fitting], labels[fitting], train[choosing], protocol, rate, classes, seed)
        share = float((scores.argmax(1) == labels[choosing]).double().mean())
        if share > best:
            best, best_rate = share, rate
    scores = _descend(train, labels, test, protocol, best_rate, classes, seed)
    return scores, f"rate {best_rate:g} of {len(protocol.rates)}"


def _standardised(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    """Return both with the training part's mean and deviation taken out, in at most as many directions as it has rows.

    An L2 penalty gives directions outside the span of the training rows a weight of zero, so nothing is lost.
    """
    mean, deviation = train.mean(0), train.std(0).clamp(min=1e-6)
    train, test = (train - mean) / deviation, (test - mean) / deviation
    if train.shape[1] <= train.shape[0]:
        return train, test
    directions = torch.linalg.svd(train, full_matrices=False).Vh.T
    return train @ directions, test @ directions


def _hold_out(labels: Tensor, seed: int, share: float = 0.2) -> tuple[Tensor, Tensor]:
    """Return rows to fit on and rows to choose on; each class keeps at least one row to fit on."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    fitting: list[int] = []
    choosing: list[int] = []
    for label in labels.unique().tolist():
        rows: list[int] = [i for i in order.tolist() if int(labels[i]) == label]
        cut = min(len(rows) - 1, round(share * len(rows)))
        choosing += rows[:cut]
        fitting += rows[cut:]
    if not choosing:
        choosing = fitting
    return torch.tensor(sorted(fitting)), torch.tensor(sorted(choosing))


def _descend(
    train: Tensor, labels: Tensor, test: Tensor, protocol: ProbeProtocol, rate: float, classes: int, seed: int
) -> Float[Tensor, "batch classes"]:
    """Train by gradient descent on the device of the features."""
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(train.shape[1], classes).to(train.device)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) * 0.01)
        layer.bias.zero_()
    norm: nn.Module = nn.BatchNorm1d(train.shape[1], eps=1e-6, affine=False) if protocol.normed else nn.Identity()
    batch = min(protocol.batch, len(train))
    lr = rate * batch / 256
    groups = [{"params": [layer.weight]}, {"params": [layer.bias], "adapt": False}]
    optimizer: torch.optim.Optimizer
    if protocol.optimizer == "lars":
        optimizer = LARS(groups, lr, 0.9, protocol.weight_decay)
    else:
        optimizer = torch.optim.SGD(layer.parameters(), lr, momentum=0.9, weight_decay=protocol.weight_decay)
    per_epoch = max(1, len(train) // batch)
    steps = protocol.epochs * per_epoch
    for step in range(steps):
        if step % per_epoch == 0:
            order = torch.randperm(len(train), generator=generator)
        rows = order[(step % per_epoch) * batch : (step % per_epoch + 1) * batch]  # pyright: ignore[reportPossiblyUnboundVariable]
        for group in optimizer.param_groups:
            group["lr"] = lr * _factor(protocol, step / steps)
        with torch.enable_grad():
            loss = F.cross_entropy(layer(norm(train[rows])), labels[rows])
            optimizer.zero_grad()
            loss.backward()
        optimizer.step()
    norm.eval()
    with torch.no_grad():
        return layer(norm(test))


def _factor(protocol: ProbeProtocol, done: float) -> float:
    if protocol.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    if protocol.schedule == "steps":
        return 0.1 ** ((done >= 0.6) + (done >= 0.8))
    return 1.0
