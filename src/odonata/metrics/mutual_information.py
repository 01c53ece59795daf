"""Mutual information of correlated Gaussians, and what InfoNCE can see of it.

InfoNCE with K candidates bounds the information from below, I ≥ ln K − L, and since L ≥ 0 never says more than ln K.
With Gaussians both sides are known: the information in closed form, and the critic that attains the bound, which is the
logarithm of the density ratio p(y | x) / p(y).

Sources: van den Oord et al. 2018, arXiv:1807.03748, sec. 2.3 and app. A.1 (the bound); Poole et al. 2019,
arXiv:1905.06922, sec. 3 (correlated Gaussians of d = 20 as the test bed).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def gaussian_information(correlation: float, dim: int) -> float:
    """Return the mutual information, in nats, of two Gaussian vectors correlated coordinate by coordinate.

    Args:
        correlation: ρ of each pair of coordinates, in (-1, 1).
        dim: number of coordinates.

    I = −d/2 · ln(1 − ρ²).
    """
    return -0.5 * dim * math.log1p(-(correlation**2))


def correlation_for(information: float, dim: int) -> float:
    """Return the correlation, at least 0, at which Gaussian vectors share so much information.

    Args:
        information: nats, at least 0.
        dim: number of coordinates.

    Raises:
        ValueError: the information is negative.
    """
    if information < 0:
        raise ValueError(f"mutual information is never negative; got {information}")
    return math.sqrt(-math.expm1(-2 * information / dim))


def correlated_pairs(
    count: int, dim: int, correlation: float, generator: torch.Generator | None = None
) -> tuple[Float[Tensor, "count dim"], Float[Tensor, "count dim"]]:
    """Return pairs (x, y) of standard Gaussian vectors, coordinates of one pair correlated by ρ."""
    x, noise = torch.randn(2, count, dim, generator=generator).unbind(0)
    return x, correlation * x + math.sqrt(1 - correlation**2) * noise


def density_ratio(
    x: Float[Tensor, "rows dim"], y: Float[Tensor, "columns dim"], correlation: float
) -> Float[Tensor, "rows columns"]:
    """Return ln p(y | x) − ln p(y) of every x with every y: the optimal critic.

    Per coordinate: −½ ln(1 − ρ²) − (y − ρx)² / (2(1 − ρ²)) + y² / 2.
    """
    left = 1 - correlation**2
    square = (y**2).sum(1) - 2 * correlation * x @ y.T + correlation**2 * (x**2).sum(1, keepdim=True)
    return -0.5 * x.shape[1] * math.log(left) - square / (2 * left) + 0.5 * (y**2).sum(1)


def info_nce_bound(loss: Float[Tensor, ""], candidates: int) -> Float[Tensor, ""]:
    """Return the information, in nats, that an InfoNCE loss proves: ln K − L, at most ln K.

    Args:
        loss: mean cross-entropy in nats.
        candidates: K, the positive among them.
    """
    return math.log(candidates) - loss


def info_nce_of(scores: Float[Tensor, "candidates candidates"]) -> Float[Tensor, ""]:
    """Return the bound that a critic proves on one batch of pairs; pair i is the diagonal's entry i."""
    count = len(scores)
    return info_nce_bound(F.cross_entropy(scores, torch.arange(count, device=scores.device)), count)


@torch.no_grad()
def optimal_info_nce(
    information: float, dim: int, candidates: int, queries: int = 8192, generator: torch.Generator | None = None
) -> float:
    """Return what InfoNCE with the optimal critic sees of Gaussian vectors that share so much information.

    Args:
        information: their mutual information in nats.
        dim: of a vector.
        candidates: K, the positive among them.
        queries: at least so many are averaged over, in batches of K.
        generator: of the vectors; None takes torch's own.

    Raises:
        ValueError: fewer than two candidates, or negative information.
    """
    if candidates < 2:
        raise ValueError(f"InfoNCE wants two candidates or more; got {candidates}")
    correlation = correlation_for(information, dim)
    total, batches = 0.0, math.ceil(queries / candidates)
    for _ in range(batches):
        x, y = correlated_pairs(candidates, dim, correlation, generator)
        total += float(info_nce_of(density_ratio(x, y, correlation)))
    return total / batches
