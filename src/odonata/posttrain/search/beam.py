"""Beam search: which of the likeliest continuations go on, which are finished, and what they score.

The bookkeeping alone: log-probabilities come from a function. Semantics of Hugging Face transformers 5
(`GenerationMixin._beam_search`), after Vaswani et al. 2017, section 6.1, and Wu et al. 2016, arXiv:1609.08144.

Notable:
- A score is Σ log p / length^length_penalty, the length that of the generated tokens with the end and without the
  prompt. Scores are negative, so a penalty above 0 favours long answers, in spite of its name.
- Of every prompt the 2k likeliest continuations are kept (more, with several ends), so that k of them can go on. One
  that ends counts only if it is among the first k.
- `early_stopping`: True stops when k are finished; False when no open beam would beat the worst of k if it ended now,
  which is a guess, since a later end may score better; "never" when none can, taking the greatest length where the
  penalty is above 0. transformers stops all prompts together, and so does this: a prompt that is done by its own rule
  takes no more answers.
- What reaches the greatest length is finished there, without an end.
- Beyond that file: a candidate of log-probability −∞ is never taken as an answer. Where fewer than k answers are
  possible, the rest has length 0 and score −∞; transformers returns rows of padding with a score of −1e9.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from odonata.errors import DataError, RecipeError

NextLogprobs = Callable[[Tensor, Tensor], Tensor]
"""From tokens generated so far (rows, time) and the row of the last call that each row goes on from (rows) to the
log-probabilities of the next token (rows, vocab). Rows are prompt after prompt, k beams each; at the first call no
token is there, and each row is its own parent."""
_NEVER = -1.0e9
"""Stands for −∞ in float32, as in transformers: sums with it stay finite."""


@dataclass(frozen=True)
class BeamConfig:
    """How wide, how long, and when to stop."""

    num_beams: int = 4
    """k: open beams of each prompt; 1 is greedy."""
    max_new_tokens: int = 64
    """The greatest length, the end included."""
    eos_ids: tuple[int, ...] = ()
    """Tokens that end an answer; none: every answer has the greatest length."""
    pad_id: int = 0
    """What follows an end in the result."""
    length_penalty: float = 1.0
    """Exponent of the length that a sum of log-probabilities is divided by."""
    early_stopping: bool | Literal["never"] = False
    """When a prompt is done; see the module."""
    num_return: int = 1
    """Answers of each prompt, best first; at most `num_beams`."""

    def __post_init__(self) -> None:
        for name in ("num_beams", "max_new_tokens", "num_return"):
            if getattr(self, name) < 1:
                raise RecipeError(f"{name} must be 1 or more, not {getattr(self, name)}")
        if self.num_return > self.num_beams:
            raise RecipeError(f"num_return {self.num_return} is more than the {self.num_beams} beams")
        if not math.isfinite(self.length_penalty):
            raise RecipeError(f"length_penalty must be finite, not {self.length_penalty}")
        if self.early_stopping not in (True, False, "never"):
            raise RecipeError(f"early_stopping is True, False or 'never', not {self.early_stopping!r}")
        if len(set(self.eos_ids)) != len(self.eos_ids) or any(token < 0 for token in self.eos_ids):
            raise RecipeError(f"eos_ids must be different tokens, 0 or above, not {self.eos_ids}")


@dataclass(frozen=True)
class BeamAnswers:
    """The answers of each prompt, best first."""

    tokens: Int64[Tensor, "batch answers time"]
    """With the end, padded behind it to the longest."""
    lengths: Int64[Tensor, "batch answers"]
    """With the end; 0 where there is no such answer."""
    scores: Float[Tensor, "batch answers"]
    """Σ log p / length^length_penalty."""


class BeamSearch:
    """The state of a search for a batch of prompts; feed it log-probabilities until it is done.

    Args:
        batch: prompts.
        config: how.
        device: where its tensors are.

    Attributes:
        tokens: what the open beams have generated, (batch · num_beams, time).
        parents: for each open beam the row that it went on from, (batch · num_beams): reorder a cache by it.
        done: whether the search is over.

    >>> table = torch.tensor([[0.1, 0.6, 0.3], [0.5, 0.2, 0.3], [0.9, 0.05, 0.05]]).log()
    >>> search = BeamSearch(1, BeamConfig(num_beams=2, max_new_tokens=4, eos_ids=(0,)))
    >>> while not search.done:
    ...     last = search.tokens[:, -1] if search.tokens.shape[1] else torch.zeros(2, dtype=torch.long)
    ...     search.update(table[last])
    >>> search.answers().tokens.tolist()
    [[[1, 0]]]
    """

    def __init__(self, batch: int, config: BeamConfig, device: torch.device | str = "cpu") -> None:
        if batch < 1:
            raise RecipeError(f"a search needs one prompt or more, not {batch}")
        k, longest = config.num_beams, config.max_new_tokens
        self.config, self.batch, self.length = config, batch, 0
        self._open = torch.full((batch, k, longest), config.pad_id, device=device)
        self._finished = self._open.clone()
        # Only the first beam of a prompt counts at first: the others are the same, and would be found k times.
        self._open_sums = torch.full((batch, k), _NEVER, device=device)
        self._open_sums[:, 0] = 0
        self._scores = torch.full((batch, k), _NEVER, device=device)
        self._lengths = torch.zeros((batch, k), dtype=torch.long, device=device)
        self._is_finished = torch.zeros((batch, k), dtype=torch.bool, device=device)
        self._can_improve = torch.ones((batch, 1), dtype=torch.bool, device=device)
        self._ends = torch.tensor(config.eos_ids, dtype=torch.long, device=device)
        self.parents: Int64[Tensor, " rows"] = torch.arange(batch * k, device=device)
        self.done = False

    @property
    def tokens(self) -> Int64[Tensor, "rows time"]:
        """What the open beams have generated."""
        return self._open[:, :, : self.length].flatten(0, 1)

    @torch.no_grad()
    def update(self, logprobs: Float[Tensor, "rows vocab"]) -> None:
        """Take the next step.

        Args:
            logprobs: of the token that follows each row of `tokens`; −∞ forbids one.

        Raises:
            DataError: the shape is wrong, or a value is NaN.
            RecipeError: the search is done, or an end is not in the vocabulary.
        """
        k, vocab = self.config.num_beams, logprobs.shape[-1]
        self._check(logprobs)
        kept = min(max(2, 1 + len(self.config.eos_ids)) * k, k * vocab)
        sums = (logprobs.float().clamp(min=_NEVER).view(self.batch, k, vocab) + self._open_sums[..., None]).flatten(1)
        sums, places = sums.topk(kept)
        parents, tokens = places // vocab, places % vocab
        sequences = _rows(self._open, parents)
        sequences[:, :, self.length] = tokens
        self.length += 1
        ended = torch.isin(tokens, self._ends) | (self.length >= self.config.max_new_tokens)
        self._finish(sequences, sums, ended)
        going_on = (sums + ended * _NEVER).topk(k)
        self._open_sums = going_on.values
        self._open = _rows(sequences, going_on.indices)
        offsets = torch.arange(self.batch, device=parents.device)[:, None] * k
        self.parents = (parents.gather(1, going_on.indices) + offsets).flatten()
        self._stop(bool(ended.all()))

    def answers(self) -> BeamAnswers:
        """Return the best answers that are finished."""
        count = self.config.num_return
        lengths = self._lengths[:, :count]
        scores = self._scores[:, :count].masked_fill(lengths == 0, -math.inf)
        longest = int(lengths.max())
        return BeamAnswers(self._finished[:, :count, :longest], lengths, scores)

    def _check(self, logprobs: Tensor) -> None:
        rows, vocab = self.batch * self.config.num_beams, logprobs.shape[-1]
        if self.done:
            raise RecipeError("the search is done; its answers() are ready")
        if logprobs.shape != (rows, vocab):
            raise DataError(f"log-probabilities must be ({rows}, vocab), not {tuple(logprobs.shape)}")
        if self.config.eos_ids and max(self.config.eos_ids) >= vocab:
            raise RecipeError(f"eos_ids {self.config.eos_ids}: the vocabulary has only {vocab} tokens")
        if bool(logprobs.isnan().any()):
            row = int(logprobs.isnan().any(1).nonzero()[0])
            raise DataError(f"step {self.length}: a log-probability of row {row} is NaN")

    def _finish(
        self,
        sequences: Int64[Tensor, "batch kept time"],
        sums: Float[Tensor, "batch kept"],
        ended: Bool[Tensor, "batch kept"],
    ) -> None:
        """Merge what has just ended with the answers so far, and keep the best k."""
        k = self.config.num_beams
        counts = ended & (torch.arange(sums.shape[1], device=sums.device) < k) & (sums > _NEVER / 2)
        scores = sums / self.length**self.config.length_penalty
        if self.config.early_stopping is True:
            counts = counts & ~self._is_finished.all(1, keepdim=True)
        counts = counts & self._can_improve
        scores = scores.masked_fill(~counts, _NEVER)
        merged = torch.cat((self._scores, scores), 1)
        self._scores, best = merged.topk(k)
        self._finished = _rows(torch.cat((self._finished, sequences), 1), best)
        lengths = torch.where(counts, self.length, 0)
        self._lengths = torch.cat((self._lengths, lengths), 1).gather(1, best)
        self._is_finished = torch.cat((self._is_finished, counts), 1).gather(1, best)

    def _stop(self, all_ended: bool) -> None:
        """See whether an open beam could still beat the worst answer of its prompt."""
        penalty, early = self.config.length_penalty, self.config.early_stopping
        reach = self.config.max_new_tokens if early == "never" and penalty > 0 else self.length
        best_possible = self._open_sums[:, :1] / reach**penalty
        worst = self._scores.amin(1, keepdim=True).where(self._is_finished.all(1, keepdim=True), _NEVER)
        self._can_improve = self._can_improve & (best_possible > worst)
        full = early is True and bool(self._is_finished.all())
        self.done = all_ended or full or not bool(self._can_improve.any())


def beam_search(
    next_logprobs: NextLogprobs, batch: int, config: BeamConfig, device: torch.device | str = "cpu"
) -> BeamAnswers:
    """Search to the end.

    Args:
        next_logprobs: asks the model: (tokens, parents) → log-probabilities, see `NextLogprobs`.
        batch: prompts.
        config: how.
        device: where the model's log-probabilities are.

    Raises:
        DataError: the function returns a wrong shape or NaN.
    """
    search = BeamSearch(batch, config, device)
    while not search.done:
        search.update(next_logprobs(search.tokens, search.parents))
    return search.answers()


def _rows(sequences: Int64[Tensor, "batch beams time"], places: Int64[Tensor, "batch kept"]) -> Tensor:
    return sequences.take_along_dim(places[..., None], 1)
