"""Countdown: every problem can be solved, every attempt adds up, and splits share no problem."""

import ast
import operator
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from odonata.data.countdown_texts import ALPHABET, CountdownTexts, chains, value_of, written
from odonata.errors import DataError

OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}


def value(expression: str) -> int:
    """An expression's value by Python's grammar, for numbers and three operations."""

    def walk(node: ast.AST) -> int:
        if isinstance(node, ast.BinOp):
            return OPERATORS[type(node.op)](walk(node.left), walk(node.right))
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return -walk(node.operand)
        assert isinstance(node, ast.Constant) and isinstance(node.value, int)
        return node.value

    return walk(ast.parse(expression, mode="eval").body)


def numbers_of(text: str) -> list[int]:
    return sorted(int(number) for number in re.findall(r"\d+", text))


@given(st.integers(0, 10**9), st.sampled_from(["train", "val", "test"]))
def test_a_text_uses_the_numbers_of_its_problem_and_its_attempts_add_up(index, split):
    texts = CountdownTexts(worked=0.5, operations="+-*", target=50)
    prompt, completion = texts.text(split, index)
    row = texts.row(split, index)
    assert prompt == f"{','.join(map(str, row['numbers']))}:{row['target']}="
    assert any(value_of(chain) == row["target"] for chain in chains(tuple(row["numbers"]), "+-*"))
    search, _, answer = completion.rpartition("#")
    assert numbers_of(answer) == sorted(row["numbers"])
    attempts = search.split(";")[:-1]
    for attempt in attempts:
        first, middle, last = attempt.split("=")
        assert value(first) == int(re.match(r"-?\d+", middle)[0])
        assert value(middle) == int(last)
    reached = [int(attempt.split("=")[-1]) for attempt in attempts]
    assert row["target"] not in reached[:-1], "a search ends at the target"
    assert len(set(reached)) == len(reached), "no two attempts come to the same value"
    assert not reached or reached[-1] == value(answer)
    assert len(attempts) <= texts.attempts and len(completion) <= texts.longest
    assert set(prompt + completion) <= set(ALPHABET)


@pytest.mark.parametrize(("chain", "expression", "result"), [
    (((3, 7, 2), "+*"), "(3+7)*2", 20), (((3, 7, 2), "*+"), "3*7+2", 23), (((1, 9, 9), "-*"), "(1-9)*9", -72),
    (((1, 2, 3), "--"), "1-2-3", -4), (((2, 3, 4), "**"), "2*3*4", 24),
])  # fmt: skip
def test_chains_are_written_so_that_precedence_reads_them_as_they_are_meant(chain, expression, result):
    assert written(chain) == expression and value_of(chain) == value(expression) == result


def test_every_chain_comes_once():
    assert len(list(chains((1, 2, 3), "+-*"))) == 54 and len(list(chains((4, 4, 4), "+-*"))) == 9
    assert len(set(chains((1, 2, 2), "+-"))) == 12


def test_slips_make_values_wrong_by_one():
    wrong = steps = 0
    texts = CountdownTexts(worked=1, slips=0.2)
    for index in range(300):
        for attempt in texts.text("train", index)[1].rpartition("#")[0].split(";")[:-1]:
            first, middle, _ = attempt.split("=")
            difference = value(first) - int(re.match(r"-?\d+", middle)[0])
            assert abs(difference) <= 1
            wrong, steps = wrong + abs(difference), steps + 1
    assert 0.15 < wrong / steps < 0.25


def test_no_problem_belongs_to_two_splits_in_whatever_order_its_numbers_stand():
    texts = CountdownTexts()
    problems = {
        split: {(*sorted(numbers), target) for numbers, target in (texts.problem(split, i) for i in range(2000))}
        for split in ("train", "val", "test")
    }
    assert not problems["train"] & problems["val"] and not problems["train"] & problems["test"]
    assert not problems["val"] & problems["test"]


@pytest.mark.parametrize(
    "options",
    [{"largest": 10}, {"target": 1}, {"attempts": 0}, {"worked": 2}, {"operations": "+/"}, {"operations": ""}],
)
def test_what_no_set_can_be_is_refused_here_too(options):
    with pytest.raises(DataError, match="countdown: "):
        CountdownTexts(**options)


def test_so_few_problems_that_a_split_has_none_are_said_to_be_so():
    tiny = CountdownTexts(largest=2, target=2)
    found = [split for split in ("train", "val", "test") if _has(tiny, split)]
    assert found and found != ["train", "val", "test"]


def _has(texts: CountdownTexts, split: str) -> bool:
    try:
        texts.problem(split, 0)
    except DataError as error:
        assert f"no problem belongs to {split}; choose a larger target" in str(error)
        return False
    return True


def test_problems_use_the_operations_asked_for_only():
    texts = CountdownTexts(operations="+", worked=0.5)
    assert all(not set("-*") & set("".join(texts.text("train", index))) for index in range(300))
