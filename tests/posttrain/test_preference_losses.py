"""DPO and its kin, KTO and SimPO: by hand, and as TRL computes them."""

import math

import pytest
import torch

from odonata.errors import RecipeError
from odonata.posttrain.preference_losses import dpo, kto, kto_weights, simpo
from posttrain.trl_records import BOUNDS, FACTS, LENGTHS, MASK, assert_close, leaf, record

DTYPES = pytest.mark.parametrize("dtype", BOUNDS, ids=["float64", "float32"])


def by_hand(*values):
    return [torch.tensor(value, dtype=torch.float64) for value in values]


# Two pairs of two tokens each: sums of log-probabilities are −1 − 1, −2 − 1, …
POLICY = by_hand([-2.0, -3.0], [-3.0, -3.0])
REF = by_hand([-2.5, -2.0], [-2.0, -3.5])
# Log-ratios ½ and −1 of the chosen, −1 and ½ of the rejected; Δ = 1.5 and −1.5.
SIGMOID = [math.log1p(math.exp(-0.75)), math.log1p(math.exp(0.75))]  # β = ½


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"kind": "sigmoid"}, SIGMOID),
        ({"kind": "conservative", "label_smoothing": 0.1},
         [0.9 * SIGMOID[0] + 0.1 * SIGMOID[1], 0.9 * SIGMOID[1] + 0.1 * SIGMOID[0]]),
        ({"kind": "robust", "label_smoothing": 0.1},
         [(0.9 * SIGMOID[0] - 0.1 * SIGMOID[1]) / 0.8, (0.9 * SIGMOID[1] - 0.1 * SIGMOID[0]) / 0.8]),
        ({"kind": "ipo"}, [(1.5 - 1) ** 2, (-1.5 - 1) ** 2]),
        ({"kind": "ipo", "lengths": (torch.tensor([2, 2]), torch.tensor([2, 2]))}, [(0.75 - 1) ** 2, (-0.75 - 1) ** 2]),
        ({"kind": "hinge"}, [0.25, 1.75]),
    ],
    ids=lambda value: value["kind"] if isinstance(value, dict) else "",
)  # fmt: skip
def test_two_pairs_by_hand(options, expected):
    terms = dpo(*POLICY, *REF, beta=0.5, **options)
    assert terms.losses.tolist() == pytest.approx(expected, rel=1e-12)
    assert terms.chosen_rewards.tolist() == [0.25, -0.5]
    assert terms.rejected_rewards.tolist() == [-0.5, 0.25]


def test_the_gradient_of_dpo_by_hand():
    chosen = POLICY[0].clone().requires_grad_()
    terms = dpo(chosen, POLICY[1], *REF, beta=0.5)
    terms.losses.sum().backward()
    # −β σ(−βΔ), section 4 of the paper: pairs that are ranked wrongly weigh more.
    assert chosen.grad.tolist() == pytest.approx([-0.5 / (1 + math.exp(0.75)), -0.5 / (1 + math.exp(-0.75))])
    assert not terms.chosen_rewards.requires_grad


def test_before_the_first_step_the_loss_is_ln_2():
    same = torch.tensor([-3.7, -20.1], dtype=torch.float64)
    terms = dpo(same, same - 4, same, same - 4, beta=0.1)
    assert terms.losses.tolist() == [math.log(2)] * 2
    assert terms.chosen_rewards.tolist() == terms.rejected_rewards.tolist() == [0, 0]


TRL_DPO = {
    "sigmoid": {"kind": "sigmoid"},
    "robust": {"kind": "robust", "label_smoothing": 0.1},
    "ipo-normalised": {"kind": "ipo", "lengths": LENGTHS.chunk(2)},
    "hinge": {"kind": "hinge"},
}


def dpo_of_recorded(dtype, **options):
    tokens = leaf("dpo/logprobs", dtype)
    policy = tokens.masked_fill(~MASK, 0).sum(1).chunk(2)
    refs = [record(f"dpo/ref_{side}", dtype) for side in ("chosen", "rejected")]
    return tokens, dpo(*policy, *refs, beta=0.3, **options)


