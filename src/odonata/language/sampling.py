"""How the next token is drawn.

Notable:
- Each row draws from a stream of its own: a number that depends on its seed and the place in its completion alone. What
  other rows stand beside it, and which of them have ended, changes nothing.
- The order is transformers': temperature, then top-k, then top-p, then min-p.
- Returned log-probabilities are those of the distribution that was drawn from, filters included. Training on what was
  sampled must score it in the same way, so the recipes that do use a temperature only.

Sources: Holtzman et al. 2019, arXiv:1904.09751 (top-p); Nguyen et al. 2024, arXiv:2407.01082 (min-p); Salmon et al.
2011 (random numbers from counters); Steele et al. 2014 (SplitMix64, its mixing function).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from odonata.errors import RecipeError

_LEAST_TEMPERATURE = 1e-4
"""Below it scores would leave the range of float32; 0 says what is meant."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen."""

    temperature: float = 1.0
    """Scores are divided by it; 0 takes the likeliest token."""
    top_k: int = 0
    """Only the k likeliest tokens (0 = all)."""
    top_p: float = 1.0
    """Only the fewest tokens whose probabilities reach this sum."""
    min_p: float = 0.0
    """Only tokens at least this times as likely as the likeliest."""

    def check(self) -> None:
        """Refuse what no distribution can have.

        Raises:
            RecipeError: names the option and its range.
        """
        if self.temperature != 0 and not _LEAST_TEMPERATURE <= self.temperature < float("inf"):
            raise RecipeError(f"--temperature is {self.temperature}; it must be 0, or {_LEAST_TEMPERATURE} or more")
        if self.top_k < 0:
            raise RecipeError(f"--top-k is {self.top_k}; it must be 0 (off) or more")
        if not 0 < self.top_p <= 1:
            raise RecipeError(f"--top-p is {self.top_p}; it lies in (0, 1]")
        if not 0 <= self.min_p < 1:
            raise RecipeError(f"--min-p is {self.min_p}; it lies in [0, 1)")
        if self.temperature == 0 and self.filters:
            raise RecipeError("--temperature 0 takes the likeliest token: --top-k, --top-p and --min-p change nothing")

    @property
    def filters(self) -> bool:
        """Whether any token is left out."""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0


def choose(
    logits: Float[Tensor, "rows vocab"], sampling: Sampling, seeds: Int[Tensor, " rows"], place: int
) -> tuple[Int[Tensor, " rows"], Float[Tensor, " rows"]]:
    """Return the next token of each row and its log-probability.

    Args:
        logits: scores.
        sampling: how to choose; with temperature 0 the log-probabilities are those at temperature 1.
        seeds: of the rows.
        place: of the token in its completion, from 0.
    """
    logits = logits.float()
    if sampling.temperature == 0:
        tokens = logits.argmax(-1)
        return tokens, _picked(torch.log_softmax(logits, -1), tokens)
    logprobs = torch.log_softmax(filtered(logits, sampling), -1)
    # Summed in float64, or the last of many small probabilities would be out of reach. Where u falls between two equal
    # sums, the token between them has no probability, and is not chosen.
    sums = logprobs.exp().cumsum(-1, dtype=torch.float64)
    u = uniforms(seeds, place) * sums[:, -1]
    tokens = torch.searchsorted(sums, u[:, None], right=True)[:, 0].clamp(max=logits.shape[1] - 1)
    return tokens, _picked(logprobs, tokens)


def filtered(logits: Float[Tensor, "rows vocab"], sampling: Sampling) -> Float[Tensor, "rows vocab"]:
    """Return scores divided by the temperature, those of excluded tokens at minus infinity."""
    scores = logits / sampling.temperature if sampling.temperature != 1 else logits
    if 0 < sampling.top_k < scores.shape[-1]:
        least = scores.topk(sampling.top_k, dim=-1).values[:, -1:]
        scores = scores.masked_fill(scores < least, -torch.inf)
    if sampling.top_p < 1:
        ordered, order = scores.sort(dim=-1, stable=True)
        below = ordered.softmax(-1).cumsum(-1) <= 1 - sampling.top_p
        below[:, -1] = False  # the likeliest always stays
        scores = scores.masked_fill(torch.zeros_like(below).scatter(1, order, below), -torch.inf)
    if sampling.min_p > 0:
        probabilities = scores.softmax(-1)
        out = probabilities < sampling.min_p * probabilities.amax(-1, keepdim=True)
        scores = scores.masked_fill(out, -torch.inf)
    return scores


def _picked(logprobs: Float[Tensor, "rows vocab"], tokens: Int[Tensor, " rows"]) -> Float[Tensor, " rows"]:
    return logprobs.gather(1, tokens[:, None])[:, 0]


def row_seeds(seed: int, rows: int, device: torch.device | None = None) -> Int[Tensor, " rows"]:
    """Return a seed for each row, from one for all."""
    return _mixed(torch.arange(rows, device=device) + _mixed(torch.tensor(_wrapped(seed), device=device)))


def as_seeds(seeds: int | Sequence[int], rows: int, device: torch.device | None = None) -> Int[Tensor, " rows"]:
    """Return the rows' seeds, given each or as one for all.

    Raises:
        ValueError: there are not as many as rows.
    """
    if isinstance(seeds, int):
        return row_seeds(seeds, rows, device)
    if len(seeds) != rows:
        raise ValueError(f"{len(seeds)} seeds for {rows} rows")
    return _mixed(torch.tensor([_wrapped(seed) for seed in seeds], device=device))


def uniforms(seeds: Int[Tensor, " rows"], place: int) -> Float[Tensor, " rows"]:
    """Return a number in [0, 1) for each row: the same for the same seed and place, whatever else there is."""
    bits = _mixed(seeds + _wrapped((place + 1) * 0x9E3779B97F4A7C15))
    return _shifted(bits, 32).double() / 2**32


def _mixed(x: Int[Tensor, "*rows"]) -> Int[Tensor, "*rows"]:
    """SplitMix64's mixing of 64 bits; torch's products of int64 wrap, as it wants."""
    x = (x ^ _shifted(x, 30)) * _wrapped(0xBF58476D1CE4E5B9)
    x = (x ^ _shifted(x, 27)) * _wrapped(0x94D049BB133111EB)
    return x ^ _shifted(x, 31)


def _shifted(x: Int[Tensor, "*rows"], by: int) -> Int[Tensor, "*rows"]:
    """Shift right, zeros coming in: torch's own brings in the sign."""
    return (x >> by) & ((1 << (64 - by)) - 1)


def _wrapped(number: int) -> int:
    """Return the signed 64-bit integer with the same bits."""
    number &= (1 << 64) - 1
    return number - (1 << 64) if number >> 63 else number
