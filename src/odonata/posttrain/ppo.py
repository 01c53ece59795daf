"""PPO on answers, as in reinforcement learning from human feedback: a value for each token, and steps that are clipped.

An answer earns its score once, at its end, and pays at each token for leaving the reference. A value network foresees
what is still to be earned; how much better a token did than foreseen is its advantage (GAE). The policy moves towards
tokens with positive advantages, within a clip; the value network towards the returns, within a clip of its own.

Notable:
- The value network is a decoder of its own with a linear head, begun from the policy or from the reward model, in one
  optimiser with the policy. With adapters, both share the frozen weights.
- The score belongs to the end token (`--score-at eos`). TRL gives it to the position after it where the batch has room;
  here `--score-at after_eos` always has room. Both are equal only where λ is 1.
- Scores, divergences, values and returns are those of the rollout, at one temperature; four passes are made over them.
- Advantages are whitened over all tokens of the step, of all ranks. Where rewards are whitened, answers that never
  ended do not enter the variance, whose reward is a penalty and not a judgement; TRL lets them.
- Denominators count the whole minibatch, over all micro-batches and ranks: tokens for the policy, and for the values.
- `off_policy` is how far the ratio is from 1 at the first update after sampling, which must be next to nothing.

References: Schulman et al. 2017, arXiv:1707.06347; Schulman et al. 2015, arXiv:1506.02438 (GAE); Ziegler et al. 2019,
arXiv:1909.08593 (price, adaptive β); Ouyang et al. 2022, arXiv:2203.02155; Huang et al. 2024, arXiv:2403.17031 (the
details); `PPOTrainer` of TRL 1.12.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from odonata.engine.method import Method
from odonata.errors import RecipeError
from odonata.language.decoder import Decoder
from odonata.language.sequences import Sequences, token_logprobs
from odonata.nn.ranks import mean_over_ranks
from odonata.posttrain.advantages import gae, masked_sums, whiten
from odonata.posttrain.kl import Estimator, kl_estimate, kl_in_reward
from odonata.posttrain.options import OnlineOptions
from odonata.posttrain.policy_losses import ScoreAt, aggregate, denominators, policy_terms, ppo_rewards, value_loss
from odonata.posttrain.questions import PromptItem
from odonata.posttrain.reference import Reference, evaluating
from odonata.posttrain.rollout import Answers, Asking, Rollout, figures_of, reference_logprobs
from odonata.posttrain.rollout_log import RolloutLog
from odonata.posttrain.scorer import Scorer

if TYPE_CHECKING:
    from odonata.engine.fit import Engine


@dataclass(frozen=True)
class PPOOptions(OnlineOptions):
    """How a policy learns from rewards with a value network."""

    value_model: str = ""
    """What the value network begins as: a reward model's run or directory. Empty: the policy, with a head of zero."""
    beta: float = 0.05
    """Price of leaving the reference, for each token (0 = no reference is kept)."""
    kl: Estimator = "k1"
    """Estimate of the divergence that is paid for: k1 = δ, k2 = δ²/2, k3 = exp(−δ) − 1 + δ."""
    kl_target: float = 0.0
    """Nats an answer that β is adapted to reach (0 = β stays)."""
    kl_horizon: float = 10_000.0
    """Answers over which β is adapted."""
    score_at: ScoreAt = "eos"
    """Where the score is earned: at the end token, or at the position after it."""
    missing_eos_penalty: float = 1.0
    """Subtracted from the score of an answer that never ended."""
    gamma: float = 1.0
    """Discount of later rewards."""
    lam: float = 0.95
    """λ of GAE: 0 trusts the values, 1 the rewards."""
    whiten_rewards: bool = False
    """Give rewards unit variance; their mean stays."""
    whiten_advantages: bool = True
    """Give advantages unit variance and mean 0."""
    clip: float = 0.2
    """Ratios beyond 1 ± this earn no more."""
    value_clip: float | None = 0.2
    """Values move no further than this from those of the rollout (None: as far as they like)."""
    value_coef: float = 0.1
    """Weight of the values' loss, which has a ½ of its own."""
    epochs: int = 4
    """Passes over the answers of a step."""
    minibatches: int = 1
    """Updates in a pass."""

    def check(self, path: str) -> None:
        """Refuse options that contradict each other.

        Raises:
            RecipeError: names them.
        """
        super().check(path)
        for name in ("beta", "kl_target", "missing_eos_penalty", "clip", "value_coef"):
            if getattr(self, name) < 0:
                raise RecipeError(f"--{name.replace('_', '-')} is {getattr(self, name):g}; it must be 0 or more")
        for name in ("gamma", "lam"):
            if not 0 <= getattr(self, name) <= 1:
                raise RecipeError(f"--{name} is {getattr(self, name):g}; it lies in [0, 1]")
        for name in ("epochs", "minibatches"):
            if getattr(self, name) < 1:
                raise RecipeError(f"--{name} is {getattr(self, name)}; it must be at least 1")
        if self.kl_target and not self.beta:
            raise RecipeError("--kl-target adapts the price of leaving the reference: begin with a --beta above 0")
        if not self.beta and self.kl != "k1":
            raise RecipeError(f"--kl {self.kl} is not used where --beta is 0")
        if not self.kl_target and self.kl_horizon != PPOOptions.kl_horizon:
            raise RecipeError("--kl-horizon is about an adapted price: set --kl-target")
        if self.kl_horizon <= 0:
            raise RecipeError(f"--kl-horizon is {self.kl_horizon:g}; it must be above 0")


