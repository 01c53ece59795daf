"""GRPO and its kin: several answers to each prompt, and each is judged against the others.

The mean reward of a prompt's answers stands in for a value network. What is better than it becomes likelier, what is
worse less likely, in steps that are clipped as PPO's are, and held near a reference where `beta` says so.

Its variants differ in single options, and their recipes in nothing else:
- Dr. GRPO divides by no deviation and by no answer's own length: both favour some prompts or answers over others.
- DAPO clips higher upwards, weighs all tokens alike, samples on until enough groups are live, and prices long answers.
- RLOO takes the mean of the *other* answers, and the divergence from the reference out of the reward.
- `--kind cispo` bounds a token's weight and keeps its gradient.

Notable:
- Denominators count the whole batch of a step, over all micro-batches and ranks; which groups are kept, and which
  answers share an update, is decided over all ranks. So neither --accumulate nor --devices changes a gradient.
- Dropout stays off: a ratio compares two policies, and chance in one of them would be no step of learning.
- With one update a rollout the *value* of the loss is about 0 and says nothing. The log shows reward, its parts, live
  groups, length, truncation, entropy, divergence, clipping, and `off_policy`: how far the ratio is from 1 at the first
  update after sampling, which must be next to nothing.
- Answers without an advantage cost no forward pass where no divergence is in the loss: their gradient is zero.

References: Shao et al. 2024 (GRPO); Liu et al. 2025 (Dr. GRPO); Yu et al. 2025 (DAPO); Ahmadian et al. 2024 (RLOO);
MiniMax 2025 (CISPO). Where papers are silent, and where TRL differs, see `odonata explain grpo`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from odonata.engine.method import Method
from odonata.errors import RecipeError
from odonata.language.decoder import Decoder
from odonata.language.sequences import Sequences, token_logprobs
from odonata.nn.ranks import place_among_ranks, sum_over_ranks
from odonata.posttrain.advantages import Scale, group_advantages, leave_one_out, masked_sums
from odonata.posttrain.kl import Estimator, kl_in_loss, kl_in_reward
from odonata.posttrain.options import OnlineOptions
from odonata.posttrain.policy_losses import (
    Aggregation,
    PolicyKind,
    aggregate,
    check_clip,
    denominators,
    overlong_filter,
    overlong_punishment,
    policy_terms,
)
from odonata.posttrain.questions import PromptItem
from odonata.posttrain.reference import Reference
from odonata.posttrain.rollout import Answers, Asking, Rollout, figures_of, minibatches, reference_logprobs
from odonata.posttrain.rollout_log import RolloutLog

if TYPE_CHECKING:
    from odonata.engine.fit import Engine


@dataclass(frozen=True)
class GRPOOptions(OnlineOptions):
    """How a policy learns from rewards within groups."""

    preset: str = ""
    """Take what the method's paper sets (paper), or TRL 1.16 by default (trl), for fields that are not set by hand; for
    grpo also bnpo and cispo. `odonata explain NAME` lists them."""
    group: int = 8
    """Answers to a prompt."""
    kind: PolicyKind = "ppo"
    """What is clipped: what a token can gain (ppo), its weight (cispo), or whole answers' ratios (sequence)."""
    aggregation: Aggregation = "sequence"
    """How tokens' losses are averaged: within each answer first (sequence), all alike (token), or over
    --max-new-tokens (constant)."""
    baseline: Literal["group", "leave-one-out"] = "group"
    """What a reward is compared with: the mean of its group, or of the others in it."""
    scale: Scale = "group"
    """Advantages are divided by the deviation of the group, of the batch, or by none."""
    clip_low: float | None = 0.2
    """Ratios below 1 − this earn no more."""
    clip_high: float | None = 0.2
    """Ratios above 1 + this earn no more."""
    beta: float = 0.04
    """Price of leaving the reference (0 = no reference is kept)."""
    kl: Estimator = "k3"
    """Estimate of the divergence: k1 = δ, k2 = δ²/2, k3 = exp(−δ) − 1 + δ."""
    kl_place: Literal["loss", "reward"] = "loss"
    """Where the price is paid."""
    kl_corrected: bool = False
    """Multiply the divergence in the loss by the ratio, which makes k1's and k3's gradients right."""
    epochs: int = 1
    """Passes over the answers of a step."""
    minibatches: int = 1
    """Updates in a pass."""
    resample: int = 0
    """Rounds of new prompts at most, until there are enough live groups (DAPO's dynamic sampling). A step sets aside
    --data.batch-size prompts for each."""
    filter_truncated: bool = False
    """Learn nothing from answers that were cut at the limit."""
    overlong_buffer: int = 0
    """Answers that end within so many tokens before the limit are punished, up to −1 at it (0 = never)."""

    def check(self, path: str) -> None:
        """Refuse options that contradict each other.

        Raises:
            RecipeError: names them.
        """
        super().check(path)
        self._check_ranges()
        if self.baseline == "leave-one-out" and self.scale != "none":
            raise RecipeError(
                f"--baseline leave-one-out has no deviation to divide by: set --scale none, not {self.scale}"
            )
        if self.kind == "sequence" and self.aggregation != "sequence":
            raise RecipeError("--kind sequence weighs whole answers: set --aggregation sequence")
        if self.overlong_buffer >= self.max_new_tokens:
            raise RecipeError(
                f"--overlong-buffer {self.overlong_buffer} must be below --max-new-tokens {self.max_new_tokens}"
            )
        self._check_divergence()

    def _check_ranges(self) -> None:
        lowest = {"group": 2, "epochs": 1, "minibatches": 1, "resample": 0, "overlong_buffer": 0}
        for name, low in lowest.items():
            if getattr(self, name) < low:
                why = ": an answer is judged against others to the same prompt" if name == "group" else ""
                raise RecipeError(
                    f"--{name.replace('_', '-')} is {getattr(self, name)}; it must be at least {low}{why}"
                )
        if not 0 <= self.beta < math.inf:
            raise RecipeError(f"--beta is {self.beta}; a price is 0 or more")
        check_clip(self.kind, self.clip_low, self.clip_high)

    def _check_divergence(self) -> None:
        if self.kl_corrected and (self.kl_place == "reward" or not self.beta):
            raise RecipeError("--kl-corrected is about a divergence in the loss: set --beta and --kl-place loss")
        if not self.beta and (self.kl, self.kl_place) not in (("k3", "loss"), ("k1", "reward")):  # no recipe's own
            raise RecipeError(f"--kl {self.kl} --kl-place {self.kl_place} changes nothing while --beta is 0")
        if self.kl == "k1" and self.kl_place == "loss" and self.beta and not self.kl_corrected:
            raise RecipeError(
                "--kl k1 in the loss has no gradient in expectation: take k2, --kl-corrected, or --kl-place reward"
            )


