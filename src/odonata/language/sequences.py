"""Token sequences as batches, and what a decoder says of each token in them.

Notable:
- Sequences are padded on the right. Attention is causal, so what stands behind a sequence changes none of its numbers:
  neither padding nor the batch enters a loss.
- Only the tokens that are scored go through the head, in chunks that never hold all their scores at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from odonata.language.decoder import Decoder
from odonata.nn.head_logprobs import head_logprobs

_CALL = {"cpu": 256}
"""Device → tokens that take as long as what a forward and backward pass costs in any case."""
_CALL_OF_ACCELERATORS = 16384


@dataclass(frozen=True)
class Sequences:
    """Prompts with what follows them."""

    ids: Int[Tensor, "batch time"]
    """Padded on the right."""
    scored: Bool[Tensor, "batch time"]
    """Which tokens are learned from: those of completions."""

    @property
    def lengths(self) -> Int[Tensor, " batch"]:
        """Up to each row's last scored token, which is all that a loss looks at."""
        places = torch.arange(1, self.ids.shape[1] + 1, device=self.ids.device)
        return (self.scored * places).amax(1)

    def rows(self, chosen: Int[Tensor, " rows"]) -> Sequences:
        """Return some rows, without the padding that none of them needs."""
        ids, scored = self.ids[chosen], self.scored[chosen]
        longest = max(1, int(Sequences(ids, scored).lengths.max())) if len(chosen) else 1
        return Sequences(ids[:, :longest], scored[:, :longest])


def like_lengths(lengths: Int[Tensor, " batch"], parts: int = 1) -> list[Int[Tensor, " rows"]]:
    """Return rows in parts of like lengths, the shortest first: what is computed part by part is padded little.

    Args:
        lengths: of the rows; one at least.
        parts: at least so many, nearly equal; each is divided further where its padding would cost more than a call.
    """
    order, call = lengths.argsort(stable=True), _CALL.get(lengths.device.type, _CALL_OF_ACCELERATORS)
    return [
        rows[start:stop]
        for rows in torch.chunk(order, parts)
        for start, stop in pairwise(_cuts(lengths[rows].double().cpu(), call))
    ]


def _cuts(ascending: Float[Tensor, " rows"], call: int) -> list[int]:
    """Return where to cut rows of ascending lengths, ends included, so that padding and calls together cost least."""
    count = len(ascending)
    least, came_from = torch.zeros(count + 1, dtype=torch.float64), [0] * (count + 1)
    places = torch.arange(count + 1)
    for stop in range(1, count + 1):
        cost, start = (least[:stop] + (stop - places[:stop]) * ascending[stop - 1]).min(0)
        least[stop], came_from[stop] = cost + call, int(start)
    cuts = [count]
    while cuts[-1]:
        cuts.append(came_from[cuts[-1]])
    return cuts[::-1]


def pad_sequences(prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], pad_id: int) -> Sequences:
    """Return prompts and completions as one batch; the completions are scored.

    Args:
        prompts: ids of each.
        completions: ids of each, their end token included.
        pad_id: fills up; any token will do.
    """
    given = torch.tensor([len(prompt) for prompt in prompts])
    stops = torch.tensor([len(p) + len(c) for p, c in zip(prompts, completions, strict=True)])
    longest = int(stops.max())
    # One tensor of one list: a tensor for each row costs many times as much.
    rows = [[*p, *c, *[pad_id] * (longest - len(p) - len(c))] for p, c in zip(prompts, completions, strict=True)]
    places = torch.arange(longest)
    return Sequences(torch.tensor(rows), (places >= given[:, None]) & (places < stops[:, None]))


def token_logprobs(
    decoder: Decoder, batch: Sequences, *, temperature: float = 1.0, entropy: bool = False
) -> tuple[Float[Tensor, "batch steps"], Float[Tensor, "batch steps"] | None]:
    """Return the log-probability of each scored token, 0 elsewhere.

    Args:
        decoder: scores them.
        batch: sequences of `steps` + 1 tokens; a first token has nothing before it and is never scored.
        temperature: by which scores are divided, as when sampling.
        entropy: also return the entropy of the distribution at each scored token, in nats, without gradient.
    """
    where = batch.scored[:, 1:]
    states = decoder.hidden(batch.ids[:, :-1], wanted=where)
    return _head(decoder, states, batch, temperature, entropy)


def head_of(
    decoder: Decoder,
    hidden: Float[Tensor, "batch steps dim"],
    batch: Sequences,
    *,
    temperature: float = 1.0,
    entropy: bool = False,
) -> tuple[Float[Tensor, "batch steps"], Float[Tensor, "batch steps"] | None]:
    """Return what `token_logprobs` does, from the states of all tokens but the last."""
    return _head(decoder, hidden[batch.scored[:, 1:]], batch, temperature, entropy)


def _head(
    decoder: Decoder, states: Float[Tensor, "scored dim"], batch: Sequences, temperature: float, entropy: bool
) -> tuple[Float[Tensor, "batch steps"], Float[Tensor, "batch steps"] | None]:
    where = batch.scored[:, 1:]
    targets = batch.ids[:, 1:][where]
    found, spread = head_logprobs(states, decoder.head_weight, targets, temperature=temperature, entropy=entropy)
    return _placed(found, where), _placed(spread, where) if spread is not None else None


def _placed(values: Float[Tensor, " scored"], where: Bool[Tensor, "batch steps"]) -> Float[Tensor, "batch steps"]:
    return torch.zeros(where.shape, dtype=values.dtype, device=values.device).masked_scatter(where, values)