class PPO(Method):
    """A policy, a value network, and how both learn from the policy's answers.

    Args:
        decoder: the policy.
        value: of one output.
        options: of the method.
        asking: how prompts are answered and judged, one answer each.
        reference: what the policy is held near; None where `beta` is 0.
    """

    beta: Float64[Tensor, ""]

    def __init__(
        self, decoder: Decoder, value: Scorer, options: PPOOptions, asking: Asking, reference: Reference | None
    ) -> None:
        super().__init__()
        self.decoder, self.value = decoder, value
        self.options, self.asking, self.reference = options, asking, reference
        self.register_buffer("beta", torch.tensor(options.beta, dtype=torch.float64))
        self.log = RolloutLog()

    def train(self, mode: bool = True) -> PPO:
        """Leave dropout off in training too: a ratio compares two policies, and chance in one would be no step."""
        return super().train(False)

    def loss(self, batch: Any) -> dict[str, Tensor]:
        """Return the share of a micro-batch: a rollout, and how many tokens count for the policy and for the values."""
        rollout, tokens, places = batch
        options = self.options
        logprobs, _ = token_logprobs(self.decoder, rollout.sequences, temperature=options.temperature)
        terms = policy_terms(
            logprobs, rollout.old_logprobs, rollout.advantages, rollout.mask, clip_low=options.clip,
            clip_high=options.clip,
        )  # fmt: skip
        steps = rollout.sequences.scored[:, 1:]
        values = value_loss(
            self.value.values(rollout.sequences), rollout.values, rollout.returns, steps, clip=options.value_clip
        )
        policy = aggregate(terms.losses, rollout.mask, "token", denominator=tokens)
        value = aggregate(values.losses, steps, "token", denominator=places)
        figures = {
            "policy_loss": policy.detach(),
            "value_loss": value.detach(),
            "clip_fraction": terms.clipped.sum() / tokens,
            "value_clip_fraction": values.clipped.sum() / places,
            "off_policy": (terms.ratio - 1).abs().masked_fill(~rollout.mask, 0).sum() / tokens,
        }
        if rollout.ref_logprobs is not None:
            delta = kl_estimate(logprobs.detach(), rollout.ref_logprobs, "k3").masked_fill(~rollout.mask, 0)
            figures["kl"] = delta.sum() / tokens
        return {"loss": policy + options.value_coef * value, **figures}

    def step(self, batch: Sequence[PromptItem], engine: Engine) -> dict[str, Tensor]:
        """Answer prompts, judge the answers, and learn from them."""
        with engine.gathered(self.decoder), engine.autocast():
            rollout, figures = self.roll_out(batch, engine)
        generator = torch.Generator().manual_seed(engine.recipe.seed * 1_000_003 + engine.step)
        for epoch in range(self.options.epochs):
            order = torch.randperm(len(rollout.mask), generator=generator).to(rollout.mask.device)
            # Not `chunk`, which gives fewer where it likes: all ranks must make as many updates.
            for number, rows in enumerate(order.tensor_split(self.options.minibatches)):
                part = rollout if self.options.minibatches == 1 else rollout.rows(rows)
                values = self.update(part, engine)
                if epoch == number == 0:
                    figures |= values
                figures |= {name: values[name] for name in ("clip_fraction", "value_clip_fraction")}
        return figures

    def update(self, rollout: Rollout, engine: Engine) -> dict[str, Tensor]:
        """Do one update on answers; return its scalars."""
        tokens = denominators(rollout.mask, "token")
        places = denominators(rollout.sequences.scored[:, 1:], "token")
        parts = rollout.by_length(engine.recipe.accumulate)
        return engine.minimise_parts(self, [(part, tokens, places) for part in parts])

    @torch.no_grad()
    def roll_out(self, items: Sequence[PromptItem], engine: Engine) -> tuple[Rollout, dict[str, Tensor]]:
        """Return the answers to a step's prompts with advantages and returns, and what the log should say."""
        answers = self.asking.ask(self.decoder, items)
        rollout, figures = self.learn_from(answers, engine.recipe.accumulate)
        self.log.write(engine, answers, rollout.advantages.sum(1, keepdim=True) / answers.lengths[:, None])
        said = figures_of(answers)
        del said["live_groups"]  # one answer to a prompt is no group
        return rollout, {**said, **figures}

    @torch.no_grad()
    def learn_from(self, answers: Answers, parts: int = 1) -> tuple[Rollout, dict[str, Tensor]]:
        """Return answers with their advantages and returns, and figures about them.

        Args:
            answers: one to each prompt.
            parts: in which they are read.
        """
        options = self.options
        scores = answers.rewards[:, 0]
        sequences, old, mask = with_room(answers) if options.score_at == "after_eos" else _as_they_are(answers)
        # An answer that could not be judged teaches nothing.
        known = ~scores.isnan()
        mask = mask & known[:, None]
        ref = reference_logprobs(self.reference, sequences, options.temperature, parts)
        penalty = options.missing_eos_penalty
        rewards, steps, scores = ppo_rewards(
            scores.nan_to_num(), old, old if ref is None else ref, mask, beta=float(self.beta), kind=options.kl,
            score_at=options.score_at, ended=answers.finished if penalty else None, missing_eos_penalty=penalty,
        )  # fmt: skip
        sequences = Sequences(sequences.ids, F.pad(steps, (1, 0)))
        values = self._values(sequences, parts)
        if options.whiten_rewards:
            rewards = whiten_ended(rewards, steps, answers.finished)
        found = gae(rewards, values, steps, gamma=options.gamma, lam=options.lam)
        advantages = found.advantages
        if options.whiten_advantages and (sums := _over_ranks(masked_sums(advantages, mask)))[0] >= 2:
            advantages = whiten(advantages, mask, sums=sums)
        rollout = Rollout(sequences, old, mask, advantages, ref, values, found.returns)
        figures = self._figures(rollout, steps, scores[known])
        return rollout, figures

    def _values(self, sequences: Sequences, parts: int) -> Float[Tensor, "rows steps"]:
        """Return the values before all tokens that are learned from, computed in parts of like lengths; 0 elsewhere."""
        where = sequences.scored[:, 1:]
        whole = torch.zeros(where.shape, device=where.device)
        with evaluating(self.value):
            for rows in torch.chunk(sequences.lengths.argsort(stable=True), parts):
                part = self.value.values(sequences.rows(rows)).float()
                whole[rows, : part.shape[1]] = part
        return whole.masked_fill(~where, 0)

    def _figures(self, rollout: Rollout, steps: Bool[Tensor, "rows steps"], scores: Tensor) -> dict[str, Tensor]:
        """Return what the log should say of values and price, and adapt the price."""
        assert rollout.values is not None and rollout.returns is not None  # `learn_from` made them
        figures = {
            "score": scores.mean() if len(scores) else torch.tensor(0.0),
            "explained_variance": explained_variance(rollout.values, rollout.returns, steps),
        }
        if rollout.ref_logprobs is not None:
            price = kl_in_reward(rollout.old_logprobs, rollout.ref_logprobs, rollout.mask).sum(1)
            rows = mean_over_ranks(float(rollout.mask.any(1).sum()), price)
            divergence = mean_over_ranks(price.sum(), price, least=-torch.inf) / rows
            figures["kl_answer"] = divergence
            figures["beta"] = self.beta.clone()
            if self.options.kl_target:
                world = dist.get_world_size() if dist.is_initialized() else 1
                self.beta.mul_(adapted(divergence, self.options, float(rows) * world))
        return figures


