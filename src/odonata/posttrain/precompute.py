"""What a model says of answers before it is trained, asked once for all."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from odonata.engine import tensors
from odonata.engine.recipe import Recipe
from odonata.language.decoder import Decoder
from odonata.language.sequences import token_logprobs
from odonata.posttrain.preference import PadPairs, PairRow
from odonata.posttrain.reference import evaluating

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def device_of(recipe: Recipe) -> torch.device:
    """Return the device that a run will compute on."""
    on_gpu = recipe.device != "cpu" and torch.cuda.is_available()
    return torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")


@torch.no_grad()
def answer_logprobs(
    decoder: Decoder, rows: Sequence[PairRow], pad_id: int, batch_size: int, recipe: Recipe
) -> Float[Tensor, "rows 2"]:
    """Return ln π of the chosen and of the rejected answer of each pair, summed over its tokens.

    Each rank computes its share, and all get the whole.

    Args:
        decoder: the network; it is left on the device of the run.
        rows: pairs as ids.
        pad_id: fills up.
        batch_size: pairs at a time.
        recipe: gives device and precision.
    """
    device = device_of(recipe)
    ranked = dist.is_initialized()
    rank, world = (dist.get_rank(), dist.get_world_size()) if ranked else (0, 1)
    decoder.to(device)
    order = sorted(range(len(rows)), key=lambda index: rows[index].length)[rank::world]
    found = torch.zeros(len(rows), 2)
    low = _AUTOCAST.get(recipe.precision)
    with evaluating(decoder), torch.autocast(device.type, low) if low else contextlib.nullcontext():
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            batch = tensors.move(PadPairs(pad_id)([(rows[index], None) for index in chosen]), device)
            found[chosen] = token_logprobs(decoder, batch.sequences)[0].sum(1).view(2, -1).T.cpu()
    if world > 1:
        dist.all_reduce(found)
    return found
