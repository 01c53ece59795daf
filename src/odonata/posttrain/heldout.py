"""What is measured on rows that are held back, for methods that learn from files.

Notable: what the reference says of a held-back pair never changes, and is asked once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from odonata.engine import tensors
from odonata.engine.method import Method
from odonata.language.next_token import NextToken, scored_tokens
from odonata.language.sequences import token_logprobs
from odonata.posttrain.kto import KTO, JudgedRows, PadJudged, counts_of, partners_of
from odonata.posttrain.preference import PadPairs, PairRow, PreferenceMethod
from odonata.posttrain.sft import LearnedRow, PadLearned

Item = TypeVar("Item")


@dataclass(frozen=True)
class OfflineEvaluation:
    """What is measured on rows that are held back, and on prompts of a built-in task."""

    rows: int = 256
    """Held-back rows used (0 = none)."""
    batch_size: int = 64
    """Rows read at a time."""
    prompts: int = 256
    """Prompts of a task that are answered (0 = none)."""
    batch_rows: int = 256
    """Answers made at a time."""


def chunks(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """Return the items in pieces of at most so many."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _device(method: Method) -> torch.device:
    return next(method.parameters()).device


@dataclass
class ExampleEvaluator:
    """Measures how well held-back answers are foreseen.

    Args:
        rows: as ids.
        pad: makes batches.
        batch_size: rows at a time.
    """

    rows: Sequence[LearnedRow]
    pad: PadLearned
    batch_size: int

    @torch.no_grad()
    def measure(self, method: Method) -> dict[str, float]:
        """Return `heldout/loss`: nats a token of the answers."""
        assert isinstance(method, NextToken)
        total, count = 0.0, 0.0
        for part in chunks(self.rows, self.batch_size):
            batch = tensors.move(self.pad(part), _device(method))
            total -= float(token_logprobs(method.decoder, batch)[0].double().sum())
            count += float(scored_tokens(batch))
        return {"heldout/loss": total / max(1.0, count)}


@dataclass
class PairEvaluator:
    """Measures held-back pairs.

    Args:
        rows: as ids.
        pad: makes batches.
        batch_size: pairs at a time.
        refs: what the reference says of the two answers of each; asked of it where this is None.
    """

    rows: Sequence[PairRow]
    pad: PadPairs
    batch_size: int
    refs: Float[Tensor, "rows 2"] | None = None
    _asked: list[Tensor | None] = field(default_factory=list[Tensor | None])

    @torch.no_grad()
    def measure(self, method: Method) -> dict[str, float]:
        """Return means over pairs of what the log shows: loss, margin, accuracy, rewards, log-probabilities."""
        assert isinstance(method, PreferenceMethod)
        refs: Sequence[Sequence[float] | None] = [None] * len(self.rows) if self.refs is None else self.refs.tolist()
        items = list(zip(self.rows, refs, strict=True))
        sums: dict[str, float] = {}
        for number, part in enumerate(chunks(items, self.batch_size)):
            batch = tensors.move(self.pad(part), _device(method))
            if number == len(self._asked):
                self._asked.append(method.compared(batch).ref)
            batch = replace(batch, ref=self._asked[number])
            for name, value in method.loss((batch, len(items))).items():
                sums[name] = sums.get(name, 0.0) + float(value)
        return {f"heldout/{name}": value for name, value in sums.items()}


@dataclass
class JudgementEvaluator:
    """Measures held-back judgements.

    Args:
        rows: as ids.
        pad: makes batches.
        batch_size: rows at a time.
    """

    rows: JudgedRows
    pad: PadJudged
    batch_size: int

    @torch.no_grad()
    def measure(self, method: Method) -> dict[str, float]:
        """Return what the log shows, of all rows as one batch."""
        assert isinstance(method, KTO)
        partners = partners_of([row.prompt for row in self.rows.rows])
        items = [self.rows.pair(own, partner) for own, partner in enumerate(partners)]
        whole = tensors.move(self.pad(items), _device(method))
        parts = -(-len(items) // self.batch_size)
        z0, counts = method.reference_point(whole, parts), counts_of(whole.desirable)
        sums: dict[str, float] = {}
        for part in whole.by_length(parts):
            for name, value in method.loss((method.compared(part), z0, counts)).items():
                sums[name] = sums.get(name, 0.0) + float(value)
        return {f"heldout/{name}": value for name, value in sums.items()}
