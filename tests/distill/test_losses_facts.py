"""What the papers say of their losses: minima, invariances and scales."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.taps import taps_of, transformed
from odonata.distill.losses.ab import ABLoss, boundary_loss
from odonata.distill.losses.attention import attention_loss
from odonata.distill.losses.correlation import correlation_loss
from odonata.distill.losses.factor import FactorLoss, factor_loss
from odonata.distill.losses.fitnets import hint_loss
from odonata.distill.losses.fsp import fsp_loss
from odonata.distill.losses.interface import Taps, TapShapes
from odonata.distill.losses.kd import kd_loss
from odonata.distill.losses.nst import gram_discrepancy, is_gram_cheaper, kernel_discrepancy, nst_loss
from odonata.distill.losses.pkt import pkt_loss
from odonata.distill.losses.rkd import rkd_loss
from odonata.distill.losses.similarity import similarity_loss
from odonata.distill.losses.vid import gaussian_nll

SHAPES = {"maps": [[4, 8, 8], [4, 8, 8], [6, 4, 4], [8, 4, 4]], "dim": 10, "classes": 7}
TAPS = taps_of("facts", SHAPES)
OTHER = taps_of("others", SHAPES)
OF_TAPS = {
    "kd": lambda a, b: kd_loss(a.logits, b.logits, 4.0),
    "fitnets": lambda a, b: hint_loss(a.maps[2], b.maps[2]),
    "at": lambda a, b: attention_loss(a.maps[2], b.maps[2]),
    "sp": lambda a, b: similarity_loss(a.maps[3], b.maps[3]),
    "cc": lambda a, b: correlation_loss(a.pooled, b.pooled),
    "rkd": lambda a, b: rkd_loss(a.pooled, b.pooled)[0],
    "pkt": lambda a, b: pkt_loss(a.pooled, b.pooled),
    "ft": lambda a, b: factor_loss(a.maps[3], b.maps[3]),
    "fsp": lambda a, b: fsp_loss(a.maps, b.maps),
    "nst": lambda a, b: nst_loss(a.maps[2], b.maps[2]),
}


@pytest.mark.parametrize("name", OF_TAPS)
def test_the_loss_is_zero_with_zero_gradient_where_the_student_equals_the_teacher_and_only_there(name):
    student = transformed(TAPS, lambda value: value.detach().clone().requires_grad_())
    loss = OF_TAPS[name](student, transformed(TAPS, torch.Tensor.detach))
    assert abs(loss.item()) < 1e-12
    loss.backward()
    leaves = [*student.maps, student.pooled, student.logits]
    gradients = [leaf.grad for leaf in leaves if leaf.grad is not None]
    assert gradients and all(gradient.abs().max() < 1e-8 for gradient in gradients)
    assert OF_TAPS[name](TAPS, OTHER).item() > 1e-4


def test_ab_is_zero_beyond_the_margin_on_the_teachers_side_and_nowhere_else():
    teacher = TAPS.preactivations[0].detach()
    assert boundary_loss(torch.where(teacher > 0, 1.5, -1.5), teacher) == 0
    assert boundary_loss(teacher, teacher) > 0  # the right side is not enough: the margin counts
    assert boundary_loss(torch.where(teacher > 0, -0.25, 0.25), teacher).item() == pytest.approx(
        1.25**2 * teacher.numel()
    )


def test_vids_best_variance_is_the_mean_squared_error():
    mean, target = torch.randn(5, 3, 2, 2), torch.randn(5, 3, 2, 2)
    best = (mean - target).square().mean((0, 2, 3)).requires_grad_()
    loss = gaussian_nll(mean, best, target)
    assert loss.item() == pytest.approx((0.5 * (1 + best.log())).mean().item(), rel=1e-5)
    loss.backward()
    assert best.grad.abs().max() < 1e-7
    assert gaussian_nll(mean, 1.1 * best, target) > loss


def kd_gradient(temperature: float) -> torch.Tensor:
    logits = TAPS.logits.detach().clone().requires_grad_()
    return torch.autograd.grad(kd_loss(logits, OTHER.logits.detach(), temperature), logits)[0]


def test_kds_gradient_at_large_temperatures_is_that_of_centred_logits_whatever_the_temperature():
    # Hinton et al. 2015, equation 4: (z − v) / (N T²) for zero-mean logits, here times T² and over the batch.
    centred = (TAPS.logits - OTHER.logits).detach()
    centred = centred - centred.mean(1, keepdim=True)
    expected = centred / centred.numel()
    for temperature, bound in ((1e3, 1e-2), (1e5, 1e-4)):
        assert (kd_gradient(temperature) - expected).norm() < bound * expected.norm()
    # Without the factor T² the gradient would be 1/T² as large: at T = 1e3, a millionth.
    p, q = (F.softmax(taps.logits.detach() / 1e3, 1) for taps in (TAPS, OTHER))
    unscaled = (p - q) / 1e3 / len(p)
    assert unscaled.norm().item() == pytest.approx(expected.norm().item() / 1e6, rel=1e-2)


def test_kd_at_temperature_one_is_the_cross_entropy_with_soft_targets_less_their_entropy():
    q = F.softmax(OTHER.logits, 1)
    entropy = -(q * q.log()).sum(1).mean()
    expected = F.cross_entropy(TAPS.logits, q) - entropy
    assert kd_loss(TAPS.logits, OTHER.logits, 1.0).item() == pytest.approx(expected.item(), rel=1e-12)


def rotation(dim: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(dim, dim, dtype=torch.float64))[0]


@settings(max_examples=20, deadline=None)
@given(scale=st.floats(1e-2, 1e2), seed=st.integers(0, 100))
def test_what_each_loss_does_not_see(scale, seed):
    torch.manual_seed(seed)
    a, b = TAPS.maps[2].detach(), OTHER.maps[2].detach()
    x, y = TAPS.pooled.detach(), OTHER.pooled.detach()
    rotated = x @ rotation(10) + torch.randn(10)
    order = torch.randperm(len(x))
    equal = {
        "at: scale": (attention_loss(scale * a, b), attention_loss(a, b)),
        "at: order of channels": (attention_loss(a[:, torch.randperm(6)], b), attention_loss(a, b)),
        "sp: order of the batch": (similarity_loss(a[order], b[order]), similarity_loss(a, b)),
        "sp: scale": (similarity_loss(scale * a, b), similarity_loss(a, b)),
        "rkd: isometry and scale": (rkd_loss(scale * rotated, y)[0], rkd_loss(x, y)[0]),
        "pkt: rotation": (pkt_loss(x @ rotation(10), y), pkt_loss(x, y)),
        "nst: order of channels": (nst_loss(a[:, torch.randperm(6)], b), nst_loss(a, b)),
        "nst: scale of a channel": (nst_loss(a * torch.rand(1, 6, 1, 1).add(scale), b), nst_loss(a, b)),
    }
    for name, (changed, plain) in equal.items():
        assert changed.item() == pytest.approx(plain.item(), rel=1e-9), name
    # The epsilon beside the length is all that PKT sees of the scale.
    assert pkt_loss(scale * x, y).item() == pytest.approx(pkt_loss(x, y).item(), rel=1e-4)


def test_rkds_distance_part_sees_no_reflection_and_its_angles_no_dimension():
    x = TAPS.pooled.detach()
    _, distance, angle = rkd_loss(F.pad(-3 * x, (0, 5)), x)
    assert distance < 1e-20 and angle < 1e-20
    _, distance, angle = rkd_loss(x * torch.linspace(0.1, 3, 10), x)
    assert distance > 1e-3 and angle > 1e-3


def test_rkd_stays_exact_in_float32_where_samples_lie_close_together_far_from_zero():
    x, y = 0.01 * TAPS.pooled.detach() + 30, OTHER.pooled.detach()
    exact = rkd_loss(x.float().double(), y)[0].item()
    assert rkd_loss(x.float(), y.float())[0].item() == pytest.approx(exact, rel=1e-4)


def test_losses_of_relations_are_finite_for_one_sample_equal_samples_and_zeros():
    for rows in (torch.randn(1, 10), torch.ones(4, 10), torch.zeros(4, 10)):
        for loss in (lambda a, b: rkd_loss(a, b)[0], pkt_loss, correlation_loss, similarity_loss):
            leaf = rows.clone().requires_grad_()
            value = loss(leaf, torch.randn(len(rows), 12) if loss is not correlation_loss else torch.randn_like(rows))
            value.backward()
            assert value.isfinite() and leaf.grad.isfinite().all()


@settings(max_examples=30, deadline=None)
@given(ours=st.integers(1, 9), theirs=st.integers(1, 9), places=st.integers(1, 40), seed=st.integers(0, 100))
def test_nsts_gram_form_equals_its_kernel_form_in_value_and_gradient(ours, theirs, places, seed):
    generator = torch.Generator().manual_seed(seed)
    sides = [torch.randn(3, c, places, generator=generator, dtype=torch.float64) for c in (ours, theirs)]
    found = []
    for form in (gram_discrepancy, kernel_discrepancy):
        student = sides[0].clone().requires_grad_()
        loss = form(F.normalize(student, dim=2), F.normalize(sides[1], dim=2))
        found.append((loss.detach(), *torch.autograd.grad(loss, student)))
    assert torch.allclose(found[0][0], found[1][0], rtol=1e-10, atol=1e-13)
    assert torch.allclose(found[0][1], found[1][1], rtol=1e-9, atol=1e-12)


def test_nst_takes_the_gram_form_for_many_channels_and_few_places():
    assert is_gram_cheaper(256, 256, 64) and not is_gram_cheaper(32, 32, 1024)
    exact = nst_loss(torch.randn(2, 64, 4, 4), torch.randn(2, 64, 4, 4))
    assert exact > 0
    same = torch.randn(2, 64, 4, 4)
    assert nst_loss(same, same) == 0


def test_the_first_stage_of_ab_moves_the_student_and_that_of_ft_rebuilds_the_teachers_map():
    shapes = TapShapes.of("student", TAPS), TapShapes.of("teacher", OTHER)
    ab = ABLoss(*shapes)
    student = transformed(TAPS, lambda value: value.detach().float().clone().requires_grad_())
    optimizer = torch.optim.SGD(student.preactivations, lr=100.0)
    first = ab.first_stage(student, OTHER)["loss"].item()
    for _ in range(50):
        optimizer.zero_grad()
        ab.first_stage(student, OTHER)["loss"].backward()
        optimizer.step()
    assert ab.first_stage(student, OTHER)["loss"].item() < 0.05 * first
    assert ab(student, OTHER)["loss"] == 0 and not list(ab.main_parameters())
    ft = FactorLoss(*shapes)
    teacher = transformed(OTHER, lambda value: value.detach().float())
    optimizer = torch.optim.Adam(ft.init_parameters(), lr=1e-2)
    losses = []
    for _ in range(100):
        optimizer.zero_grad()
        losses.append(ft.first_stage(student, teacher)["loss"])
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]
    learning = {id(parameter) for parameter in ft.main_parameters()}
    assert learning.isdisjoint(id(parameter) for parameter in ft.init_parameters())
    ft.zero_grad()
    ft(student, teacher)["loss"].backward()
    assert all(p.grad is None for p in ft.paraphraser.parameters())
    assert all(p.grad is not None for p in ft.main_parameters())


def test_the_expected_loss_of_a_uniform_student_is_known():
    uniform, certain = torch.zeros(4, 7), 1e4 * torch.eye(7)[:4]
    assert kd_loss(uniform, certain, 1.0).item() == pytest.approx(math.log(7), rel=1e-6)


def test_taps_that_no_loss_needs_may_be_absent():
    taps = Taps([], [], torch.randn(4, 3), None)
    shapes = TapShapes.of("student", taps)
    assert (shapes.dim, shapes.classes, shapes.maps) == (3, 0, ())
