"""Slow copies, queues and what ranks gather."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from odonata.nn.momentum import Queue, cosine_momentum, follow, gather_rows, slow_copy
from odonata.nn.synced_norm import SyncedBatchNorm, sync_batch_norms

SCRIPT = """
import sys, torch, torch.distributed as dist
from odonata.nn.momentum import Queue, gather_rows
from odonata.nn.synced_norm import SyncedBatchNorm
dist.init_process_group("gloo")
rank = dist.get_rank()
torch.manual_seed(0)
queue = Queue(6, 2)
queue.push(torch.tensor([[10.0 * rank + 1, 0], [10.0 * rank + 2, 0]]))
gathered = gather_rows(torch.tensor([[float(rank)]]))
everything = torch.randn(7, 3, 2, dtype=torch.float64)
rows = everything[:3] if rank == 0 else everything[3:]
mine = rows.clone().requires_grad_()
norm = SyncedBatchNorm(3).double()
weights = torch.arange(7.0).double()[:3] if rank == 0 else torch.arange(7.0).double()[3:]
out = norm(mine)
(out.square() * weights[:, None, None] * out).sum().backward()
parts = [None, None]
dist.all_gather_object(parts, (queue.rows, queue.position, gathered, out.detach(), mine.grad, norm.state_dict()))
if rank == 0:
    torch.save((parts, everything), sys.argv[1])
dist.barrier()
dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def of_two_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "script.py").write_text(SCRIPT)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launch, str(folder / "script.py"), str(folder / "out.pt")], capture_output=True, text=True, check=False
    )
    assert Path(folder / "out.pt").is_file(), done.stderr
    return torch.load(folder / "out.pt", weights_only=False)


def test_follow_is_the_formula_and_leaves_statistics_alone():
    fast = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).double()
    slow = slow_copy(fast)
    assert not any(p.requires_grad for p in slow.parameters())
    before = [p.clone() for p in slow.parameters()]
    with torch.no_grad():
        for parameter in fast.parameters():
            parameter.add_(torch.randn_like(parameter))
    fast(torch.randn(8, 3).double())
    follow(slow, fast, 0.9)
    for old, quick, now in zip(before, fast.parameters(), slow.parameters(), strict=True):
        assert torch.allclose(now, 0.9 * old + 0.1 * quick, rtol=1e-14)
    assert torch.equal(slow[1].running_mean, torch.zeros(4).double())


@pytest.mark.parametrize(("momentum", "of"), [(1.0, "slow"), (0.0, "fast")])
def test_the_ends_of_the_momentum_are_exact(momentum, of):
    fast, slow = nn.Linear(5, 5), nn.Linear(5, 5)
    wanted = (slow if of == "slow" else fast).weight.clone()
    follow(slow, fast, momentum)
    assert torch.equal(slow.weight, wanted)


def test_equal_weights_stay_equal_to_the_bit():
    fast = nn.Linear(50, 50)
    slow = slow_copy(fast)
    follow(slow, fast, 0.99)
    assert torch.equal(slow.weight, fast.weight)


def test_cosine_momentum_goes_from_its_start_to_one():
    assert cosine_momentum(0, 100, 0.99) == pytest.approx(0.99, abs=1e-15)
    assert cosine_momentum(50, 100, 0.99) == pytest.approx(0.995, abs=1e-15)
    assert cosine_momentum(100, 100, 0.99) == 1.0


def test_a_queue_starts_with_directions_and_wraps_around():
    queue = Queue(5, 2)
    assert torch.allclose(queue.rows.norm(dim=1), torch.ones(5))
    start = queue().clone()
    rows = torch.arange(16.0).view(8, 2)
    queue.push(rows[:3])
    assert torch.equal(queue(), torch.cat([rows[:3], start[3:]]))
    queue.push(rows[3:6])
    assert torch.equal(queue(), torch.stack([rows[5], rows[1], rows[2], rows[3], rows[4]]))
    assert queue.position == 1


def test_a_batch_larger_than_the_queue_leaves_its_last_rows():
    queue = Queue(3, 1)
    queue.push(torch.arange(8.0)[:, None])
    assert sorted(queue().flatten().tolist()) == [5.0, 6.0, 7.0]


def test_what_a_queue_gave_does_not_change_with_it():
    queue = Queue(4, 2)
    given = queue()
    kept = given.clone()
    queue.push(torch.ones(2, 2))
    assert torch.equal(given, kept)


def test_without_ranks_gathered_rows_are_the_rows():
    x = torch.randn(3, 2)
    assert gather_rows(x) is x


def test_two_ranks_hold_one_queue_in_order_of_rank(of_two_ranks):
    (first, second), _ = of_two_ranks
    assert torch.equal(first[0], second[0])
    assert first[0][:4, 0].tolist() == [1, 2, 11, 12]
    assert first[1] == second[1] == 4
    assert first[2].flatten().tolist() == second[2].flatten().tolist() == [0, 1]


def test_normalisation_over_two_unequal_ranks_is_that_of_one_process(of_two_ranks):
    (first, second), everything = of_two_ranks
    whole = everything.clone().requires_grad_()
    norm = nn.BatchNorm1d(3).double()
    out = norm(whole)
    (out.square() * torch.arange(7.0).double()[:, None, None] * out).sum().backward()
    assert torch.allclose(torch.cat([first[3], second[3]]), out, atol=1e-12)
    assert torch.allclose(torch.cat([first[4], second[4]]), whole.grad, atol=1e-12)
    for name, value in norm.state_dict().items():
        assert torch.allclose(first[5][name], value), name
        assert torch.equal(first[5][name], second[5][name]), name


def test_synchronising_keeps_names_weights_and_answers():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(5), nn.BatchNorm1d(5))
    x = torch.randn(6, 3, 8, 8)
    network(x)
    network.eval()
    expected, names = network(x), list(network.state_dict())
    synced = sync_batch_norms(network)
    assert list(synced.state_dict()) == names
    assert isinstance(synced[1], SyncedBatchNorm)
    assert torch.equal(synced(x), expected)
