"""The focal loss: what is told easily counts little, so that thousands of easy negatives do not drown the few objects.

Source: Lin et al. 2017, Focal Loss for Dense Object Detection, arXiv:1708.02002, eqs. 3 to 5.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor


def focal_loss(
    logits: Float[Tensor, "*rows classes"],
    targets: Float[Tensor, "*rows classes"],
    alpha: float | None = 0.25,
    gamma: float = 2.0,
) -> Float[Tensor, "*rows classes"]:
    """−α_t (1 − p_t)^γ log p_t for every entry, with p the sigmoid of the logit (eq. 5).

    Args:
        logits: one binary decision a class.
        targets: 0 or 1.
        alpha: weight of the positives, 1 − α that of the negatives; None: none (eq. 4).
        gamma: 0 gives the (α-balanced) cross-entropy (eq. 3).
    """
    losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    if gamma:
        probabilities = logits.sigmoid()
        missed = torch.where(targets > 0.5, 1 - probabilities, probabilities)
        losses = losses * missed**gamma
    if alpha is not None:
        losses = losses * torch.where(targets > 0.5, alpha, 1 - alpha)
    return losses


def one_hot(labels: Int64[Tensor, " rows"], classes: int) -> Float[Tensor, "rows classes"]:
    """Rows with a 1 at the label; a negative label gives zeros."""
    targets = torch.zeros(len(labels), classes, device=labels.device)
    has = (labels >= 0).nonzero().squeeze(1)
    targets[has, labels[has]] = 1.0
    return targets
