"""Losses of policies and values from sampled answers: PPO, GRPO and its variants, RLOO; what PPO's rewards are made of.

Notable:

- `policy_terms` returns a loss for each token, and `aggregate` adds them up over a denominator that is handed in: the
  count of the *whole* optimiser batch, over micro-batches and ranks, which `denominators` takes. So gradients do not
  depend on how the batch is split, how many ranks share it, or how wide it is padded.
- What the mask leaves out is filled before any ratio is formed: a padded position may hold NaN, and NaN · 0 is NaN.
- Rows without a token (padding of a rank's share, answers that were filtered) are in no count. TRL counts them as rows.
- A clip of 0.2 is a distance from 1 everywhere, CISPO's too: its weight is at most 1 + clip_high. TRL's `epsilon_high`
  of a CISPO run is the bound itself.
- With one step per rollout the ratio is 1: the *value* of a GRPO loss is then about 0 whatever is learned, and its
  gradient is not. Watch rewards, divergence, entropy and live groups instead.
"""

import math
from collections.abc import Iterable
from typing import Literal, NamedTuple

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Int
from torch import Tensor

from odonata.errors import RecipeError
from odonata.posttrain.kl import Estimator, kl_in_reward

PolicyKind = Literal["ppo", "cispo", "sequence"]
Aggregation = Literal["token", "sequence", "constant"]
ScoreAt = Literal["eos", "after_eos"]

_LARGEST_LOG_RATIO = 60.0
"""Short of what overflows in float32: an infinite ratio would turn an advantage of 0 into NaN."""


class PolicyTerms(NamedTuple):
    """What a policy's loss is made of; 0 and False where the mask is."""

    losses: Float[Tensor, "batch time"]
    ratio: Float[Tensor, "batch time"]
    """π/π_old of each token, or of its whole answer; no gradient."""
    clipped: Bool[Tensor, "batch time"]
    """Where the clip took effect: no gradient there (ppo, sequence), or a bounded weight (cispo)."""


class ValueTerms(NamedTuple):
    """What a value network's loss is made of; 0 and False where the mask is."""

    losses: Float[Tensor, "batch time"]
    clipped: Bool[Tensor, "batch time"]


class PPORewards(NamedTuple):
    """Rewards of single tokens."""

    rewards: Float[Tensor, "batch time"]
    steps: Bool[Tensor, "batch time"]
    """Tokens that returns and values are taken over: one more than the answer's where the score follows its end."""
    scores: Float[Tensor, "batch"]
    """With the penalty."""


