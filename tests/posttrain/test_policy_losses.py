"""PPO, GRPO's variants, RLOO, values and rewards of tokens: by hand, and as TRL computes them."""

import math

import pytest
import torch

from odonata.errors import RecipeError
from odonata.posttrain.kl import kl_in_loss
from odonata.posttrain.policy_losses import (
    aggregate,
    denominators,
    importance_weights,
    overlong_filter,
    overlong_punishment,
    policy_terms,
    ppo_rewards,
    value_loss,
)
from posttrain.trl_records import BOUNDS, FACTS, MASK, assert_close, leaf, record

DTYPES = pytest.mark.parametrize("dtype", BOUNDS, ids=["float64", "float32"])
TWO = torch.tensor([[True, True]])
NAN = float("nan")


def row(*values):
    return torch.tensor([values], dtype=torch.float64)


def answer(*ratios, gains, **options):
    """The terms of one answer with given ratios to the old policy, at probability ½ of each token."""
    old = row(*[math.log(0.5)] * len(ratios))
    logprobs = (old + row(*ratios).log()).requires_grad_()
    terms = policy_terms(logprobs, old, gains, torch.ones_like(old).bool(), **options)
    return logprobs, terms


def test_two_tokens_of_ppo_by_hand():
    # Within the clip; beyond it in the direction of the gain.
    logprobs, terms = answer(1.1, 1.5, gains=torch.tensor([2.0]).double())
    assert terms.losses.tolist() == [pytest.approx([-2.2, -2.4])]
    assert terms.clipped.tolist() == [[False, True]]
    terms.losses.sum().backward()
    assert logprobs.grad.tolist() == [pytest.approx([-2.2, 0.0])]  # −r A, and nothing
    # For a loss the bound below holds, and the one above does not.
    logprobs, terms = answer(0.5, 1.5, gains=torch.tensor([-2.0]).double())
    assert terms.losses.tolist() == [pytest.approx([1.6, 3.0])]
    assert terms.clipped.tolist() == [[True, False]]
    terms.losses.sum().backward()
    assert logprobs.grad.tolist() == [pytest.approx([0.0, 3.0])]


def test_two_tokens_with_gains_of_their_own_and_a_higher_clip_by_hand():
    _, terms = answer(1.3, 1.25, gains=row(1.0, 1.0), clip_high=0.28)
    assert terms.losses.tolist() == [pytest.approx([-1.28, -1.25])]
    assert terms.ratio.tolist() == [pytest.approx([1.3, 1.25])] and not terms.ratio.requires_grad
    _, terms = answer(1.3, 0.1, gains=row(1.0, -1.0), clip_low=None, clip_high=None)
    assert terms.losses.tolist() == [pytest.approx([-1.3, 0.1])] and not terms.clipped.any()


def test_two_tokens_of_cispo_by_hand():
    logprobs, terms = answer(6.0, 0.1, gains=row(1.0, -2.0), kind="cispo", clip_low=None, clip_high=4.0)
    # −min(r, 5) A ln π: the weight is bounded, and the gradient stays.
    assert terms.losses.tolist() == [pytest.approx([-5 * math.log(3.0), 0.2 * math.log(0.05)])]
    assert terms.clipped.tolist() == [[True, False]]
    terms.losses.sum().backward()
    assert logprobs.grad.tolist() == [pytest.approx([-5.0, 0.2])]


def test_two_tokens_of_a_whole_answers_ratio_by_hand():
    logprobs, terms = answer(1.5, 0.7, gains=torch.tensor([2.0]).double(), kind="sequence")  # 1.05 in all
    assert terms.ratio.tolist() == [pytest.approx([1.05, 1.05])]
    loss = aggregate(terms.losses, TWO, "sequence", denominator=1)
    loss.backward()
    assert loss.item() == pytest.approx(-2.1)
    assert logprobs.grad.tolist() == [pytest.approx([-2.1, -2.1])]


def test_on_policy_the_loss_is_flat_and_its_gradient_is_reinforces():
    # With one step a rollout the value of the loss is −Σ A = 0 for every group, whatever there is to learn.
    logprobs = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    everything = torch.ones(2, 3).bool()
    for kind in ("ppo", "sequence"):
        terms = policy_terms(logprobs, logprobs.detach(), torch.tensor([1.0, -1.0]).double(), everything, kind=kind)
        loss = aggregate(terms.losses, everything, "sequence", denominator=2)
        assert loss.item() == pytest.approx(0, abs=1e-15)
        gradient = torch.autograd.grad(loss, logprobs)[0]
        push = torch.tensor([-1.0, 1.0]).double()[:, None].expand(2, 3) / 2
        torch.testing.assert_close(gradient, push / 3 if kind == "ppo" else push)
        assert (terms.ratio == 1).all() and not terms.clipped.any()


