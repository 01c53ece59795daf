"""A ring of processes round which blocks of a global batch travel, so that no rank ever holds the whole batch.

SigLIP (arXiv:2303.15343, section 3.3) swaps blocks of text embeddings between neighbours, so that a device needs
memory for one block pair only, however many devices there are. Here a block takes its accumulators with it (for
instance the gradient of its embeddings): every rank adds its share as the block passes, and after one lap the block's
owner holds the sum. All this happens inside one autograd function, so nothing is retained for the backward pass.
"""

import contextlib
from collections.abc import Callable, Generator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

Visit = Callable[[int, list[Tensor], list[Tensor]], None]


@dataclass(frozen=True)
class Ring:
    """The ranks that share one global batch, in the order in which blocks are handed on.

    Args:
        rank: this process's place in the ring.
        sizes: how many items each rank holds; blocks may differ in size.
        group: the process group, or None where this process is alone.
    """

    rank: int
    sizes: tuple[int, ...]
    group: dist.ProcessGroup | None

    @property
    def world_size(self) -> int:
        return len(self.sizes)

    @property
    def total(self) -> int:
        """Items in the global batch."""
        return sum(self.sizes)

    def travel(self, held: Sequence[Tensor], carried: Sequence[Tensor], visit: Visit) -> list[Tensor]:
        """Send this rank's block once round the ring and visit every block that comes by.

        Args:
            held: tensors of the block that nobody changes, ``[items, ...]``, contiguous. The next block's are received
                while the present one is worked on.
            carried: tensors of the block that each visitor changes in place, ``[items, ...]``, contiguous.
            visit: called once per block with (owner's rank, held, carried); this rank's own block comes first.

        Returns:
            ``carried`` of this rank's own block, after every rank has visited it.
        """
        block, sums = list(held), list(carried)
        for step in range(self.world_size):
            owner = (self.rank - step) % self.world_size
            incoming = self.sizes[(owner - 1) % self.world_size]
            is_last = step == self.world_size - 1
            pending = None if is_last else self._hand_on(block, incoming, tag=0)
            visit(owner, block, sums)
            if self.world_size > 1:
                sums = _arrived(self._hand_on(sums, incoming, tag=len(block)))
            if pending is not None:
                block = _arrived(pending)
        return sums

    def all_reduce(self, values: Tensor) -> Tensor:
        """Sum ``values`` over the ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(values, group=self.group)
        return values

    def _hand_on(self, tensors: list[Tensor], incoming: int, tag: int) -> "tuple[list[Tensor], list[dist.Work]]":
        received = [tensor.new_empty((incoming, *tensor.shape[1:])) for tensor in tensors]
        group = self.group if self.group is not None else dist.group.WORLD
        assert group is not None, "a ring of several ranks has a process group"
        following = dist.get_global_rank(group, (self.rank + 1) % self.world_size)
        preceding = dist.get_global_rank(group, (self.rank - 1) % self.world_size)
        operations: list[dist.P2POp] = []
        for offset, (sent, buffer) in enumerate(zip(tensors, received, strict=True)):
            operations.append(dist.P2POp(dist.isend, sent, following, group, tag + offset))
            operations.append(dist.P2POp(dist.irecv, buffer, preceding, group, tag + offset))
        return received, dist.batch_isend_irecv(operations) if operations else []


_ALONE: ContextVar[bool] = ContextVar("alone", default=False)


@contextlib.contextmanager
def alone() -> Generator[None]:
    """Let every ring that is formed meanwhile hold this process only: each rank then trains a whole model by itself."""
    token = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(token)


def form_ring(items: int, device: torch.device, process_group: dist.ProcessGroup | Literal["local"] | None) -> Ring:
    """Find who shares the global batch and how many items each holds.

    Args:
        items: items on this rank.
        device: where the embeddings lie; the sizes are exchanged from there.
        process_group: a group; None for all ranks (alone where torch.distributed is not initialised); "local" for this
            process alone whatever is initialised.

    Returns:
        the ring.
    """
    if process_group == "local" or _ALONE.get() or not (dist.is_available() and dist.is_initialized()):
        return Ring(0, (items,), None)
    group = process_group if process_group is not None else dist.group.WORLD
    world_size = dist.get_world_size(group)
    if world_size == 1:
        return Ring(0, (items,), None)
    own = torch.tensor([items], device=device)
    sizes = [torch.empty_like(own) for _ in range(world_size)]
    dist.all_gather(sizes, own, group=group)
    return Ring(dist.get_rank(group), tuple(int(size) for size in torch.cat(sizes).tolist()), group)


def _arrived(exchange: "tuple[list[Tensor], list[dist.Work]]") -> list[Tensor]:
    received, works = exchange
    for work in works:
        work.wait()
    return received