@pytest.mark.shows("dpo", "parity")
@pytest.mark.shows("ipo", "parity")
@DTYPES
@pytest.mark.parametrize("name", TRL_DPO)
def test_dpo_is_trls(name, dtype):
    tokens, terms = dpo_of_recorded(dtype, **TRL_DPO[name])
    loss = terms.losses.sum() / 4
    assert_close(loss, f"dpo/{name}/loss", dtype)
    assert_close(torch.autograd.grad(loss, tokens)[0], f"dpo/{name}/gradient/logprobs", dtype, where=MASK)
    if name == "sigmoid":
        found = [terms.chosen_rewards.mean().item(), terms.rejected_rewards.mean().item()]
        assert found == pytest.approx(FACTS["dpo/rewards"], rel=1e-6)


def test_trl_ignores_the_smoothing_of_its_sigmoid_and_we_refuse_it():
    # TRL 1.16 is wrong here: with label_smoothing=0.1 it computes the loss without.
    assert record("dpo/sigmoid-smoothed/loss") == record("dpo/sigmoid/loss")
    _, conservative = dpo_of_recorded(torch.float64, kind="conservative", label_smoothing=0.1)
    assert abs(conservative.losses.mean().item() - record("dpo/sigmoid-smoothed/loss").item()) > 1e-3
    with pytest.raises(RecipeError, match="kind 'sigmoid' does not use label_smoothing; the kinds 'conservative' and"):
        dpo_of_recorded(torch.float64, label_smoothing=0.1)


def test_robust_is_the_loss_without_noise_in_expectation():
    clean = dpo(*POLICY, *REF, beta=0.5).losses
    robust = [dpo(*sides, *refs, beta=0.5, kind="robust", label_smoothing=0.2).losses
              for sides, refs in ((POLICY, REF), (POLICY[::-1], REF[::-1]))]  # fmt: skip
    torch.testing.assert_close(0.8 * robust[0] + 0.2 * robust[1], clean)


def test_kto_of_two_answers_by_hand():
    policy, ref, kl_policy, kl_ref = by_hand([-1.0, -2.0], [-2.0, -1.5], [-3.0, -4.0], [-4.0, -4.0])
    policy.requires_grad_()
    terms = kto(
        policy, ref, torch.tensor([True, False]), kl_policy=kl_policy, kl_ref=kl_ref, beta=2.0, undesirable_weight=1.5
    )
    assert terms.z0 == 0.5  # the mean of 1 and 0
    # 1 − σ(2 (1 − ½)), and 1.5 (1 − σ(2 (½ + ½)))
    assert terms.losses.tolist() == pytest.approx([1 / (1 + math.e), 1.5 / (1 + math.exp(2))])
    assert terms.rewards.tolist() == [2.0, -1.0]
    terms.losses.sum().backward()
    slope = [x * (1 - x) for x in (1 / (1 + math.e), 1 / (1 + math.exp(2)))]
    assert policy.grad.tolist() == pytest.approx([-2 * slope[0], 2 * 1.5 * slope[1]])


def test_the_reference_point_of_kto_is_at_least_0_and_has_no_gradient():
    kl_policy = torch.tensor([-5.0], requires_grad=True)
    terms = kto(torch.zeros(1, requires_grad=True), torch.zeros(1), torch.tensor([True]), kl_policy=kl_policy,
                kl_ref=torch.tensor([-1.0]), beta=1.0)  # fmt: skip
    assert terms.z0 == 0 and terms.losses.tolist() == [0.5]
    terms.losses.sum().backward()
    assert kl_policy.grad is None


