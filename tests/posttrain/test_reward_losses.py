"""Bradley–Terry and labels of steps: by hand, and as TRL computes them."""

import math

import pytest
import torch
from scipy.optimize import minimize

from odonata.errors import RecipeError
from odonata.posttrain.reward_losses import (
    bradley_terry,
    pair_accuracy,
    step_binary_cross_entropy,
    step_cross_entropy,
    step_labels,
)
from posttrain.trl_records import BOUNDS, FACTS, assert_close, leaf, record

DTYPES = pytest.mark.parametrize("dtype", BOUNDS, ids=["float64", "float32"])
LABELS = torch.tensor(FACTS["prm/batch"])


def test_bradley_terry_of_two_pairs_by_hand():
    chosen = torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True)
    rejected = torch.tensor([0.0, 2.0], dtype=torch.float64)
    losses = bradley_terry(chosen, rejected, margin=torch.tensor([0.5, 0.0]).double(), centering=0.1)
    assert losses.tolist() == pytest.approx([math.log1p(math.exp(-0.5)) + 0.1, math.log1p(math.exp(2)) + 0.4])
    losses.sum().backward()
    # −σ(−gap) + 2 · 0.1 · sum
    assert chosen.grad.tolist() == pytest.approx([-1 / (1 + math.exp(0.5)) + 0.2, -1 / (1 + math.exp(-2)) + 0.4])


@pytest.mark.shows("reward", "parity")
@DTYPES
@pytest.mark.parametrize("name", ["plain", "full"])
def test_bradley_terry_is_trls(name, dtype):
    logits = leaf("reward/logits", dtype)
    options = {"margin": record("reward/margin", dtype), "centering": 0.01} if name == "full" else {}
    chosen, rejected = logits.squeeze(-1).chunk(2)
    loss = bradley_terry(chosen, rejected, **options).sum() / 4
    assert_close(loss, f"reward/{name}/loss", dtype)
    assert_close(torch.autograd.grad(loss, logits)[0], f"reward/{name}/gradient/logits", dtype)
    assert pair_accuracy(chosen, rejected).mean() == FACTS["reward/accuracy"]


def test_a_reward_that_cannot_tell_is_right_half_of_the_time():
    assert pair_accuracy(torch.zeros(3), torch.zeros(3)).tolist() == [0.5] * 3


def test_rewards_that_fit_pairs_are_those_of_the_model_behind_them():
    # Bradley and Terry's model with strengths 0, 1 and 3, and every pair as often as it says: the fit finds them.
    strengths = torch.tensor([0.0, 1.0, 3.0]).double()
    pairs = [(i, j) for i in range(3) for j in range(3) if i != j]
    often = torch.stack([torch.sigmoid(strengths[i] - strengths[j]) for i, j in pairs])
    first, second = (torch.tensor(side) for side in zip(*pairs, strict=True))

    def loss(x):
        rewards = torch.tensor([0.0, *x]).double()
        return (often * bradley_terry(rewards[first], rewards[second])).sum().item()

    assert minimize(loss, [0.0, 0.0], tol=1e-10).x.tolist() == pytest.approx([1.0, 3.0], abs=1e-3)


def test_labels_stand_on_the_last_token_of_each_step_as_trls_do():
    # "2+3?" and the steps "2+3\n", "=6\n" and "!\n", a token for each letter.
    lengths, labels = [4, 3, 2], [True, False, True]
    assert step_labels(4, lengths, labels) == FACTS["prm/labels/all"]
    assert step_labels(4, lengths, labels, last_only=True) == FACTS["prm/labels/last"]
    assert step_labels(2, [], []) == [-100, -100]


@pytest.mark.shows("prm", "parity")
@DTYPES
def test_cross_entropy_of_steps_is_trls(dtype):
    logits = leaf("prm/logits", dtype)
    terms = step_cross_entropy(logits, LABELS)
    loss = terms.losses.sum() / terms.mask.sum()
    # transformers computes this loss in float32 whatever it is given.
    assert loss.item() == pytest.approx(record("prm/loss").item(), rel=1e-6)
    gradient = torch.autograd.grad(loss, logits)[0]
    torch.testing.assert_close(gradient, record("prm/gradient/logits", dtype), rtol=1e-6, atol=1e-7)
    assert (terms.hits.sum() / terms.mask.sum()).item() == pytest.approx(FACTS["prm/accuracy"])


def test_both_heads_of_steps_by_hand_and_equal_for_equal_odds():
    labels = torch.tensor([[-100, 1, 0]])
    odds = torch.tensor([[torch.nan, math.log(3), math.log(3)]]).double()  # good with a probability of ¾
    one = step_binary_cross_entropy(odds, labels)
    assert one.losses.tolist() == [pytest.approx([0.0, -math.log(0.75), -math.log(0.25)])]
    assert one.hits.tolist() == [[False, True, False]] and one.mask.tolist() == [[False, True, True]]
    two = step_cross_entropy(torch.stack([torch.zeros_like(odds), odds], -1), labels)
    torch.testing.assert_close(two.losses, one.losses)
    assert two.hits.equal(one.hits)


@pytest.mark.parametrize(("loss", "shape"), [(step_cross_entropy, (1, 2, 2)), (step_binary_cross_entropy, (1, 2))])
def test_what_stands_at_other_tokens_may_be_nan(loss, shape):
    logits = torch.zeros(shape)
    logits[:, 0] = torch.nan
    logits.requires_grad_()
    loss(logits, torch.tensor([[-100, 1]])).losses.sum().backward()
    assert logits.grad.isfinite().all() and (logits.grad[:, 0] == 0).all()


def test_what_does_not_fit_is_named():
    with pytest.raises(RecipeError, match=r"there are 1 labels for steps of \[2, 2\] tokens"):
        step_labels(1, [2, 2], [1])
    with pytest.raises(RecipeError, match=r"there are 1 labels for steps of \[0\] tokens"):
        step_labels(1, [0], [1])
    with pytest.raises(RecipeError, match=r"a step's label is 0 or 1, not one of \[2\]"):
        step_labels(1, [1], [2])
    with pytest.raises(RecipeError, match="centering must be at least 0"):
        bradley_terry(torch.zeros(1), torch.zeros(1), centering=-1.0)
