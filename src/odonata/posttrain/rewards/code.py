"""Unit-tested programs: all tests or nothing. The share of passed tests is reported apart (`code-fraction`).

All or nothing, because a fraction pays for plausible mistakes: "move the taller line" passes a third of the tests of
the container problem. Programs run in the sandbox; identical ones run once, also across the two rewards.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from odonata.errors import DataError
from odonata.posttrain.problems import Case, problem_named
from odonata.posttrain.rewards.interface import Answered, row_field
from odonata.posttrain.sandbox import Execution, Job, Sandbox, agrees, shared_sandbox

FENCE = re.compile(r"```(?:python|py|Python|python3)?[ \t]*\n(.*?)```", re.DOTALL)


class CodeReward:
    """1 if the program passes every test of its row, 0 if not, None if the sandbox could not tell.

    The row names a `problem` of `odonata.posttrain.problems`, or gives `function` and `tests`, a list of
    {"arguments": […], "expected": …}.
    """

    name = "code"

    def __init__(self, sandbox: Sandbox | None = None):
        """Take the sandbox that runs the programs (default: the one that rewards by name share)."""
        self.sandbox = sandbox or shared_sandbox()

    def __call__(self, answers: Sequence[Answered]) -> list[float | None]:
        """Return 1, 0 or None an answer.

        Raises:
            DataError: a row names no tests, or tests that cannot be used.
        """
        shares = passed_shares(answers, self.sandbox, self.name)
        return [None if share is None else float(share == 1) for share in shares]


class CodeFractionReward:
    """The share of the tests of its row that the program passes; None if the sandbox could not tell."""

    name = "code-fraction"

    def __init__(self, sandbox: Sandbox | None = None):
        """Take the sandbox that runs the programs (default: the one that rewards by name share)."""
        self.sandbox = sandbox or shared_sandbox()

    def __call__(self, answers: Sequence[Answered]) -> list[float | None]:
        """Return a number from 0 to 1, or None, an answer.

        Raises:
            DataError: a row names no tests, or tests that cannot be used.
        """
        return passed_shares(answers, self.sandbox, self.name)


def passed_shares(answers: Sequence[Answered], sandbox: Sandbox, reward: str) -> list[float | None]:
    """Return the share of passed tests an answer; a completion without a program passes none.

    Raises:
        DataError: a row names no tests, or tests that cannot be used.
    """
    tests = [function_and_cases(answer, reward) for answer in answers]
    programs = [
        extract_program(answer.completion, function) for answer, (function, _) in zip(answers, tests, strict=True)
    ]
    jobs = {
        i: Job(program, *_function_and_inputs(tests[i])) for i, program in enumerate(programs) if program is not None
    }
    executions = dict(zip(jobs, sandbox.run_many(list(jobs.values())), strict=True))
    return [_share(executions[i], tests[i][1]) if i in jobs else 0.0 for i in range(len(answers))]


def extract_program(completion: str, function: str) -> str | None:
    """Return the last fenced block behind the thoughts that defines `function`, or the text if it does; else None."""
    text = completion.rpartition("</think>")[2]
    definition = re.compile(rf"\bdef\s+{re.escape(function)}\b|\b{re.escape(function)}\s*=")
    blocks = [block for block in FENCE.findall(text) if definition.search(block)]
    if blocks:
        return blocks[-1]
    text = text.rpartition("<answer>")[2].partition("</answer>")[0]
    return text.strip("\n") if definition.search(text) and "```" not in text else None


def function_and_cases(answer: Answered, reward: str) -> tuple[str, Sequence[Case]]:
    """Return the name of the function that the row asks for, and its tests.

    Raises:
        DataError: there are none, or they cannot be used.
    """
    if "problem" in answer.row:
        problem = problem_named(answer.row["problem"])
        return problem.function, problem.cases()
    function = row_field(answer, "function", "problem", reward=reward)
    tests = row_field(answer, "tests", reward=reward)
    if not isinstance(function, str) or not function.isidentifier() or not isinstance(tests, list) or not tests:
        raise DataError(f"the row of {answer.prompt[:60]!r} needs the name of a `function` and a list of `tests`")
    return function, [case_of_row(test, answer) for test in tests]


def case_of_row(test: Any, answer: Answered) -> Case:
    """Return one test of a data file's row.

    Raises:
        DataError: it is not {"arguments": […], "expected": …}.
    """
    if (
        not isinstance(test, Mapping)
        or set(test) != {"arguments", "expected"}
        or not isinstance(test["arguments"], list)
    ):
        raise DataError(
            f"a test in the row of {answer.prompt[:60]!r} is {str(test)[:80]}: "
            'it must be {"arguments": [...], "expected": ...}'
        )
    return Case(tuple(test["arguments"]), test["expected"])


def _function_and_inputs(tests: tuple[str, Sequence[Case]]) -> tuple[str, list[list[Any]]]:
    return tests[0], [list(case.arguments) for case in tests[1]]


def _share(execution: Execution, cases: Sequence[Case]) -> float | None:
    if not execution.known:
        return None
    passed = sum(
        outcome.error is None and agrees(case.expected, outcome.value)
        for outcome, case in zip(execution.outcomes, cases, strict=True)
    )
    return passed / len(cases)
