"""Losses on preferences: DPO with its kin, KTO and SimPO. Every one returns a value for each pair or answer.

Notable:

- No mean is taken here. The number of pairs of the whole optimiser batch, over micro-batches and ranks, is the
  caller's: `losses.sum() / pairs`.
- A DPO log-probability is the *sum* over the tokens of the completion, its end-of-sequence token included and the
  prompt not; SimPO's is the mean.
- Before the first step the policy is the reference: every margin is 0, and the sigmoid's loss is ln 2.
- An option that the chosen kind does not use is an error. TRL 1.16's `DPOTrainer(loss_type="sigmoid",
  label_smoothing=0.1)` ignores the smoothing without a word; here that loss is the kind "conservative".
"""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from odonata.errors import RecipeError

DPOKind = Literal["sigmoid", "conservative", "robust", "ipo", "hinge"]


class PreferenceTerms(NamedTuple):
    """What a loss on pairs returns."""

    losses: Float[Tensor, "pairs"]
    chosen_rewards: Float[Tensor, "pairs"]
    """β ln π/π_ref of the chosen answers, without gradient."""
    rejected_rewards: Float[Tensor, "pairs"]


class KTOTerms(NamedTuple):
    """What KTO returns."""

    losses: Float[Tensor, "batch"]
    rewards: Float[Tensor, "batch"]
    """β ln π/π_ref, without gradient."""
    z0: Float[Tensor, ""]
    """The reference point, at least 0."""


def dpo(
    policy_chosen: Float[Tensor, "pairs"],
    policy_rejected: Float[Tensor, "pairs"],
    ref_chosen: Float[Tensor, "pairs"],
    ref_rejected: Float[Tensor, "pairs"],
    *,
    beta: float,
    kind: DPOKind = "sigmoid",
    label_smoothing: float = 0.0,
    lengths: tuple[Int[Tensor, "pairs"], Int[Tensor, "pairs"]] | None = None,
) -> PreferenceTerms:
    """Return DPO's loss of each pair, or that of one of its kin.

    Args:
        policy_chosen: ln π of the chosen answers, summed over their tokens.
        policy_rejected: likewise of the rejected ones.
        ref_chosen: ln π_ref of the chosen answers.
        ref_rejected: likewise.
        beta: strength of the tie to the reference; IPO's τ.
        kind: "sigmoid" is DPO; "conservative" and "robust" know that labels are wrong with a probability.
        label_smoothing: that probability ε, in [0, ½); for "conservative" and "robust" only.
        lengths: tokens of the chosen and rejected answers, for "ipo" only: log-ratios are then means over tokens, as
            TRL has it on the word of the authors; the paper's formula has sums.

    Raises:
        RecipeError: an option that the kind does not use, or one outside its range.

    Source: Rafailov et al. 2023, arXiv:2305.18290, equation 7; Mitchell 2023, "A note on DPO with noisy preferences"
    (conservative); Chowdhury et al. 2024, arXiv:2403.00409, section 3.1 (robust); Azar et al. 2023, arXiv:2310.12036,
    equation 17; Zhao et al. 2023, arXiv:2305.10425 (hinge, on log-ratios).

    >>> zero = torch.zeros(1)
    >>> dpo(zero, zero, zero, zero, beta=0.1).losses
    tensor([0.6931])
    """
    _check_dpo(kind, beta, label_smoothing, lengths)
    chosen, rejected = policy_chosen - ref_chosen.detach(), policy_rejected - ref_rejected.detach()
    rewards = beta * chosen.detach(), beta * rejected.detach()
    if lengths is not None:
        chosen, rejected = (x / n.clamp(min=1) for x, n in zip((chosen, rejected), lengths, strict=True))
    delta = chosen - rejected
    right, wrong = -F.logsigmoid(beta * delta), -F.logsigmoid(-beta * delta)
    if kind == "ipo":
        losses = (delta - 1 / (2 * beta)).square()
    elif kind == "hinge":
        losses = F.relu(1 - beta * delta)
    elif kind == "conservative":
        losses = (1 - label_smoothing) * right + label_smoothing * wrong
    elif kind == "robust":
        # The expectation over flipped labels is the sigmoid's loss itself.
        losses = ((1 - label_smoothing) * right - label_smoothing * wrong) / (1 - 2 * label_smoothing)
    else:
        losses = right
    return PreferenceTerms(losses, *rewards)


