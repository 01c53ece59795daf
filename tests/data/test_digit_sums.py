"""Sums of digits: their texts are what they say, shares and slips are as asked, and splits share no prompt."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from odonata.data.digit_sums import ALPHABET, DigitSums, steps_of
from odonata.errors import DataError


def running_sums(prompt: str) -> str:
    total, sums = 0, ""
    for digit in prompt.rstrip("="):
        total = (total + int(digit)) % 10
        sums += str(total)
    return sums


def test_the_example_of_the_module_is_true():
    assert running_sums("314159=") == "348943"
    assert all(right for _, right in steps_of("314159=", "348943#3"))


@given(st.integers(0, 10**9), st.sampled_from(["train", "val", "test"]), st.integers(2, 9))
def test_without_slips_every_text_is_right(index, split, digits):
    texts = DigitSums(digits=digits, slips=0)
    prompt, completion = texts.text(split, index)
    answer = texts.row(split, index)["answer"]
    assert prompt == texts.prompt(split, index) and len(prompt) == digits + 1
    assert completion in (f"#{answer}", f"{running_sums(prompt)}#{answer}")
    assert set(prompt + completion) <= set(ALPHABET) and len(completion) <= texts.longest


def test_a_text_never_changes_and_another_seed_gives_others():
    assert [DigitSums().text("train", i) for i in range(3)] == [DigitSums().text("train", i) for i in range(3)]
    assert DigitSums().text("train", 0) != DigitSums(seed=1).text("train", 0)
    assert DigitSums(seed=1).name == "digits-sum:digits=6,worked=0.3,slips=0.03,seed=1"


def test_shares_of_worked_texts_and_of_slips_are_as_asked():
    texts, count = DigitSums(), 4000
    worked = [(p, c) for p, c in (texts.text("train", i) for i in range(count)) if len(c) > 2]
    assert abs(len(worked) / count - 0.3) < 4 * math.sqrt(0.3 * 0.7 / count)
    wrong = steps = 0
    for prompt, completion in worked:
        total = 0
        for digit, said in zip(prompt, completion.partition("#")[0], strict=False):
            wrong += int(said) != (total + int(digit)) % 10
            steps, total = steps + 1, int(said)
        assert completion[-1] == completion.partition("#")[0][-1], "the answer is the last sum, right or wrong"
    # A slip draws from all ten digits, so one in ten of them is none.
    assert abs(wrong / steps - 0.027) < 4 * math.sqrt(0.027 / steps)


def test_no_prompt_belongs_to_two_splits():
    texts = DigitSums(digits=3)
    prompts = {split: {texts.prompt(split, i) for i in range(3000)} for split in ("train", "val", "test")}
    assert not prompts["train"] & prompts["val"] and not prompts["train"] & prompts["test"]
    assert not prompts["val"] & prompts["test"]
    everything = set().union(*prompts.values())
    assert len(everything) > 950 and 0.75 < len(prompts["train"]) / len(everything) < 0.85


def test_answers_are_spread_evenly_so_that_a_guess_is_right_one_time_in_ten():
    answers = [DigitSums().row("test", i)["answer"] for i in range(3000)]
    assert all(abs(answers.count(str(digit)) - 300) < 80 for digit in range(10))


@pytest.mark.parametrize(("prompt", "completion", "steps"), [
    ("123=", "136#6", [("1", True), ("3", True), ("6", True), ("#6", True)]),
    ("123=", "146#6", [("1", True), ("4", False), ("6", False), ("#6", False)]),
    ("123=", "#6", [("#6", True)]),
    ("123=", "#5", [("#5", False)]),
    ("123=", "1366#6", [("1", True), ("3", True), ("6", True), ("6", False), ("#6", False)]),
    ("123=", "13", [("1", True), ("3", True)]),
    ("123=", "", []),
])  # fmt: skip
def test_steps_are_right_up_to_the_first_that_is_not(prompt, completion, steps):
    assert steps_of(prompt, completion) == steps


@pytest.mark.parametrize("options", [{"digits": 1}, {"worked": 1.5}, {"slips": -0.1}])
def test_what_no_set_can_be_is_refused(options):
    with pytest.raises(DataError, match="digits-sum: want digits >= 2 and shares in"):
        DigitSums(**options)
