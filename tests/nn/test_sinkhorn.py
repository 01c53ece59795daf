"""Sinkhorn's balance: against the authors' code, a long run in float64, and itself over several ranks."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fixtures.named_numbers import numbers
from odonata.nn.centre import Centre
from odonata.nn.sinkhorn import sinkhorn

ORACLE = Path(__file__).parents[1] / "fixtures/swav_dino.npz"


def cosines(rows: int, classes: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(rows, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1


def test_equals_swavs_distributed_sinkhorn():
    scores = F.normalize(numbers("sinkhorn", (24, 10)).double(), dim=1)
    expected = torch.from_numpy(np.load(ORACLE)["sinkhorn"])
    assert (sinkhorn(scores, 0.05) - expected).norm() / expected.norm() < 1e-12
    assert (sinkhorn(scores.float(), 0.05) - expected).norm() / expected.norm() < 1e-5


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 40), classes=st.integers(2, 30), seed=st.integers(0, 99), epsilon=st.floats(0.01, 1))
def test_each_row_is_a_distribution_and_the_order_of_rows_does_not_matter(rows, classes, seed, epsilon):
    scores = cosines(rows, classes, seed)
    codes = sinkhorn(scores, epsilon)
    assert torch.allclose(codes.sum(1), torch.ones(rows, dtype=torch.float64), atol=1e-12)
    order = torch.randperm(rows)
    assert torch.allclose(sinkhorn(scores[order], epsilon), codes[order], atol=1e-12)
    assert torch.allclose(sinkhorn(scores + 7, epsilon), codes, atol=1e-9)


def test_many_rounds_reach_the_transport_plan_with_equal_columns():
    scores = cosines(24, 6)
    codes = sinkhorn(scores, 0.05, 3000)
    assert torch.allclose(codes.sum(0), torch.full((6,), 4.0, dtype=torch.float64), atol=1e-9)
    # The plan of least cost and most entropy is diag(u) exp(scores / ε) diag(v): its log less the scores has rank one.
    rest = codes.log() - scores / 0.05
    assert torch.allclose(
        rest - rest[:1] - rest[:, :1] + rest[0, 0], torch.zeros(24, 6, dtype=torch.float64), atol=1e-8
    )
    uneven = scores + torch.arange(6) / 5
    few, none = (sinkhorn(uneven, 0.05, rounds).sum(0) for rounds in (3, 0))
    assert (few - 4).abs().max() < 0.3 * (none - 4).abs().max()


def test_half_precision_scores_of_twenty_do_not_overflow():
    scores = (cosines(16, 8) * 0.1).round(decimals=2) * 10  # up to ±1: e²⁰ is beyond float16
    for dtype in (torch.float16, torch.bfloat16):
        codes = sinkhorn(scores.to(dtype), 0.05)
        assert codes.dtype == torch.float32
        assert torch.isfinite(codes).all()
        assert torch.allclose(codes, sinkhorn(scores.to(dtype).double(), 0.05).float(), atol=1e-5)
    extreme = sinkhorn(torch.tensor([[1.0, -1.0], [1.0, -1.0]]), 0.001)  # e⁻²⁰⁰⁰ is beyond float32
    assert torch.allclose(extreme, torch.full((2, 2), 0.5))


def test_no_rounds_is_a_softmax():
    scores = cosines(5, 4)
    assert torch.equal(sinkhorn(scores, 0.1, 0), (scores / 0.1).softmax(1))


def test_the_centre_is_dinos_moving_average():
    centre = Centre(3, 0.9)
    first, second = torch.randn(4, 3), torch.randn(6, 3)
    assert torch.equal(centre(first), first)
    centre.update(first)
    centre.update(second)
    assert torch.allclose(centre.value, 0.9 * 0.1 * first.mean(0) + 0.1 * second.mean(0))


RANKS = """
import torch, torch.distributed as dist
from odonata.nn.centre import Centre, mean_row
from odonata.nn.sinkhorn import sinkhorn
dist.init_process_group("gloo")
rank = dist.get_rank()
whole = torch.rand(11, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
own = slice(0, 7) if rank == 0 else slice(7, 11)
centre = Centre(5).double()
centre.update(whole[own])
found = torch.cat([sinkhorn(whole[own], 0.05).flatten(), mean_row(whole[own]), centre.value])
dist.barrier()
dist.destroy_process_group()
alone = Centre(5).double()
alone.update(whole)
want = torch.cat([sinkhorn(whole, 0.05)[own].flatten(), whole.mean(0), alone.value])
assert torch.allclose(found, want, rtol=1e-10), (found, want)
print(f"AGREES {rank}\\n", end="", flush=True)  # in one piece: the other rank writes to the same place
"""


def test_two_ranks_with_unequal_shares_agree_with_one_process(tmp_path):
    (tmp_path / "ranks.py").write_text(RANKS)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    done = subprocess.run(
        [*command, str(tmp_path / "ranks.py")], env=env, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    assert sorted(line for line in done.stdout.splitlines() if "AGREES" in line) == ["AGREES 0", "AGREES 1"]


def test_a_mask_has_exactly_the_number_asked_for():
    from odonata.nn.block_masks import block_mask, masks_for_batch

    for count in (1, 5, 20, 63):
        assert int(block_mask((8, 8), count).sum()) == count
    masks = masks_for_batch(16, (8, 8), 0.5, (0.1, 0.5))
    hidden = masks.sum(1)
    assert int((hidden > 0).sum()) == 8
    assert hidden[hidden > 0].min() >= 6
    assert hidden.max() <= 32
    assert int(masks_for_batch(1, (2, 2), 0.1, (0.1, 0.2), blocks=False).sum()) == 1


def test_blocks_hang_together_more_than_single_patches():
    from odonata.nn.block_masks import masks_for_batch

    def neighbours(blocks: bool) -> float:
        masks = masks_for_batch(40, (14, 14), 1.0, (0.3, 0.3), blocks).view(-1, 14, 14)
        return float((masks[:, 1:] & masks[:, :-1]).sum() + (masks[:, :, 1:] & masks[:, :, :-1]).sum()) / len(masks)

    assert neighbours(True) > 1.5 * neighbours(False)


@pytest.mark.parametrize("rows", [1, 3, 100])
def test_scores_computed_in_parts_have_the_same_loss_and_gradients(rows):
    from odonata.nn.prototype_head import cross_entropy

    def outcome(rows_at_once: int) -> list[torch.Tensor]:
        torch.manual_seed(0)
        vectors = F.normalize(torch.randn(8, 5, dtype=torch.float64), dim=1).requires_grad_()
        prototypes = torch.randn(12, 5, dtype=torch.float64, requires_grad=True)
        value = cross_entropy(vectors, prototypes, torch.rand(8, 12, dtype=torch.float64), 0.1, rows_at_once)
        return [value.detach(), *torch.autograd.grad(value.sum(), [vectors, prototypes])]

    for part, whole in zip(outcome(rows), outcome(0), strict=True):
        assert torch.allclose(part, whole, rtol=1e-12)
