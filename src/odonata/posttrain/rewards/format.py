"""Rewards for the form of a completion: R1's thoughts and answer, or a regular expression of the user's own.

R1's form is checked by finding tags, not by a pattern. A user's pattern may backtrack without end, and `re` holds the
interpreter while it does, so no thread could stop it: it runs in the sandbox under a CPU limit.
Source: DeepSeek-AI 2025, arXiv:2501.12948, table 1 and section 2.2.2.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from odonata.errors import RecipeError, RunError
from odonata.posttrain.rewards.interface import Answered
from odonata.posttrain.sandbox import Job, Limits, Sandbox

TAGS = ("<think>", "</think>", "<answer>", "</answer>")
MATCHER = """
import re
def matches(pattern, texts):
    compiled = re.compile(pattern, re.DOTALL)
    return [compiled.fullmatch(text) is not None for text in texts]
"""
MOST_HANGS = 3


class FormatReward:
    """1 for <think>…</think><answer>…</answer> with nothing but space around and between, else 0.

    Each tag stands once; a prompt that already opens <think> saves the completion its opening; a completion that was
    cut at the limit has not kept the form.
    """

    name = "format"

    def __call__(self, answers: Sequence[Answered]) -> list[float]:
        """Return 1 or 0 an answer."""
        return [float(answer.finished and has_form(opened(answer) + answer.completion)) for answer in answers]


class PatternReward:
    """1 if a regular expression matches the whole completion, else 0; None where matching it takes too long.

    The dot matches line breaks as well. Cut completions are judged like others.
    """

    name = "format"

    def __init__(self, pattern: str, sandbox: Sandbox | None = None):
        """Take a pattern of Python's `re` and the sandbox that matches it (default: one CPU second a batch).

        Raises:
            RecipeError: the pattern does not compile; says where.
        """
        try:
            re.compile(pattern)
        except (re.error, RecursionError, OverflowError) as error:
            raise RecipeError(f"format:{pattern} is no regular expression: {error}") from error
        self.pattern = pattern
        self.sandbox = sandbox or Sandbox(Limits(cpu_seconds=1))

    def __call__(self, answers: Sequence[Answered]) -> list[float | None]:
        """Return 1, 0 or None an answer.

        Raises:
            RunError: the pattern takes too long on more than three completions of the batch.
        """
        texts = [answer.completion for answer in answers]
        together = self._match(texts)
        if together is not None:
            return together
        verdicts: list[float | None] = []
        for text in texts:
            alone = self._match([text])
            verdicts.append(None if alone is None else alone[0])
            if verdicts.count(None) > MOST_HANGS:
                raise RunError(
                    f"the pattern format:{self.pattern} takes longer than {self.sandbox.limits.cpu_seconds} s on "
                    f"completions such as {text[:60]!r}: nested repetitions like (a+)+ backtrack, write them plainly"
                )
        return verdicts

    def _match(self, texts: list[str]) -> list[float | None] | None:
        if not texts:
            return []
        outcome = self.sandbox.run(Job(MATCHER, "matches", [[self.pattern, texts]])).outcomes[0]
        return None if outcome.error is not None else [float(found) for found in outcome.value]


def has_form(text: str) -> bool:
    """Say if `text` is <think>…</think><answer>…</answer>, each tag once, with only space around and between."""
    if any(text.count(tag) != 1 for tag in TAGS):
        return False
    before, _, rest = text.partition("<think>")
    _, _, rest = rest.partition("</think>")
    between, _, rest = rest.partition("<answer>")
    _, closed, after = rest.partition("</answer>")
    return bool(closed) and not (before + between + after).strip()


def opened(answer: Answered) -> str:
    """Return the tag that the prompt opened for the completion, or nothing."""
    return "<think>" if answer.prompt.rstrip().endswith("<think>") else ""
