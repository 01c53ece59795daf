"""Countdown: python's evaluation as oracle for the parser, the given solutions, and what TinyZero's eval would run."""

import json
import time
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from odonata.errors import DataError
from odonata.posttrain.rewards import Answered, reward_named
from odonata.posttrain.rewards.countdown import evaluate_arithmetic, stated_expression


def score(completion, numbers=(3, 8, 19), target=24):
    return reward_named("countdown")([Answered("", completion, {"numbers": list(numbers), "target": target}, True)])[0]


def test_all_given_solutions_are_right_and_wrong_for_the_next_target(shared_data):
    reward = reward_named("countdown")
    for file in ("train", "test"):
        text = (shared_data / f"reasoning/countdown/{file}.jsonl").read_text()
        rows = [json.loads(line) for line in text.splitlines()]
        right = [Answered("", f"<answer>{row['solution']}</answer>", row, True) for row in rows]
        wrong = [Answered("", a.completion, {**a.row, "target": a.row["target"] + 1}, True) for a in right]
        assert len(rows) >= 300
        assert set(reward(right)) == {1.0} and set(reward(wrong)) == {0.0}


expressions = st.recursive(
    st.integers(0, 99).map(str),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["+", "-", "*", "/", " - ", " + "]), inner).map("".join),
        inner.map(lambda text: f"({text})"),
        inner.map(lambda text: f"-{text}"),
    ),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(expressions)
def test_values_are_those_of_pythons_own_evaluation(text):
    names = {str(n): f"Fraction({n})" for n in range(100)}
    spelled = "".join(names.get(part, part) for part in _parts(text))
    try:
        expected = eval(spelled, {"Fraction": Fraction})
    except ZeroDivisionError:
        expected = None
    try:
        value, numbers = evaluate_arithmetic(text)
    except ValueError:
        assert expected is None
        return
    assert value == expected
    assert Counter(numbers) == Counter(int(part) for part in _parts(text) if part.isdigit())


def _parts(text):
    """Numbers and signs of an expression that the strategy made."""
    part = ""
    for letter in text:
        if part and not letter.isdigit():
            yield str(int(part))
            part = ""
        if letter.isdigit():
            part += letter
        else:
            yield letter
    if part:
        yield str(int(part))


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="0123456789+-*/() .=**eE_xj,", max_size=40))
def test_whatever_is_accepted_python_evaluates_to_the_same(text):
    try:
        value, numbers = evaluate_arithmetic(text)
    except ValueError:
        return
    left = text.partition("=")[0].strip()
    spelled = "".join(f"Fraction({part})" if part.isdigit() else part for part in _parts(left))
    assert eval(spelled, {"Fraction": Fraction}) == value
    assert "**" not in left and numbers


@pytest.mark.parametrize(
    ("completion", "verdict"),
    [
        ("<think>hm</think><answer>19 - (3 - 8)</answer>", 1),
        ("<answer>19 - (3 - 8) = 24</answer>", 1),
        ("<answer>19 − 3 + 8</answer>", 1),
        ("I try\n19 - 3 + 8", 1),
        ("19-3+8=24", 1),
        ("<answer>-3 + 19 + 8</answer>", 1),
        ("<answer>19 - 3 + 8 = 25</answer>", 0),
        ("<answer>3 * 8</answer>", 0),
        ("<answer>19 - 3 + 8 + 8 - 8</answer>", 0),
        ("<answer>24</answer>", 0),
        ("<answer>1 9 - 3 + 8</answer>", 0),
        ("<answer>198 - 3</answer>", 0),
        ("<answer>3(8) + 19 - 19</answer>", 0),
        ("<answer>19 - 3 + 8.0</answer>", 0),
        ("<answer>19 - 3 // 8</answer>", 0),
        ("<answer>(19 - 3 + 8</answer>", 0),
        ("<answer>19 / (8 - 8) - 3</answer>", 0),
        ("<answer>__import__('os')</answer>", 0),
        ("<answer>١٩ - ٣ + ٨</answer>", 0),
        ("<think>19 - 3 + 8</think>", 0),
        ("", 0),
    ],
)
def test_verdict(completion, verdict):
    assert score(completion) == verdict


def test_duplicates_are_used_as_often_as_they_are_given():
    assert score("5 + 5", (5, 5), 10) == 1
    assert score("5 + 5", (5,), 10) == 0
    assert score("5", (5, 5), 5) == 0


def test_division_is_exact():
    assert score("8 / (3 - 8 / 3)", (3, 3, 8, 8), 24) == 1
    assert score("1 / 3 * 3 + 0", (1, 3, 3, 0), 1) == 1
    assert evaluate_arithmetic("1/3")[0] == Fraction(1, 3)


@pytest.mark.parametrize(
    "bomb", ["9**9**9**9", "9" * 10**6, "(" * 10**5, "-" * 10**5 + "1", "1*" * 10**5 + "1", "9" * 299]
)
def test_bombs_cost_nothing(bomb):
    start = time.process_time()
    assert score(f"<answer>{bomb}</answer>") == 0
    assert time.process_time() - start < 0.5


def test_the_last_answer_counts():
    assert stated_expression("<answer>1</answer> or <answer> 2 </answer>") == "2"
    assert stated_expression("<think>1+1</think>\nfirst\n3") == "3"


@pytest.mark.parametrize(
    "row", [{"numbers": "3 8", "target": 24}, {"numbers": [3.5], "target": 24}, {"nums": [3], "target": "24"}]
)
def test_rows_that_are_no_problem_are_named(row):
    with pytest.raises(DataError, match="whole numbers and a whole target; the row of 'Reach it'"):
        reward_named("countdown")([Answered("Reach it", "3", row, True)])
