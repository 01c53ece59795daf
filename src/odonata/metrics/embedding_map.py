"""High-dimensional features as a map in the plane: principal components, and t-SNE for up to some thousand points."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from odonata.errors import DataError


def principal_plane(features: Float[Tensor, "points dim"]) -> Float[Tensor, "points 2"]:
    """Return the coordinates along the two directions of largest variance.

    The sign of a direction is chosen so that its largest weight is positive.
    """
    centred = (features - features.mean(0)).double()
    _, _, directions = torch.linalg.svd(centred, full_matrices=False)
    chosen = directions[:2]
    signs = chosen.gather(1, chosen.abs().argmax(1, keepdim=True)).sign()
    plane = centred @ (chosen * signs).T
    return torch.nn.functional.pad(plane, (0, 2 - plane.shape[1])).float()


def tsne(
    features: Float[Tensor, "points dim"], perplexity: float = 30.0, steps: int = 500
) -> Float[Tensor, "points 2"]:
    """Return a map in which neighbours stay neighbours; distances between groups mean little.

    Args:
        features: one row a point; the whole matrix of pairs is held, so a few thousand rows at most.
        perplexity: how many neighbours count, below a third of the points.
        steps: of gradient descent; the first quarter exaggerates attraction twelvefold.

    Raises:
        DataError: too few points for the perplexity.

    Source: van der Maaten and Hinton 2008, algorithm 1 and sec. 3.4; the rate and the start from principal components
    follow Kobak and Berens 2019.
    """
    count = len(features)
    if count < 3 * perplexity:
        raise DataError(f"t-SNE at perplexity {perplexity:g} needs {3 * perplexity:g} points or more, not {count}")
    affinities = joint_affinities(features, perplexity)
    plane = principal_plane(features).double()
    plane = plane / plane[:, 0].std() * 1e-4
    velocity, gains = torch.zeros_like(plane), torch.ones_like(plane)
    rate = max(count / 12, 50.0)
    for step in range(steps):
        early = step < steps // 4
        gradient = _gradient(affinities * (12.0 if early else 1.0), plane)
        # Each coordinate's own rate grows while its direction holds (Jacobs 1988), as in the authors' code.
        gains = torch.where(gradient.sign() != velocity.sign(), gains + 0.2, gains * 0.8).clamp(min=0.01)
        velocity = (0.5 if early else 0.8) * velocity - rate * gains * gradient
        plane = plane + velocity
        plane = plane - plane.mean(0)
    return plane.float()


def joint_affinities(features: Float[Tensor, "points dim"], perplexity: float) -> Float[Tensor, "points points"]:
    """Return the symmetric affinities p_ij of eq. 1 and sec. 3.1, each row's width found for the perplexity."""
    points = features.double()
    squared = torch.cdist(points, points).square()
    squared.fill_diagonal_(torch.inf)
    target = torch.tensor(perplexity, dtype=torch.float64).log()
    low, high = torch.zeros(len(points), 1).double(), torch.full((len(points), 1), torch.inf).double()
    finite = torch.where(squared.isfinite(), squared, 0.0)
    beta = 1 / finite.mean(1, keepdim=True).clamp(min=1e-12)
    nearest = squared.amin(1, keepdim=True)
    for _ in range(100):
        weights = torch.exp(-(squared - nearest) * beta)
        shares = weights / weights.sum(1, keepdim=True)
        entropy = -(shares * torch.where(shares > 0, shares, 1.0).log()).sum(1, keepdim=True)
        wide = entropy > target
        low, high = torch.where(wide, beta, low), torch.where(wide, high, beta)
        beta = torch.where(high.isinf(), beta * 2, (low + high) / 2)
    weights = torch.exp(-(squared - nearest) * beta)
    shares = weights / weights.sum(1, keepdim=True)
    return (shares + shares.T) / (2 * len(points))


def divergence(affinities: Float[Tensor, "points points"], plane: Float[Tensor, "points 2"]) -> float:
    """Return the Kullback–Leibler divergence that t-SNE descends (eq. 2)."""
    kernel = _kernel(plane.double())
    q = kernel / kernel.sum()
    used = affinities > 0
    return float((affinities[used] * (affinities[used] / q[used].clamp(min=1e-300)).log()).sum())


def _kernel(plane: Tensor) -> Tensor:
    kernel = 1 / (1 + torch.cdist(plane, plane).square())
    kernel.fill_diagonal_(0.0)
    return kernel


def _gradient(affinities: Tensor, plane: Tensor) -> Tensor:
    """Eq. 5."""
    kernel = _kernel(plane)
    pull = (affinities - kernel / kernel.sum()) * kernel
    return 4 * (pull.sum(1, keepdim=True) * plane - pull @ plane)
