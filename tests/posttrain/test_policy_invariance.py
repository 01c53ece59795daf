"""Gradients do not change with micro-batches, accumulation, ranks or padding: float64, to 1e-12.

A policy with a table of logits and a linear value learn from answers of different lengths. One process with all rows is
the truth; every other way to walk through the same rows must add up to the same gradient.
"""

import random
from itertools import pairwise

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import pad

from odonata.posttrain.advantages import group_advantages, leave_one_out
from odonata.posttrain.kl import kl_in_loss
from odonata.posttrain.policy_losses import aggregate, denominators, policy_terms, value_loss
from odonata.posttrain.presets import PRESETS

ROWS, GROUP, TIME, DIM, VOCAB = 12, 4, 10, 3, 7
MAX_LENGTH = 16


def rollout():
    """Answers of 1 to 10 tokens, in groups of four; what is padded is NaN."""
    torch.manual_seed(5)
    lengths = torch.tensor([10, 1, 4, 2, 7, 10, 3, 3, 1, 6, 9, 5])
    mask = torch.arange(TIME) < lengths[:, None]
    rewards = torch.randn(ROWS // GROUP, GROUP).double()
    rewards[1, 2] = torch.nan

    def numbers(scale):
        return (scale * torch.randn(ROWS, TIME).double()).masked_fill(~mask, torch.nan)

    return {
        "mask": mask,
        "features": torch.randn(ROWS, TIME, DIM).double(),
        "tokens": torch.randint(0, VOCAB, (ROWS, TIME)),
        "old": numbers(0.4) - 2,
        "ref": numbers(0.4) - 2,
        "old_values": numbers(1),
        "returns": numbers(1),
        "group": group_advantages(rewards).advantages.flatten(),
        "leave-one-out": leave_one_out(rewards).advantages.flatten(),
    }


def parameters():
    torch.manual_seed(6)
    return [torch.randn(shape, dtype=torch.float64).requires_grad_() for shape in ((DIM, VOCAB), (DIM,))]


def loss_of(rows, weights, preset, denominator):
    """A micro-batch's share of the whole loss: policy, divergence and value."""
    options = {name: option.ours for name, option in PRESETS[preset].items()}
    mask, how = rows["mask"], options["aggregation"]
    logits = rows["features"] @ weights[0]
    logprobs = logits.log_softmax(-1).gather(-1, rows["tokens"][..., None])[..., 0]
    terms = policy_terms(
        logprobs, rows["old"], rows[options["baseline"]], mask, kind=options["kind"], clip_low=options["clip_low"],
        clip_high=options["clip_high"],
    )  # fmt: skip
    divergence = kl_in_loss(logprobs, rows["ref"], mask, old_logprobs=rows["old"] if options["kl_corrected"] else None)
    values = value_loss(rows["features"] @ weights[1], rows["old_values"], rows["returns"], mask)
    return aggregate(terms.losses + 0.1 * divergence + 0.3 * values.losses, mask, how, denominator=denominator)


def count(masks, preset):
    how = PRESETS[preset]["aggregation"].ours
    return denominators(masks, how, MAX_LENGTH if how == "constant" else None)


def whole_gradient(preset):
    rows, weights = rollout(), parameters()
    return torch.autograd.grad(loss_of(rows, weights, preset, count(rows["mask"], preset)), weights)


def cut(rows, indices, width, empty):
    """Some rows, trimmed or padded to a width, with so many rows of nothing after them."""

    def fit(value):
        value = value[indices]
        if value.ndim == 1:
            return torch.cat([value, value.new_zeros(empty)])
        nothing = (
            False if value.dtype == torch.bool else torch.nan if value.ndim == 2 and value.is_floating_point() else 0
        )
        sides = (0, 0) * (value.ndim - 2)
        value = pad(value[:, :width], (*sides, 0, width - min(width, TIME)), value=nothing)
        return torch.cat([value, torch.full((empty, *value.shape[1:]), nothing, dtype=value.dtype)])

    return {name: fit(value) for name, value in rows.items()}


def shares(rows, draw, ranks):
    """The rows in a random order, dealt to ranks, each rank's in micro-batches of random size and width."""
    order = draw.sample(range(ROWS), ROWS)
    bounds = [0, *sorted(draw.sample(range(1, ROWS), ranks - 1)), ROWS]
    for start, stop in pairwise(bounds):
        mine, parts = order[start:stop], []
        while mine:
            size = draw.randint(1, len(mine))
            indices, mine = torch.tensor(mine[:size]), mine[size:]
            longest = int(rows["mask"][indices].sum(1).max())
            parts.append(cut(rows, indices, longest + draw.randint(0, 5), draw.choice([0, 0, 1, 3])))
        yield parts


def assert_same(found, expected):
    for mine, truth in zip(found, expected, strict=True):
        assert (mine - truth).norm() < 1e-12 * truth.norm()


@pytest.mark.parametrize("preset", PRESETS)
@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**32), ranks=st.integers(1, 4))
def test_any_split_accumulation_ranks_and_padding_give_one_gradient(preset, seed, ranks):
    rows, weights = rollout(), parameters()
    dealt = list(shares(rows, random.Random(seed), ranks))
    denominator = count([part["mask"] for parts in dealt for part in parts], preset) / ranks
    gradients = []
    for parts in dealt:
        gradient = [torch.zeros_like(weight) for weight in weights]
        for part in parts:  # accumulated, never averaged
            share = torch.autograd.grad(loss_of(part, weights, preset, denominator), weights)
            gradient = [a + b for a, b in zip(gradient, share, strict=True)]
        gradients.append(gradient)
    mean_over_ranks = [sum(parts) / ranks for parts in zip(*gradients, strict=True)]
    assert_same(mean_over_ranks, whole_gradient(preset))


@pytest.mark.parametrize("preset", ["grpo", "dapo"])
def test_a_mean_over_micro_batches_is_another_gradient(preset):
    # What the denominators are for: each micro-batch by its own count, and the mean of them.
    rows, weights = rollout(), parameters()
    parts = [cut(rows, torch.arange(0, 9), TIME, 0), cut(rows, torch.arange(9, 12), TIME, 0)]
    losses = [loss_of(part, weights, preset, count(part["mask"], preset)) for part in parts]
    found = torch.autograd.grad(sum(losses) / 2, weights)
    truth = whole_gradient(preset)
    assert (found[0] - truth[0]).norm() > 0.1 * truth[0].norm()


def one_rank(rank, ranks, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks)
    rows, weights = rollout(), parameters()
    parts = list(shares(rows, random.Random(1), ranks))[rank]
    found = {}
    for preset in PRESETS:
        denominator = count([part["mask"] for part in parts], preset)
        sum(loss_of(part, weights, preset, denominator) for part in parts).backward()
        for weight in weights:  # as DistributedDataParallel does
            dist.all_reduce(weight.grad)
            weight.grad /= ranks
        found[preset] = [weight.grad.clone() for weight in weights]
        for weight in weights:
            weight.grad = None
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_three_real_ranks_give_one_gradient(tmp_path):
    mp.spawn(one_rank, args=(3, tmp_path), nprocs=3)
    for rank in range(3):
        for preset, found in torch.load(tmp_path / f"{rank}.pt").items():
            assert_same(found, whole_gradient(preset))