AGGREGATIONS = {"grpo": "sequence", "bnpo": "token", "dr_grpo": "constant", "dapo": "token", "cispo": "token"}


@pytest.mark.shows("grpo", "parity")
@pytest.mark.shows("dr-grpo", "parity")
@pytest.mark.shows("dapo", "parity")
@DTYPES
@pytest.mark.parametrize("suffix", ["", "-kl", "-kl-corrected"])
@pytest.mark.parametrize("kind", AGGREGATIONS)
def test_grpo_and_its_variants_are_trls(kind, suffix, dtype):
    logprobs = leaf("rollout/logprobs", dtype)
    old, ref, gains = (record(f"rollout/{name}", dtype) for name in ("old_logprobs", "ref_logprobs", "advantages"))
    # TRL's epsilon_high of 1.15 is CISPO's bound itself.
    options = {"kind": "cispo", "clip_low": None, "clip_high": 0.15} if kind == "cispo" else {"clip_high": 0.28}
    terms = policy_terms(logprobs, old, gains, MASK, **options)
    losses = terms.losses
    if suffix:
        losses = losses + 0.04 * kl_in_loss(logprobs, ref, MASK, old_logprobs=old if "corrected" in suffix else None)
    how = AGGREGATIONS[kind]
    count = denominators(MASK, how, 16 if how == "constant" else None)
    loss = aggregate(losses, MASK, how, denominator=count)
    assert_close(loss, f"grpo/{kind}{suffix}/loss", dtype)
    assert_close(torch.autograd.grad(loss, logprobs)[0], f"grpo/{kind}{suffix}/gradient/logprobs", dtype)
    if kind != "cispo":
        assert (terms.clipped.sum() / MASK.sum()).item() == pytest.approx(FACTS[f"grpo/{kind}/clipped"])


@pytest.mark.shows("rloo", "parity")
@DTYPES
def test_rloo_is_trls(dtype):
    logprobs = leaf("rollout/logprobs", dtype)
    # TRL keeps the sum over the old answer only: it stands at the first token here.
    old = torch.zeros(MASK.shape, dtype=dtype)
    old[:, 0] = record("rloo/old_logps", dtype)
    terms = policy_terms(logprobs, old, record("rollout/advantages", dtype), MASK, kind="sequence", clip_high=0.28)
    loss = aggregate(terms.losses, MASK, "sequence", denominator=denominators(MASK, "sequence"))
    assert_close(loss, "rloo/loss", dtype)
    assert_close(torch.autograd.grad(loss, logprobs)[0], "rloo/gradient/logprobs", dtype)
    assert terms.clipped[:, 0].float().mean() == FACTS["rloo/clipped"]


@pytest.mark.shows("ppo", "parity")
@DTYPES
def test_losses_of_ppo_are_trls(dtype):
    logprobs, values = leaf("ppo/new_logprobs", dtype), leaf("ppo/new_values", dtype)
    steps = record("ppo/discounted/steps")
    policy = policy_terms(logprobs, record("ppo/old_logprobs", dtype), record("ppo/discounted/advantages", dtype), MASK)
    value = value_loss(values, record("ppo/old_values", dtype), record("ppo/discounted/returns", dtype), steps)
    parts = [
        aggregate(terms.losses, mask, "token", denominator=denominators(mask, "token"))
        for terms, mask in ((policy, MASK), (value, steps))
    ]
    assert_close(parts[0], "ppo/losses/policy", dtype)
    assert_close(parts[1], "ppo/losses/value", dtype)
    gradients = torch.autograd.grad(parts[0] + 0.1 * parts[1], [logprobs, values])
    for name, gradient in zip(("logprobs", "values"), gradients, strict=True):
        assert_close(gradient, f"ppo/losses/gradient/{name}", dtype)
    assert (value.clipped.sum() / steps.sum()).item() == pytest.approx(FACTS["ppo/losses/vf_clipfrac"])


@pytest.mark.shows("ppo", "parity")
@DTYPES
@pytest.mark.parametrize(("name", "penalty"), [("k1", 0.0), ("k3", 1.0)])
def test_rewards_of_ppo_are_trls(name, penalty, dtype):
    ended = torch.tensor(FACTS["ppo/ended"])
    found = ppo_rewards(
        *(record(f"ppo/{part}", dtype) for part in ("scores", "logprobs", "ref_logprobs")), MASK, beta=0.05, kind=name,
        score_at="after_eos", ended=ended if penalty else None, missing_eos_penalty=penalty,
    )  # fmt: skip
    assert_close(found.rewards, f"ppo/{name}/rewards", dtype)
    assert found.steps.equal(record(f"ppo/{name}/steps"))
    assert (~ended).any()


