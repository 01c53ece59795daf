"""Estimates of the divergence from a reference model, from the log-probabilities of sampled tokens.

Notable: with δ = ln π − ln π_ref at the sampled token, k1 = δ and k3 = e^{−δ} − 1 + δ estimate KL(π‖π_ref) without
bias, and k2 = δ²/2 nearly so. What they do as a *loss* is another matter (Tang and Munos 2025, arXiv:2506.09477). On
policy, and in expectation, the gradient of

- k1 is zero: it does not regularise at all, so `kl_in_loss` refuses it;
- k2 is exactly that of KL(π‖π_ref), the one that is wanted;
- k3 is exactly that of KL(π_ref‖π), the other direction. This is what the GRPO paper does.

With the importance ratio r = π/π_old multiplied in, all three give the gradient of KL(π‖π_ref), off-policy too: k1 and
k3 need the gradient of r itself, since Σ π_old r k is the divergence; k2 must not have it, since its own gradient is
right. TRL does this for k3 by default (`use_bias_correction_kl`) and has no k1 or k2.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from odonata.errors import RecipeError

Estimator = Literal["k1", "k2", "k3"]


def kl_estimate(
    logprobs: Float[Tensor, "*shape"], ref_logprobs: Float[Tensor, "*shape"], kind: Estimator
) -> Float[Tensor, "*shape"]:
    """Return an estimate of KL(π‖π_ref) for each sampled token, in nats.

    Args:
        logprobs: ln π of tokens that were sampled from π.
        ref_logprobs: ln π_ref of the same.
        kind: "k1" can be negative; "k2" and "k3" cannot.

    Raises:
        RecipeError: no such estimator.

    Source: Schulman 2020, joschu.net/blog/kl-approx.html. `expm1` keeps k3 exact where the models agree.

    >>> kl_estimate(torch.tensor([-1.0]), torch.tensor([-1.5]), "k2")
    tensor([0.1250])
    """
    delta = logprobs - ref_logprobs
    if kind == "k1":
        return delta
    if kind == "k2":
        return delta.square() / 2
    if kind == "k3":
        return torch.expm1(-delta) + delta
    raise RecipeError(f"no estimator {kind!r} of the divergence; there are k1, k2 and k3")


def kl_in_reward(
    logprobs: Float[Tensor, "batch time"],
    ref_logprobs: Float[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
    *,
    kind: Estimator = "k1",
) -> Float[Tensor, "batch time"]:
    """Return what is subtracted, times β, from each token's reward: no gradient, 0 where the mask is.

    Args:
        logprobs: of the policy that sampled the tokens.
        ref_logprobs: of the reference.
        mask: tokens of the completion.
        kind: k1 makes the reward's expectation E[R] − β KL; k2 is biased.

    Source: Ziegler et al. 2019, arXiv:1909.08593, equation 2 (k1).
    """
    logprobs, ref_logprobs = (x.detach().masked_fill(~mask, 0) for x in (logprobs, ref_logprobs))
    return kl_estimate(logprobs, ref_logprobs, kind)


def kl_in_loss(
    logprobs: Float[Tensor, "batch time"],
    ref_logprobs: Float[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
    *,
    kind: Estimator = "k3",
    old_logprobs: Float[Tensor, "batch time"] | None = None,
) -> Float[Tensor, "batch time"]:
    """Return what is added, times β, to each token's loss: 0 where the mask is.

    Args:
        logprobs: of the policy that learns, with its gradient.
        ref_logprobs: of the reference.
        mask: tokens of the completion.
        kind: see the module.
        old_logprobs: of the policy that sampled the tokens: multiplies the importance ratio in. None leaves it out.

    Raises:
        RecipeError: k1 without `old_logprobs`, whose gradient is zero in expectation.

    Source: Shao et al. 2024, arXiv:2402.03300, equation 4 (k3, no ratio); DeepSeek-V3.2, arXiv:2512.02556 (k3 with it).
    """
    logprobs, ref_logprobs = logprobs.masked_fill(~mask, 0), ref_logprobs.detach().masked_fill(~mask, 0)
    estimate = kl_estimate(logprobs, ref_logprobs, kind)
    if old_logprobs is None:
        if kind == "k1":
            raise RecipeError(
                "k1 in the loss has a gradient that is zero in expectation, so it regularises nothing: take k2 (the "
                "gradient of KL(π‖π_ref)), correct it by the importance ratio, or put k1 into the reward"
            )
        return estimate
    ratio = (logprobs - old_logprobs.detach().masked_fill(~mask, 0)).exp()
    return estimate * (ratio.detach() if kind == "k2" else ratio)
