"""Continues prompts, many at a time, without paying for what has ended.

Notable, and what makes it quick where lengths differ:
- A prompt that is continued in several ways is read once; its keys and values are then copied for each way.
- Rows that have ended leave the batch as soon as a fifth has: the caches are gathered, and later steps are smaller.
- Prompts of one length need no mask; of several lengths, they are padded on the left and sorted, so that batches pad
  little. What a row says does not depend on its batch, but for the last bits of sums in another order.
- The first end token counts as part of a completion; what stands behind it is padding. A row without one was cut.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from odonata.errors import DataError
from odonata.language.cache import Cache
from odonata.language.decoder import Decoder
from odonata.language.sampling import Sampling, as_seeds, choose

_KEPT_UNTIL = 0.8
"""Rows are gathered anew when fewer than this share of them still runs."""

Stop = Callable[[Sequence[int]], bool]
"""Whether a completion, its tokens so far, has come to an end of its own kind."""


@dataclass(frozen=True)
class Completions:
    """What was generated; the ways of one prompt stand side by side, in the order of the prompts."""

    tokens: Int[Tensor, "rows time"]
    """Padded behind the end."""
    mask: Bool[Tensor, "rows time"]
    """Which are real; the end token is."""
    logprobs: Float[Tensor, "rows time"]
    """Under the distribution that was drawn from; 0 at padding."""
    finished: Bool[Tensor, " rows"]
    """Whether the row came to its end, rather than to the limit."""

    @property
    def lengths(self) -> Int[Tensor, " rows"]:
        """Tokens of each row, the end token included."""
        return self.mask.sum(1)

    def lists(self) -> list[list[int]]:
        """Return the tokens of each row without padding."""
        return [row[: int(length)].tolist() for row, length in zip(self.tokens, self.lengths, strict=True)]


def generate(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    eos_ids: Sequence[int],
    sampling: Sampling | None = None,
    group: int = 1,
    seeds: int | Sequence[int] = 0,
    pad_id: int = 0,
    batch_rows: int = 0,
    stop: Stop | None = None,
) -> Completions:
    """Continue each prompt in `group` ways.

    Args:
        decoder: the network, which is put in evaluation mode for the while.
        prompts: ids of each, one or more.
        max_new_tokens: of a completion at most, the end token included.
        eos_ids: tokens that end a completion; none: all run to the limit.
        sampling: how tokens are drawn.
        group: completions of each prompt.
        seeds: of each row, or one from which they are made.
        pad_id: what stands behind an end. It may be an end token itself.
        batch_rows: rows at a time (0 = all at once).
        stop: ends a completion besides the end tokens.

    Raises:
        DataError: a prompt has no token, or does not fit the model's learned positions.
        RecipeError: `sampling` is no distribution.
    """
    sampling = sampling or Sampling()
    sampling.check()
    _check(decoder, prompts, max_new_tokens, group)
    rows = len(prompts) * group
    device = decoder.embed_tokens.weight.device
    row_seeds = as_seeds(seeds, rows, device)
    tokens = torch.full((rows, max_new_tokens), pad_id, device=device)
    logprobs = torch.zeros(rows, max_new_tokens, device=device)
    lengths = torch.zeros(rows, dtype=torch.long, device=device)
    finished = torch.zeros(rows, dtype=torch.bool, device=device)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    size = max(1, batch_rows // group) if batch_rows else len(prompts)
    training = decoder.training
    decoder.eval()
    try:
        for start in range(0, len(order), size):
            part = order[start : start + size]
            where = torch.tensor([i * group + k for i in part for k in range(group)], device=device)
            with torch.inference_mode():
                found = _continue(
                    decoder, [prompts[i] for i in part], group, max_new_tokens, list(eos_ids), sampling,
                    row_seeds[where], pad_id, stop,
                )  # fmt: skip
            for whole, piece in zip((tokens, logprobs, lengths, finished), found, strict=True):
                whole[where] = piece.clone()  # outside of inference mode, so that losses may use them
    finally:
        decoder.train(training)
    longest = max(1, int(lengths.max()))
    mask = torch.arange(longest, device=device) < lengths[:, None]
    return Completions(tokens[:, :longest], mask, logprobs[:, :longest], finished)


def _continue(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    group: int,
    limit: int,
    eos_ids: list[int],
    sampling: Sampling,
    seeds: Int[Tensor, " rows"],
    pad_id: int,
    stop: Stop | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return tokens, log-probabilities, lengths and whether each ended, for one batch."""
    device = seeds.device
    hidden, cache, mask = read_prompts(decoder, prompts, group, limit, pad_id)
    rows = hidden.shape[0]
    tokens = torch.full((rows, limit), pad_id, device=device)
    logprobs = torch.zeros(rows, limit, device=device)
    lengths = torch.full((rows,), limit, device=device)
    finished = torch.zeros(rows, dtype=torch.bool, device=device)
    ends = torch.tensor(eos_ids, device=device, dtype=torch.long)
    live = torch.arange(rows, device=device)  # which row of the result each row of the batch is
    runs = torch.ones(rows, dtype=torch.bool, device=device)
    for place in range(limit):
        chosen, chosen_logprobs = choose(decoder.logits(hidden), sampling, seeds[live], place)
        at = live[runs]
        tokens[at, place], logprobs[at, place] = chosen[runs], chosen_logprobs[runs]
        ended = runs & torch.isin(chosen, ends)
        if stop is not None:
            said = tokens[at, : place + 1].tolist()
            ended[runs] |= torch.tensor([stop(row) for row in said], device=device)
        lengths[live[ended]], finished[live[ended]] = place + 1, True
        runs = runs & ~ended
        still = int(runs.sum())
        if place == limit - 1 or not still:
            break
        if still < _KEPT_UNTIL * len(runs):
            cache.keep(runs)
            live, chosen = live[runs], chosen[runs]
            mask = mask[runs] if mask is not None else None
            runs = runs[runs]
        if mask is not None:
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        hidden = decoder.hidden(chosen[:, None], mask, cache)[:, -1]
    return tokens, logprobs, lengths, finished


