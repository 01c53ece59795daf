"""Votes: equal answers in other words are one, what cannot be parsed has no vote, ties have rules with names."""

import math
from fractions import Fraction

import pytest

from odonata.errors import DataError, RecipeError
from odonata.posttrain.search.votes import best_of_n, majority_vote, weighted_vote


def number(text):
    try:
        return Fraction(text)
    except ValueError:
        return None


def test_one_answer_in_many_words_is_one_answer():
    vote = majority_vote(["3", "1/2", "0.5", "3", "2/4"], number)
    assert (vote.winner, vote.index, vote.support) == ("1/2", 1, {Fraction(3): 2, Fraction(1, 2): 3})
    assert vote.share == 0.6
    assert majority_vote(["3", "1/2", "0.5", "3", "2/4"], lambda text: text).winner == "3"


def test_what_cannot_be_parsed_forms_no_class():
    vote = majority_vote(["?", "?", "?", "7"], number)
    assert (vote.winner, vote.unparsable, vote.share) == ("7", 3, 1.0)
    silent = majority_vote(["?", "??"], number)
    assert (silent.winner, silent.index, silent.support, silent.unparsable, silent.share) == (None, None, {}, 2, 0.0)
    assert majority_vote([], number).winner is None
    assert weighted_vote(["?", "7"], number, [9.0, 0.1]).winner == "7"


def test_ties_by_the_first_or_by_weight():
    answers = ["2", "1", "1", "2", "3"]
    assert majority_vote(answers, number).winner == "2"
    weights = [0.1, 0.5, 0.5, 0.1, 9.0]
    assert majority_vote(answers, number, ties="weight", weights=weights).winner == "1"  # not 3, which has one vote
    assert weighted_vote(answers, number, weights).winner == "3"
    assert weighted_vote(answers, number, [1, 1, 1, 1, 2]).winner == "2"  # all 2: the first


def test_order_does_not_matter_to_sums():
    weights = [0.1] * 10 + [1.0]
    forward = weighted_vote(["a"] * 10 + ["b"], str, weights)
    backward = weighted_vote(["b"] + ["a"] * 10, str, weights[::-1])
    assert forward.support["a"] == backward.support["a"] == 1.0  # a plain sum would be .9999999999999999


def test_best_of_n():
    assert best_of_n([0.1, 0.9, 0.9, None]) == 1
    assert best_of_n([None, -math.inf]) == 1
    assert best_of_n([None, None]) is None
    with pytest.raises(DataError, match="score of sample 1 is NaN; give None"):
        best_of_n([0.0, math.nan])
    with pytest.raises(DataError, match="no sample"):
        best_of_n([])


def test_bad_input():
    with pytest.raises(RecipeError, match="weights have no use"):
        majority_vote(["1"], number, weights=[1.0])
    with pytest.raises(RecipeError, match="ties='weight' needs weights"):
        majority_vote(["1"], number, ties="weight")
    with pytest.raises(RecipeError, match="first or weight, not 'last'"):
        majority_vote(["1"], number, ties="last")
    with pytest.raises(DataError, match="2 answers, but 1 weights"):
        weighted_vote(["1", "2"], number, [1.0])
    with pytest.raises(DataError, match=r"weight 0 is -0.5; weights are 0 or more \(logarithms"):
        weighted_vote(["1"], number, [-0.5])
    with pytest.raises(DataError, match="weight 1 is nan"):
        weighted_vote(["1", "2"], number, [1.0, math.nan])
