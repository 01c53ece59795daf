"""Estimators of the divergence: their values by hand, and the exact gradients that they have as losses."""

import math

import pytest
import torch

from odonata.errors import RecipeError
from odonata.posttrain.kl import kl_estimate, kl_in_loss, kl_in_reward

TWO = torch.tensor([[True, True]])


def exact_gradients(kind, corrected, off_policy):
    """The expected gradient of an estimator as a loss, by going through all tokens, and those of both divergences."""
    torch.manual_seed(3)
    logits = torch.randn(10, dtype=torch.float64, requires_grad=True)
    ref = (logits.detach() + 0.5 * torch.randn(10, dtype=torch.float64)).log_softmax(0)
    shift = 0.7 * torch.randn(10, dtype=torch.float64) if off_policy else torch.zeros(10, dtype=torch.float64)
    old = (logits.detach() + shift).log_softmax(0)
    logprobs = logits.log_softmax(0)

    def gradient(value):
        return torch.autograd.grad(value, logits, retain_graph=True)[0]

    if kind == "k1" and not corrected:
        terms = kl_estimate(logprobs, ref, kind)
    else:
        everything = torch.ones(1, 10).bool()
        terms = kl_in_loss(
            logprobs[None], ref[None], everything, kind=kind, old_logprobs=old[None] if corrected else None
        )[0]
    expected = gradient((old.exp() * terms).sum())
    reverse = gradient((logprobs.exp() * (logprobs - ref)).sum())
    forward = gradient((ref.exp() * (ref - logprobs)).sum())
    return expected, reverse, forward


def test_values_of_two_tokens_by_hand():
    logprobs, ref = torch.tensor([-1.0, -2.0]), torch.tensor([-1.5, -1.0])  # δ = ½ and −1
    assert kl_estimate(logprobs, ref, "k1").tolist() == [0.5, -1.0]
    assert kl_estimate(logprobs, ref, "k2").tolist() == [0.125, 0.5]
    assert kl_estimate(logprobs, ref, "k3").tolist() == pytest.approx([math.exp(-0.5) - 0.5, math.e - 2])


def test_k3_is_exact_where_models_nearly_agree():
    # exp(δ) − 1 − δ in float32 has no digit left at δ = 1e-4; expm1 has six.
    found = kl_estimate(torch.tensor([-1e-4]), torch.tensor([0.0]), "k3").item()
    assert found == pytest.approx(5e-9, rel=1e-2)


def test_k1_and_k3_are_unbiased_and_k2_is_not():
    torch.manual_seed(0)
    pi, ref = (torch.randn(10, dtype=torch.float64).log_softmax(0) for _ in range(2))
    divergence = (pi.exp() * (pi - ref)).sum().item()
    means = {kind: (pi.exp() * kl_estimate(pi, ref, kind)).sum().item() for kind in ("k1", "k2", "k3")}
    assert means["k1"] == pytest.approx(divergence, rel=1e-12)
    assert means["k3"] == pytest.approx(divergence, rel=1e-12)
    assert abs(means["k2"] - divergence) > 0.02 * divergence


def test_k1_as_a_loss_has_no_gradient_in_expectation():
    found, reverse, _ = exact_gradients("k1", corrected=False, off_policy=False)
    assert found.abs().max() < 1e-15 < reverse.abs().max()


def test_k2_as_a_loss_has_the_gradient_of_the_reverse_divergence():
    found, reverse, _ = exact_gradients("k2", corrected=False, off_policy=False)
    torch.testing.assert_close(found, reverse, rtol=1e-12, atol=1e-14)


def test_k3_as_a_loss_has_the_gradient_of_the_forward_divergence():
    found, reverse, forward = exact_gradients("k3", corrected=False, off_policy=False)
    torch.testing.assert_close(found, forward, rtol=1e-12, atol=1e-14)
    assert (found - reverse).norm() > 0.1 * reverse.norm()


@pytest.mark.parametrize("off_policy", [False, True])
@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_corrected_by_the_ratio_each_has_the_gradient_of_the_reverse_divergence(kind, off_policy):
    found, reverse, _ = exact_gradients(kind, corrected=True, off_policy=off_policy)
    torch.testing.assert_close(found, reverse, rtol=1e-12, atol=1e-14)


def test_off_policy_nothing_but_the_correction_helps():
    for kind in ("k2", "k3"):
        found, reverse, forward = exact_gradients(kind, corrected=False, off_policy=True)
        assert min((found - reverse).norm(), (found - forward).norm()) > 0.1 * reverse.norm()


def test_k1_in_the_loss_is_refused():
    zero = torch.zeros(1, 2)
    with pytest.raises(RecipeError, match="k1 in the loss has a gradient that is zero in expectation"):
        kl_in_loss(zero, zero, TWO, kind="k1")


def test_in_the_reward_there_is_no_gradient():
    logprobs = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    found = kl_in_reward(logprobs, torch.tensor([[-1.5, -1.0]]), TWO)
    assert found.tolist() == [[0.5, -1.0]] and not found.requires_grad


@pytest.mark.parametrize("old", [False, True])
def test_what_is_padded_may_be_nan(old):
    logprobs = torch.tensor([[-1.0, torch.nan]], requires_grad=True)
    ref = torch.tensor([[-1.5, -torch.inf]])
    mask = torch.tensor([[True, False]])
    found = kl_in_loss(logprobs, ref, mask, kind="k3", old_logprobs=logprobs.detach() if old else None)
    found.sum().backward()
    assert found[0, 1] == 0 and found.isfinite().all()
    assert logprobs.grad[0, 1] == 0 and logprobs.grad.isfinite().all()
    assert kl_in_reward(logprobs, ref, mask).isfinite().all()


def test_an_unknown_estimator_is_named():
    with pytest.raises(RecipeError, match="no estimator 'k4'"):
        kl_estimate(torch.zeros(1), torch.zeros(1), "k4")
