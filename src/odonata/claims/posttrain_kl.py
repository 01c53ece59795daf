"""What the estimators of a divergence do as losses: k1 nothing, k2 what is wanted, k3 the other direction."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from odonata.claims.claim import Claim, Comparison, Figures, Plot, Trial
from odonata.posttrain.kl import Estimator, kl_estimate, kl_in_loss

VOCAB = 10
SPREAD = 0.5
"""Of the noise on logits that makes the reference, and the older policy, from the policy."""
SAMPLES = 1_000_000
EXACT = 1e-9
"""Float64 leaves 1e-15 of a gradient; anything that is not an identity leaves percents."""
OWN, OLDER = "its own samples", "an older policy's samples"
VARIANTS = ("k1", "k2", "k3", "k1 · ratio", "k2 · ratio", "k3 · ratio")


def per_token(variant: str, logprobs: Tensor, ref: Tensor, old: Tensor) -> Tensor:
    """Return a variant's term of the loss for each token that could be sampled."""
    kind, corrected = cast(Estimator, variant[:2]), "ratio" in variant
    if kind == "k1" and not corrected:  # which `kl_in_loss` refuses, for what is shown here
        return kl_estimate(logprobs, ref, kind)
    everything = torch.ones(1, VOCAB, dtype=torch.bool)
    old_logprobs = old[None] if corrected else None
    return kl_in_loss(logprobs[None], ref[None], everything, kind=kind, old_logprobs=old_logprobs)[0]


def trial(trial: Trial) -> Figures:
    """Go through all tokens for the expected gradient, and through samples for mean and deviation."""
    generator = torch.Generator().manual_seed(trial.seed)
    policy, noise, age = (torch.randn(VOCAB, generator=generator, dtype=torch.float64) for _ in range(3))
    logits = policy.requires_grad_()
    ref = (policy.detach() + SPREAD * noise).log_softmax(0)
    old = (policy.detach() + (SPREAD * age if trial.condition == OLDER else 0)).log_softmax(0)
    logprobs = logits.log_softmax(0)
    terms = per_token(trial.variant, logprobs, ref, old)

    def gradient(value: Tensor) -> Tensor:
        return torch.autograd.grad(value, logits, retain_graph=True)[0]

    expected = gradient((old.exp() * terms).sum())  # of the loss, tokens being drawn from `old`
    divergence = (logprobs.exp() * (logprobs - ref)).sum()
    reverse, forward = gradient(divergence), gradient((ref.exp() * (ref - logprobs)).sum())
    seen = terms.detach()[torch.multinomial(old.exp(), trial.steps(SAMPLES), replacement=True, generator=generator)]
    return {
        "size": (expected.norm() / reverse.norm()).item(),
        "from reverse": ((expected - reverse).norm() / reverse.norm()).item(),
        "from forward": ((expected - forward).norm() / forward.norm()).item(),
        "bias": ((seen.mean() - divergence.detach()).abs() / divergence.detach()).item(),
        "deviation": (seen.std() / divergence.detach()).item(),
    }


CLAIM = Claim(
    name="kl-gradients",
    room="posttrain",
    methods=("grpo", "dr-grpo", "dapo", "rloo"),
    source="Schulman 2020, joschu.net/blog/kl-approx.html (values); Tang and Munos 2025, arXiv:2506.09477 (gradients); "
    "DeepSeek-V3.2, arXiv:2512.02556 (the ratio)",
    hypothesis="As a loss on the policy's own samples k1 has no expected gradient, k2 exactly that of KL(π‖π_ref), and "
    "k3, which the GRPO paper takes, exactly that of KL(π_ref‖π), and so not KL(π‖π_ref)'s. With the importance ratio "
    "multiplied in, all three have exactly that of KL(π‖π_ref), on an older policy's samples too. As figures k1 and k3 "
    "are unbiased, and k1's deviation is 2.5 times k3's or more.",
    data=f"A softmax over {VOCAB} tokens with random logits; the reference's differ by noise of {SPREAD:g}, and so do "
    "the older policy's.",
    scaled_down=f"Nothing is: expected gradients are sums over all tokens, in float64, and {EXACT:g} is allowed for "
    f"rounding. Bias and deviation are of {SAMPLES:,} samples, relative to the divergence; 2 % is allowed for chance, "
    "and 2.5 is half of what a pilot had.",
    trial=trial,
    conditions=(OWN, OLDER),
    variants=VARIANTS,
    comparisons=(
        Comparison("k1 has no gradient", f"k1@{OWN}", EXACT, "size", "<"),
        Comparison("k2's is that of KL(π‖π_ref)", f"k2@{OWN}", EXACT, "from reverse", "<"),
        Comparison("k3's is that of KL(π_ref‖π)", f"k3@{OWN}", EXACT, "from forward", "<"),
        Comparison("k3's is not that of KL(π‖π_ref)", f"k3@{OWN}", 0.1, "from reverse", ">"),
        *(Comparison(f"{kind} · ratio has KL(π‖π_ref)'s, {where}", f"{kind} · ratio@{where}", EXACT, "from reverse",
                     "<") for kind in ("k1", "k2", "k3") for where in (OWN, OLDER)),
        *(Comparison(f"{kind} has no bias", f"{kind}@{OWN}", 0.02, "bias", "<") for kind in ("k1", "k3")),
        Comparison("k1's deviation over k3's", f"k1@{OWN}", f"k3@{OWN}", "deviation", ">", 2.5, ratio=True),
        Comparison("k2 has a bias", f"k2@{OWN}", 0.02, "bias", ">", primary=False),
        *(Comparison(f"{kind} without the ratio is off, {OLDER}", f"{kind}@{OLDER}", 0.1, "from reverse", ">",
                     primary=False) for kind in ("k1", "k2", "k3")),
    ),
    plots=(Plot("from reverse", "distance from KL(π‖π_ref)'s gradient", log=True),
           Plot("deviation", "deviation over the divergence")),
    axis="who drew the tokens",
)  # fmt: skip
