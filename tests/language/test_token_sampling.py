"""How tokens are drawn: filters against transformers', frequencies against the distribution, streams of their own."""

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from odonata.errors import RecipeError
from odonata.language.sampling import Sampling, as_seeds, choose, filtered, row_seeds, uniforms

LOGITS = torch.randn(6, 40, generator=torch.Generator().manual_seed(0)) * 3


@pytest.mark.shows("decoder", "parity")
@pytest.mark.parametrize(("sampling", "warpers"), [
    (Sampling(0.7), [TemperatureLogitsWarper(0.7)]),
    (Sampling(top_k=5), [TopKLogitsWarper(5)]),
    (Sampling(top_k=100), [TopKLogitsWarper(100)]),
    (Sampling(top_p=0.8), [TopPLogitsWarper(0.8)]),
    (Sampling(top_p=1e-6), [TopPLogitsWarper(1e-6)]),
    (Sampling(min_p=0.1), [MinPLogitsWarper(0.1)]),
    (Sampling(1.5, 20, 0.9, 0.05), [TemperatureLogitsWarper(1.5), TopKLogitsWarper(20), TopPLogitsWarper(0.9),
                                    MinPLogitsWarper(0.05)]),
])  # fmt: skip
def test_filters_leave_what_transformers_leaves(sampling, warpers):
    reference = LOGITS
    for warper in warpers:
        reference = warper(None, reference)
    assert torch.equal(filtered(LOGITS, sampling), reference)


def test_equal_scores_at_the_edge_of_top_k_all_stay():
    kept = filtered(torch.tensor([[1.0, 3.0, 2.0, 2.0, 0.0]]), Sampling(top_k=2)).isfinite()
    assert kept.tolist() == [[False, True, True, True, False]]


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.6), Sampling(1.2, top_k=4), Sampling(top_p=0.7)])
def test_tokens_come_as_often_as_the_distribution_says(sampling):
    rows = 40_000
    logits = LOGITS[:1, :8].expand(rows, 8)
    tokens, logprobs = choose(logits, sampling, row_seeds(3, rows), place=5)
    wanted = filtered(LOGITS[:1, :8], sampling).softmax(-1)[0].double()
    counts = torch.bincount(tokens, minlength=8)
    possible = wanted > 0
    assert not counts[~possible].any(), "what a filter leaves out is never drawn"
    found = stats.chisquare(counts[possible], (wanted[possible] / wanted[possible].sum() * rows).numpy())
    assert found.pvalue > 1e-3
    assert torch.allclose(logprobs, wanted.log()[tokens].float(), atol=1e-5)


def test_a_rows_numbers_are_uniform_and_do_not_resemble_those_of_its_neighbours_or_of_the_place_before():
    seeds = row_seeds(0, 2000)
    numbers = torch.stack([uniforms(seeds, place) for place in range(50)])
    assert float(numbers.min()) >= 0 and float(numbers.max()) < 1
    assert stats.kstest(numbers.flatten().numpy(), "uniform").pvalue > 1e-3
    centred = (numbers - 0.5).numpy()
    bound = 4 / 12 / np.sqrt(numbers.numel())  # four deviations of the mean of products of independent uniforms
    assert abs((centred[1:] * centred[:-1]).mean()) < bound
    assert abs((centred[:, 1:] * centred[:, :-1]).mean()) < bound
    other = torch.stack([uniforms(row_seeds(1, 2000), place) for place in range(50)]).numpy() - 0.5
    assert abs((centred * other).mean()) < bound


def test_a_row_draws_the_same_whatever_stands_beside_it():
    seeds = row_seeds(7, 6)
    together = choose(LOGITS, Sampling(), seeds, place=2)
    for row in range(6):
        alone = choose(LOGITS[row : row + 1], Sampling(), seeds[row : row + 1], place=2)
        assert int(alone[0]) == int(together[0][row])
    assert torch.equal(row_seeds(7, 3), seeds[:3])


def test_temperature_zero_takes_the_likeliest_and_says_its_probability_at_temperature_one():
    tokens, logprobs = choose(LOGITS, Sampling(0), row_seeds(0, 6), place=0)
    assert torch.equal(tokens, LOGITS.argmax(-1))
    assert torch.allclose(logprobs, LOGITS.log_softmax(-1).amax(-1))
    again, _ = choose(LOGITS, Sampling(top_k=1), row_seeds(1, 6), place=9)
    assert torch.equal(again, tokens)


def test_rare_tokens_of_a_large_vocabulary_are_within_reach():
    logits = torch.zeros(1, 200_000)
    drawn = [int(choose(logits, Sampling(), row_seeds(seed, 1), 0)[0]) for seed in range(300)]
    assert stats.kstest(np.array(drawn) / 200_000, "uniform").pvalue > 1e-3 and max(drawn) > 190_000


@pytest.mark.parametrize(("sampling", "message"), [
    (Sampling(-1.0), "--temperature is -1.0; it must be 0, or 0.0001 or more"),
    (Sampling(1e-30), "--temperature is 1e-30"),
    (Sampling(float("nan")), "--temperature is nan"),
    (Sampling(float("inf")), "--temperature is inf"),
    (Sampling(top_k=-2), r"--top-k is -2; it must be 0 \(off\) or more"),
    (Sampling(top_p=0.0), r"--top-p is 0.0; it lies in \(0, 1\]"),
    (Sampling(top_p=1.1), "--top-p is 1.1"),
    (Sampling(min_p=1.0), r"--min-p is 1.0; it lies in \[0, 1\)"),
    (Sampling(0, top_k=3), "--temperature 0 takes the likeliest token: --top-k, --top-p and --min-p change nothing"),
])  # fmt: skip
def test_what_no_distribution_can_have_is_refused(sampling, message):
    with pytest.raises(RecipeError, match=message):
        sampling.check()


def test_seeds_are_given_for_every_row_or_once():
    assert torch.equal(as_seeds([5, 6], 2), as_seeds([5, 6, 7], 3)[:2])
    assert torch.equal(as_seeds(2**70 + 3, 2), as_seeds(3, 2)), "seeds of any size are taken modulo 2⁶⁴"
    with pytest.raises(ValueError, match="2 seeds for 3 rows"):
        as_seeds([1, 2], 3)
