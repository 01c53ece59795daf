"""CPC's bound: InfoNCE never says more than the information that there is, nor more than the logarithm of K."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from odonata.claims.claim import Claim, Comparison, Figures, Plot, Trial
from odonata.metrics.mutual_information import correlated_pairs, correlation_for, info_nce_of, optimal_info_nce

DIM = 20
QUERIES = 16_384
STEPS = 300
TOLERANCE = 0.05
"""Nats: three standard errors of a mean over 16,384 queries whose density ratios spread by two nats."""
INFORMATION = {"2 nats, optimal critic": 2.0, "10 nats, optimal critic": 10.0, "10 nats, trained critic": 10.0}
CANDIDATES = ("4", "64", "1024")


class Critic(nn.Module):
    """Inner products of two small networks' outputs."""

    def __init__(self, width: int = 128, dim: int = 64) -> None:
        super().__init__()
        self.left, self.right = (
            nn.Sequential(nn.Linear(DIM, width), nn.ReLU(), nn.Linear(width, dim)) for _ in range(2)
        )

    def forward(self, x: Float[Tensor, "rows dim"], y: Float[Tensor, "columns dim"]) -> Float[Tensor, "rows columns"]:
        """Return the score of every x with every y."""
        return self.left(x) @ self.right(y).T


def train_critic(correlation: float, candidates: int, steps: int) -> Critic:
    """Return a critic trained by InfoNCE among so many candidates, on pairs drawn anew for every step."""
    critic = Critic()
    optimizer = torch.optim.Adam(critic.parameters(), lr=2e-3)
    groups = max(1, 256 // candidates)
    for _ in range(steps):
        x, y = correlated_pairs(groups * candidates, DIM, correlation)
        scores = torch.einsum(
            "gid,gjd->gij",
            critic.left(x).unflatten(0, (groups, candidates)),
            critic.right(y).unflatten(0, (groups, candidates)),
        )
        own = torch.arange(candidates).repeat(groups)
        loss = F.cross_entropy(scores.flatten(0, 1), own)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return critic


@torch.no_grad()
def estimate_of(critic: Critic, correlation: float, candidates: int) -> float:
    """Return what InfoNCE sees with a critic, on pairs that it was not trained on."""
    batches = math.ceil(QUERIES / candidates)
    pairs = (correlated_pairs(candidates, DIM, correlation) for _ in range(batches))
    return sum(info_nce_of(critic(x, y)).item() for x, y in pairs) / batches


def trial(trial: Trial) -> Figures:
    """Estimate the information of Gaussian pairs by InfoNCE, and compare with what it cannot exceed."""
    candidates, information = int(trial.condition), INFORMATION[trial.variant]
    torch.manual_seed(trial.seed)
    if "optimal" in trial.variant:
        estimate = optimal_info_nce(information, DIM, candidates, QUERIES)
    else:
        correlation = correlation_for(information, DIM)
        estimate = estimate_of(train_critic(correlation, candidates, trial.steps(STEPS)), correlation, candidates)
    cap = min(information, math.log(candidates))
    return {"estimate": estimate, "excess": estimate - cap, "cap": cap}


CLAIM = Claim(
    name="infonce-bound",
    room="represent",
    methods=("cpc", "moco-v1"),
    source="van den Oord et al. 2018, arXiv:1807.03748, section 2.3 and appendix A.1 (I ≥ ln K − L); Poole et al. "
    "2019, arXiv:1905.06922, section 3 (the test bed)",
    hypothesis="What InfoNCE estimates never exceeds the smaller of the mutual information and ln K, whether the "
    "critic is the optimal one or was trained.",
    data="Pairs of Gaussian vectors of 20 dimensions, correlated coordinate by coordinate so that they share 2 or 10 "
    "nats, which is known in closed form.",
    scaled_down=f"Nothing is: this is the test bed itself, with 4, 64 and 1,024 candidates. Each figure is a mean over "
    f"16,384 queries, so {TOLERANCE} nats are allowed for chance. The trained critic is measured on fresh pairs.",
    trial=trial,
    conditions=CANDIDATES,
    variants=tuple(INFORMATION),
    comparisons=(
        *(Comparison(f"{variant}, K = {k}: above the bound by", f"{variant}@{k}", 0.0, "excess", "<", TOLERANCE)
          for variant in INFORMATION for k in CANDIDATES),
        Comparison("the bound is reached: 10 nats, K = 4", "10 nats, optimal critic@4", 0.0, "excess", ">", -TOLERANCE,
                   primary=False),
        Comparison("the bound is reached: 2 nats, K = 1024", "2 nats, optimal critic@1024", 0.0, "excess", ">",
                   -TOLERANCE, primary=False),
        Comparison("10 nats are out of sight of K = 64", "10 nats, optimal critic@64", math.log(64) + TOLERANCE,
                   "estimate", "<", primary=False),
    ),
    plots=(Plot("estimate", "InfoNCE's estimate, nats"),),
    axis="candidates K (ln K: 1.39, 4.16, 6.93)",
    seeds=(1, 2, 3),
)  # fmt: skip
