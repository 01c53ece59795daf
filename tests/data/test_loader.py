"""The order of data is a function of (seed, step): not of workers, ranks, or where a run began."""

import itertools
import multiprocessing
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from odonata.data.keys import keyed_generator, mix
from odonata.data.loader import Batches, ClassBalanced, Mixture, Sampler, Sequential, Shuffled
from odonata.errors import DataError


class Numbers:
    """Item (epoch, index) with chance that depends on its key."""

    def __init__(self, bad: int = -1) -> None:
        self.bad = bad

    def __getitem__(self, key: tuple[int, int]) -> tuple[int, int, float]:
        if key[1] == self.bad:
            raise DataError(f"photo-{self.bad}.jpg: the picture is truncated")
        return (*key, torch.rand((), generator=keyed_generator(0, *key)).item())


def collect(items: list[tuple[int, int, float]]) -> list[tuple[int, int, float]]:
    return list(items)


def stream(sampler: Sampler, steps: int, **options: int) -> list[list[tuple[int, int, float]]]:
    start = {name: options.pop(name) for name in ("step", "rank", "world") if name in options}
    iterator = Batches(Numbers(), sampler, collect, **options).start(**start)
    return list(itertools.islice(iterator, steps))


SAMPLERS: list[Sampler] = [
    Shuffled(23, 4, seed=1),
    ClassBalanced((0, 0, 0, 0, 0, 1, 1, 2), 4, seed=1),
    Mixture((10, 3, 50), (0.5, 0.2, 0.3), 8, seed=1),
]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_any_number_of_workers_gives_the_same_batches(sampler: Sampler):
    alone = stream(sampler, 12)
    for workers in (2, 3):
        assert stream(sampler, 12, workers=workers) == alone


@given(st.sampled_from(SAMPLERS), st.integers(0, 40))
@settings(deadline=None, max_examples=40)
def test_a_stream_from_any_step_is_the_tail_of_the_whole(sampler: Sampler, step: int):
    assert stream(sampler, 3, step=step) == stream(sampler, step + 3)[step:]


@given(st.sampled_from(SAMPLERS), st.lists(st.integers(0, 60), min_size=1, max_size=8))
@settings(deadline=None)
def test_keys_do_not_depend_on_what_was_asked_before(sampler: Sampler, steps: list[int]):
    fresh = type(sampler)(**{name: getattr(sampler, name) for name in sampler.__dataclass_fields__})
    for step in steps:
        sampler.keys(step)
    assert sampler.keys(steps[0]) == fresh.keys(steps[0])


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_ranks_share_the_global_batch(sampler: Sampler, world: int):
    whole = stream(sampler, 5)
    shares = [stream(sampler, 5, rank=rank, world=world) for rank in range(world)]
    assert [[item for share in shares for item in share[step]] for step in range(5)] == whole


def test_an_epoch_holds_every_item_once():
    sampler = Shuffled(20, 5, seed=3)
    first = [index for step in range(4) for _, index in sampler.keys(step)]
    second = [index for step in range(4, 8) for _, index in sampler.keys(step)]
    assert sorted(first) == sorted(second) == list(range(20))
    assert first != second
    assert {epoch for epoch, _ in sampler.keys(4)} == {1}


def test_seeds_and_epochs_do_not_shift_into_each_other():
    # With seed + epoch as the seed of the permutation, these two would be equal.
    assert [i for _, i in Shuffled(50, 50, seed=0).keys(1)] != [i for _, i in Shuffled(50, 50, seed=1).keys(0)]


def test_balanced_batches_hold_the_classes_equally_often():
    labels = (0,) * 90 + (1,) * 9 + (2,) * 1
    sampler = ClassBalanced(labels, 30, seed=0)
    keys = [key for step in range(10) for key in sampler.keys(step)]
    assert Counter(labels[index] for _, index in keys) == {0: 100, 1: 100, 2: 100}
    assert Counter(labels[index] for _, index in keys[:30]) == {0: 10, 1: 10, 2: 10}
    assert len(set(keys)) == len(keys), "an item that comes again has another epoch in its key"