def kto(
    policy: Float[Tensor, "batch"],
    ref: Float[Tensor, "batch"],
    desirable: Bool[Tensor, "batch"],
    *,
    kl_policy: Float[Tensor, "mismatched"],
    kl_ref: Float[Tensor, "mismatched"],
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> KTOTerms:
    """Return KTO's loss of each answer.

    Args:
        policy: ln π of the answers, summed over their tokens.
        ref: ln π_ref.
        desirable: which of them people liked.
        kl_policy: ln π of answers that belong to *other* prompts (the batch shifted by one). All those of the optimiser
            batch over its ranks, lest the reference point depend on how the batch was split.
        kl_ref: ln π_ref of the same.
        beta: strength of the tie to the reference.
        desirable_weight: λ_D.
        undesirable_weight: λ_U; see `kto_weights`.

    Raises:
        RecipeError: no mismatched answers (a batch of one prompt has none), or β is not positive.

    Source: Ethayarajh et al. 2024, arXiv:2402.01306, section 4.1 (the loss λ_y − v, with v = λ_y σ, and z0 over
    mismatched answers of the batch).

    >>> terms = kto(torch.tensor([1.0]), torch.tensor([0.0]), torch.tensor([True]), kl_policy=torch.zeros(2),
    ...             kl_ref=torch.zeros(2), beta=1.0)
    >>> terms.losses
    tensor([0.2689])
    """
    if len(kl_policy) == 0 or beta <= 0:
        raise RecipeError(
            f"kto needs at least one answer to another prompt, which takes a batch of two prompts or more, and β > 0; "
            f"there are {len(kl_policy)} such answers, and β is {beta:g}"
        )
    z0 = (kl_policy - kl_ref).detach().mean().clamp(min=0)
    log_ratio = policy - ref.detach()
    # 1 − σ(x) = σ(−x) keeps small losses exact.
    towards = torch.where(desirable, log_ratio - z0, z0 - log_ratio)
    surprise = torch.sigmoid(-beta * towards)
    losses = torch.where(desirable, desirable_weight * surprise, undesirable_weight * surprise)
    return KTOTerms(losses, beta * log_ratio.detach(), z0)


def kto_weights(desirable: int, undesirable: int, ratio: float = 1.0) -> tuple[float, float]:
    """Return (λ_D, λ_U) for so many answers of each kind: the rarer kind's is raised, the other's is 1.

    Args:
        desirable: answers in the training data that people liked.
        undesirable: those that they did not.
        ratio: λ_D n_D / (λ_U n_U), between 1 and 4/3 in the paper.

    Raises:
        RecipeError: one kind is missing, or the ratio is outside [1, 4/3].

    Source: Ethayarajh et al. 2024, arXiv:2402.01306, section 4.2.

    >>> kto_weights(100, 50)
    (1.0, 2.0)
    """
    if min(desirable, undesirable) < 1 or not 1 <= ratio <= 4 / 3 + 1e-9:
        raise RecipeError(
            f"kto_weights needs answers of both kinds and a ratio from 1 to 4/3, not {desirable} liked, {undesirable} "
            f"disliked and {ratio:g}"
        )
    desirable_weight = ratio * undesirable / desirable
    return (desirable_weight, 1.0) if desirable_weight >= 1 else (1.0, 1 / desirable_weight)


def simpo(
    mean_chosen: Float[Tensor, "pairs"], mean_rejected: Float[Tensor, "pairs"], *, beta: float, gamma: float
) -> PreferenceTerms:
    """Return SimPO's loss of each pair; there is no reference model.

    Args:
        mean_chosen: ln π of the chosen answers, the mean over their tokens.
        mean_rejected: likewise of the rejected ones.
        beta: 2 to 2.5 in the paper.
        gamma: the margin that the reward has to reach, 0.3 to 1.6 in the paper.

    Raises:
        RecipeError: β is not positive, or γ is negative.

    Source: Meng et al. 2024, arXiv:2405.14734, equation 6. TRL's `cpo` with `loss_type="simpo"` subtracts γ/β before it
    multiplies by β, which is the same, and adds a likelihood term unless `cpo_alpha` is 0.

    >>> simpo(torch.tensor([-0.5]), torch.tensor([-1.0]), beta=2.0, gamma=1.0).losses
    tensor([0.6931])
    """
    if beta <= 0 or gamma < 0:
        raise RecipeError(f"simpo needs β > 0 and γ ≥ 0, not {beta:g} and {gamma:g}")
    losses = -F.logsigmoid(beta * (mean_chosen - mean_rejected) - gamma)
    return PreferenceTerms(losses, beta * mean_chosen.detach(), beta * mean_rejected.detach())


def _check_dpo(
    kind: str, beta: float, label_smoothing: float, lengths: tuple[Tensor, Tensor] | None
) -> None:  # fmt: skip
    if kind not in ("sigmoid", "conservative", "robust", "ipo", "hinge"):
        raise RecipeError(f"no kind {kind!r} of DPO; there are sigmoid, conservative, robust, ipo and hinge")
    if beta <= 0:
        raise RecipeError(f"dpo needs β > 0, not {beta:g}")
    if label_smoothing and kind not in ("conservative", "robust"):
        raise RecipeError(
            f"dpo of kind {kind!r} does not use label_smoothing; the kinds 'conservative' and 'robust' do"
        )
    if not 0 <= label_smoothing < 0.5:
        raise RecipeError(f"label_smoothing is the probability of a wrong label, in [0, 0.5), not {label_smoothing:g}")
    if lengths is not None and kind != "ipo":
        raise RecipeError(f"dpo of kind {kind!r} does not use lengths; only 'ipo' has a form by length")