def test_rewards_of_two_tokens_by_hand():
    mask = torch.tensor([[True, True, False], [True, True, True]])
    logprobs = torch.tensor([[-1.0, -2.0, NAN], [-1.0, -1.0, -1.0]])
    ref = torch.tensor([[-1.5, -1.0, NAN], [-1.0, -1.0, -1.0]])
    scores = torch.tensor([3.0, 5.0])
    found = ppo_rewards(scores, logprobs, ref, mask, beta=0.5)
    assert found.rewards.tolist() == [[-0.25, 3.5, 0.0], [0.0, 0.0, 5.0]] and found.steps.equal(mask)
    # TRL's place: the position that follows; a row that fills the width has none.
    found = ppo_rewards(scores, logprobs, ref, mask, beta=0.5, score_at="after_eos")
    assert found.rewards.tolist() == [[-0.25, 0.5, 3.0], [0.0, 0.0, 5.0]] and found.steps.all()
    ended = torch.tensor([True, False])
    found = ppo_rewards(scores, logprobs, ref, mask, beta=0.5, ended=ended, missing_eos_penalty=1.0)
    assert found.scores.tolist() == [3.0, 4.0] and found.rewards[1].tolist() == [0.0, 0.0, 4.0]


def test_an_answer_without_a_token_gets_no_reward():
    empty = torch.zeros(1, 2).bool()
    for place in ("eos", "after_eos"):
        found = ppo_rewards(torch.ones(1), torch.zeros(1, 2), torch.zeros(1, 2), empty, beta=0.1, score_at=place)
        assert (found.rewards == 0).all() and not found.steps.any()


def test_where_the_score_stands_matters_only_below_lambda_1():
    from odonata.posttrain.advantages import gae

    mask = torch.tensor([[True, True, False]])
    values, zero = torch.tensor([[0.5, 1.0, 0.7]]), torch.zeros(1, 3)
    found = {}
    for lam in (1.0, 0.5):
        for place in ("eos", "after_eos"):
            parts = ppo_rewards(torch.ones(1), zero, zero, mask, beta=0.1, score_at=place)
            found[lam, place] = gae(parts.rewards, values, parts.steps, lam=lam).advantages[0, :2].tolist()
    # By hand at λ = 1: the score less the value.
    assert found[1.0, "eos"] == pytest.approx([0.5, 0.0])
    assert found[1.0, "after_eos"] == pytest.approx([0.5, 0.0])
    # By hand at λ = ½: δ = (½, 0); and (½, −0.3, 0.3), which the second token sees half of.
    assert found[0.5, "eos"] == pytest.approx([0.5, 0.0])
    assert found[0.5, "after_eos"] == pytest.approx([0.5 - 0.15 / 2, -0.15])


def test_two_values_by_hand():
    values = row(1.0, 0.1).requires_grad_()
    terms = value_loss(values, row(0.0, 0.0), row(2.0, -1.0), TWO)
    # ½ max((1 − 2)², (0.2 − 2)²), where the clipped step has no gradient; ½ (0.1 + 1)².
    assert terms.losses.tolist() == [pytest.approx([1.62, 0.605])] and terms.clipped.tolist() == [[True, False]]
    terms.losses.sum().backward()
    assert values.grad.tolist() == [pytest.approx([0.0, 1.1])]
    assert value_loss(values, row(0.0, 0.0), row(2.0, -1.0), TWO, clip=None).losses.tolist() == [
        pytest.approx([0.5, 0.605])
    ]


def test_two_answers_aggregated_by_hand():
    losses, mask = torch.tensor([[3.0, 0.0], [1.0, 2.0]]), torch.tensor([[True, False], [True, True]])
    expected = {"token": (3.0, 2.0), "sequence": (2.0, 2.25), "constant": (8.0, 0.75)}
    for how, (count, value) in expected.items():
        found = denominators(mask, how, 4 if how == "constant" else None)
        assert found == count and isinstance(found, float)
        assert aggregate(losses, mask, how, denominator=found).item() == value


def test_rows_without_a_token_are_in_no_count():
    mask = torch.tensor([[True, False], [False, False]])
    assert denominators(mask, "sequence") == 1
    assert denominators([mask, mask], "constant", 8) == 16
    nobody = torch.zeros(2, 2).bool()
    assert denominators(nobody, "token") == 1
    assert aggregate(torch.full((2, 2), NAN), nobody, "sequence", denominator=1) == 0


