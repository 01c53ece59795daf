"""A reward model: which of two answers is better, learned from pairs (Bradley and Terry).

A decoder with a linear head reads prompt and answer, and its output at the end of sequence is the reward. The better
answer's must be higher: −ln σ(r_chosen − r_rejected − margin). What it learns is a difference: pairs leave open where 0
lies, so rewards of different prompts cannot be compared unless `centering` pulls them together.

Notable:
- The head begins at zero: before the first update every reward is 0 and the loss is ln 2.
- The denominator counts the pairs of the whole batch, over all micro-batches and ranks; neither --accumulate nor
  --devices nor padding changes a gradient.
- A tie counts half in `accuracy`, so that an untrained model has 0.5; TRL counts it as wrong.
- Rows of one prompt stay on one side when some are held back.

References: Christiano et al. 2017, arXiv:1706.03741; Stiennon et al. 2020, arXiv:2009.01325, section 3.4; Ouyang et al.
2022, arXiv:2203.02155, equation 1; Touvron et al. 2023, arXiv:2307.09288, equation 2 (margin); Eisenstein et al. 2023,
arXiv:2312.09244 (centering).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from odonata.engine import tensors
from odonata.engine.method import Method
from odonata.errors import RecipeError
from odonata.language.sequences import Sequences, pad_sequences
from odonata.nn.ranks import mean_over_ranks
from odonata.posttrain.options import PolicyOptions
from odonata.posttrain.preference import PairRow
from odonata.posttrain.reward_losses import bradley_terry, pair_accuracy
from odonata.posttrain.sampled import Sampled
from odonata.posttrain.scorer import Scorer

if TYPE_CHECKING:
    from odonata.engine.fit import Engine


@dataclass(frozen=True)
class RewardOptions(PolicyOptions):
    """How a reward model learns from pairs."""

    margin: float | Literal["file"] = 0.0
    """By how much the better answer's reward must be higher: a number for all pairs, or what the file's rows say."""
    centering: float = 0.0
    """Pulls the sum of a pair's rewards towards 0 (0.01 in the paper)."""
    sampled: Sampled = field(default_factory=Sampled)
    """Pairs of a built-in task."""

    def check(self, path: str) -> None:
        """Refuse options that contradict each other.

        Raises:
            RecipeError: names them.
        """
        super().check(path)
        self.sampled.check(path)
        if self.centering < 0:
            raise RecipeError(f"--centering is {self.centering:g}; it must be 0 (off) or more")
        if self.margin == "file" and not path:
            raise RecipeError("--margin file is what a file's rows say; a built-in task has none")


@dataclass(frozen=True)
class PairBatch:
    """Pairs as tensors, either side padded to its own length."""

    chosen: Sequences
    rejected: Sequences
    margins: Float[Tensor, " pairs"]

    def by_length(self, parts: int) -> list[PairBatch]:
        """Return the pairs in at most so many parts of like lengths."""
        if parts == 1:
            return [self]
        order = torch.maximum(self.chosen.lengths, self.rejected.lengths).argsort(stable=True)
        return [self.rows(rows) for rows in torch.chunk(order, parts)]

    def rows(self, wanted: Int[Tensor, " wanted"]) -> PairBatch:
        """Return some pairs, without padding that they do not need."""
        return PairBatch(self.chosen.rows(wanted), self.rejected.rows(wanted), self.margins[wanted])


@dataclass(frozen=True)
class PadPairs:
    """Makes a batch of pairs, each with its margin."""

    pad_id: int

    def __call__(self, items: Sequence[tuple[PairRow, float]]) -> PairBatch:
        """Return the batch."""
        prompts = [row.prompt for row, _ in items]
        sides = ([row.chosen for row, _ in items], [row.rejected for row, _ in items])
        chosen, rejected = (pad_sequences(prompts, side, self.pad_id) for side in sides)
        return PairBatch(chosen, rejected, torch.tensor([margin for _, margin in items]))


class RewardModel(Method):
    """A scorer that learns from pairs.

    Args:
        scorer: of one output.
        options: of the method.
    """

    def __init__(self, scorer: Scorer, options: RewardOptions) -> None:
        super().__init__()
        self.scorer, self.options = scorer, options

    def loss(self, batch: Any) -> dict[str, Tensor]:
        """Return the share of a micro-batch: pairs, and the number of pairs that counts."""
        part, pairs = batch
        chosen, rejected = self.scorer.at_end(part.chosen), self.scorer.at_end(part.rejected)
        sums = {
            "loss": bradley_terry(chosen, rejected, margin=part.margins, centering=self.options.centering),
            "accuracy": pair_accuracy(chosen, rejected),
            "margin": (chosen - rejected).detach(),
            "chosen_reward": chosen.detach(),
            "rejected_reward": rejected.detach(),
        }
        return {name: values.sum() / pairs for name, values in sums.items()}

    def step(self, batch: PairBatch, engine: Engine) -> dict[str, Tensor]:
        """Do one update over the batch in micro-batches of like lengths."""
        pairs = mean_over_ranks(len(batch.margins), batch.margins)
        return engine.minimise_parts(self, [(part, pairs) for part in batch.by_length(engine.recipe.accumulate)])


@dataclass
class PairEvaluator:
    """Measures how many held-back pairs are ranked as they were judged.

    Args:
        rows: pairs with their margins.
        pad: makes batches.
        batch_size: pairs at a time.
    """

    rows: Sequence[tuple[PairRow, float]]
    pad: PadPairs
    batch_size: int

    @torch.no_grad()
    def measure(self, method: Method) -> dict[str, float]:
        """Return means over pairs of what the log shows."""
        assert isinstance(method, RewardModel)
        device = next(method.parameters()).device
        sums: dict[str, float] = {}
        for start in range(0, len(self.rows), self.batch_size):
            batch = tensors.move(self.pad(self.rows[start : start + self.batch_size]), device)
            for name, value in method.loss((batch, len(self.rows))).items():
                sums[name] = sums.get(name, 0.0) + float(value)
        return {f"heldout/{name}": value for name, value in sums.items()}
