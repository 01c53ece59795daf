"""Programs of the small array language (`odonata.posttrain.expression_language`), judged by all tests or nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from odonata.errors import DataError
from odonata.posttrain.expression_language import NotAProgram, evaluate, expressible, parse
from odonata.posttrain.problems import Case, problem_named
from odonata.posttrain.rewards.interface import Answered, row_field


class ExpressionReward:
    """1 if the program passes every test of its row, else 0.

    The row names a `problem` from one array to one number, or gives `tests`, a list of {"arguments": [array],
    "expected": number}. The program is the completion, or what stands in its <answer> tags.
    """

    name = "expression"

    def __call__(self, answers: Sequence[Answered]) -> list[float]:
        """Return 1 or 0 an answer.

        Raises:
            DataError: a row names no tests, or tests that cannot be used.
        """
        return [float(all(_passes(answer, self.name))) for answer in answers]


class ExpressionFractionReward:
    """The share of the tests of its row that the program passes."""

    name = "expression-fraction"

    def __call__(self, answers: Sequence[Answered]) -> list[float]:
        """Return a number from 0 to 1 an answer.

        Raises:
            DataError: a row names no tests, or tests that cannot be used.
        """
        return [sum(_passes(answer, self.name)) / len(_cases(answer, self.name)) for answer in answers]


def _passes(answer: Answered, reward: str) -> Iterator[bool]:
    """Yield for each test whether the program passes it; one that does not parse fails at once."""
    cases = _cases(answer, reward)
    text = answer.completion.rpartition("</think>")[2]
    if "</answer>" in text:
        text = text.rpartition("</answer>")[0].rpartition("<answer>")[2]
    try:
        tree = parse(text)
    except NotAProgram:
        yield False
        return
    for case in cases:
        yield evaluate(tree, case.arguments[0]) == case.expected


def _cases(answer: Answered, reward: str) -> Sequence[Case]:
    if "problem" in answer.row:
        problem = problem_named(answer.row["problem"])
        expressible(problem)
        return problem.cases()
    tests = row_field(answer, "tests", "problem", reward=reward)
    cases = [_case(test, answer) for test in tests] if isinstance(tests, list) else []
    if not cases:
        raise DataError(f"the row of {answer.prompt[:60]!r} has no tests")
    return cases


def _case(test: object, answer: Answered) -> Case:
    if isinstance(test, dict) and set(test) == {"arguments", "expected"}:
        arguments, expected = test["arguments"], test["expected"]
        arrays = isinstance(arguments, list) and len(arguments) == 1 and isinstance(arguments[0], list)
        if arrays and type(expected) is int and all(type(n) is int for n in arguments[0]):
            return Case((arguments[0],), expected)
    raise DataError(
        f"a test in the row of {answer.prompt[:60]!r} is {str(test)[:80]}: "
        'it must be {"arguments": [[1, 2]], "expected": 3}, whole numbers only'
    )
