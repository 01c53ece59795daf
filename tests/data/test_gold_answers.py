"""Gold answers as text, from where the published sets keep them."""

import pytest

from odonata.data.gold_answers import answer_text, boxed_answer, svamp_question


@pytest.mark.parametrize(
    "solution, answer",
    [
        (r"so $\boxed{\frac{1}{2}}$.", r"\frac{1}{2}"),
        (r"first \boxed{1}, then \boxed{x_{2}^{3}}", "x_{2}^{3}"),
        (r"$\boxed 3$ is it", "3"),
        (r"\fbox{ B }", "B"),
    ],
)
def test_the_last_box_is_the_answer(solution: str, answer: str):
    assert boxed_answer(solution) == answer


@pytest.mark.parametrize(
    "value, text", [(27.0, "27"), (-3, "-3"), (0.25, "0.25"), (" 1,234,567 ", "1234567"), ("1,2", "1,2"), ("B", "B")]
)
def test_numbers_are_written_as_one_writes_them(value: object, text: str):
    assert answer_text(value, "'answer'") == text


def test_halves_of_a_problem_are_joined_by_a_full_stop():
    assert svamp_question("He has 2 hens ", " How many?") == "He has 2 hens. How many?"
    assert svamp_question("Hens!", "How many?") == "Hens! How many?"
