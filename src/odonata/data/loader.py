"""Batches whose order and content are a pure function of (seed, step): the ground on which exact resume stands.

A sampler says which keys (epoch, index) make up the global batch of a step; it has no state. A data set answers
`dataset[(epoch, index)]` and draws whatever is random about that item from a generator keyed by them. So a run that
starts again at any step, with any number of workers, sees the very batches that it would have seen, and the order does
not depend
on the number of ranks: each takes its slice of the global batch.
"""

import ctypes
import logging
import multiprocessing
import os
import platform
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from torch.utils.data import Sampler as TorchSampler

from odonata.data.keys import mix
from odonata.errors import DataError

_PR_SET_PDEATHSIG = 1  # from <linux/prctl.h>

Key = tuple[int, int]
Batch = TypeVar("Batch")
Item = TypeVar("Item", covariant=True)


class KeyedDataset(Protocol[Item]):
    """What `Batches` reads: an item per (epoch, index), equal keys giving equal items."""

    def __getitem__(self, key: Key, /) -> Item: ...


class Sampler(Protocol):
    """Which items make up the global batch of a step."""

    @property
    def batch_size(self) -> int: ...
    @property
    def steps_per_epoch(self) -> int: ...
    def keys(self, step: int) -> list[Key]: ...


def _check_batch(length: int, batch_size: int) -> None:
    if batch_size < 1:
        raise DataError(f"the batch size must be at least 1, got {batch_size}")
    if batch_size > length:
        raise DataError(f"the batch size {batch_size} is larger than the data set ({length} items); make it smaller")


class _LastPermutation:
    """The permutation of the epoch asked for last; steps come in order, so one is enough."""

    def __init__(self) -> None:
        self.epoch, self.order = -1, np.empty(0, np.int64)

    def get(self, epoch: int, make: Callable[[int], np.ndarray]) -> np.ndarray:
        if epoch != self.epoch:
            self.epoch, self.order = epoch, make(epoch)
        return self.order


