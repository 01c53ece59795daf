"""From steps to solutions: the aggregates by hand, and a comparison that no number of steps can win."""

import math

import pytest

from odonata.errors import DataError, RecipeError
from odonata.posttrain.search.process_scores import aggregate_steps, score_solutions, step_scores


def test_aggregates_by_hand():
    steps = [0.9, 0.5, 0.8]
    assert aggregate_steps(steps, "min") == 0.5
    assert aggregate_steps(steps, "prod") == pytest.approx(math.log(0.36))
    assert aggregate_steps(steps, "mean") == pytest.approx(2.2 / 3)
    assert aggregate_steps(steps, "last") == 0.8


def test_long_products_do_not_vanish_together():
    long, longer = aggregate_steps([0.01] * 400, "prod"), aggregate_steps([0.01] * 401, "prod")
    assert math.prod([0.01] * 400) == math.prod([0.01] * 401) == 0  # what a plain product would say
    assert long - longer == pytest.approx(math.log(100))
    assert aggregate_steps([0.5, 0.0], "prod") == -math.inf


def test_a_product_prefers_short_solutions_and_equal_steps_do_not():
    short, long = [0.8, 0.8], [0.9] * 6
    plain = score_solutions([short, long], "prod")
    assert plain[0] > plain[1]  # although each step of the long one is better
    assert score_solutions([short, long], "prod", equal_steps=True) == [0.5, 0.5]
    ranks = score_solutions([short, [0.7, 0.9], long, [0.9] * 5 + [0.1], [0.9] * 6], "prod", equal_steps=True)
    assert ranks == pytest.approx([0.75, 0.25, 2 / 3, 1 / 6, 2 / 3])


def test_more_steps_never_raise_product_and_minimum():
    for how in ("prod", "min"):
        scores = [aggregate_steps([0.9, 0.7, 0.95, 1.0][:n], how) for n in range(1, 5)]
        assert scores == sorted(scores, reverse=True)


def test_neutral_steps():
    rows = [[0.1, 0.3, 0.6], [0.5, 0.5, 0.0]]
    assert step_scores(rows) == pytest.approx([0.9, 0.5])
    assert step_scores(rows, neutral="bad") == pytest.approx([0.6, 0.0])


def test_bad_input():
    with pytest.raises(DataError, match="without steps"):
        aggregate_steps([], "min")
    with pytest.raises(DataError, match=r"step 1 scores -0\.7; scores of steps are probabilities"):
        aggregate_steps([0.5, -0.7], "prod")
    with pytest.raises(DataError, match="solution 1: step 0 scores nan"):
        score_solutions([[0.5], [math.nan]], "min")
    with pytest.raises(RecipeError, match="min, prod, mean, last, not 'max'"):
        aggregate_steps([0.5], "max")
    with pytest.raises(DataError, match=r"step 0 has \[0.5, 0.6, 0.1\]"):
        step_scores([[0.5, 0.6, 0.1]])
    with pytest.raises(RecipeError, match="good or bad"):
        step_scores([[0.2, 0.3, 0.5]], neutral="positive")