class GRPO(Method):
    """A policy, and how it learns from its own answers.

    Args:
        decoder: the policy.
        options: of the method.
        asking: how prompts are answered and judged.
        reference: what it is held near; None where `beta` is 0.
    """

    def __init__(self, decoder: Decoder, options: GRPOOptions, asking: Asking, reference: Reference | None) -> None:
        super().__init__()
        self.decoder = decoder
        self.options, self.asking, self.reference = options, asking, reference
        self.log = RolloutLog()

    def train(self, mode: bool = True) -> GRPO:
        """Leave dropout off in training too."""
        return super().train(False)

    def loss(self, batch: Any) -> dict[str, Tensor]:
        """Return the share of a micro-batch: a rollout, the loss's denominator, and that of figures."""
        rollout, denominator, moved = batch
        options = self.options
        logprobs, _ = token_logprobs(self.decoder, rollout.sequences, temperature=options.temperature)
        terms = policy_terms(
            logprobs, rollout.old_logprobs, rollout.advantages.expand_as(rollout.mask), rollout.mask,
            kind=options.kind, clip_low=options.clip_low, clip_high=options.clip_high,
        )  # fmt: skip
        losses = terms.losses
        if self.divergence_in_loss:
            losses = losses + options.beta * kl_in_loss(
                logprobs, rollout.ref_logprobs, rollout.mask, kind=options.kl,
                old_logprobs=rollout.old_logprobs if options.kl_corrected else None,
            )  # fmt: skip
        moving = rollout.mask & (rollout.advantages != 0)
        return {
            "loss": aggregate(losses, rollout.mask, options.aggregation, denominator=denominator),
            "clip_fraction": (terms.clipped & moving).sum() / moved,
            "off_policy": (terms.ratio - 1).abs()[moving].sum() / moved,
        }

    @property
    def divergence_in_loss(self) -> bool:
        """Whether the price of leaving the reference is paid in the loss."""
        return self.reference is not None and self.options.kl_place == "loss"

    def step(self, batch: Sequence[PromptItem], engine: Engine) -> dict[str, Tensor]:
        """Answer prompts, judge the answers, and learn from them."""
        with engine.gathered(self.decoder), engine.autocast():
            rollout, figures = self.roll_out(batch, engine)
        generator = torch.Generator().manual_seed(engine.recipe.seed * 1_000_003 + engine.step)
        for epoch in range(self.options.epochs):
            for number, part in enumerate(minibatches(rollout, self.options.minibatches, generator)):
                values = self.update(part, engine)
                if epoch == number == 0:
                    figures |= values
                figures["clip_fraction"] = values["clip_fraction"]
        return figures

    def update(self, rollout: Rollout, engine: Engine) -> dict[str, Tensor]:
        """Do one update on answers; return its scalars. All ranks must call."""
        options = self.options
        limit = self.asking.max_new_tokens if options.aggregation == "constant" else None
        denominator = denominators(rollout.mask, options.aggregation, limit)
        moving = (rollout.mask & (rollout.advantages != 0)).any(1)
        moved = denominators(rollout.mask & moving[:, None], "token")
        if not self.divergence_in_loss:  # what has no advantage has no gradient
            rollout = rollout.rows(moving.nonzero()[:, 0]) if bool(moving.any()) else rollout.nothing()
        parts = rollout.by_length(engine.recipe.accumulate)
        return engine.minimise_parts(self, [(part, denominator, moved) for part in parts])

    @torch.no_grad()
    def roll_out(self, items: Sequence[PromptItem], engine: Engine) -> tuple[Rollout, dict[str, Tensor]]:
        """Return the answers to a step's prompts with their advantages, and what the log should say."""
        rounds = self._rounds(items)
        asked = [self.asking.ask(self.decoder, rounds[0])]
        learned = [self.learn_from(asked[0], engine)]
        figures = figures_of(asked[0], learned[0].rollout.ref_logprobs)
        self.log.write(engine, asked[0], learned[0].advantages)
        if not self.options.resample:
            return learned[0].rollout, figures
        device = asked[0].lengths.device
        wanted, live = sum_over_ranks(
            torch.tensor([len(rounds[0]), int(learned[0].live.sum())], device=device)
        ).tolist()
        while live < wanted and len(learned) < len(rounds):
            learned.append(self.learn_from(self.asking.ask(self.decoder, rounds[len(learned)]), engine))
            live += int(sum_over_ranks(learned[-1].live.sum()))
        figures["rounds"] = torch.tensor(float(len(learned)))
        return live_of(learned, wanted), figures

    def _rounds(self, items: Sequence[PromptItem]) -> list[Sequence[PromptItem]]:
        """Return the prompts of each round: every n-th of the step's, counted over all ranks."""
        count = self.options.resample + 1
        if count == 1:
            return [items]
        before, _ = place_among_ranks(len(items), self.decoder.embed_tokens.weight)
        return [items[(number - before) % count :: count] for number in range(count)]

    def learn_from(self, answers: Answers, engine: Engine) -> Learned:
        """Return answers with their advantages."""
        options = self.options
        mask = answers.sequences.scored[:, 1:]
        ref = reference_logprobs(self.reference, answers.sequences, options.temperature, engine.recipe.accumulate)
        rewards = answers.rewards
        if options.overlong_buffer:
            limit = self.asking.max_new_tokens
            rewards = rewards + overlong_punishment(
                answers.lengths, max_length=limit, buffer=options.overlong_buffer
            ).view_as(rewards)
        if options.kl_place == "reward" and ref is not None:
            price = kl_in_reward(answers.old_logprobs, ref, mask, kind=options.kl).sum(1)
            rewards = rewards - options.beta * price.view_as(rewards)
        if options.filter_truncated:
            mask = overlong_filter(mask, ~answers.finished)
        advantages = self._advantages(rewards)
        rollout = Rollout(answers.sequences, answers.old_logprobs, mask, advantages.view(-1, 1), ref)
        return Learned(rollout, advantages, answers.live)

    def _advantages(self, rewards: Float[Tensor, "groups group"]) -> Float[Tensor, "groups group"]:
        options = self.options
        if options.baseline == "leave-one-out":
            return leave_one_out(rewards).advantages
        sums = sum_over_ranks(masked_sums(rewards, ~rewards.isnan())) if options.scale == "batch" else None
        return group_advantages(rewards, scale=options.scale, sums=sums).advantages