def read_prompts(
    decoder: Decoder, prompts: Sequence[Sequence[int]], group: int, limit: int, pad_id: int
) -> tuple[Float[Tensor, "rows dim"], Cache, Bool[Tensor, "rows time"] | None]:
    """Read prompts once each; return last states, cache and mask, with `group` rows of each prompt.

    Args:
        decoder: the network.
        prompts: ids of each.
        group: rows of each prompt in what is returned.
        limit: tokens that will follow, for which the cache keeps room.
        pad_id: stands before shorter prompts.
    """
    device = decoder.embed_tokens.weight.device
    longest = max(map(len, prompts))
    ids = torch.full((len(prompts), longest), pad_id, device=device)
    mask = torch.zeros(len(prompts), longest, dtype=torch.bool, device=device)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt, device=device)
        mask[row, longest - len(prompt) :] = True
    whole = None if all(len(prompt) == longest for prompt in prompts) else mask
    config, capacity = decoder.config, longest + limit
    cache = Cache(
        config.num_hidden_layers, len(prompts), config.num_key_value_heads, longest if group > 1 else capacity,
        config.head_dim, decoder.embed_tokens.weight,
    )  # fmt: skip
    last = torch.zeros_like(mask)
    last[:, -1] = True
    hidden = decoder.hidden(ids, whole, cache, wanted=last)
    if group > 1:
        cache.repeat(group, capacity)
        hidden = hidden.repeat_interleave(group, 0)
        whole = whole.repeat_interleave(group, 0) if whole is not None else None
    return hidden, cache, whole


def _check(decoder: Decoder, prompts: Sequence[Sequence[int]], max_new_tokens: int, group: int) -> None:
    if not prompts:
        raise DataError("there is no prompt to continue")
    if max_new_tokens < 1 or group < 1:
        raise DataError(f"{group} completions of {max_new_tokens} new tokens: there must be at least one of each")
    config = decoder.config
    for index, prompt in enumerate(prompts):
        if not prompt:
            raise DataError(f"prompt {index} has no token; give the model one to go on from, such as its start token")
        if not 0 <= min(prompt) <= max(prompt) < config.vocab_size:
            raise DataError(f"prompt {index} has the token {max(prompt)}; this model knows {config.vocab_size}")
    longest = max(map(len, prompts))
    if config.positions == "learned" and longest + max_new_tokens > config.max_position_embeddings:
        raise DataError(
            f"a prompt of {longest} tokens and {max_new_tokens} new ones: this model's learned positions end at "
            f"{config.max_position_embeddings}"
        )