def policy_terms(
    logprobs: Float[Tensor, "batch time"],
    old_logprobs: Float[Tensor, "batch time"],
    advantages: Float[Tensor, "batch"] | Float[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
    *,
    kind: PolicyKind = "ppo",
    clip_low: float | None = 0.2,
    clip_high: float | None = 0.2,
) -> PolicyTerms:
    """Return the loss of each token.

    Args:
        logprobs: ln π of the sampled tokens, with their gradient.
        old_logprobs: of the policy that sampled them, at the temperature and with the filters of the sampling. Where
            nothing was learned since, `logprobs.detach()`.
        advantages: of each answer, or of each token.
        mask: tokens of the answer that count.
        kind: "ppo" bounds what a token can gain; "cispo" bounds the weight of its log-probability, and so never takes
            its gradient away; "sequence" bounds the ratio of whole answers (RLOO), and every token bears its answer's
            loss, so it belongs with the aggregation "sequence".
        clip_low: the ratio's lower bound is 1 − clip_low; None for none.
        clip_high: its upper bound is 1 + clip_high; None for none.

    Raises:
        RecipeError: no such kind, or a bound outside its range.

    Source: Schulman et al. 2017, arXiv:1707.06347, equation 7; Yu et al. 2025 (DAPO), arXiv:2503.14476, equation 8 (two
    bounds); MiniMax 2025, arXiv:2506.13585, equations 4 and 5 (CISPO); TRL 1.16's `RLOOTrainer` (sequence).

    >>> zero, one = torch.zeros(1, 1), torch.ones(1, 1)
    >>> policy_terms(zero, zero - 1, one[0], one.bool()).losses  # the ratio is e, and counts as 1.2
    tensor([[-1.2000]])
    """
    check_clip(kind, clip_low, clip_high)
    logprobs, old = logprobs.masked_fill(~mask, 0), old_logprobs.detach().masked_fill(~mask, 0)
    gain = (advantages[:, None] if advantages.ndim == 1 else advantages).detach().expand_as(mask).masked_fill(~mask, 0)
    log_ratio = logprobs - old
    if kind == "sequence":
        log_ratio = log_ratio.sum(1, keepdim=True).expand_as(mask)
    ratio = log_ratio.clamp(max=_LARGEST_LOG_RATIO).exp()
    bounded = ratio.clamp(0 if clip_low is None else 1 - clip_low, math.inf if clip_high is None else 1 + clip_high)
    if kind == "cispo":
        losses = -bounded.detach() * gain * logprobs
        clipped = bounded != ratio
    else:
        losses = -torch.minimum(ratio * gain, bounded * gain)
        clipped = bounded * gain < ratio * gain
    return PolicyTerms(losses.masked_fill(~mask, 0), ratio.detach().masked_fill(~mask, 0), clipped & mask)


def aggregate(
    losses: Float[Tensor, "batch time"], mask: Bool[Tensor, "batch time"], how: Aggregation, *, denominator: float
) -> Float[Tensor, ""]:
    """Return a micro-batch's share of the loss of an optimiser batch: the shares are simply added, never averaged.

    Args:
        losses: of each token.
        mask: tokens that count.
        how: "token": all tokens alike (DAPO); "sequence": first the mean of each answer (GRPO); "constant": all tokens
            alike, over a count that does not depend on lengths (Dr. GRPO).
        denominator: of the whole optimiser batch, from the function `denominators` with the same `how`.

    Raises:
        RecipeError: no such aggregation.

    Source: Shao et al. 2024, arXiv:2402.03300, equation 3 (sequence); Yu et al. 2025, arXiv:2503.14476, equation 12
    (token); Liu et al. 2025, arXiv:2503.20783, section 3.2 and listing 1 (constant).

    >>> losses, mask = torch.tensor([[1.0, 0.0], [1.0, 4.0]]), torch.tensor([[True, False], [True, True]])
    >>> aggregate(losses, mask, "token", denominator=3), aggregate(losses, mask, "sequence", denominator=2)
    (tensor(2.), tensor(1.7500))
    """
    _check_aggregation(how)
    losses = losses.masked_fill(~mask, 0)
    if how == "sequence":
        losses = losses.sum(1) / mask.sum(1).clamp(min=1)
    return losses.sum() / denominator


def denominators(
    mask: Bool[Tensor, "batch time"] | Iterable[Bool[Tensor, "_ _"]], how: Aggregation, max_length: int | None = None
) -> float:  # fmt: skip
    """Return what `aggregate` divides by: a count over all micro-batches and ranks, divided by the number of ranks.

    Args:
        mask: of this rank's share of the optimiser batch, or one for each of its micro-batches. All ranks must call.
        how: as in `aggregate`.
        max_length: for "constant" only: the most tokens that an answer may have.

    Returns:
        Tokens ("token"), answers that have a token ("sequence"), or these times `max_length` ("constant"). Since DDP
        and FSDP take the *mean* of gradients over ranks, the count is divided by their number: the mean is then the
        gradient of one process with the whole batch. At least 1 in all, so an empty batch has a loss of 0.

    Raises:
        RecipeError: `max_length` is missing, or given where it is not used; no such aggregation.

    >>> denominators(torch.tensor([[True, False], [True, True]]), "token")
    3.0
    """
    _check_aggregation(how)
    if (how == "constant") != (max_length is not None) or (max_length is not None and max_length < 1):
        raise RecipeError(f"aggregation {how!r} {'needs' if how == 'constant' else 'does not use'} max_length ≥ 1")
    masks = [mask] if isinstance(mask, Tensor) else list(mask)
    counts = [part.sum() if how == "token" else part.any(1).sum() for part in masks]
    device = masks[0].device if masks else None
    total = torch.stack(counts).sum() if counts else torch.zeros((), dtype=torch.int64, device=device)
    ranks = dist.get_world_size() if dist.is_initialized() else 1
    if ranks > 1:
        dist.all_reduce(total)
    return max(1, int(total)) * (max_length or 1) / ranks


def value_loss(
    values: Float[Tensor, "batch time"],
    old_values: Float[Tensor, "batch time"],
    returns: Float[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
    *,
    clip: float | None = 0.2,
) -> ValueTerms:
    """Return half the squared error of each value, the larger of the plain one and that of a clipped step.

    Args:
        values: V, with their gradient.
        old_values: at the time of the rollout.
        returns: what V should have been.
        mask: the rewards' `steps`.
        clip: how far V may move from the old value; None for no clip.

    Source: `ppo2` of OpenAI's baselines; TRL 1.12's `PPOTrainer`.

    >>> one = torch.ones(1, 1)
    >>> value_loss(one, 0 * one, one, one.bool()).losses  # a step of 1 counts as 0.2
    tensor([[0.3200]])
    """
    values, old, target = (x.masked_fill(~mask, 0) for x in (values, old_values.detach(), returns.detach()))
    plain = (values - target).square()
    if clip is None:
        return ValueTerms(plain / 2, torch.zeros_like(mask))
    held = (values.clamp(old - clip, old + clip) - target).square()
    return ValueTerms(torch.maximum(plain, held) / 2, (held > plain) & mask)


@torch.no_grad()
def ppo_rewards(
    scores: Float[Tensor, "batch"],
    logprobs: Float[Tensor, "batch time"],
    ref_logprobs: Float[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
    *,
    beta: float,
    kind: Estimator = "k1",
    score_at: ScoreAt = "eos",
    ended: Bool[Tensor, "batch"] | None = None,
    missing_eos_penalty: float = 0.0,
) -> PPORewards:
    """Return the reward of each token: −β times its divergence, and the score of the whole answer once.

    Args:
        scores: of the answers, by a reward model or a rule.
        logprobs: of the policy that sampled.
        ref_logprobs: of the reference.
        mask: tokens of the answer, its end of sequence included; rows are padded on the right.
        beta: weight of the divergence.
        kind: its estimator.
        score_at: "eos": the score belongs to the last token; "after_eos": to the position that follows, where there is
            one, as in TRL: values and returns then reach one step further. Equal where γ and λ are 1.
        ended: which answers came to an end of sequence.
        missing_eos_penalty: what is subtracted from the others' scores; needs `ended`.

    Raises:
        RecipeError: one of `ended` and `missing_eos_penalty` without the other, or no such place.

    Source: Ziegler et al. 2019, arXiv:1909.08593, equation 2; TRL 1.12's `PPOTrainer` (after_eos, and the penalty).
    """
    if (ended is None) != (missing_eos_penalty == 0) or score_at not in ("eos", "after_eos"):
        raise RecipeError(
            "ppo_rewards: `missing_eos_penalty` and `ended` need each other, and score_at is 'eos' or 'after_eos', not "
            f"{score_at!r}"
        )
    if ended is not None:
        scores = scores - missing_eos_penalty * (~ended).to(scores.dtype)
    rewards = -beta * kl_in_reward(logprobs, ref_logprobs, mask, kind=kind)
    positions = torch.arange(mask.shape[1], device=mask.device)
    last = torch.where(mask, positions, -1).amax(1)  # −1: an answer without a token has no reward either
    steps = mask
    if score_at == "after_eos":
        after = (last + 1).clamp(max=mask.shape[1] - 1)
        last = torch.where(last >= 0, after, last)
        steps = mask | (positions == last[:, None])
    rewards = rewards + torch.where(positions == last[:, None], scores[:, None], 0).to(rewards.dtype)
    return PPORewards(rewards, steps, scores)


@torch.no_grad()
def overlong_punishment(lengths: Int[Tensor, "batch"], *, max_length: int, buffer: int) -> Float[Tensor, "batch"]:
    """Return DAPO's soft punishment, which is added to the reward: 0, falling to −1 over the last `buffer` tokens.

    Args:
        lengths: of the answers, in tokens.
        max_length: L_max of the paper; 20,480 there.
        buffer: L_cache; 4,096 there.

    Raises:
        RecipeError: the buffer is not in [1, max_length].

    Source: Yu et al. 2025, arXiv:2503.14476, equation 13.

    >>> overlong_punishment(torch.tensor([10, 15, 20, 21]), max_length=20, buffer=10)
    tensor([ 0.0000, -0.5000, -1.0000, -1.0000])
    """
    if not 1 <= buffer <= max_length:
        raise RecipeError(f"buffer must be in [1, max_length = {max_length}], not {buffer}")
    return ((max_length - buffer - lengths) / buffer).clamp(-1, 0)


def overlong_filter(mask: Bool[Tensor, "batch time"], truncated: Bool[Tensor, "batch"]) -> Bool[Tensor, "batch time"]:
    """Return the mask without answers that were cut off: they leave loss and denominator, not their group's baseline.

    Source: Yu et al. 2025, arXiv:2503.14476, section 3.4.
    """
    return mask & ~truncated[:, None]


@torch.no_grad()
def importance_weights(
    logprobs: Float[Tensor, "batch time"],
    sampler_logprobs: Float[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
    *,
    cap: float = 2.0,
    level: Literal["token", "sequence"] = "token",
    beyond: Literal["truncate", "drop"] = "truncate",
) -> Float[Tensor, "batch time"]:
    """Return weights for losses of answers that another precision, or another program, sampled: min(π/π_sampler, cap).

    Args:
        logprobs: of the policy at the time of the rollout, in the precision of the training.
        sampler_logprobs: as the sampler had them; NaN where it has none, which counts as agreement.
        mask: tokens of the answer.
        cap: at least 1.
        level: a ratio for each token, or one for the whole answer.
        beyond: what becomes of a ratio above the cap: it is cut to it, or its tokens are dropped.

    Returns:
        0 where the mask is.

    Raises:
        RecipeError: the cap is below 1, or no such level or treatment.

    Source: Yao et al. 2025, fengyao.notion.site/off-policy-rl (truncate); TRL 1.16's `vllm_importance_sampling_mode`,
    whose default is sequence and drop ("sequence_mask") with a cap of 3.
    """
    if cap < 1 or level not in ("token", "sequence") or beyond not in ("truncate", "drop"):
        raise RecipeError(
            "importance_weights: cap ≥ 1, level 'token' or 'sequence', beyond 'truncate' or 'drop', "
            f"not {cap:g}, {level!r} and {beyond!r}"
        )
    gap = (logprobs - sampler_logprobs).masked_fill(~mask, 0).nan_to_num(nan=0.0)
    ratio = (gap.sum(1, keepdim=True).expand_as(gap) if level == "sequence" else gap).exp()
    weights = ratio.clamp(max=cap) if beyond == "truncate" else ratio.masked_fill(ratio > cap, 0)
    return weights.masked_fill(~mask, 0)


def _check_aggregation(how: str) -> None:
    if how not in ("token", "sequence", "constant"):
        raise RecipeError(f"no aggregation {how!r}; there are token, sequence and constant")


def check_clip(kind: str, clip_low: float | None, clip_high: float | None) -> None:
    """Refuse bounds that no ratio can have.

    Raises:
        RecipeError: no such kind, or a bound outside its range.
    """
    if kind not in ("ppo", "cispo", "sequence"):
        raise RecipeError(f"no kind {kind!r} of policy loss; there are ppo, cispo and sequence")
    if clip_low is not None and not 0 <= clip_low <= 1:
        raise RecipeError(f"clip_low is the ratio's lower bound's distance from 1, in [0, 1], not {clip_low:g}")
    if clip_high is not None and clip_high < 0:
        raise RecipeError(f"clip_high is the ratio's upper bound's distance from 1, at least 0, not {clip_high:g}")
