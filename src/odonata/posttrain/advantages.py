"""Advantages: of groups of answers to one prompt (GRPO, RLOO), and along an answer by a value network (GAE).

Notable:

- An answer whose reward is NaN could not be scored. It leaves its group's baseline, has advantage 0, and is marked.
- A group whose rewards are all equal teaches nothing: its advantages are exactly 0, not rounding noise over 1e-4, and
  it is not `live`.
- GAE steps over holes in the mask (a tool's output amid an answer) as if they were not there, and ends at the last
  token.
- Whitening and the batch's deviation can take their sums from all ranks; nothing else here looks beyond its own rows,
  or groups.
"""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from odonata.errors import RecipeError

Scale = Literal["group", "batch", "none"]


class GroupAdvantages(NamedTuple):
    """Advantages of answers, in groups that share a prompt."""

    advantages: Float[Tensor, "groups group"]
    scored: Bool[Tensor, "groups group"]
    """Answers that have a reward."""
    live: Bool[Tensor, "groups"]
    """Groups in which rewards differ: those that have a gradient."""


class GAE(NamedTuple):
    """Advantages along answers, and what the values should have been."""

    advantages: Float[Tensor, "batch time"]
    returns: Float[Tensor, "batch time"]


@torch.no_grad()
def group_advantages(
    rewards: Float[Tensor, "groups group"], *, scale: Scale = "group", sums: Float64[Tensor, "3"] | None = None
) -> GroupAdvantages:
    """Return GRPO's advantages: rewards less their group's mean, over a standard deviation + 1e-4.

    Args:
        rewards: of the answers; NaN for one that could not be scored.
        scale: the deviation of the "group" (GRPO), of the whole "batch", or "none" (Dr. GRPO). It is Bessel's, over
            n − 1.
        sums: for "batch": `masked_sums` of all known rewards, added up over ranks; None: of those handed in.

    Raises:
        RecipeError: groups of one answer, an infinite reward, or no such scale.

    Source: Shao et al. 2024, arXiv:2402.03300, section 4.1.2; Liu et al. 2025, arXiv:2503.20783 (none); the 1e-4, n − 1
    and the batch's deviation are TRL's.

    >>> group_advantages(torch.tensor([[1.0, 0.0]]), scale="none").advantages
    tensor([[ 0.5000, -0.5000]])
    """
    if scale not in ("group", "batch", "none"):
        raise RecipeError(f"no scale {scale!r} of advantages; there are group, batch and none")
    scored, live, count = _check_groups(rewards)
    known = rewards.masked_fill(~scored, 0)
    centred = (known - known.sum(1, keepdim=True) / count.clamp(min=1)).masked_fill(~(scored & live[:, None]), 0)
    if scale == "group":
        centred = centred / ((centred.square().sum(1, keepdim=True) / (count - 1).clamp(min=1)).sqrt() + 1e-4)
    elif scale == "batch":
        total, known_sum, squares = masked_sums(rewards, scored) if sums is None else sums
        variance = ((squares - known_sum.square() / total.clamp(min=1)) / (total - 1).clamp(min=1)).clamp(min=0)
        centred = centred / (variance.sqrt() + 1e-4).to(centred.dtype)
    return GroupAdvantages(centred, scored, live)


@torch.no_grad()
def leave_one_out(rewards: Float[Tensor, "groups group"]) -> GroupAdvantages:
    """Return RLOO's advantages: each reward less the mean of the other answers' to the same prompt.

    Args:
        rewards: of the answers, with any divergence already subtracted; NaN for one that could not be scored.

    Raises:
        RecipeError: groups of one answer, or an infinite reward.

    Source: Ahmadian et al. 2024, arXiv:2402.14740, section 2.2.

    >>> leave_one_out(torch.tensor([[1.0, 0.0, 0.0]])).advantages
    tensor([[ 1.0000, -0.5000, -0.5000]])
    """
    scored, live, count = _check_groups(rewards)
    known = rewards.masked_fill(~scored, 0)
    others = (known.sum(1, keepdim=True) - known) / (count - 1).clamp(min=1)
    return GroupAdvantages((known - others).masked_fill(~(scored & live[:, None]), 0), scored, live)


