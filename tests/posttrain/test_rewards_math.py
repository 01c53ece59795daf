"""The math rewards: equal in value, equal by letter, what is wrong, and what is unknown."""

import threading

import pytest

from odonata.errors import DataError
from odonata.posttrain.rewards import Answered, judge, reward_named


def answered(completion, answer, finished=True):
    return Answered("How many?", completion, {"answer": answer}, finished)


@pytest.mark.parametrize(
    ("completion", "answer", "verdict"),
    [
        (r"\boxed{1/2}", "0.5", 1.0),
        (r"\boxed{1/2}", 0.5, 1.0),
        ("#### 27", 27.0, 1.0),
        ("#### 28", 27, 0.0),
        ("<answer>(x+1)^2</answer>", "x^2+2x+1", 1.0),
        ("<answer>2</answer>", "1 + 1 = <<1+1=2>>2\n#### 2", 1.0),
        (r"the answer is $\sqrt{8}$.", r"so \boxed{2\sqrt2}", 1.0),
        ("no answer at all, though 27 is mentioned", 27, 0.0),
        ("<answer>I would rather not say, dear</answer>", 27, 0.0),
        ("<answer>}{</answer>", 27, 0.0),
        ("<think>27", 27, 0.0),
        (r"\boxed{\sin^2 x + \cos^2 x}", "1", None),
        (r"\boxed{9**9**9**9}", "42", None),
        (r"\boxed{6}", r"\begin{pmatrix}1\\2\end{pmatrix}", None),
        (r"\boxed{\begin{pmatrix}1\\2\end{pmatrix}}", r"\begin{pmatrix}1\\2\end{pmatrix}", 1.0),
        (r"\boxed{Monday}", "monday", 1.0),
    ],
)
def test_verdict(completion, answer, verdict):
    assert reward_named("math")([answered(completion, answer)]) == [verdict]


def test_exact_match_compares_letters_and_not_values():
    exact = reward_named("math-exact")
    answers = [answered(rf"\boxed{{{text}}}", "x + 1") for text in ("x+1", "X + 1", "1+x")]
    assert exact(answers) == [1.0, 1.0, 0.0]
    assert exact([answered("no mark", "x + 1")]) == [0.0]


@pytest.mark.parametrize("answer", ["", "  ", None, [1], True, float("nan")])
def test_an_unusable_answer_in_the_data_is_named(answer):
    with pytest.raises(DataError, match=r"cannot use the answer .* of the row of 'How many"):
        reward_named("math")([answered(r"\boxed{1}", answer)])


def test_verdicts_are_the_same_off_the_main_thread():
    answers = [answered(rf"\boxed{{{n}/4}}", "0.5") for n in range(4)] + [answered(r"\boxed{9^9^9^9}", "1")]
    here = judge([reward_named("math")], [1.0], answers)
    there = []
    thread = threading.Thread(target=lambda: there.append(judge([reward_named("math")], [1.0], answers)))
    thread.start()
    thread.join(10)
    assert there == [here]
    assert here.total == [0.0, 0.0, 1.0, 0.0, None]
