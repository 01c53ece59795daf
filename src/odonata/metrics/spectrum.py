"""How many directions features use."""

import torch
from jaxtyping import Float
from torch import Tensor


def effective_rank(features: Float[Tensor, "batch dim"]) -> float:
    """Return exp of the entropy of the normalised singular values of the centred features: from 1 to min(batch, dim).

    Args:
        features: one row a sample.

    Source: Roy and Vetterli 2007; RankMe, Garrido et al. 2022, arXiv:2210.02885, eq. 4 (there without centring).
    """
    values = torch.linalg.svdvals((features - features.mean(0)).double())
    total = values.sum()
    if total <= 1e-12:
        return 1.0
    shares = values / total
    return float(torch.exp(-(shares * (shares + 1e-12).log()).sum()))
