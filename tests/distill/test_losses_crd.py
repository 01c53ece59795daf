"""CRD's negatives, banks and state."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from scipy import stats

from odonata.distill.losses.crd import CRDLoss, in_batch_loss, nce_loss
from odonata.distill.losses.interface import Taps, TapShapes
from odonata.distill.losses.negatives import Negatives, hashed

SHAPES = TapShapes("student", dim=6), TapShapes("teacher", dim=9)
# Classes of unequal size, in no order; class 3 has no sample.
LABELS = torch.tensor([2, 0, 1, 1, 4, 0, 2, 2, 2, 1, 4, 0, 0, 2, 2])


def taps(step: int, batch: int = 4) -> tuple[Taps, Taps, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    pooled = [torch.randn(batch, dim, generator=generator) for dim in (6, 9)]
    indices = torch.randperm(len(LABELS), generator=generator)[:batch]
    return Taps([], [], pooled[0], None), Taps([], [], pooled[1], None), indices


def build(**options) -> CRDLoss:
    torch.manual_seed(0)
    return CRDLoss(*SHAPES, **({"labels": LABELS, "num_negatives": 30, "dim": 5} | options))


def draw(negatives: Negatives, indices: torch.Tensor, count: int, seed: int = 0, step: int = 0) -> torch.Tensor:
    return negatives.draw(indices, count, torch.tensor(seed), torch.tensor(step))


def test_the_hash_is_splitmix64():
    # The first outputs of the published generator for seed 0, and the second for seed 1.
    state = torch.tensor([0, -7046029254386353131])  # 0x9E3779B97F4A7C15 as a signed integer
    assert hashed(state).tolist() == [0xE220A8397B1DCDAF - 2**64, 0x6E789E6AA1B965F4]


def test_negatives_are_uniform_over_the_samples_of_all_other_classes_and_of_no_own():
    indices, count = torch.arange(len(LABELS)), 4000
    for step in range(3):
        drawn = draw(Negatives(len(LABELS), LABELS), indices, count, step=step)
        for index in range(len(LABELS)):
            counts = drawn[index].bincount(minlength=len(LABELS))
            others = LABELS.ne(LABELS[index])
            assert counts[~others].sum() == 0
            assert stats.chisquare(counts[others].numpy()).pvalue > 1e-5


def test_without_labels_negatives_are_uniform_over_all_other_samples():
    drawn = draw(Negatives(10), torch.arange(10), 5000)
    for index in range(10):
        counts = drawn[index].bincount(minlength=10)
        assert counts[index] == 0
        assert stats.chisquare(counts[torch.arange(10) != index].numpy()).pvalue > 1e-5


def test_draws_of_samples_steps_and_seeds_are_independent():
    negatives, both = Negatives(2000), torch.tensor([7, 8])
    base = draw(negatives, both, 4000)
    for other in (base.flip(0), draw(negatives, both, 4000, step=1), draw(negatives, both, 4000, seed=1)):
        # Two independent draws from 1,999 agree at 2 of 4,000 places.
        assert (base == other).sum(1).max() < 15
    assert (base[0, 1:] == base[0, :-1]).sum() < 15


def test_draws_are_a_function_of_seed_step_and_sample_not_of_the_batch_around():
    negatives = Negatives(len(LABELS), LABELS)
    whole = draw(negatives, torch.arange(15), 20, seed=3, step=5)
    assert torch.equal(draw(negatives, torch.tensor([11, 2]), 20, seed=3, step=5), whole[[11, 2]])


@pytest.mark.parametrize("options", [{}, {"negatives": "other_samples"}], ids=["labels", "no labels"])
def test_a_resumed_run_is_bit_equal(options):
    def run(loss, start, stop):
        optimizer = torch.optim.SGD(loss.parameters(), lr=0.1)
        losses = []
        for step in range(start, stop):
            student, teacher, indices = taps(step)
            optimizer.zero_grad()
            losses.append(loss(student, teacher, LABELS[indices], indices)["loss"])
            losses[-1].backward()
            optimizer.step()
        return [value.item() for value in losses]

    straight = build(**options)
    expected = run(straight, 0, 6)
    first = build(**options)
    assert run(first, 0, 3) == expected[:3]
    saved = copy.deepcopy(first.state_dict())
    resumed = build(seed=99, **options)  # its own banks and seed must not matter
    resumed.load_state_dict(saved)
    assert run(resumed, 3, 6) == expected[3:]
    assert all(torch.equal(value, resumed.state_dict()[key]) for key, value in straight.state_dict().items())


def test_z_is_set_by_the_first_batch_and_evaluation_changes_nothing():
    loss = build()
    before = copy.deepcopy(loss.state_dict())
    value = loss.eval()(*taps(0)[:2], None, taps(0)[2])["loss"]
    assert value.isfinite() and all(torch.equal(before[key], new) for key, new in loss.state_dict().items())
    loss.train()
    student, teacher, indices = taps(0)
    assert torch.equal(loss(student, teacher, None, indices)["loss"], value)
    z = loss.z.clone()
    assert (z > 0).all() and loss.step == 1
    loss(*taps(1)[:2], None, taps(1)[2])
    assert torch.equal(loss.z, z) and loss.step == 2


def test_only_the_batchs_rows_of_the_banks_move_and_they_have_length_one():
    loss = build(momentum=0.25)
    before = loss.teacher_bank.clone()
    student, teacher, indices = taps(0)
    loss(student, teacher, None, indices)
    moved = (loss.teacher_bank != before).any(1)
    assert torch.equal(moved.nonzero().flatten(), indices.sort().values)
    new = F.normalize(loss.embed_teacher(teacher.pooled))
    expected = F.normalize(0.25 * before[indices] + 0.75 * new)
    assert torch.allclose(loss.teacher_bank[indices], expected, atol=1e-6)


def test_nce_is_smallest_where_positives_are_certain_and_negatives_impossible():
    certain = torch.cat([torch.full((4, 1), 1e9), torch.zeros(4, 30)], 1)
    assert nce_loss(certain, 1000).item() == pytest.approx(0, abs=2e-4)
    # A model that equals the noise knows nothing: each of the candidates costs what the prior odds 1 : K leave.
    ignorant = torch.full((4, 31), 1 / 1000)
    expected = torch.tensor(31.0).log() + 30 * torch.tensor(1 + 1 / 30).log()
    assert nce_loss(ignorant, 1000).item() == pytest.approx(expected.item(), rel=1e-4)


def test_in_batch_mode_is_infonce_without_banks():
    loss = build(negatives="in_batch", labels=None)
    assert set(loss.state_dict()) == {
        f"embed_{side}.{kind}" for side in ("student", "teacher") for kind in ("weight", "bias")
    }
    student, teacher, _ = taps(0)
    value = loss(student, teacher)["loss"]
    x, y = F.normalize(loss.embed_student(student.pooled)), F.normalize(loss.embed_teacher(teacher.pooled))
    rows = torch.stack([(x[i] * y[j]).sum() / 0.07 for i in range(4) for j in range(4)]).view(4, 4)
    own = rows.diagonal()
    expected = (rows.logsumexp(1) - own).mean() + (rows.logsumexp(0) - own).mean()
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    assert in_batch_loss(torch.eye(4), torch.eye(4), 0.01) < 1e-6


RANKS = """
import sys, torch, torch.distributed as dist
sys.path.insert(0, sys.argv[3])
from distill.test_losses_crd import LABELS, build, taps
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
loss, half = build(), slice(2 * rank, 2 * rank + 2)
for step in range(3):
    student, teacher, indices = taps(step)
    student.pooled, teacher.pooled = student.pooled[half], teacher.pooled[half]
    value = loss(student, teacher, None, indices[half])["loss"].detach()
    dist.all_reduce(value)
torch.save({"loss": value / 2, **loss.state_dict()}, f"{sys.argv[2]}.{rank}")
dist.barrier()
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_ranks_keep_the_banks_of_one_process(tmp_path):
    loss = build()
    for step in range(3):
        student, teacher, indices = taps(step)
        value = loss(student, teacher, None, indices)["loss"].detach()
    expected = {"loss": value, **loss.state_dict()}
    meeting = str(tmp_path / "meeting")
    tests = str(Path(__file__).parents[1])
    ranks = [subprocess.Popen([sys.executable, "-c", RANKS, str(rank), meeting, tests]) for rank in range(2)]
    assert [rank.wait(120) for rank in ranks] == [0, 0]
    for rank in range(2):
        found = torch.load(f"{meeting}.{rank}")
        for key, value in expected.items():
            assert torch.allclose(found[key], value, rtol=1e-5, atol=1e-6), key
