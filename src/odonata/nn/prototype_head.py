"""DINO's head: an MLP to a narrow unit-length vector, and its cosines with K prototypes.

Notable: the loss does not need the head's output as a whole. `cross_entropy` takes the narrow vectors and prototypes
and makes the K scores of a few rows at a time, once forward and once again backward, so that K = 65,536 fits. The
parameters have the names of the published heads (`mlp.N`, `last_layer.weight_g`, `last_layer.weight_v`).

References: Caron et al. 2021, arXiv:2104.14294, sec. 3.1 and app. C; facebookresearch/dino `vision_transformer.py`.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from odonata.nn.precision import full_precision

MOST_SCORES = 2**25
"""Scores (rows × K) that are kept for the backward pass: 128 MiB in float32. Beyond it they are computed again."""


class Prototypes(nn.Module):
    """K vectors, each a direction and a length (Salimans and Kingma 2016, arXiv:1602.07868, eq. 2).

    Args:
        dim: width of a vector.
        count: K.
        fixed_length: keep all lengths at 1 (DINO's `norm_last_layer`: steadier, a little worse for small towers).
    """

    def __init__(self, dim: int, count: int, fixed_length: bool = True) -> None:
        super().__init__()
        self.weight_v = nn.Parameter(nn.init.kaiming_uniform_(torch.empty(count, dim), a=5**0.5))  # as nn.Linear has it
        self.weight_g = nn.Parameter(torch.ones(count, 1), requires_grad=not fixed_length)

    def forward(self) -> Float[Tensor, "classes dim"]:
        """Returns the vectors."""
        return self.weight_g * F.normalize(self.weight_v, dim=1)


class PrototypeHead(nn.Module):
    """MLP, unit length, prototypes.

    Args:
        dim: width of the features.
        prototypes: K.
        layers: of the MLP.
        hidden: its width.
        bottleneck: width of its output.
        batch_norm: normalise the hidden layers over the batch (DINO's `use_bn_in_head`).
        fixed_length: see `Prototypes`.
    """

    def __init__(
        self,
        dim: int,
        prototypes: int,
        *,
        layers: int = 3,
        hidden: int = 2048,
        bottleneck: int = 256,
        batch_norm: bool = False,
        fixed_length: bool = True,
    ) -> None:
        super().__init__()
        widths = [dim] + [hidden] * (layers - 1)
        parts: list[nn.Module] = []
        for before, after in pairwise(widths):
            parts += [nn.Linear(before, after), *([nn.BatchNorm1d(after)] if batch_norm else []), nn.GELU()]
        last = nn.Linear(widths[-1], bottleneck)
        self.mlp = nn.Sequential(*parts, last) if parts else last
        self.last_layer = Prototypes(bottleneck, prototypes, fixed_length)
        for part in self.mlp.modules():
            if isinstance(part, nn.Linear):
                nn.init.trunc_normal_(part.weight, std=0.02)
                nn.init.zeros_(part.bias)

    def project(self, features: Float[Tensor, "rows dim"]) -> Float[Tensor, "rows bottleneck"]:
        """Returns the narrow unit-length vectors."""
        return F.normalize(self.mlp(features), dim=1)

    def forward(self, features: Float[Tensor, "rows dim"]) -> Float[Tensor, "rows classes"]:
        """Returns the scores of all prototypes."""
        return F.linear(self.project(features), self.last_layer())


def cross_entropy(
    vectors: Float[Tensor, "rows bottleneck"],
    prototypes: Float[Tensor, "classes bottleneck"],
    targets: Float[Tensor, "rows classes"],
    temperature: float,
    rows_at_once: int = 0,
) -> Float[Tensor, "rows"]:
    """Returns for each row −Σ target · log softmax(scores / temperature).

    Args:
        vectors: unit length.
        prototypes: their scores are `vectors @ prototypes.T`.
        targets: constants; they need not sum to 1.
        temperature: of the softmax.
        rows_at_once: rows whose scores exist at a time, computed anew in the backward pass; 0: all are kept.
    """
    if not rows_at_once or rows_at_once >= len(vectors):
        return _cross_entropy(vectors, prototypes, targets, temperature)
    parts = zip(vectors.split(rows_at_once), targets.split(rows_at_once), strict=True)
    return torch.cat(
        [checkpoint(_cross_entropy, v, prototypes, t, temperature, use_reentrant=False) for v, t in parts]  # pyright: ignore[reportArgumentType]
    )


def _cross_entropy(vectors: Tensor, prototypes: Tensor, targets: Tensor, temperature: float) -> Tensor:
    scores = full_precision(F.linear(vectors, prototypes)) / temperature
    return -(targets * scores.log_softmax(1)).sum(1)
