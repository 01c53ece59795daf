"""DPO and its kin, IPO and SimPO: of two answers to a prompt, the better one shall become likelier than the worse.

A reward model says how much better an answer is; a policy that earns such rewards and stays near a reference is known
in closed form. Turned round, the policy is its own reward model, β ln π/π_ref, and learns from pairs as a classifier
would (DPO). IPO bounds how far it pulls a pair apart. SimPO leaves the reference out, and takes means over tokens.

The three differ in what they make of the log-probabilities of a pair, and in nothing else: one method, three recipes.

Notable:
- Chosen and rejected answers go through the network together, in one call. An answer's log-probability is the sum over
  its tokens with its end token, without its prompt.
- The denominator counts the pairs of the whole batch, over all micro-batches and ranks.
- Before the first update policy and reference are equal to the last bit, in the same batches: DPO's loss is ln 2.
- `accuracy` asks for strictly more: it is 0 before the first update, as in TRL.
- A margin may rise while the chosen answers grow less likely. So the log shows `chosen_logprob` beside it, in nats an
  answer; after some epochs the answers that a policy gives get worse again, and only held-back ones tell when.
- What the reference says of a row never changes. `--precompute-reference` asks it once before training: a step then
  needs half the passes, and the reference's weights are not kept.

References: Rafailov et al. 2023, arXiv:2305.18290 (DPO); Mitchell 2023 (conservative); Chowdhury et al. 2024,
arXiv:2403.00409 (robust); Zhao et al. 2023, arXiv:2305.10425 (hinge); Azar et al. 2023, arXiv:2310.12036 (IPO); Meng et
al. 2024, arXiv:2405.14734 (SimPO).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from odonata.engine.method import Method
from odonata.errors import DataError, RecipeError
from odonata.language.decoder import Decoder
from odonata.language.sequences import Sequences, pad_sequences, token_logprobs
from odonata.nn.ranks import mean_over_ranks
from odonata.posttrain.options import PolicyOptions
from odonata.posttrain.preference_losses import PreferenceTerms, dpo, simpo
from odonata.posttrain.reference import Reference
from odonata.posttrain.sampled import Sampled

if TYPE_CHECKING:
    from odonata.engine.fit import Engine


@dataclass(frozen=True)
class DPOOptions(PolicyOptions):
    """How a policy learns from pairs, by DPO."""

    loss: Literal["sigmoid", "conservative", "robust", "hinge"] = "sigmoid"
    """DPO's own; the two that know that some labels are wrong; or a hinge (SLiC)."""
    beta: float = 0.1
    """How strongly the policy is tied to the reference."""
    label_smoothing: float = 0.0
    """Share of wrong labels, for conservative and robust."""
    precompute_reference: bool = False
    """Ask the reference once, before training."""
    sampled: Sampled = field(default_factory=Sampled)
    """Pairs of a built-in task."""

    def check(self, path: str) -> None:
        """Refuse options that contradict each other.

        Raises:
            RecipeError: names them.
        """
        super().check(path)
        self.sampled.check(path)
        _check_positive("beta", self.beta)
        if self.label_smoothing and self.loss not in ("conservative", "robust"):
            raise RecipeError(
                f"--label-smoothing is not used by --loss {self.loss}; take --loss conservative or --loss robust"
            )
        if self.loss in ("conservative", "robust") and not 0 < self.label_smoothing < 0.5:
            raise RecipeError(
                f"--loss {self.loss} needs the share of wrong labels: --label-smoothing in (0, 0.5), not "
                f"{self.label_smoothing:g}"
            )


@dataclass(frozen=True)
class IPOOptions(PolicyOptions):
    """How a policy learns from pairs, by IPO."""

    beta: float = 0.1
    """The paper's τ: log-ratios of a pair shall differ by 1/(2τ)."""
    normalised: bool = False
    """Take log-ratios as means over tokens, as TRL has it on the word of the authors; the paper's formula has sums."""
    precompute_reference: bool = False
    """Ask the reference once, before training."""
    sampled: Sampled = field(default_factory=Sampled)
    """Pairs of a built-in task."""

    def check(self, path: str) -> None:
        """Refuse options that contradict each other.

        Raises:
            RecipeError: names them.
        """
        super().check(path)
        self.sampled.check(path)
        _check_positive("beta", self.beta)


@dataclass(frozen=True)
class SimPOOptions(PolicyOptions):
    """How a policy learns from pairs, by SimPO; there is no reference."""

    beta: float = 2.0
    """Scale of the mean log-probability: 2 to 2.5 in the paper."""
    gamma: float = 1.0
    """The margin to be reached: 0.3 to 1.6 in the paper, about half of β."""
    sampled: Sampled = field(default_factory=Sampled)
    """Pairs of a built-in task."""

    def check(self, path: str) -> None:
        """Refuse options that contradict each other.

        Raises:
            RecipeError: names them.
        """
        super().check(path)
        self.sampled.check(path)
        _check_positive("beta", self.beta)
        if self.gamma < 0:
            raise RecipeError(f"--gamma is {self.gamma:g}; a margin must not be negative")


PairOptions = DPOOptions | IPOOptions | SimPOOptions


def _check_positive(name: str, value: float) -> None:
    if value <= 0:
        raise RecipeError(f"--{name} is {value:g}; it must be above 0")


