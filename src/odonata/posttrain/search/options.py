"""Which ways of searching are tried, and how."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from odonata.errors import RecipeError
from odonata.posttrain.search.process_scores import AGGREGATES, Aggregate
from odonata.posttrain.search.scorers import Scorer, StepScorer
from odonata.posttrain.search.step_beam import StepEnd

Way = Literal["greedy", "sample", "beam", "best-of-n", "vote", "prm", "mcts"]
WAYS: tuple[Way, ...] = ("greedy", "sample", "beam", "best-of-n", "vote", "prm", "mcts")


@dataclass(frozen=True)
class SearchOptions:
    """How answers are searched for; None stands for what is said behind it."""

    by: tuple[Way, ...] = ("greedy", "sample", "best-of-n", "vote")
    budget: int = 64
    """Answers for each question at most."""
    temperature: float = 1.0
    """By which scores are divided when sampling."""
    max_new_tokens: int = 512
    """Of an answer at most."""
    width: int | None = None
    """prm, mcts: next steps of each beam, answers from each leaf (4)."""
    aggregate: Aggregate | None = None
    """How scores of steps become one where one is needed: weighted votes, beams and trees (min)."""
    step: StepEnd | None = None
    """prm, mcts: where a step ends (at a line break)."""
    length_penalty: float | None = None
    """beam: exponent of the length that scores are divided by (1)."""
    oracle: bool = False
    """mcts: the truth says what answers are worth."""
    template: str = "auto"
    """The chat template."""
    seed: int = 0
    batch_rows: int = 256
    """Answers made at a time."""

    def check(self, scorer: Scorer | None) -> None:
        """Refuse what contradicts itself, and options that nothing uses.

        Args:
            scorer: the reward model, if there is one.

        Raises:
            RecipeError: names them.
        """
        if not self.by or set(self.by) - set(WAYS) or len(set(self.by)) != len(self.by):
            raise RecipeError(f"--by takes some of {', '.join(WAYS)}, each once, not {' '.join(self.by) or 'nothing'}")
        for name in ("budget", "max_new_tokens", "batch_rows", "width"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise RecipeError(f"--{name.replace('_', '-')} is {value}; it must be at least 1")
        if not 0 < self.temperature < float("inf"):
            raise RecipeError(f"--temperature is {self.temperature}; samples need one above 0")
        if self.aggregate not in (None, *AGGREGATES):
            raise RecipeError(f"--aggregate takes {', '.join(AGGREGATES)}, not {self.aggregate!r}")
        self._check_used()
        self._check_scorer(scorer)

    def _check_used(self) -> None:
        stepwise = bool({"prm", "mcts"} & set(self.by))
        for option, given, used, users in (
            ("--width", self.width is not None, stepwise, "prm and mcts"),
            ("--step-end and --step-tokens", self.step is not None, stepwise, "prm and mcts"),
            ("--length-penalty", self.length_penalty is not None, "beam" in self.by, "beam"),
            ("--oracle", self.oracle, "mcts" in self.by, "mcts"),
        ):
            if given and not used:
                raise RecipeError(f"{option} has no use in --by {' '.join(self.by)}: only {users} would use it")

    def _check_scorer(self, scorer: Scorer | None) -> None:
        ways = " ".join(self.by)
        by_steps = isinstance(scorer, StepScorer)
        if "prm" in self.by and not by_steps:
            given = "the one given scores whole answers" if scorer is not None else "none is given"
            raise RecipeError(
                f"--by prm needs a reward model of steps (odonata train prm) under --reward-model; {given}"
            )
        if "mcts" in self.by and scorer is None and not self.oracle:
            raise RecipeError("--by mcts needs something that judges answers: --reward-model RUN, or --oracle")
        users = {"vote", "prm"} if by_steps else {"vote", "best-of-n"}
        users |= set() if self.oracle else {"mcts"}
        if scorer is not None and not users & set(self.by):
            what = "steps" if by_steps else "whole answers"
            raise RecipeError(
                f"--reward-model scores {what}, which has no use in --by {ways}"
                f"{' with --oracle' * self.oracle}: {', '.join(sorted(users))} would use it"
            )
        if self.aggregate is not None and not by_steps:
            raise RecipeError("--aggregate is about scores of steps: it has no use without --reward-model of steps")
