"""One set of samples stands for every budget: figures equal those over all choices of k among them."""

import itertools
import math
from statistics import fmean

import pytest

from odonata.errors import DataError, RecipeError
from odonata.posttrain.search.asked import Answer
from odonata.posttrain.search.by_samples import Sampled, budgets_up_to, outcomes_of, vote_at_k, weighted_vote_at
from odonata.posttrain.search.votes import best_of_n, majority_vote, weighted_vote

KEYS = ["a", "b", None, "a", "c", "b", "b"]
RIGHT = [1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0]
SCORES = [0.3, 0.9, 0.8, 0.2, 0.7, 0.1, 0.4]


def sampled(**changes):
    answers = [Answer((1, 2), key or "?", score, True) for key, score in zip(KEYS, SCORES, strict=True)]
    fields = {"right": RIGHT, "keys": KEYS, "scores": {"given": SCORES}, "weights": {"given": SCORES}}
    return Sampled(answers, **{**fields, **changes})


def over_orders(choose, k):
    """The mean over all ordered choices of k: `choose` returns the place of what it takes, or None."""
    found = []
    for places in itertools.permutations(range(len(KEYS)), k):
        taken = choose(places)
        found.append(0.0 if taken is None else RIGHT[places[taken]])
    return fmean(found)


@pytest.mark.parametrize("k", [1, 2, 4])
def test_figures_are_means_over_all_choices_of_k(k):
    found = outcomes_of([sampled()], [k])
    best = over_orders(lambda places: best_of_n([SCORES[i] for i in places]), k)
    assert found["best-of-n (given)"][k] == [pytest.approx(best)]
    vote = over_orders(lambda places: majority_vote([KEYS[i] for i in places], lambda key: key).index, k)
    assert found["vote"][k] == [pytest.approx(vote)]
    any_right = fmean(any(RIGHT[i] for i in places) for places in itertools.combinations(range(len(KEYS)), k))
    assert found["pass@k"][k] == [pytest.approx(any_right)]
    assert found["sample"] == {1: [pytest.approx(2 / 7)]}


@pytest.mark.parametrize("k", [1, 2, 4, 7])
def test_weighted_votes_come_close_to_all_choices_of_k(k):
    def elected(places):
        return weighted_vote([KEYS[i] for i in places], lambda key: key, [SCORES[i] for i in places]).index

    exact = over_orders(elected, k)
    assert weighted_vote_at(KEYS, SCORES, RIGHT, [k], draws=20_000)[k] == pytest.approx(exact, abs=0.015)
    assert outcomes_of([sampled()], [7])["vote (given)"][7] == [0.0]  # "b" has 1.4 of 2.6
    assert weighted_vote_at(KEYS, SCORES, RIGHT, [1], draws=1)[1] == pytest.approx(2 / 7)


def test_equal_weights_are_broken_by_chance_and_absent_answers_win_nothing():
    ties = weighted_vote_at(["a", "b"], [0.0, 0.0], [1.0, 0.0], [1, 2], draws=20_000)
    assert ties == {1: pytest.approx(0.5, abs=0.02), 2: pytest.approx(0.5, abs=0.02)}
    assert weighted_vote_at([None, None], [1.0, 1.0], [1.0, 1.0], [1, 2]) == {1: 0.0, 2: 0.0}
    assert weighted_vote_at([None, "a"], [9.0, 0.0], [0.0, 1.0], [2]) == {2: 1.0}


def test_an_answer_whose_texts_are_not_all_right_is_right_on_average():
    assert vote_at_k(["a", "a", "a", "b"], [1.0, 0.0, 0.0, 1.0], 4) == pytest.approx(1 / 3)
    assert weighted_vote_at(["a", "a", "a", "b"], [1, 1, 1, 1], [1.0, 0.0, 0.0, 1.0], [4]) == {4: pytest.approx(1 / 3)}


def test_grades_between_right_and_wrong_make_the_ceiling_their_greatest():
    grades = [0.25, 0.5, 0.0, 0.0, 0.0, 0.0, 1.0]
    found = outcomes_of([sampled(right=grades)], [2])["pass@k"][2]
    assert found == [pytest.approx(fmean(max(pair) for pair in itertools.combinations(grades, 2)))]


def test_nothing_beats_the_ceiling():
    found = outcomes_of([sampled(), sampled(scores={"given": RIGHT}, weights={"given": RIGHT})], [1, 2, 4, 7])
    for name, by_budget in found.items():
        luck = 0.1 if name == "vote (given)" else 1e-9  # that one is estimated from choices that are drawn
        for k, values in by_budget.items():
            assert all(value <= most + luck for value, most in zip(values, found["pass@k"][k], strict=True))
    assert found["best-of-n (given)"][4][1] == pytest.approx(found["pass@k"][4][1])  # told the truth, it is reached


def test_budgets_double_up_to_the_largest():
    assert budgets_up_to(64) == [1, 2, 4, 8, 16, 32, 64]
    assert budgets_up_to(12) == [1, 2, 4, 8, 12]
    assert budgets_up_to(1) == [1]
    with pytest.raises(RecipeError, match="--budget is 0; it must be at least 1"):
        budgets_up_to(0)


def test_bad_input():
    with pytest.raises(DataError, match="7 samples need as many outcomes"):
        sampled(right=[1.0])
    with pytest.raises(DataError, match="a weight is -1"):
        weighted_vote_at(["a"], [-1.0], [1.0], [1])
    with pytest.raises(DataError, match="a weight is nan"):
        weighted_vote_at(["a"], [math.nan], [1.0], [1])
    with pytest.raises(DataError, match="budgets must be from 1 to the number of samples, 1"):
        weighted_vote_at(["a"], [1.0], [1.0], [2])
