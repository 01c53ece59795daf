"""What is measured of a policy: what its answers to held-back prompts earn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from odonata.engine.method import Method
from odonata.language.decoder import Decoder
from odonata.language.sampling import Sampling
from odonata.posttrain.questions import PromptItem
from odonata.posttrain.rollout import Asking


@dataclass(frozen=True)
class PolicyEvaluation:
    """What is measured on prompts that are held back."""

    prompts: int = 256
    """Held-back prompts used (0 = nothing is measured)."""
    batch_rows: int = 256
    """Answers made at a time."""


@dataclass
class PolicyEvaluator:
    """Asks held-back prompts once by chance and once greedily.

    Args:
        items: the prompts.
        asking: how they are answered and judged.
        batch_rows: answers made at a time.
        truth: the reward that says whether an answer is right.
    """

    items: Sequence[PromptItem]
    asking: Asking
    batch_rows: int
    truth: str

    @property
    def measures(self) -> bool:
        """Whether there is anything to measure."""
        return bool(self.items)

    def measure(self, method: Method) -> dict[str, float]:
        """Return `reward`, `right` and `length` of sampled answers, and `greedy`, right answers at temperature 0."""
        decoder = method.decoder
        assert isinstance(decoder, Decoder)
        figures = self.figures(decoder, self.asking.sampling)
        greedy = self.figures(decoder, Sampling(0.0))
        return {"heldout/" + name: value for name, value in figures.items()} | {"heldout/greedy": greedy["right"]}

    @torch.no_grad()
    def figures(self, decoder: Decoder, sampling: Sampling) -> dict[str, float]:
        """Return means over answers, one to each prompt."""
        asking = replace(self.asking, group=1, sampling=sampling)
        totals: list[float] = []
        right: list[float] = []
        lengths, cut = 0, 0
        for start in range(0, len(self.items), self.batch_rows):
            said = asking.ask(decoder, self.items[start : start + self.batch_rows])
            totals += [value for value in said.judged.total if value is not None]
            right += [value for value in said.judged.parts[self.truth] if value is not None]
            lengths += int(said.lengths.sum())
            cut += int((~said.finished).sum())
        return {
            "reward": sum(totals) / max(1, len(totals)),
            "right": sum(right) / max(1, len(right)),
            "length": lengths / len(self.items),
            "truncated": cut / len(self.items),
        }
