"""What is asked, what was said, whether it is right, and the form in which answers are compared."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from odonata.data.dialogues import Prompt, Question
from odonata.errors import DataError, RecipeError
from odonata.posttrain.rewards.answers import canonical, extract_answer
from odonata.posttrain.rewards.countdown import evaluate_arithmetic, stated_expression
from odonata.posttrain.rewards.interface import Answered, Reward, judge
from odonata.posttrain.rewards.marked import MARK
from odonata.posttrain.rewards.names import reward_named
from odonata.posttrain.rows import Encoder

Key = Callable[["Answer"], Hashable | None]
"""From an answer to the form in which votes compare it; None for what cannot be parsed."""


@dataclass(frozen=True)
class Asked:
    """One question as the model reads it."""

    number: int
    """Its place among the questions; what is drawn by chance depends on it."""
    ids: tuple[int, ...]
    prompt: Prompt
    text: str
    """As rewards and people see it."""
    row: Mapping[str, Any]
    """What the reward needs to know."""
    where: str


@dataclass(frozen=True)
class Answer:
    """One answer, or the beginning of one."""

    ids: tuple[int, ...]
    """Its tokens, the end token included."""
    text: str
    """Without special tokens."""
    logprob: float
    """Of all its tokens, under the model at temperature 1."""
    finished: bool
    """Whether it came to its end, rather than to a limit."""

    @property
    def mean_logprob(self) -> float:
        """Of a token."""
        return self.logprob / max(1, len(self.ids))


def asked_of(questions: Sequence[Question], encoder: Encoder) -> list[Asked]:
    """Return questions as the model reads them.

    Raises:
        DataError: there is none, or one has no token or is refused by the chat template; names its place.
    """
    if not questions:
        raise DataError("there is no question to answer")
    found: list[Asked] = []
    for number, question in enumerate(questions):
        try:
            ids = tuple(encoder.prompt(question.prompt))
        except DataError as error:
            raise DataError(f"{question.where}: {error}") from error
        text = encoder.text(question.prompt)
        found.append(Asked(number, ids, question.prompt, text, question.row, question.where))
    return found


@dataclass
class Truth:
    """Says how right answers are, by a reward from 0 to 1.

    An answer of which it cannot say counts as wrong, and is counted: all ways to search must be asked the same.

    Args:
        reward: says it.
    """

    reward: Reward
    _known: dict[tuple[int, tuple[int, ...]], float | None] = field(
        default_factory=dict[tuple[int, tuple[int, ...]], float | None], repr=False
    )

    def __call__(self, asked: Sequence[Asked], answers: Sequence[Answer]) -> list[float]:
        """Return how right each answer to the question beside it is.

        Raises:
            RecipeError: the reward is not from 0 to 1.
            DataError: a row lacks what the reward needs.
        """
        keys = [(question.number, answer.ids) for question, answer in zip(asked, answers, strict=True)]
        pairs = zip(keys, asked, answers, strict=True)
        new = {
            key: Answered(question.text, answer.text, question.row, answer.finished)
            for key, question, answer in pairs if key not in self._known
        }  # fmt: skip
        said = list(new.values())
        for key, value in zip(new, judge([self.reward], [1.0], said).total, strict=True):
            if value is not None and not 0 <= value <= 1:
                raise RecipeError(
                    f"--reward {self.reward.name} gave {value:g}; a search wants one that says how right an answer is, "
                    "from 0 to 1"
                )
            self._known[key] = value
        return [self._known[key] or 0.0 for key in keys]

    @property
    def unjudged(self) -> tuple[int, int]:
        """Different answers of which nothing could be said, and how many there were in all."""
        return sum(value is None for value in self._known.values()), len(self._known)


def truth_for(question: Question) -> str:
    """Return the name of the reward that fits a row: by its target, or by its answer.

    Raises:
        RecipeError: it has neither.
    """
    row = question.row
    if "target" in row and ("numbers" in row or "nums" in row):
        return "countdown"
    if "answer" in row:
        return "math"
    have = ", ".join(map(str, row)) or "nothing"
    raise RecipeError(
        f"{question.where}: the row has {have}, so nothing says which answers are right: name it with --reward"
    )


def key_of(reward: str) -> Key:
    """Return the form in which answers that a reward judges are compared.

    Args:
        reward: its name. Of the built-in tasks, what stands behind the mark; of countdown, the expression; else the
            answer that a text marks as such, in canonical form.

    Raises:
        RecipeError: the reward is about texts that have no such form, as programs have none.
    """
    if reward in ("marked-answer", "marked-countdown"):
        return _marked if reward == "marked-answer" else _marked_expression
    if reward == "countdown":
        return lambda answer: _expression(stated_expression(answer.text))
    if reward in ("math", "math-exact") or reward.partition(":")[0].endswith(".py"):
        return _extracted
    reward_named(reward)
    raise RecipeError(f"--by vote compares answers, and those that --reward {reward} judges have no form to compare in")


def _marked(answer: Answer) -> Hashable | None:
    said = answer.text.partition(MARK)[2]
    return said if said and answer.finished else None


def _marked_expression(answer: Answer) -> Hashable | None:
    return _expression(answer.text.partition(MARK)[2]) if answer.finished else None


def _expression(text: str) -> Hashable | None:
    try:
        evaluate_arithmetic(text)
    except ValueError:
        return None
    return "".join(text.split())


def _extracted(answer: Answer) -> Hashable | None:
    said = extract_answer(answer.text)
    return None if said is None else canonical(said)
