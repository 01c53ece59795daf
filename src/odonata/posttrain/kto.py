"""KTO: single answers called good or bad, weighed as people weigh gains and losses.

No pairs are needed: a good answer shall earn more than a reference point, a bad one less. Both are worth little more
once they are far from it. The reference point z0 is how far the policy has left the reference as a whole, which answers
that belong to other prompts tell.

Notable:
- A row's mismatched answer is that of the row before it in the batch of the step, all ranks together, that answers
  another prompt. So z0 is the same however a batch is divided, and new in every epoch. TRL fixes these pairs before
  training, within batches of the data's own order.
- z0 is computed before the micro-batches, has no gradient, and is 0 at least. A batch whose rows all answer one prompt
  has none, and counts as 0, the value it has before training.
- The rarer kind of answer weighs more, so that both kinds count alike (`--balance`).
- The denominator counts the rows of the whole batch, over all micro-batches and ranks.

Reference: Ethayarajh et al. 2024, arXiv:2402.01306, sections 4.1 and 4.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from odonata.data.loader import Key, Shuffled
from odonata.engine.method import Method
from odonata.errors import RecipeError
from odonata.language.decoder import Decoder
from odonata.language.sequences import Sequences, pad_sequences, token_logprobs
from odonata.nn.ranks import mean_over_ranks
from odonata.posttrain.options import PolicyOptions
from odonata.posttrain.preference_losses import kto
from odonata.posttrain.reference import Reference, evaluating
from odonata.posttrain.sampled import Sampled

if TYPE_CHECKING:
    from odonata.engine.fit import Engine


@dataclass(frozen=True)
class KTOOptions(PolicyOptions):
    """How a policy learns from answers that are good or bad."""

    beta: float = 0.1
    """How strongly the policy is tied to the reference."""
    balance: float | None = 1.0
    """λ_D n_D / (λ_U n_U), from 1 to 4/3: how much the good answers weigh together, over the bad ones. None: every
    answer weighs 1."""
    sampled: Sampled = field(default_factory=Sampled)
    """Judgements of a built-in task."""

    def check(self, path: str) -> None:
        """Refuse options that contradict each other.

        Raises:
            RecipeError: names them.
        """
        super().check(path)
        self.sampled.check(path)
        if self.beta <= 0:
            raise RecipeError(f"--beta is {self.beta:g}; it must be above 0")
        if self.balance is not None and not 1 <= self.balance <= 4 / 3 + 1e-9:
            raise RecipeError(f"--balance is {self.balance:g}; it lies between 1 and 4/3")


class JudgedRow(NamedTuple):
    """A prompt, an answer, as ids, and whether it is wanted."""

    prompt: tuple[int, ...]
    completion: tuple[int, ...]
    desirable: bool

    @property
    def length(self) -> int:
        """Tokens of both."""
        return len(self.prompt) + len(self.completion)

    def cut(self, most: int) -> JudgedRow | None:
        """Return the row with an answer that ends at the limit; None where the prompt fills it."""
        room = most - len(self.prompt)
        return self._replace(completion=self.completion[:room]) if room > 0 else None


class Partners:
    """Gives each row of a step's batch the row before it, in a circle, that answers another prompt.

    An item is known by `index · rows + partner`; a row without such a partner is its own.

    Args:
        sampler: chooses the rows of a step.
        prompts: of each row.
    """

    def __init__(self, sampler: Shuffled, prompts: Sequence[object]) -> None:
        self.sampler, self.prompts = sampler, prompts
        self.batch_size, self.steps_per_epoch = sampler.batch_size, sampler.steps_per_epoch

    def keys(self, step: int) -> list[Key]:
        """The keys of the batch of a step."""
        keys = self.sampler.keys(step)
        partners = partners_of([self.prompts[index] for _, index in keys])
        return [
            (epoch, index * len(self.prompts) + keys[partner][1])
            for (epoch, index), partner in zip(keys, partners, strict=True)
        ]


def partners_of(prompts: Sequence[object]) -> list[int]:
    """Return for each place the nearest one before it, in a circle, with another prompt; itself where there is none."""
    count = len(prompts)
    return [
        next((i - back) % count for back in range(1, count + 1) if back == count or prompts[(i - back) % count] != own)
        for i, own in enumerate(prompts)
    ]


@dataclass(frozen=True)
class JudgedRows:
    """Rows by the keys of `Partners`: each with the answer of its partner, if it has one.

    Args:
        rows: all of them.
        most: tokens of a prompt with another's answer; more are cut.
    """

    rows: Sequence[JudgedRow]
    most: int

    def __getitem__(self, key: Key) -> tuple[JudgedRow, tuple[int, ...]]:
        own, partner = divmod(key[1], len(self.rows))
        return self.pair(own, partner)

    def pair(self, own: int, partner: int) -> tuple[JudgedRow, tuple[int, ...]]:
        """Return a row, and the answer of another; no token where that is the row itself, or no room is left."""
        row = self.rows[own]
        other = self.rows[partner].completion if partner != own else ()
        return row, other[: max(0, self.most - len(row.prompt))]


@dataclass(frozen=True)
class JudgedBatch:
    """Judged answers as tensors, and prompts with answers that belong to others."""

    sequences: Sequences
    desirable: Bool[Tensor, " batch"]
    mismatched: Sequences | None = None
    """None where all rows answer one prompt."""
    ref: Float[Tensor, " batch"] | None = None
    """ln π_ref of the answers, once it is known."""

    def by_length(self, parts: int) -> list[JudgedBatch]:
        """Return the answers in at most so many parts of like lengths, without what is mismatched."""
        if parts == 1:
            return [replace(self, mismatched=None)]
        order = self.sequences.lengths.argsort(stable=True)
        return [JudgedBatch(self.sequences.rows(rows), self.desirable[rows]) for rows in torch.chunk(order, parts)]


@dataclass(frozen=True)
class PadJudged:
    """Makes a batch."""

    pad_id: int

    def __call__(self, items: Sequence[tuple[JudgedRow, tuple[int, ...]]]) -> JudgedBatch:
        """Return the batch."""
        rows = [row for row, _ in items]
        others = [(row.prompt, other) for row, other in items if other]
        return JudgedBatch(
            pad_sequences([row.prompt for row in rows], [row.completion for row in rows], self.pad_id),
            torch.tensor([row.desirable for row in rows]),
            pad_sequences([p for p, _ in others], [c for _, c in others], self.pad_id) if others else None,
        )


class Counts(NamedTuple):
    """What sums are divided by: means over ranks."""

    rows: Tensor
    desirable: Tensor
    undesirable: Tensor


def counts_of(desirable: Bool[Tensor, " batch"]) -> Counts:
    """Return the counts of a batch, all ranks together."""
    good = desirable.sum()
    rows = mean_over_ranks(len(desirable), desirable)
    # Where a kind is absent its sums are 0, whatever they are divided by.
    return Counts(rows, *(mean_over_ranks(n, desirable, least=1e-6) for n in (good, len(desirable) - good)))


class KTO(Method):
    """A policy, and how it learns from judgements.

    Args:
        decoder: the policy.
        options: of the method.
        weights: λ_D and λ_U.
        reference: what it is compared with.
    """

    def __init__(
        self, decoder: Decoder, options: KTOOptions, weights: tuple[float, float], reference: Reference
    ) -> None:
        super().__init__()
        self.decoder = decoder
        self.options, self.weights, self.reference = options, weights, reference

    def loss(self, batch: Any) -> dict[str, Tensor]:
        """Return the share of a micro-batch: judged answers, the reference point, and the counts that matter."""
        part, z0, counts = batch
        policy = token_logprobs(self.decoder, part.sequences)[0].sum(1)
        good = part.desirable
        terms = kto(
            policy, part.ref, good, kl_policy=z0.view(1), kl_ref=z0.new_zeros(1), beta=self.options.beta,
            desirable_weight=self.weights[0], undesirable_weight=self.weights[1],
        )  # fmt: skip
        rewards, bad = terms.rewards, ~good
        chosen, rejected = rewards[good].sum() / counts.desirable, rewards[bad].sum() / counts.undesirable
        right = torch.where(good, rewards > 0, rewards < 0)
        return {
            "loss": terms.losses.sum() / counts.rows,
            "margin": chosen - rejected,
            "accuracy": right.sum() / counts.rows,
            "chosen_reward": chosen,
            "rejected_reward": rejected,
            "chosen_logprob": policy.detach()[good].sum() / counts.desirable,
            "rejected_logprob": policy.detach()[bad].sum() / counts.undesirable,
            "z0": terms.z0 * len(good) / counts.rows,
        }

    def step(self, batch: JudgedBatch, engine: Engine) -> dict[str, Tensor]:
        """Do one update over the batch in micro-batches of like lengths."""
        accumulate = engine.recipe.accumulate
        with engine.gathered(self.decoder), engine.autocast():
            z0 = self.reference_point(batch, accumulate)
            parts = [self.compared(part) for part in batch.by_length(accumulate)]
        counts = counts_of(batch.desirable)
        return engine.minimise_parts(self, [(part, z0, counts) for part in parts])

    @torch.no_grad()
    def reference_point(self, batch: JudgedBatch, parts: int = 1) -> Float[Tensor, ""]:
        """Return the mean of ln π/π_ref over the mismatched answers of all ranks; 0 where there are none."""
        device = batch.sequences.ids.device
        total, count = torch.zeros((), device=device), 0
        if batch.mismatched is not None:
            count = len(batch.mismatched.ids)
            for rows in torch.chunk(batch.mismatched.lengths.argsort(stable=True), parts):
                total = total + self.log_ratios(batch.mismatched.rows(rows)).sum()
        shared = mean_over_ranks(total, total, least=-torch.inf)
        return shared / mean_over_ranks(count, total, least=1e-6)

    def log_ratios(self, sequences: Sequences) -> Float[Tensor, " rows"]:
        """Return ln π/π_ref of completions, with dropout off."""
        with evaluating(self.decoder):
            policy = token_logprobs(self.decoder, sequences)[0]
        return (policy - self.reference.logprobs(sequences)).sum(1)

    def compared(self, part: JudgedBatch) -> JudgedBatch:
        """Return answers with what the reference says of them."""
        return replace(part, ref=self.reference.logprobs(part.sequences).sum(1))
