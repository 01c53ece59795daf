"""GradCache: a contrastive batch far larger than memory allows, with the gradients of the whole batch, exactly.

A contrastive loss needs all embeddings at once but not all activations. So: (1) embed every micro-batch without a
graph, noting the random state before each; (2) take the loss of all embeddings and its gradient with respect to them,
once; (3) embed every micro-batch again from the noted random state, so that dropout and patch masks fall as before, and
pull the cached gradient back through it. Memory is one micro-batch of activations plus the embeddings; the price is one
more forward pass. Plain gradient accumulation is not the same thing: it shrinks the set of negatives to a micro-batch.

Layers that compute with the statistics of their batch (BatchNorm in training) see micro-batches here, and their running
statistics move twice.

Source: Gao et al., Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup, arXiv:2101.06983, sec. 3.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

MicroBatch = TypeVar("MicroBatch")


def grad_cache_step(
    encode_fns: Sequence[Callable[[MicroBatch], Float[Tensor, "micro dim"]]],
    micro_batches: Sequence[Sequence[MicroBatch]],
    loss_fn: Callable[..., Float[Tensor, ""]],
    *,
    backward: Callable[[Tensor], None] = torch.Tensor.backward,
) -> Float[Tensor, ""]:
    """Add to every parameter's ``grad`` what ``loss_fn`` of the whole batch would have given it.

    Args:
        encode_fns: one function per tower, from a micro-batch to its embeddings.
        micro_batches: one sequence per tower: the parts of the batch that its function is given. Towers may be cut
            differently.
        loss_fn: the loss of all embeddings: one tensor per tower, rows in the order of its micro-batches. Parameters
            that it uses itself (`logit_scale`) get their gradient from it.
        backward: runs the backward pass of the loss: ``lambda loss: scaler.scale(loss).backward()`` for float16.

    Under DistributedDataParallel: call this inside ``no_sync()`` and average the gradients over the ranks afterwards;
    the losses of `odonata.align.losses` span the ranks by themselves.

    Returns:
        the loss, detached.

    Raises:
        ValueError: a tower has no micro-batch, or embeds one in another shape the second time.
    """
    if not encode_fns or len(encode_fns) != len(micro_batches) or not all(micro_batches):
        counts = [len(parts) for parts in micro_batches]
        raise ValueError(
            "grad_cache_step needs, for each function that embeds, a sequence of one micro-batch or more; "
            f"got {len(encode_fns)} functions and sequences of {counts}"
        )
    leaves: list[Tensor] = []
    replays: list[list[tuple[int, _RandomState]]] = []
    for encode, parts in zip(encode_fns, micro_batches, strict=True):
        embeddings, states = _embed_without_graph(encode, parts)
        leaves.append(torch.cat(embeddings).detach().requires_grad_())
        replays.append([(len(embedding), state) for embedding, state in zip(embeddings, states, strict=True)])
    loss = loss_fn(*leaves)
    backward(loss)

    after = _RandomState()
    # An enclosing autocast may have kept casts of the weights that were made without a graph.
    torch.clear_autocast_cache()
    for encode, parts, leaf, replay in zip(encode_fns, micro_batches, leaves, replays, strict=True):
        if leaf.grad is not None:
            _embed_and_pull_back(encode, parts, leaf.grad, replay)
    after.restore()
    return loss.detach()


def _embed_without_graph(
    encode: Callable[[MicroBatch], Tensor], parts: Sequence[MicroBatch]
) -> "tuple[list[Tensor], list[_RandomState]]":
    embeddings: list[Tensor] = []
    states: list[_RandomState] = []
    with torch.no_grad():
        for part in parts:
            states.append(_RandomState())
            embeddings.append(encode(part))
    return embeddings, states


def _embed_and_pull_back(
    encode: Callable[[MicroBatch], Tensor],
    parts: Sequence[MicroBatch],
    gradient: Tensor,
    replay: "list[tuple[int, _RandomState]]",
) -> None:
    pieces = gradient.split([rows for rows, _ in replay])
    for index, (part, piece, (_, state)) in enumerate(zip(parts, pieces, replay, strict=True)):
        state.restore()
        embedding = encode(part)
        if embedding.shape != piece.shape:
            raise ValueError(
                f"micro-batch {index} gave embeddings {list(piece.shape)} the first time and "
                f"{list(embedding.shape)} the second; grad_cache_step must be able to repeat encode_fns"
            )
        if not embedding.requires_grad:
            return  # a locked tower
        embedding.backward(piece)


class _RandomState:
    """The state of torch's generators, of the CPU and of the accelerator in use, as it is now."""

    def __init__(self) -> None:
        self._cpu = torch.get_rng_state()
        self._accelerator = torch.cuda.get_rng_state() if _cuda_is_in_use() else None

    def restore(self) -> None:
        torch.set_rng_state(self._cpu)
        if self._accelerator is not None:
            torch.cuda.set_rng_state(self._accelerator)


def _cuda_is_in_use() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_initialized()