@pytest.mark.shows("kto", "parity")
@DTYPES
@pytest.mark.parametrize("name", ["kto", "kto-clamped"])
def test_kto_is_trls(name, dtype):
    tokens = leaf("kto/logprobs", dtype)
    terms = kto(
        tokens.masked_fill(~MASK, 0).sum(1), record("kto/ref", dtype), torch.tensor(FACTS["kto/desirable"]),
        kl_policy=record(f"{name}/kl_policy", dtype), kl_ref=record("kto/kl_ref", dtype), beta=0.3,
        undesirable_weight=1.33,
    )  # fmt: skip
    loss = terms.losses.sum() / 8
    assert terms.z0.item() == pytest.approx(FACTS[f"{name}/z0"], rel=1e-6)
    assert_close(loss, f"{name}/loss", dtype)
    assert_close(torch.autograd.grad(loss, tokens)[0], f"{name}/gradient/logprobs", dtype, where=MASK)


def test_kto_weights_bring_both_kinds_to_the_ratio():
    for liked, disliked, ratio in ((100, 50, 1.0), (50, 100, 1.0), (10, 40, 4 / 3), (40, 39, 1.2)):
        weights = kto_weights(liked, disliked, ratio)
        assert weights[0] * liked / (weights[1] * disliked) == pytest.approx(ratio)
        assert min(weights) == 1


def test_simpo_of_two_pairs_by_hand():
    chosen, rejected = by_hand([-0.5, -1.0], [-1.0, -0.75])
    chosen.requires_grad_()
    terms = simpo(chosen, rejected, beta=2.0, gamma=0.5)
    # −ln σ(2 · ½ − ½) and −ln σ(−2 · ¼ − ½)
    assert terms.losses.tolist() == pytest.approx([math.log1p(math.exp(-0.5)), math.log1p(math.exp(1))])
    assert terms.chosen_rewards.tolist() == [-1.0, -2.0]
    terms.losses.sum().backward()
    assert chosen.grad.tolist() == pytest.approx([-2 / (1 + math.exp(0.5)), -2 / (1 + math.exp(-1))])


@pytest.mark.shows("simpo", "parity")
@DTYPES
def test_simpo_is_trls(dtype):
    leaves = {side: leaf(f"simpo/{side}", dtype) for side in ("chosen", "rejected")}
    terms = simpo(leaves["chosen"], leaves["rejected"], beta=2.0, gamma=0.5)
    assert_close(terms.losses, "simpo/losses", dtype)
    assert_close(torch.stack(terms[1:]), "simpo/rewards", dtype)
    gradients = torch.autograd.grad(terms.losses.sum() / 6, list(leaves.values()))
    for side, gradient in zip(leaves, gradients, strict=True):
        assert_close(gradient, f"simpo/gradient/{side}", dtype)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "hinge", "label_smoothing": 0.1}, "kind 'hinge' does not use label_smoothing"),
        ({"kind": "ipo", "label_smoothing": 0.1}, "kind 'ipo' does not use label_smoothing"),
        ({"kind": "robust", "label_smoothing": 0.5}, r"in \[0, 0.5\), not 0.5"),
        ({"lengths": (torch.ones(1).long(),) * 2}, "kind 'sigmoid' does not use lengths; only 'ipo'"),
        ({"kind": "dpo"}, "no kind 'dpo' of DPO; there are sigmoid, conservative"),
        ({"beta": 0.0}, "dpo needs β > 0, not 0"),
    ],
)
def test_an_option_that_is_not_used_is_an_error(options, message):
    zero = torch.zeros(1)
    with pytest.raises(RecipeError, match=message):
        dpo(zero, zero, zero, zero, **({"beta": 0.1} | options))


def test_kto_without_other_prompts_and_simpo_out_of_range_are_errors():
    zero, none = torch.zeros(1), torch.zeros(0)
    with pytest.raises(RecipeError, match="takes a batch of two prompts or more"):
        kto(zero, zero, zero.bool(), kl_policy=none, kl_ref=none, beta=0.1)
    with pytest.raises(RecipeError, match="kto_weights needs answers of both kinds"):
        kto_weights(0, 3)
    with pytest.raises(RecipeError, match="simpo needs β > 0 and γ ≥ 0, not 2 and -1"):
        simpo(zero, zero, beta=2.0, gamma=-1.0)
