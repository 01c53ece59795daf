"""Advantages of groups and along answers: by hand, as TRL computes them, and what must not matter."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from odonata.errors import RecipeError
from odonata.posttrain.advantages import gae, group_advantages, leave_one_out, masked_sums, whiten
from posttrain.trl_records import BOUNDS, MASK, assert_close, record

DTYPES = pytest.mark.parametrize("dtype", BOUNDS, ids=["float64", "float32"])
NAN = float("nan")


def test_two_answers_by_hand():
    rewards = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    deviation = 0.5**0.5  # over n − 1
    assert group_advantages(rewards).advantages.tolist() == [
        pytest.approx([0.5 / (deviation + 1e-4), -0.5 / (deviation + 1e-4)])
    ]
    assert group_advantages(rewards, scale="none").advantages.tolist() == [[0.5, -0.5]]
    assert leave_one_out(rewards).advantages.tolist() == [[1.0, -1.0]]


def test_the_batchs_deviation_by_hand():
    rewards = torch.tensor([[1.0, 0.0], [3.0, 3.0]], dtype=torch.float64)
    deviation = ((0.75**2 + 1.75**2 + 2 * 1.25**2) / 3) ** 0.5
    found = group_advantages(rewards, scale="batch")
    assert found.advantages[0].tolist() == pytest.approx([0.5 / (deviation + 1e-4), -0.5 / (deviation + 1e-4)])
    assert found.live.tolist() == [True, False]


@pytest.mark.parametrize(
    ("scale", "eighth", "half"), [("group", 4.95, 7.48), ("none", 1.75, 4.0)]
)  # fmt: skip
def test_the_push_of_hard_and_even_prompts_in_groups_of_eight(scale, eighth, half):
    # One answer of eight right, or four: the deviation raises what a hard prompt weighs beside an even one.
    solved = torch.tensor([[1.0] + [0.0] * 7, [1.0] * 4 + [0.0] * 4])
    assert group_advantages(solved, scale=scale).advantages.abs().sum(1).tolist() == pytest.approx([eighth, half], 1e-3)


# TRL leaves what rounding makes of a group of equal rewards; ours is 0.
ALIVE = torch.tensor([True, False, True, False, False])[:, None].expand(5, 4)


@pytest.mark.shows("grpo", "parity")
@pytest.mark.shows("dr-grpo", "parity")
@pytest.mark.shows("dapo", "parity")
@DTYPES
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_advantages_are_trls_with_answers_that_have_no_reward(scale, dtype):
    found = group_advantages(record("advantages/rewards", dtype), scale=scale)
    assert_close(found.advantages, f"advantages/{scale}", dtype, where=ALIVE)
    assert (record(f"advantages/{scale}")[~ALIVE].abs() < 1e-10).all() and (found.advantages[~ALIVE] == 0).all()
    assert found.live.tolist() == [True, False, True, False, False]
    assert found.scored.sum(1).tolist() == [4, 4, 3, 1, 0]


@pytest.mark.shows("rloo", "parity")
@DTYPES
def test_leave_one_out_is_trls_with_answers_that_have_no_reward(dtype):
    found = leave_one_out(record("advantages/rewards", dtype))
    assert_close(found.advantages, "advantages/leave_one_out", dtype, where=ALIVE)
    assert (found.advantages[~ALIVE] == 0).all()


def test_equal_rewards_have_no_advantage_even_where_their_mean_is_rounded():
    rewards = torch.full((1, 7), 0.1)
    assert rewards.mean() != rewards[0, 0]  # what would be left over is 7.5e-9, and 7.5e-5 over the 1e-4
    found = group_advantages(rewards)
    assert (found.advantages == 0).all() and not found.live.any()
    assert (leave_one_out(rewards).advantages == 0).all()


@settings(deadline=None)
@given(st.permutations(range(5)), st.floats(-3, 3), st.floats(0.5, 3))
def test_advantages_move_with_their_answers_and_forget_the_level(order, shift, factor):
    rewards = torch.tensor([[0.0, 1.0, NAN, 3.0, -2.0]], dtype=torch.float64)
    for function in (lambda x: group_advantages(x, scale="none"), leave_one_out):
        before = function(rewards).advantages
        after = function(factor * rewards[:, list(order)] + shift).advantages
        torch.testing.assert_close(after, factor * before[:, list(order)])
        assert abs(before.sum()) < 1e-12


def test_an_answer_without_a_reward_is_as_if_it_were_absent():
    rewards = torch.tensor([[1.0, NAN, 0.0, 0.5]], dtype=torch.float64)
    for function in (group_advantages, leave_one_out):
        found, without = function(rewards), function(rewards[:, [0, 2, 3]])
        torch.testing.assert_close(found.advantages[:, [0, 2, 3]], without.advantages)
        assert found.advantages[0, 1] == 0 and found.scored.tolist() == [[True, False, True, True]]


def test_bad_groups_are_named():
    for function in (group_advantages, leave_one_out):
        with pytest.raises(RecipeError, match=r"a group needs two answers or more .* rewards are \[3, 1\]"):
            function(torch.zeros(3, 1))
        with pytest.raises(RecipeError, match="a reward is infinite; give NaN"):
            function(torch.tensor([[torch.inf, 0.0]]))
    with pytest.raises(RecipeError, match="no scale 'std' of advantages"):
        group_advantages(torch.zeros(1, 2), scale="std")


def test_gae_of_two_tokens_by_hand():
    rewards, values = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, 1.0]])
    everything = torch.ones(1, 2).bool()
    found = gae(rewards, values, everything, gamma=0.5, lam=0.5)
    # δ₂ = 2 − 1, δ₁ = 1 + ½ · 1 − ½; A₂ = δ₂, A₁ = δ₁ + ¼ A₂
    assert found.advantages.tolist() == [[1.25, 1.0]]
    assert found.returns.tolist() == [[1.75, 2.0]]
    assert gae(rewards, values, everything, gamma=1.0, lam=0.0).advantages.tolist() == [[1.5, 1.0]]  # TD(0)
    assert gae(rewards, values, everything, gamma=1.0, lam=1.0).returns.tolist() == [[3.0, 2.0]]  # Monte Carlo


def test_gae_steps_over_holes_and_padding():
    rewards = torch.tensor([[1.0, NAN, 2.0, NAN]])
    values = torch.tensor([[0.5, NAN, 1.0, NAN]])
    mask = torch.tensor([[True, False, True, False]])
    found = gae(rewards, values, mask, gamma=0.5, lam=0.5)
    without = gae(rewards[:, [0, 2]], values[:, [0, 2]], torch.ones(1, 2).bool(), gamma=0.5, lam=0.5)
    assert found.advantages.tolist() == [[1.25, 0.0, 1.0, 0.0]]
    assert found.returns[:, [0, 2]].equal(without.returns)


@pytest.mark.shows("ppo", "parity")
@DTYPES
@pytest.mark.parametrize(("name", "gamma", "lam"), [("k1", 1.0, 0.95), ("white", 1.0, 0.95), ("discounted", 0.9, 0.7)])
def test_gae_and_whitening_are_trls(name, gamma, lam, dtype):
    steps = record(f"ppo/{name}/steps")
    values = record("ppo/values", dtype)
    found = gae(record(f"ppo/{name}/rewards", dtype), values, steps, gamma=gamma, lam=lam)
    assert_close(found.returns, f"ppo/{name}/returns", dtype)
    # The first row never ended, and fills the width.
    assert_close(whiten(found.advantages, MASK), f"ppo/{name}/advantages", dtype)


@DTYPES
def test_whitened_rewards_keep_their_mean_as_trls_do(dtype):
    steps = record("ppo/white/steps")
    white = whiten(record("ppo/k1/rewards", dtype), steps, shift_mean=False)
    assert_close(white, "ppo/white/rewards", dtype)
    assert white[steps].mean().item() == pytest.approx(record("ppo/k1/rewards")[steps].mean().item(), rel=1e-5)


@settings(deadline=None)
@given(st.integers(1, 11), st.integers(0, 3))
def test_whitening_over_ranks_is_that_of_the_whole(cut, padding):
    x = torch.linspace(-2, 5, 12, dtype=torch.float64).sin().view(12, 1) * torch.ones(1, 3 + padding).double()
    mask = (torch.arange(12)[:, None] + torch.arange(3 + padding)) % 4 != 0
    mask[:, 3:] = False
    whole = whiten(x, mask)
    shares = [(x[:cut], mask[:cut]), (x[cut:], mask[cut:])]
    sums = sum(masked_sums(*share) for share in shares)
    parts = torch.cat([whiten(*share, sums=sums) for share in shares])
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-12)
    assert whole[mask].mean().abs() < 1e-12 and abs(whole[mask].std() - 1) < 1e-6


def test_too_little_to_whiten_and_bad_discounts_are_named():
    with pytest.raises(RecipeError, match="at least two values, and 1 count"):
        whiten(torch.zeros(2), torch.tensor([True, False]))
    with pytest.raises(RecipeError, match=r"γ and λ in \[0, 1\], not 1.5 and 0.95"):
        gae(torch.zeros(1, 1), torch.zeros(1, 1), torch.ones(1, 1).bool(), gamma=1.5)
