"""What is measured of a decoder on texts that it was not trained on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from odonata.engine.method import Method
from odonata.errors import RecipeError
from odonata.language.corpus import Pair
from odonata.language.decoder import Decoder
from odonata.language.next_token import NextToken
from odonata.language.sequences import Sequences, pad_sequences, token_logprobs
from odonata.metrics.bootstrap import bootstrap_mean
from odonata.metrics.figure import Figure


@dataclass(frozen=True)
class TextEvaluation:
    """What is measured on texts that are held back."""

    sequences: int = 256
    """Held-back sequences used (0 = nothing is measured)."""
    batch_size: int = 64
    """Sequences read at a time."""

    def check(self) -> None:
        """Refuse values out of their range.

        Raises:
            RecipeError: names the option.
        """
        if self.sequences < 0 or self.batch_size < 1:
            raise RecipeError(
                f"--evaluation.sequences is {self.sequences} and --evaluation.batch-size {self.batch_size}: "
                "they must be at least 0 and 1"
            )


@dataclass
class TextEvaluator:
    """Measures how well held-back texts are foreseen.

    Args:
        pairs: ids of what is given, and of what is scored.
        pad_id: fills up.
        bytes_per_token: of the held-back texts; 0 where tokens are characters of an embedded set.
        options: how much.
    """

    pairs: Sequence[Pair]
    pad_id: int
    bytes_per_token: float
    options: TextEvaluation

    def measure(self, method: Method) -> dict[str, float]:
        """Return `nats` a token, `perplexity`, and `bits_per_byte` of files."""
        assert isinstance(method, NextToken)
        figures = text_figures(method.decoder, self.pairs, self.pad_id, self.bytes_per_token, self.options.batch_size)
        return {name: figure.value for name, figure in figures.items()}


def text_figures(
    decoder: Decoder, pairs: Sequence[Pair], pad_id: int, bytes_per_token: float, batch_size: int
) -> dict[str, Figure]:
    """Return `nats` a token, `perplexity`, and `bits_per_byte` of files, with 95 % intervals over the sequences.

    Args:
        decoder: in evaluation mode.
        pairs: ids of what is given, and of what is scored.
        pad_id: fills up.
        bytes_per_token: of these texts; 0 leaves `bits_per_byte` out.
        batch_size: sequences read at a time.
    """
    sums, counts = _sums(decoder, pairs, pad_id, batch_size)
    interval = bootstrap_mean(sums / counts.mean())  # its mean is the sum over all tokens by their number
    nats = [interval.estimate, interval.low, interval.high]
    found = {"nats": nats, "perplexity": [math.exp(min(value, 700.0)) for value in nats]}
    if bytes_per_token:
        found["bits_per_byte"] = [value / math.log(2) / bytes_per_token for value in nats]
    return {name: Figure(*values, count=len(pairs)) for name, values in found.items()}


@torch.no_grad()
def _sums(decoder: Decoder, pairs: Sequence[Pair], pad_id: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return −log p of the scored tokens of each sequence, and how many they are."""
    device = decoder.embed_tokens.weight.device
    sums, counts = np.empty(len(pairs)), np.empty(len(pairs))
    for start in range(0, len(pairs), size):
        part = pairs[start : start + size]
        batch = pad_sequences([p for p, _ in part], [c for _, c in part], pad_id)
        batch = Sequences(batch.ids.to(device), batch.scored.to(device))
        sums[start : start + size] = -token_logprobs(decoder, batch)[0].double().sum(1).cpu().numpy()
        counts[start : start + size] = batch.scored[:, 1:].sum(1).cpu().numpy()
    return sums, counts