def with_room(answers: Answers) -> tuple[Sequences, Float[Tensor, "rows steps"], Bool[Tensor, "rows steps"]]:
    """Return sequences, log-probabilities and mask with one place more behind each answer."""
    ids, scored = (F.pad(x, (0, 1)) for x in (answers.sequences.ids, answers.sequences.scored))
    return Sequences(ids, scored), F.pad(answers.old_logprobs, (0, 1)), scored[:, 1:]


def _as_they_are(answers: Answers) -> tuple[Sequences, Float[Tensor, "rows steps"], Bool[Tensor, "rows steps"]]:
    return answers.sequences, answers.old_logprobs, answers.sequences.scored[:, 1:]


def whiten_ended(
    rewards: Float[Tensor, "rows steps"], steps: Bool[Tensor, "rows steps"], finished: Bool[Tensor, " rows"]
) -> Float[Tensor, "rows steps"]:
    """Return rewards over the deviation of those of answers that ended, their mean kept.

    Args:
        rewards: of each token.
        steps: tokens that count.
        finished: which answers came to their end; where hardly any did, all of them count.
    """
    sums = _over_ranks(masked_sums(rewards, steps & finished[:, None]))
    if sums[0] < 2:
        sums = _over_ranks(masked_sums(rewards, steps))
    return whiten(rewards, steps, shift_mean=False, sums=sums)


