"""The contract of rewards: totals with their parts, unknown is not zero, names and what is wrong with them."""

import math
import subprocess
import sys
from dataclasses import dataclass

import pytest

from odonata.errors import DataError, RecipeError, RunError
from odonata.posttrain.rewards import NAMES, Answered, judge, reward_named
from odonata.posttrain.rewards.length import LengthReward


@dataclass
class Says:
    name: str
    values: list

    def __call__(self, answers):
        return self.values


def answers(n=2, completion="x"):
    return [Answered("p", completion, {}, True) for _ in range(n)]


def test_total_is_the_weighted_sum_and_parts_are_kept():
    judged = judge([Says("a", [1.0, 0.0]), Says("b", [0.5, 1])], [2.0, -1.0], answers())
    assert judged.total == [1.5, -1.0]
    assert judged.parts == {"a": [1.0, 0.0], "b": [0.5, 1.0]}


def test_unknown_part_makes_the_total_unknown_and_not_zero():
    judged = judge([Says("a", [1.0, 1.0]), Says("b", [None, 0.0])], [1.0, 1.0], answers())
    assert judged.total == [None, 1.0]
    assert judged.parts["b"] == [None, 0.0]


def test_unknown_part_of_weight_zero_is_reported_and_counts_for_nothing():
    judged = judge([Says("a", [1.0, 0.5]), Says("b", [None, 3.0])], [1.0, 0.0], answers())
    assert judged.total == [1.0, 0.5]
    assert judged.parts["b"] == [None, 3.0]


def test_empty_batch_has_empty_verdicts():
    assert judge([Says("a", [])], [1.0], []).total == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0], "returned 1 values for 2 answers"),
        ([1.0, math.nan], "'a' returned nan for the row of the prompt 'p'"),
        ([1.0, math.inf], "returned inf"),
        ([1.0, "0.5"], "returned '0.5'"),
    ],
)
def test_a_reward_that_breaks_the_contract_stops_the_run(values, message):
    with pytest.raises(RunError, match=message):
        judge([Says("a", values)], [1.0], answers())


@pytest.mark.parametrize(
    ("rewards", "weights", "message"),
    [
        ([], [], "there is no reward"),
        ([Says("a", [])], [1.0, 2.0], "1 rewards .a. need as many finite weights"),
        ([Says("a", [])], [math.nan], "finite weights"),
        ([Says("a", []), Says("a", [])], [1.0, 1.0], "'a' is named twice"),
    ],
)
def test_rewards_and_weights_that_do_not_fit(rewards, weights, message):
    with pytest.raises(RecipeError, match=message):
        judge(rewards, weights, [])


def test_rewards_need_no_torch():
    """They also run in the process of a user's function, which would wait seconds for it."""
    code = "import sys; from odonata.posttrain.rewards import *; [reward_named(n) for n in NAMES]"
    code += "; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_every_name_gives_a_reward_of_that_name():
    assert {name: reward_named(name).name for name in NAMES} == {name: name for name in NAMES}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mth", "unknown reward 'mth'; perhaps you meant math"),
        ("countdwon", "perhaps you meant countdown"),
        ("qqqqqq", "perhaps you meant math, math-exact, format"),
        ("my_rewards.py", "names a file without its function: write my_rewards.py:FUNCTION"),
        ("nowhere.py:polite", "there is no file nowhere.py"),
        ("format:(", "is no regular expression: missing \\)"),
        ("length:10", "write length:LIMIT:MARGIN"),
        ("length:10:20", "the margin must lie between 1 and the limit"),
        ("math:exact", "unknown reward 'math:exact'"),
    ],
)
def test_names_that_are_wrong_say_what_is_right(name, message):
    with pytest.raises(RecipeError, match=message):
        reward_named(name)


@pytest.mark.parametrize("name", ["math", "math-exact", "countdown", "code", "expression"])
def test_a_row_without_the_field_is_named(name):
    with pytest.raises(
        DataError, match=rf"'{name}' needs the field .* the prompt 'What is it\?' has the fields questoin"
    ):
        reward_named(name)([Answered("What is it?", "<answer>1</answer>", {"questoin": 1}, True)])


def test_overlong_ramp_is_dapos_equation_13():
    ramp = reward_named("length:100:20")
    lengths = (0, 80, 85, 90, 100, 101, 500)
    assert [ramp([Answered("", "y" * n, {}, True)])[0] for n in lengths] == [0, 0, -0.25, -0.5, -1, -1, -1]


def test_a_cut_answer_is_overlong_whatever_its_characters():
    cut, ended = Answered("", "short", {}, False), Answered("", "z" * 10_000, {}, True)
    assert reward_named("length")([cut, ended]) == [-1.0, 0.0]
    assert LengthReward(100, 50)([cut]) == [-1.0]


def test_half_a_ramp_is_refused():
    with pytest.raises(RecipeError, match="LIMIT and MARGIN together"):
        LengthReward(100)
