"""The array language: what its words mean, that every program ends, that a dozen words solve classic problems."""

import time
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from odonata.errors import DataError
from odonata.posttrain.expression_language import (
    BOUND,
    MAX_WORDS,
    SOLUTIONS,
    WORDS,
    NotAProgram,
    evaluate,
    parse,
    random_program,
    solves,
)
from odonata.posttrain.problems import problem_named
from odonata.posttrain.rewards import Answered, reward_named


@pytest.mark.parametrize(
    ("program", "array", "value"),
    [
        ("a", [3, 1], [3, 1]),
        ("sum a", [3, 1, 2], 6),
        ("max a", [], 0),
        ("min a", [3, -1], -1),
        ("len a", [4, 4], 2),
        ("first a", [7, 8], 7),
        ("last a", [7, 8], 8),
        ("mid sort a", [9, 1, 5], 5),
        ("rev a", [1, 2, 3], [3, 2, 1]),
        ("sums a", [1, 2, 3], [1, 3, 6]),
        ("highs a", [1, 3, 2], [1, 3, 3]),
        ("lows a", [2, 3, 1], [2, 2, 1]),
        ("diff a", [1, 4, 2], [3, -2]),
        ("diff a", [5], []),
        ("shift a", [1, 2, 3], [0, 1, 2]),
        ("tail a", [1, 2, 3], [2, 3]),
        ("places a", [9, 9, 9], [0, 1, 2]),
        ("meets a", [3, 1], [3, 1, 1, 1]),
        ("gaps a", [3, 1], [0, 1, 1, 0]),
        ("- a 1", [3, 1], [2, 0]),
        ("- 1 a", [3, 1], [-2, 0]),
        ("+ a tail a", [1, 2, 3], [3, 5]),
        ("both a rev a", [1, 5], [1, 1]),
        ("either a rev a", [1, 5], [5, 5]),
        ("= a 0", [0, 2], [1, 0]),
        ("< 0 a", [0, 2], [0, 1]),
        ("sum 1", [], 1),
        ("rev sum a", [1, 2], [3]),
        ("* a a", [10**6], [BOUND]),
    ],
)
def test_meaning(program, array, value):
    assert evaluate(parse(program), array) == value


@pytest.mark.parametrize("name", SOLUTIONS)
def test_classic_problems_are_solved(name):
    assert solves(SOLUTIONS[name], problem_named(name))
    assert len(SOLUTIONS[name].split()) <= 12
    assert reward_named("expression")([Answered("", SOLUTIONS[name], {"problem": name}, True)]) == [1.0]


@pytest.mark.parametrize(
    ("name", "mistake"),
    [
        ("container-with-most-water", "* len a min a"),
        ("trapping-rain-water", "sum - highs a a"),
        ("best-time-to-buy-and-sell", "- max a min a"),
        ("maximum-subarray", "max sums a"),
        ("majority-element", "first a"),
        ("missing-number", "len a"),
    ],
)
def test_classic_mistakes_earn_nothing_and_a_share(name, mistake):
    answers = [Answered("", mistake, {"problem": name}, True)]
    assert reward_named("expression")(answers) == [0.0]
    assert 0 < reward_named("expression-fraction")(answers)[0] < 1


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 10**9), st.lists(st.integers(-(10**12), 10**12), max_size=12))
def test_every_program_has_a_value_in_bounds(seed, array):
    program = random_program(Random(seed))
    value = evaluate(parse(program), array)
    if value is None:  # pairs of pairs of a dozen numbers are too many
        assert program.count("gaps") + program.count("meets") >= 2
    else:
        assert isinstance(value, int) and abs(value) <= BOUND


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from([*WORDS, "b"]), max_size=12))
def test_words_are_a_program_exactly_if_their_operands_add_up(words):
    open_places = 1
    fits = bool(words) and "b" not in words
    for word in words:
        fits = fits and open_places > 0
        open_places += (WORDS[word].arity if word in WORDS else 0) - 1
    try:
        parse(" ".join(words))
        assert fits and open_places == 0
    except NotAProgram:
        assert not fits or open_places != 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "1 to 40 words, not 0"),
        ("a " * 41, "not 41"),
        ("sum b", "word 2, 'b', is not in the language"),
        ("+ a", "word 1, '\\+', lacks an operand"),
        ("sum a a", "1 operands are left over"),
    ],
)
def test_what_is_no_program_says_why(text, message):
    with pytest.raises(NotAProgram, match=message):
        parse(text)
    assert reward_named("expression")([Answered("", text, {"problem": "majority-element"}, True)]) == [0.0]


def test_pairs_of_pairs_run_out_of_steps_at_once():
    start = time.process_time()
    assert evaluate(parse("sum " + "meets " * 30 + "a"), list(range(24))) is None
    assert evaluate(parse("gaps " * (MAX_WORDS - 1) + "a"), [1, 2]) is None
    assert time.process_time() - start < 0.5
    answer = Answered("", "sum meets meets meets a", {"problem": "majority-element"}, True)
    assert reward_named("expression")([answer]) == [0.0]


def test_random_programs_have_the_asked_length_and_often_read_the_input_in_several_ways():
    programs = [random_program(Random(i), 8, 12) for i in range(200)]
    assert {len(program.split()) for program in programs} == {8, 9, 10, 11, 12}
    assert len(set(programs)) > 190
    with pytest.raises(DataError, match="longest >= 2"):
        random_program(Random(0), 1, 1)


def test_own_tests_of_a_row():
    row = {"tests": [{"arguments": [[1, 2]], "expected": 3}, {"arguments": [[4]], "expected": 4}]}
    answers = [
        Answered("", text, row, True) for text in ("sum a", "<think>max a</think><answer>last a</answer>", "nonsense")
    ]
    assert reward_named("expression")(answers) == [1.0, 0.0, 0.0]
    assert reward_named("expression-fraction")(answers) == [1.0, 0.5, 0.0]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"problem": "two-sum"}, "'two-sum' is not from an array to a number; these are: .*container-with-most-water"),
        ({"problem": "jump-game"}, "not from an array to a number"),
        ({"problem": "merge-intervals"}, "not from an array to a number"),
        ({"tests": []}, "the row of 'Solve it' has no tests"),
        ({"tests": [{"arguments": [1], "expected": 3}]}, "whole numbers only"),
        ({"tests": [{"arguments": [[1]], "expected": 0.5}]}, "whole numbers only"),
    ],
)
def test_rows_that_the_language_cannot_answer(row, message):
    with pytest.raises(DataError, match=message):
        reward_named("expression")([Answered("Solve it", "sum a", row, True)])
