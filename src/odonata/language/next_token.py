"""The oldest objective of a language model: the next token.

Train a decoder from scratch on texts, or go on with one: cross-entropy of every token given those before it. Windows of
a file are scored throughout; texts that have a prompt are scored behind it.

Notable: the loss is the mean over the tokens of the whole batch, of all ranks and micro-batches; how a batch is divided
changes no gradient.

References: Bengio et al. 2003; Radford et al. 2018 and 2019.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from odonata.engine.method import Method
from odonata.errors import RecipeError
from odonata.language.assets import LoRA
from odonata.language.decoder import VARIANTS, Decoder, Initialisation
from odonata.language.sequences import Sequences, token_logprobs
from odonata.nn.ranks import mean_over_ranks

if TYPE_CHECKING:
    from odonata.engine.fit import Engine


@dataclass(frozen=True)
class DecoderOptions:
    """A decoder to train on texts."""

    variant: str = "micro"
    """Size of a new decoder: nano, micro, mini, small, base."""
    model: str = ""
    """Go on with this one instead: a directory as transformers writes it, or a run."""
    vocab_size: int = 1024
    """Entries of a new byte-level BPE for files; the embedded sets are read by the character."""
    dropout: float = 0.0
    """In a new decoder."""
    initialisation: Initialisation = "scaled"
    """How a new decoder's matrices are drawn: scaled, as GPT-2's, by their width; flat, with deviation 0.02."""
    lora: LoRA = field(default_factory=LoRA)
    """Train low-rank updates alone."""

    def check(self) -> None:
        """Refuse options that contradict each other.

        Raises:
            RecipeError: names them.
        """
        if self.variant not in VARIANTS:
            raise RecipeError(f"--variant {self.variant!r} is unknown; there are {', '.join(VARIANTS)}")
        if self.lora.rank and not self.model:
            raise RecipeError("--lora.rank adapts pretrained weights: name them with --model")
        if self.model:
            for name in ("variant", "vocab_size", "dropout", "initialisation"):
                if getattr(self, name) != getattr(DecoderOptions, name):
                    raise RecipeError(f"--{name.replace('_', '-')} is of a new decoder; --model brings its own")


def next_token_loss(decoder: Decoder, batch: Sequences, tokens: Float[Tensor, ""] | float) -> Float[Tensor, ""]:
    """Return the sum of −log p over the scored tokens, divided by `tokens`."""
    return -token_logprobs(decoder, batch)[0].sum() / tokens


class NextToken(Method):
    """A decoder that learns to go on.

    Args:
        decoder: the network.
    """

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder

    def loss(self, batch: Sequences) -> dict[str, Tensor]:
        """Return the mean of −log p over the scored tokens, in nats."""
        return {"loss": next_token_loss(self.decoder, batch, scored_tokens(batch))}

    def forward(self, batch: Any) -> dict[str, Tensor]:
        """Return the share of a micro-batch: a pair of sequences and the number of tokens that counts."""
        part, tokens = batch
        return {"loss": next_token_loss(self.decoder, part, tokens)}

    def step(self, batch: Sequences, engine: Engine) -> dict[str, Tensor]:
        """Do one update over the batch in micro-batches of like lengths."""
        tokens = mean_over_ranks(scored_tokens(batch), batch.ids)
        return engine.minimise_parts(self, [(part, tokens) for part in by_length(batch, engine.recipe.accumulate)])


def scored_tokens(batch: Sequences) -> Float[Tensor, ""]:
    """Return how many tokens are scored: a first token, which nothing stands before, is none."""
    return batch.scored[:, 1:].sum().float()


def by_length(batch: Sequences, parts: int) -> Sequence[Sequences]:
    """Return the batch in micro-batches of like lengths, each without padding that it does not need."""
    if parts == 1:
        return [batch]
    order = batch.lengths.argsort(stable=True)
    return [batch.rows(rows) for rows in torch.chunk(order, parts)]