def test_mixture_holds_its_proportions_in_every_stretch():
    sampler = Mixture((100, 10), (3, 1), 8, seed=0)
    for step in range(20):
        own = sum(index >= 100 for _, index in sampler.keys(step))
        assert own == 2
    keys = [key for step in range(40) for key in sampler.keys(step)]
    assert len(set(keys)) == len(keys)
    first_laps = [index for epoch, index in keys if index >= 100 and epoch == 0]
    assert sorted(first_laps) == list(range(100, 110))


def test_sequential_ends_with_a_short_batch():
    assert [len(batch) for batch in stream(Sequential(10, 4), 99)] == [4, 4, 2]


def test_a_batch_larger_than_the_set_is_refused():
    with pytest.raises(DataError, match=r"batch size 8 is larger than the data set \(5 items\)"):
        Shuffled(5, 8)
    with pytest.raises(DataError, match="needs labelled items"):
        ClassBalanced((-1, -1), 1)
    with pytest.raises(DataError, match="8 ranks cannot share a batch of 4"):
        Batches(Numbers(), Shuffled(23, 4), collect).start(world=8)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_item_is_named_by_the_main_process(workers: int):
    batches = Batches(Numbers(bad=7), Shuffled(23, 4), collect, workers=workers)
    with pytest.raises(DataError) as error:
        list(itertools.islice(batches.start(), 6))
    assert str(error.value) == "photo-7.jpg: the picture is truncated"
    assert not multiprocessing.active_children(), "the workers have ended, though the traceback is still held"


@pytest.mark.parametrize("workers", [0, 2])
def test_the_global_generator_is_left_alone(workers: int):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    stream(SAMPLERS[0], 3, workers=workers)
    assert torch.equal(before, torch.get_rng_state())


def test_workers_end_with_the_iterator():
    iterator = Batches(Numbers(), Shuffled(23, 4), collect, workers=2).start()
    next(iterator)
    assert len(multiprocessing.active_children()) >= 2
    iterator.close()  # type: ignore[attr-defined]
    for child in multiprocessing.active_children():
        child.join(10)
    assert not multiprocessing.active_children()


def test_near_keys_do_not_correlate():
    draws = torch.stack(
        [
            torch.rand(64, generator=keyed_generator(seed, epoch, index))
            for seed, epoch, index in itertools.product(range(4), repeat=3)
        ]
    )
    correlation = torch.corrcoef(draws) - torch.eye(64)
    assert correlation.abs().max() < 0.6
    assert abs(correlation.mean()) < 0.01
    assert len({mix(a, b, c) for a, b, c in itertools.product(range(20), repeat=3)}) == 8000
    assert mix(1, 2) != mix(2, 1)
    assert mix(-1) != mix(2**63)


RUN = """
import itertools, multiprocessing, signal, time
from odonata.data.loader import Batches, Shuffled

class Numbers:
    def __getitem__(self, key):
        return key

def collate(items):
    return items

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit it ignored
    iterator = Batches(Numbers(), Shuffled(20, 4), collate, workers=2).start()
    next(iterator)
    print(*[child.pid for child in multiprocessing.active_children()], flush=True)
    for _ in iterator:
        time.sleep(0.01)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGKILL"])
def test_workers_do_not_outlive_a_run_that_is_ended(name: str, tmp_path: Path):
    script = tmp_path / "run.py"
    script.write_text(RUN)
    process = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    workers = [int(word) for word in process.stdout.readline().split()]
    assert len(workers) == 2
    process.send_signal(getattr(signal, name))
    process.wait(20)
    deadline = time.monotonic() + 15  # a worker looks for its parent every five seconds
    while alive := [pid for pid in workers if _runs(pid)]:
        assert time.monotonic() < deadline, f"workers {alive} are still there"
        time.sleep(0.1)


def _runs(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    try:
        return status.read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