def adapted(divergence: Tensor, options: PPOOptions, answers: float) -> float:
    """Return the factor by which β changes after so many answers with that divergence.

    Source: Ziegler et al. 2019, arXiv:1909.08593, section 2.2 and `AdaptiveKLController` of lm-human-preferences:
    β ← β (1 + clip((KL − target) / target, ±0.2) · answers / horizon).
    """
    error = (float(divergence) / options.kl_target) - 1
    return 1 + max(-0.2, min(0.2, error)) * answers / options.kl_horizon


def explained_variance(
    values: Float[Tensor, "rows steps"], returns: Float[Tensor, "rows steps"], steps: Bool[Tensor, "rows steps"]
) -> Float[Tensor, ""]:
    """Return 1 − Var(returns − values) / Var(returns): 0 is no better than a constant. 0 for equal returns."""
    if not steps.any():
        return returns.new_zeros(())
    spread = returns[steps].var(correction=0)
    left = (returns - values)[steps].var(correction=0)
    return torch.where(spread > 0, 1 - left / spread.clamp(min=1e-30), torch.zeros_like(spread))


def _over_ranks(sums: Float64[Tensor, "3"]) -> Float64[Tensor, "3"]:
    if dist.is_initialized():
        dist.all_reduce(sums)
    return sums