@dataclass(frozen=True)
class Shuffled:
    """Every item once an epoch in an order drawn anew; what does not fill the last batch is left out of that epoch.

    Args:
        length: number of items.
        batch_size: size of the global batch, all ranks together.
        seed: of the permutations.
    """

    length: int
    batch_size: int
    seed: int = 0

    def __post_init__(self) -> None:
        _check_batch(self.length, self.batch_size)

    @property
    def steps_per_epoch(self) -> int:
        """Full batches in an epoch."""
        return self.length // self.batch_size

    @cached_property
    def _last(self) -> _LastPermutation:
        return _LastPermutation()

    def _permutation(self, epoch: int) -> np.ndarray:
        return np.random.default_rng(mix(self.seed, epoch)).permutation(self.length)

    def keys(self, step: int) -> list[Key]:
        """The (epoch, index) of the global batch of this step."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        order = self._last.get(epoch, self._permutation)
        chosen = order[batch * self.batch_size : (batch + 1) * self.batch_size]
        return [(epoch, int(index)) for index in chosen]


@dataclass(frozen=True)
class Sequential:
    """Items in their own order, the last batch shorter: for evaluation. After the last step it has no more."""

    length: int
    batch_size: int

    def __post_init__(self) -> None:
        if self.length < 1 or self.batch_size < 1:
            raise DataError(f"cannot batch {self.length} items by {self.batch_size}")

    @property
    def steps_per_epoch(self) -> int:
        """Batches in the set, the short one included."""
        return -(-self.length // self.batch_size)

    def keys(self, step: int) -> list[Key]:
        """The (0, index) of this batch; empty after the last."""
        return [(0, i) for i in range(step * self.batch_size, min(self.length, (step + 1) * self.batch_size))]


@dataclass(frozen=True)
class ClassBalanced:
    """Every class equally often: each place of a batch draws a class in turn, then the class's next item.

    The classes' order is drawn anew each round, and within a class every item comes once before any comes again, so a
    class of few items repeats and a large one is seen over several rounds.

    Args:
        labels: class of each item; items of class -1 are never drawn.
        batch_size: size of the global batch.
        seed: of the orders.
    """

    labels: tuple[int, ...]
    batch_size: int
    seed: int = 0

    def __post_init__(self) -> None:
        if not self._members:
            raise DataError("class-balanced sampling needs labelled items")
        _check_batch(sum(map(len, self._members)), self.batch_size)

    @cached_property
    def _members(self) -> list[np.ndarray]:
        labels = np.asarray(self.labels, dtype=np.int64)
        return [np.flatnonzero(labels == label) for label in np.unique(labels[labels >= 0])]

    @cached_property
    def _orders(self) -> dict[tuple[int, int], np.ndarray]:
        return {}

    @property
    def steps_per_epoch(self) -> int:
        """As many as a plain pass over the items takes, by convention."""
        return sum(map(len, self._members)) // self.batch_size

    def _item(self, class_index: int, turn: int) -> int:
        members = self._members[class_index]
        lap, place = divmod(turn, len(members))
        if (class_index, lap) not in self._orders:
            self._orders.pop((class_index, lap - 1), None)
            generator = np.random.default_rng(mix(self.seed, class_index, lap, 1))
            self._orders[class_index, lap] = generator.permutation(members)
        return int(self._orders[class_index, lap][place])

    def keys(self, step: int) -> list[Key]:
        """The (epoch, index) of the global batch; epoch counts an item's own repetitions, so each has its own key."""
        keys: list[Key] = []
        order, drawn = np.empty(0, np.int64), -1
        for position in range(step * self.batch_size, (step + 1) * self.batch_size):
            turn, place = divmod(position, len(self._members))
            if turn != drawn:
                order, drawn = np.random.default_rng(mix(self.seed, turn, 2)).permutation(len(self._members)), turn
            chosen = int(order[place])
            keys.append((turn // len(self._members[chosen]), self._item(chosen, turn)))
        return keys


@dataclass(frozen=True)
class Mixture:
    """Several sets laid end to end, drawn in given proportions; every batch holds them as exactly as whole items allow.

    Item i of set k has the index sum(lengths[:k]) + i. Within a set every item comes once before any comes again.

    Args:
        lengths: number of items of each set.
        weights: proportion of each set, positive, of any sum.
        batch_size: size of the global batch.
        seed: of the orders.
    """

    lengths: tuple[int, ...]
    weights: tuple[float, ...]
    batch_size: int
    seed: int = 0

    def __post_init__(self) -> None:
        if len(self.lengths) != len(self.weights) or not self.lengths:
            raise DataError(f"a mixture of {len(self.lengths)} sets needs as many weights, got {len(self.weights)}")
        if min(self.weights) <= 0 or min(self.lengths) < 1:
            raise DataError(f"a mixture needs positive weights and lengths, got {self.weights} and {self.lengths}")
        _check_batch(sum(self.lengths), self.batch_size)

    @property
    def steps_per_epoch(self) -> int:
        """As many as a plain pass over all items takes, by convention."""
        return sum(self.lengths) // self.batch_size

    @cached_property
    def _orders(self) -> dict[tuple[int, int], np.ndarray]:
        return {}

    def drawn_before(self, step: int) -> tuple[int, ...]:
        """How many items of each set the first `step` batches hold together."""
        total = step * self.batch_size
        edges = np.floor(np.cumsum(self.weights) / sum(self.weights) * total + 1e-9).astype(np.int64)
        edges[-1] = total
        return tuple(int(count) for count in np.diff(edges, prepend=0))

    def keys(self, step: int) -> list[Key]:
        """The (epoch, index) of the global batch; epoch counts the passes over the item's own set."""
        keys: list[Key] = []
        start = 0
        before, after = self.drawn_before(step), self.drawn_before(step + 1)
        for number, length in enumerate(self.lengths):
            for turn in range(before[number], after[number]):
                lap, place = divmod(turn, length)
                if (number, lap) not in self._orders:
                    self._orders.pop((number, lap - 1), None)
                    generator = np.random.default_rng(mix(self.seed, number, lap, 3))
                    self._orders[number, lap] = generator.permutation(length)
                keys.append((lap, start + int(self._orders[number, lap][place])))
            start += length
        shuffle = np.random.default_rng(mix(self.seed, step, 4)).permutation(len(keys))
        return [keys[i] for i in shuffle]


class _RankKeys(TorchSampler[list[Key]]):
    """The keys of one rank from a step on: the global batch is drawn first and sliced after."""

    def __init__(self, sampler: Sampler, start: int, rank: int, world: int) -> None:
        self.sampler, self.first, self.rank, self.world = sampler, start, rank, world

    def __iter__(self) -> Iterator[list[Key]]:
        step = self.first
        while keys := self.sampler.keys(step):
            yield keys[len(keys) * self.rank // self.world : len(keys) * (self.rank + 1) // self.world]
            step += 1


class _TorchView(Dataset[Any]):
    """A keyed data set as torch's DataLoader wants it."""

    def __init__(self, dataset: KeyedDataset[Any]) -> None:
        self.dataset = dataset

    def __getitem__(self, key: Any) -> "Any | _Failure":
        try:
            return self.dataset[key]
        except DataError as error:
            # Raised in the main process: DataLoader would wrap the message in a worker's traceback.
            return _Failure(str(error))


@dataclass(frozen=True)
class _Failure:
    message: str


_gathered: list[logging.LogRecord] = []
"""In a worker: the warnings since its last batch. They travel with the next one, because a worker's own logging reaches
no handler of the main process's where processes are spawned."""


class _Gather(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        record.msg, record.args = record.getMessage(), None  # plain text can be pickled
        _gathered.append(record)


@dataclass(frozen=True)
class _Noted:
    batch: Any
    records: list[logging.LogRecord]


@dataclass(frozen=True)
class _Collate:
    collate: Callable[[list[Any]], Any]

    def __call__(self, items: list[Any]) -> Any:
        failure = next((item for item in items if isinstance(item, _Failure)), None)
        batch = failure if failure is not None else self.collate(items)
        if not _gathered:
            return batch
        records, _gathered[:] = list(_gathered), []
        return _Noted(batch, records)


@dataclass(frozen=True)
class _PrepareWorker:
    """One thread, and no life without the process that asked for batches."""

    parent: int

    def __call__(self, _: int) -> None:
        torch.set_num_threads(1)
        logger = logging.getLogger("odonata")
        logger.handlers, logger.propagate = [_Gather()], False
        if platform.system() != "Linux":
            return  # torch's watchdog looks for the parent every five seconds
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        # A parent that died before this line sends no signal, and torch's watchdog would take init for the parent.
        if os.getppid() != self.parent:
            os._exit(1)


@dataclass
class Batches(Generic[Batch]):
    """The stream of batches of a run.

    Worker processes start with `fork` on Linux (cheap, shares the source's memory; torch's CPU thread pools are not
    used in the workers) unless CUDA is already in use, and with `spawn` elsewhere. They are daemons that end with the
    iterator, with an interrupt, and with the thread that called `start`, however it ends.

    Args:
        dataset: answers `dataset[(epoch, index)]`.
        sampler: which keys make up a step.
        collate: makes a batch of a list of items.
        workers: processes that prepare batches; 0: the main process does.
        prefetch: batches that each worker prepares ahead.
        pin_memory: for quicker copies to a GPU.
    """

    dataset: KeyedDataset[Any]
    sampler: Sampler
    collate: Callable[[list[Any]], Batch]
    workers: int = 0
    seed: int = 0
    prefetch: int = 2
    pin_memory: bool = False

    def start(self, step: int = 0, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """Batches from this step on; endless for the training samplers. Raises DataError that a bad item caused."""
        if not 0 <= rank < world:
            raise ValueError(f"rank {rank} is not below world {world}")
        if world > self.sampler.batch_size:
            raise DataError(f"{world} ranks cannot share a batch of {self.sampler.batch_size}; make the batch larger")
        # Its own generator: without one, making an iterator draws from the global generator and a resumed run drifts.
        generator = torch.Generator().manual_seed(mix(self.seed, step, rank) % 2**63)
        loader: DataLoader[Any] = DataLoader(
            _TorchView(self.dataset),
            batch_sampler=_RankKeys(self.sampler, step, rank, world),
            collate_fn=_Collate(self.collate),
            num_workers=self.workers,
            generator=generator,
            worker_init_fn=_PrepareWorker(os.getpid()) if self.workers else None,
            multiprocessing_context=_context() if self.workers else None,
            prefetch_factor=self.prefetch if self.workers else None,
            persistent_workers=False,
            pin_memory=self.pin_memory,
        )
        return _unwrap(iter(loader))

    def __len__(self) -> int:
        return self.sampler.steps_per_epoch


def _unwrap(iterator: Iterator[Any]) -> Iterator[Any]:
    try:
        for batch in iterator:
            if isinstance(batch, _Noted):
                for record in batch.records:
                    logging.getLogger(record.name).handle(record)
                batch = batch.batch
            if isinstance(batch, _Failure):
                raise DataError(batch.message)
            yield batch
    finally:
        # Ends the workers now. A traceback would keep this frame, and workers that the garbage collector ends later
        # have lost their queues and are waited for in vain for five seconds each.
        del iterator


def _context() -> str:
    forks = platform.system() == "Linux" and "fork" in multiprocessing.get_all_start_methods()
    return "fork" if forks and not torch.cuda.is_initialized() else "spawn"


def labels_of(samples: Sequence[Any]) -> tuple[int, ...]:
    """The labels of samples, -1 where there is none: what `ClassBalanced` takes."""
    return tuple(-1 if sample.label is None else int(sample.label) for sample in samples)
