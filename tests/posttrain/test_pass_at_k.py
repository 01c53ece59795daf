"""pass@k, majority@k and best-of-k against counting every choice of k samples."""

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from odonata.errors import DataError, RecipeError
from odonata.posttrain.search.pass_at_k import (
    best_of_k,
    majority_at_k,
    pass_at_k,
    pass_at_k_over,
    resampled_at_k,
)
from odonata.posttrain.search.votes import majority_vote


def published(n, c, k):
    """Chen et al. 2021, arXiv:2107.03374, figure 3, as printed."""
    if n - c < k:
        return 1.0
    return 1.0 - np.prod(1.0 - k / np.arange(n - c + 1, n + 1))


@given(st.integers(1, 200), st.data())
@settings(max_examples=200, deadline=None)
def test_the_published_program_and_the_formula(n, data):
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    exact = 1 - math.comb(n - c, k) / math.comb(n, k)
    assert pass_at_k(n, c, k) == pytest.approx(exact, abs=1e-12)
    assert pass_at_k(n, c, k) == pytest.approx(published(n, c, k), abs=1e-12)


def test_small_probabilities_keep_their_digits():
    # 1 of 10¹² samples, k = 3: exactly 3·10⁻¹², which 1 − (1 − …) would round.
    assert pass_at_k(10**12, 1, 3) == pytest.approx(3e-12, rel=1e-14, abs=0)
    assert abs(published(10**12, 1, 3) / 3e-12 - 1) > 1e-6


def test_it_is_every_choice_counted():
    right = [1, 0, 0, 1, 0, 0, 0]
    for k in range(1, 8):
        choices = list(combinations(right, k))
        assert pass_at_k(7, 2, k) == pytest.approx(sum(map(any, choices)) / len(choices))
    assert pass_at_k(7, 2, 1) == pytest.approx(2 / 7)  # pass@1 is the mean over samples
    assert pass_at_k(4, 1, 2) > 1 - (1 - 1 / 4) ** 2  # the obvious estimate is too low


def test_over_problems_with_an_interval():
    counts = [(10, 0), (10, 10), (10, 5), (20, 1)]
    found = pass_at_k_over(counts, 4)
    assert found.estimate == pytest.approx(np.mean([pass_at_k(n, c, 4) for n, c in counts]))
    assert 0 <= found.low < found.estimate < found.high <= 1
    assert pass_at_k_over([(10, 10)] * 5, 4).low == 1
    with pytest.raises(DataError, match="problem 1: k must be from 1 to the number of samples, 3; it is 4"):
        pass_at_k_over([(10, 1), (3, 1)], 4)


answers = st.lists(st.sampled_from(["a", "b", "c", None]), min_size=1, max_size=9)


@given(answers, st.data())
@settings(max_examples=150, deadline=None)
def test_majority_is_every_choice_counted(given_answers, data):
    k = data.draw(st.integers(1, len(given_answers)))
    won = []
    for choice in combinations(given_answers, k):
        sizes = {x: choice.count(x) for x in choice if x is not None}
        most = max(sizes.values(), default=0)
        winners = [x for x, size in sizes.items() if size == most]
        won.append(("a" in winners) / max(1, len(winners)))
    assert majority_at_k(given_answers, "a", k) == pytest.approx(sum(won) / len(won))


def test_majority_of_first_seen_ties_in_any_order_is_the_exact_figure():
    given_answers = ["a", "a", "a", "b", "b", "b", "c", None, None, "d"]

    def select(places):
        return majority_vote([given_answers[n] for n in places], lambda x: x).winner == "a"

    for k in (2, 4, 7):
        drawn = resampled_at_k(select, len(given_answers), k, draws=20_000, seed=1)
        assert drawn == pytest.approx(majority_at_k(given_answers, "a", k), abs=0.012)


def test_majority_amplifies_what_is_most_frequent():
    better = [majority_at_k(["a"] * 40 + ["b"] * 30 + ["c"] * 30, "a", k) for k in (1, 8, 32, 100)]
    worse = [majority_at_k(["a"] * 30 + ["b"] * 40 + ["c"] * 30, "a", k) for k in (1, 8, 32, 100)]
    assert better == sorted(better) and better[0] == pytest.approx(0.4) and better[-1] == 1
    assert worse == sorted(worse, reverse=True) and worse[-1] == 0
    assert majority_at_k([None] * 5, "a", 3) == 0


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=8), st.data())
@settings(max_examples=100, deadline=None)
def test_best_of_k_is_every_choice_counted(samples, data):
    k = data.draw(st.integers(1, len(samples)))
    means = []
    for choice in combinations(samples, k):
        top = max(score for score, _ in choice)
        tied = [right for score, right in choice if score == top]
        means.append(sum(tied) / len(tied))
    scores, correct = [float(s) for s, _ in samples], [float(r) for _, r in samples]
    assert best_of_k(scores, correct, k) == pytest.approx(sum(means) / len(means))


def test_best_of_k_by_the_truth_is_pass_at_k():
    correct = [0.0, 1.0, 0.0, 0.0, 1.0, 0.0]
    for k in range(1, 7):
        assert best_of_k(correct, correct, k) == pytest.approx(pass_at_k(6, 2, k))


def test_bad_input():
    for n, c, k in ((3, 4, 1), (3, -1, 1)):
        with pytest.raises(DataError, match="cannot be right"):
            pass_at_k(n, c, k)
    for k in (0, 4):
        with pytest.raises(DataError, match=f"number of samples, 3; it is {k}"):
            pass_at_k(3, 1, k)
    with pytest.raises(DataError, match="right answer is None"):
        majority_at_k(["a"], None, 1)
    with pytest.raises(DataError, match="2 scores, but 1 outcomes"):
        best_of_k([1.0, 2.0], [1.0], 1)
    with pytest.raises(DataError, match="sample 1 is NaN"):
        best_of_k([1.0, math.nan], [1.0, 0.0], 1)
    with pytest.raises(RecipeError, match="draws must be 1 or more"):
        resampled_at_k(lambda _: True, 3, 1, draws=0)
