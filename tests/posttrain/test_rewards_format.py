"""The form of a completion: R1's tags, a pattern of one's own, and a pattern that would backtrack for years."""

import time

import pytest

from odonata.errors import RunError
from odonata.posttrain.rewards import Answered, reward_named
from odonata.posttrain.rewards.format import PatternReward
from odonata.posttrain.sandbox import Limits, Sandbox


def score(name, completion, prompt="", finished=True):
    return reward_named(name)([Answered(prompt, completion, {}, finished)])[0]


@pytest.mark.parametrize(
    ("completion", "verdict"),
    [
        ("<think>a</think><answer>b</answer>", 1),
        ("<think>\na\n</think>\n<answer>b\n</answer>\n", 1),
        ("<think></think><answer></answer>", 1),
        ("<think>a</think> so <answer>b</answer>", 0),
        ("<think>a</think><answer>b</answer> bye", 0),
        ("hm <think>a</think><answer>b</answer>", 0),
        ("<answer>b</answer><think>a</think>", 0),
        ("<think>a<answer>b</answer></think>", 0),
        ("<think>a</think><answer>b</answer><answer>c</answer>", 0),
        ("<think>a<think>b</think></think><answer>c</answer>", 0),
        ("<think>a</think><answer>b", 0),
        ("", 0),
    ],
)
def test_r1_form(completion, verdict):
    assert score("format", completion) == verdict


def test_a_prompt_that_opens_the_thoughts_saves_the_completion_its_tag():
    assert score("format", "a</think><answer>b</answer>", prompt="Question\n<think>\n") == 1
    assert score("format", "<think>a</think><answer>b</answer>", prompt="Question\n<think>\n") == 0
    assert score("format", "a</think><answer>b</answer>", prompt="Question") == 0


def test_a_cut_completion_has_not_kept_the_form():
    assert score("format", "<think>a</think><answer>b</answer>", finished=False) == 0


def test_own_pattern_matches_the_whole_completion_across_lines():
    reward = PatternReward(r"\d+: .*\.", Sandbox(workers=1))
    answers = [Answered("", text, {}, True) for text in ("12: two\nlines.", "12: no end", "x 12: a.")]
    assert reward(answers) == [1.0, 0.0, 0.0]
    assert reward([]) == []


def test_a_pattern_that_backtracks_is_unknown_for_that_answer_only():
    reward = PatternReward(r"(a+)+b", Sandbox(Limits(cpu_seconds=1), workers=1))
    start = time.monotonic()
    answers = [Answered("", text, {}, True) for text in ("aab", "a" * 60, "ba")]
    assert reward(answers) == [1.0, None, 0.0]
    assert time.monotonic() - start < 20


@pytest.mark.slow
def test_a_pattern_that_backtracks_on_most_answers_stops_the_run():
    reward = PatternReward(r"(a+)+b", Sandbox(Limits(cpu_seconds=1), workers=1))
    with pytest.raises(
        RunError, match=r"format:\(a\+\)\+b takes longer than 1 s on completions such as 'aaaa.*backtrack"
    ):
        reward([Answered("", "a" * n, {}, True) for n in range(50, 58)])