class PairRow(NamedTuple):
    """A prompt and its two answers, as ids."""

    prompt: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]

    @property
    def length(self) -> int:
        """Tokens of the longer side."""
        return len(self.prompt) + max(len(self.chosen), len(self.rejected))

    def cut(self, most: int) -> PairRow | None:
        """Return the pair with answers that end at the limit; None where no difference is left."""
        room = most - len(self.prompt)
        shorter = PairRow(self.prompt, self.chosen[:room], self.rejected[:room])
        return shorter if room > 0 and shorter.chosen != shorter.rejected else None

    def check(self) -> PairRow:
        """Return the pair itself.

        Raises:
            DataError: both answers are the same tokens.
        """
        if self.chosen == self.rejected:
            raise DataError("the chosen and the rejected answer are the same tokens: there is nothing to prefer")
        return self


@dataclass(frozen=True)
class PairBatch:
    """Pairs as tensors: the chosen answers, then the rejected ones in the same order."""

    sequences: Sequences
    ref: Float[Tensor, " both"] | None = None
    """ln π_ref of each answer, where it is known."""

    @property
    def pairs(self) -> int:
        """How many."""
        return len(self.sequences.ids) // 2

    def by_length(self, parts: int) -> list[PairBatch]:
        """Return the pairs in at most so many parts of like lengths."""
        if parts == 1:
            return [self]
        longer = self.sequences.lengths.view(2, -1).amax(0)
        return [self.rows(rows) for rows in torch.chunk(longer.argsort(stable=True), parts)]

    def rows(self, chosen: Int[Tensor, " rows"]) -> PairBatch:
        """Return some pairs, without padding that they do not need."""
        both = torch.cat([chosen, chosen + self.pairs])
        return PairBatch(self.sequences.rows(both), self.ref[both] if self.ref is not None else None)


@dataclass(frozen=True)
class PadPairs:
    """Makes a batch of rows, each with what the reference says of its two answers, or None."""

    pad_id: int

    def __call__(self, items: Sequence[tuple[PairRow, Sequence[float] | None]]) -> PairBatch:
        """Return the batch."""
        rows = [row for row, _ in items]
        sequences = pad_sequences(
            [row.prompt for row in rows] * 2, [row.chosen for row in rows] + [row.rejected for row in rows], self.pad_id
        )
        known = [ref for _, ref in items if ref is not None]
        return PairBatch(sequences, torch.tensor(known).T.flatten() if known else None)


class Scores(NamedTuple):
    """What is known of a batch: chosen answers, then rejected ones."""

    policy: Float[Tensor, " both"]
    """ln π of each answer, summed over its tokens."""
    ref: Float[Tensor, " both"] | None
    lengths: Int[Tensor, " both"]
    """Tokens of each answer."""


Objective = Callable[[Scores], PreferenceTerms]


def objective_of(options: PairOptions) -> Objective:
    """Return what a method makes of the log-probabilities of pairs."""

    def by_reference(scores: Scores) -> PreferenceTerms:
        assert scores.ref is not None and not isinstance(options, SimPOOptions)
        sides = *scores.policy.chunk(2), *scores.ref.chunk(2)
        if isinstance(options, DPOOptions):
            return dpo(*sides, beta=options.beta, kind=options.loss, label_smoothing=options.label_smoothing)
        chosen, rejected = scores.lengths.chunk(2)
        lengths = (chosen, rejected) if options.normalised else None
        return dpo(*sides, beta=options.beta, kind="ipo", lengths=lengths)

    def by_length(scores: Scores) -> PreferenceTerms:
        assert isinstance(options, SimPOOptions)
        return simpo(*(scores.policy / scores.lengths).chunk(2), beta=options.beta, gamma=options.gamma)

    return by_length if isinstance(options, SimPOOptions) else by_reference


class PreferenceMethod(Method):
    """A policy, and how it learns from pairs.

    Args:
        decoder: the policy.
        objective: what is made of the log-probabilities of pairs.
        reference: what they are compared with; None where the objective needs none, or where batches bring it.
    """

    def __init__(self, decoder: Decoder, objective: Objective, reference: Reference | None) -> None:
        super().__init__()
        self.decoder = decoder
        self.objective, self.reference = objective, reference

    def loss(self, batch: Any) -> dict[str, Tensor]:
        """Return the share of a micro-batch, from pairs and the number of pairs that counts."""
        part, pairs = batch
        policy = token_logprobs(self.decoder, part.sequences)[0].sum(1)
        lengths = part.sequences.scored[:, 1:].sum(1)
        terms = self.objective(Scores(policy, part.ref, lengths))
        chosen, rejected = policy.detach().chunk(2)
        sums = {
            "loss": terms.losses,
            "margin": terms.chosen_rewards - terms.rejected_rewards,
            "accuracy": (terms.chosen_rewards > terms.rejected_rewards).to(policy.dtype),
            "chosen_reward": terms.chosen_rewards,
            "rejected_reward": terms.rejected_rewards,
            "chosen_logprob": chosen,
            "rejected_logprob": rejected,
        }
        return {name: values.sum() / pairs for name, values in sums.items()}

    def step(self, batch: PairBatch, engine: Engine) -> dict[str, Tensor]:
        """Do one update over the batch in micro-batches of like lengths."""
        pairs = mean_over_ranks(batch.pairs, batch.sequences.ids)
        parts = batch.by_length(engine.recipe.accumulate)
        with engine.gathered(self.decoder), engine.autocast():
            # In the very parts that the policy will see, so that both agree to the last bit as long as they are equal.
            parts = [self.compared(part) for part in parts]
        return engine.minimise_parts(self, [(part, pairs) for part in parts])

    def compared(self, part: PairBatch) -> PairBatch:
        """Return pairs with what the reference says of them, if it is asked."""
        if self.reference is None or part.ref is not None:
            return part
        return replace(part, ref=self.reference.logprobs(part.sequences).sum(1))