@pytest.mark.parametrize("kind", ["ppo", "cispo", "sequence"])
def test_what_is_padded_may_be_nan(kind):
    mask = torch.tensor([[True, False]])
    logprobs = torch.tensor([[-1.0, NAN]], requires_grad=True)
    terms = policy_terms(logprobs, torch.tensor([[-1.2, torch.inf]]), torch.tensor([[1.0, NAN]]), mask, kind=kind)
    values = torch.tensor([[1.0, NAN]], requires_grad=True)
    value = value_loss(values, torch.tensor([[0.0, NAN]]), torch.tensor([[1.0, NAN]]), mask)
    (aggregate(terms.losses, mask, "token", denominator=1) + value.losses.sum()).backward()
    for gradient in (logprobs.grad, values.grad):
        assert gradient.isfinite().all() and gradient[0, 1] == 0
    assert terms.ratio[0, 1] == 0 and not terms.clipped[0, 1]


def test_an_answer_without_an_advantage_has_no_loss_however_far_the_policy_went():
    logprobs = torch.zeros(1, 2, requires_grad=True)
    for kind in ("ppo", "cispo", "sequence"):
        terms = policy_terms(logprobs, torch.full((1, 2), -200.0), torch.zeros(1), TWO, kind=kind)
        terms.losses.sum().backward()
        assert (terms.losses == 0).all() and (logprobs.grad == 0).all()


def test_soft_punishment_and_filter_of_overlong_answers():
    # DAPO's own numbers: 16,384 tokens are free, 20,480 the end.
    lengths = torch.tensor([1, 16384, 18432, 20480, 30000])
    assert overlong_punishment(lengths, max_length=20480, buffer=4096).tolist() == [0, 0, -0.5, -1, -1]
    mask = overlong_filter(torch.ones(2, 3).bool(), torch.tensor([True, False]))
    assert mask.tolist() == [[False] * 3, [True] * 3]
    assert denominators(mask, "token") == 3


@DTYPES
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize(("beyond", "trls"), [("truncate", "truncate"), ("drop", "mask")])
def test_importance_weights_are_trls(level, beyond, trls, dtype):
    found = importance_weights(
        record("rollout/old_logprobs", dtype), record("weights/sampler", dtype), MASK, cap=1.3, level=level,
        beyond=beyond,
    )  # fmt: skip
    expected = record(f"weights/{level}_{trls}").expand(MASK.shape)
    torch.testing.assert_close(found[MASK].double(), expected[MASK], rtol=10 * BOUNDS[dtype], atol=0)
    assert found[0, 1] == (1 if level == "token" else found[0, 0])  # the sampler had none
    assert (found[~MASK] == 0).all()
    assert (
        record(f"weights/{level}_{trls}") != record(f"weights/{level}_{'mask' if trls != 'mask' else 'truncate'}")
    ).any()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, m: policy_terms(x, x, x, m, kind="grpo"), "no kind 'grpo' of policy loss; there are ppo, cispo and"),
        (lambda x, m: policy_terms(x, x, x, m, clip_low=1.2), r"clip_low .* in \[0, 1\], not 1.2"),
        (lambda x, m: policy_terms(x, x, x, m, clip_high=-0.1), "clip_high .* at least 0, not -0.1"),
        (lambda x, m: denominators(m, "constant"), "aggregation 'constant' needs max_length ≥ 1"),
        (lambda x, m: denominators(m, "token", 8), "aggregation 'token' does not use max_length"),
        (lambda x, m: denominators(m, "mean"), "no aggregation 'mean'; there are token, sequence and constant"),
        (lambda x, m: aggregate(x, m, "mean", denominator=1), "no aggregation 'mean'"),
        (lambda x, m: ppo_rewards(x[:, 0], x, x, m, beta=0.1, missing_eos_penalty=1.0), "`ended` need each other"),
        (lambda x, m: ppo_rewards(x[:, 0], x, x, m, beta=0.1, ended=m[:, 0]), "`ended` need each other"),
        (lambda x, m: ppo_rewards(x[:, 0], x, x, m, beta=0.1, score_at="pad"), "score_at is 'eos' or 'after_eos', not"),
        (lambda x, m: importance_weights(x, x, m, cap=0.5), "cap ≥ 1"),
        (lambda x, m: overlong_punishment(m.sum(1), max_length=4, buffer=5), "buffer must be in"),
    ],
)  # fmt: skip
def test_an_option_that_does_not_fit_is_named(call, message):
    with pytest.raises(RecipeError, match=message):
        call(torch.zeros(1, 2), torch.ones(1, 2).bool())
