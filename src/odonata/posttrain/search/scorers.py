"""What a search is guided by: learned rewards of answers or of their steps, or the truth itself.

Notable:
- A scorer is anything with one of two methods, so that a search can be tried with any model, or with a rule.
- What is ranked is the score as the scorer gives it. Where a share is needed, in votes and in trees, a score of a whole
  answer goes through the logistic function: reward models give its argument.
- A search by the truth shows what a perfect judge would buy. It is no way to answer questions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from odonata.data.dialogues import Prompt
from odonata.errors import DataError
from odonata.posttrain.search.asked import Answer, Asked, Truth
from odonata.posttrain.search.process_scores import Aggregate, aggregate_steps

Values = Callable[[Sequence[Asked], Sequence[Answer]], list[float]]
"""From questions and answers, which may be beginnings of answers, to what each is worth, 0 to 1."""


@runtime_checkable
class AnswerScorer(Protocol):
    """Scores answers: an outcome reward model."""

    def scores(
        self, prompts: Sequence[Prompt], completions: Sequence[str], finished: Sequence[bool]
    ) -> Sequence[float]:
        """Return a number for each, higher for better; σ of it is taken as the chance that the answer is right.

        Args:
            prompts: one for each completion.
            completions: without end tokens.
            finished: whether each came to its end.
        """
        ...


@runtime_checkable
class StepScorer(Protocol):
    """Scores the steps of answers: a process reward model."""

    def step_scores(
        self, prompts: Sequence[Prompt], completions: Sequence[str], finished: Sequence[bool]
    ) -> Sequence[Sequence[float]]:
        """Return for each completion the probability of each of its steps that it is right; arguments as of `scores`.

        A completion that is not finished is scored up to where it stands.
        """
        ...


Scorer = AnswerScorer | StepScorer


def answer_scores(scorer: AnswerScorer, asked: Sequence[Asked], answers: Sequence[Answer]) -> list[float]:
    """Return the scores of answers.

    Raises:
        DataError: there are not as many scores as answers, or one is not a number.
    """
    found = [float(score) for score in scorer.scores(*_texts(asked, answers))]
    _check(len(found), len(answers), found)
    return found


def steps_of_answers(scorer: StepScorer, asked: Sequence[Asked], answers: Sequence[Answer]) -> list[list[float]]:
    """Return the scores of the steps of answers; an answer without a step has one that is worth nothing.

    Raises:
        DataError: there are not as many as answers, or a score is not a number.
    """
    found = [[float(score) for score in steps] or [0.0] for steps in scorer.step_scores(*_texts(asked, answers))]
    _check(len(found), len(answers), [score for steps in found for score in steps])
    return found


def values_of(scorer: Scorer | Truth, how: Aggregate) -> Values:
    """Return what answers are worth by a scorer, from 0 to 1.

    Args:
        scorer: of answers, of steps, or the truth.
        how: the scores of steps become one.
    """
    if isinstance(scorer, Truth):
        return scorer
    if isinstance(scorer, StepScorer):
        by_steps = scorer
        return lambda asked, answers: [
            share_of_steps(steps, how) for steps in steps_of_answers(by_steps, asked, answers)
        ]
    by_answers = scorer
    return lambda asked, answers: [logistic(score) for score in answer_scores(by_answers, asked, answers)]


def share_of_steps(steps: Sequence[float], how: Aggregate) -> float:
    """Return the scores of steps as one, from 0 to 1; a product is not its logarithm here."""
    found = aggregate_steps(steps, how)
    return math.exp(found) if how == "prod" else found


def logistic(score: float) -> float:
    """Return σ of a score, without overflow."""
    small = math.exp(-abs(score))
    return 1 / (1 + small) if score >= 0 else small / (1 + small)


def _texts(asked: Sequence[Asked], answers: Sequence[Answer]) -> tuple[list[Prompt], list[str], list[bool]]:
    return [q.prompt for q in asked], [a.text for a in answers], [a.finished for a in answers]


def _check(count: int, wanted: int, scores: Sequence[float]) -> None:
    if count != wanted:
        raise DataError(f"the reward model was asked for {wanted} answers and scored {count}")
    if any(math.isnan(score) for score in scores):
        raise DataError("the reward model gave a score that is not a number")