@torch.no_grad()
def gae(
    rewards: Float[Tensor, "batch time"],
    values: Float[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
    *,
    gamma: float = 1.0,
    lam: float = 0.95,
) -> GAE:
    """Return generalised advantage estimates, and returns; 0 where the mask is.

    Args:
        rewards: of each token.
        values: V before each token.
        mask: tokens that are steps; the answer ends with the last of them, after which V is 0.
        gamma: discount γ; 1 for language.
        lam: λ: 0 trusts the values, 1 the rewards.

    Raises:
        RecipeError: γ or λ is outside [0, 1].

    Source: Schulman et al. 2015, arXiv:1506.02438, equation 16.

    >>> gae(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.5, 0.5]]), torch.ones(1, 2).bool(), lam=1.0).advantages
    tensor([[0.5000, 0.5000]])
    """
    if not (0 <= gamma <= 1 and 0 <= lam <= 1):
        raise RecipeError(f"gae needs γ and λ in [0, 1], not {gamma:g} and {lam:g}")
    rewards, values = rewards.masked_fill(~mask, 0), values.masked_fill(~mask, 0)
    following, running = values.new_zeros(len(values)), values.new_zeros(len(values))
    columns: list[Tensor] = []
    for t in reversed(range(values.shape[1])):
        step = mask[:, t]
        # δ_t = r_t + γ V(t + 1) − V(t), and A_t = δ_t + γ λ A_{t+1}
        delta = rewards[:, t] + gamma * following - values[:, t]
        running = torch.where(step, delta + gamma * lam * running, running)
        following = torch.where(step, values[:, t], following)
        columns.append(running.masked_fill(~step, 0))
    advantages = torch.stack(columns[::-1], 1) if columns else torch.zeros_like(values)
    return GAE(advantages, advantages + values)


@torch.no_grad()
def masked_sums(x: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"]) -> Float64[Tensor, "3"]:
    """Return count, sum and sum of squares where the mask is: add those of all ranks, and hand them to `whiten`."""
    known = x.double().masked_fill(~mask, 0)
    return torch.stack([mask.sum().double(), known.sum(), known.square().sum()])


@torch.no_grad()
def whiten(
    x: Float[Tensor, "*shape"],
    mask: Bool[Tensor, "*shape"],
    *,
    shift_mean: bool = True,
    sums: Float64[Tensor, "3"] | None = None,
) -> Float[Tensor, "*shape"]:
    """Return x with unit variance where the mask is, and 0 elsewhere.

    Args:
        x: advantages or rewards of a whole rollout.
        mask: which of them count.
        shift_mean: also make the mean 0, as for advantages; rewards keep theirs.
        sums: `masked_sums` added up over ranks; None for this rank's alone.

    Raises:
        RecipeError: fewer than two values count.

    Source: `masked_whiten` of TRL 1.12 (variance over n − 1, 1e-8 under the root), after lm-human-preferences.

    >>> whiten(torch.tensor([1.0, 3.0, 9.0]), torch.tensor([True, True, False]))
    tensor([-0.7071,  0.7071,  0.0000])
    """
    count, total, squares = masked_sums(x, mask) if sums is None else sums
    if count < 2:
        raise RecipeError(f"whitening needs at least two values, and {int(count)} count; enlarge the batch")
    mean = total / count
    variance = ((squares - total * mean) / (count - 1)).clamp(min=0)
    white = (x - mean.to(x.dtype)) * torch.rsqrt(variance + 1e-8).to(x.dtype)
    return (white if shift_mean else white + mean.to(x.dtype)).masked_fill(~mask, 0)


def _check_groups(rewards: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return which answers are scored, which groups are live, and how many are scored in each, as a column."""
    if rewards.ndim != 2 or rewards.shape[1] < 2:
        raise RecipeError(
            f"a group needs two answers or more to be compared with one another, and rewards are {list(rewards.shape)} "
            "[groups, group]: sample more answers for each prompt"
        )
    if rewards.isinf().any():
        raise RecipeError("a reward is infinite; give NaN for an answer that cannot be scored")
    scored = ~rewards.isnan()
    highest = rewards.masked_fill(~scored, -torch.inf).amax(1)
    lowest = rewards.masked_fill(~scored, torch.inf).amin(1)
    return scored, highest > lowest, scored.sum(1, keepdim=True)