class Learned(NamedTuple):
    """Answers of a round, and what they teach."""

    rollout: Rollout
    advantages: Float[Tensor, "groups group"]
    live: Bool[Tensor, " groups"]
    """Groups whose answers earned differently, before any price on length or divergence."""


def live_of(learned: Sequence[Learned], wanted: int) -> Rollout:
    """Return this rank's share of the live groups of all rounds: the first `wanted` of all ranks, or all there are."""
    parts: list[Rollout] = []
    kept = 0
    for rollout, advantages, live in learned:
        group = torch.arange(advantages.shape[1], device=live.device)
        groups = live.nonzero()[:, :1]
        before, total = place_among_ranks(len(groups), live)
        groups = groups[: max(0, wanted - kept - before)]
        if len(groups):
            part = rollout.rows((groups * len(group) + group).flatten())
            first = kept + before + torch.arange(len(groups), device=live.device)[:, None]
            parts.append(replace(part, places=(first * len(group) + group).flatten()))
        kept = min(wanted, kept + total)
    return joined(parts) if parts else learned[0].rollout.nothing()


def joined(parts: Sequence[Rollout]) -> Rollout:
    """Return rollouts one below the other, padded to one length."""
    steps = max(part.mask.shape[1] for part in parts)

    def stacked(tensors: list[Tensor], width: int) -> Tensor:
        return torch.cat([torch.nn.functional.pad(tensor, (0, width - tensor.shape[1])) for tensor in tensors])

    sequences = Sequences(
        stacked([p.sequences.ids for p in parts], steps + 1), stacked([p.sequences.scored for p in parts], steps + 1)
    )
    refs = [part.ref_logprobs for part in parts if part.ref_logprobs is not None]
    places = [part.places for part in parts if part.places is not None]
    return Rollout(
        sequences, stacked([p.old_logprobs for p in parts], steps), stacked([p.mask for p in parts], steps),
        torch.cat([p.advantages for p in parts]), stacked(refs, steps) if refs else None,
        places=torch.cat(places) if places else None,
    )  # fmt: skip
