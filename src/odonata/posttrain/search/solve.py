"""Answers found with more compute: every way to search, on the same questions, under the same budgets.

    found = solve(model, read_questions("test.jsonl").items, by=("vote", "best-of-n"), budget=64)
    print(found.table())

Notable:
- A budget counts answers: 64 samples, 64 beams, 64 answers written in a tree. They are not equally long, so the tokens
  that were generated stand beside. What a scorer reads is not counted.
- All ways that choose among samples choose among the same ones, and those of smaller budgets are choices of them.
- What any of k samples achieves, pass@k, is always shown: no way to choose among k samples can do better.

References: Wang et al. 2022, arXiv:2203.11171 (votes); Cobbe et al. 2021, arXiv:2110.14168 (best of n by a verifier);
Lightman et al. 2023, arXiv:2305.20050 (steps); Snell et al. 2024, arXiv:2408.03314 (budgets compared).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from odonata.data.dialogues import Question
from odonata.language.language_model import LanguageModel
from odonata.posttrain.rewards.names import reward_named
from odonata.posttrain.rows import Encoder
from odonata.posttrain.search.asked import Answer, Asked, Truth, asked_of, key_of, truth_for
from odonata.posttrain.search.by_model import Speaker
from odonata.posttrain.search.by_samples import (
    CEILING,
    LOGPROB,
    MEAN_LOGPROB,
    Sampled,
    budgets_up_to,
    outcomes_of,
)
from odonata.posttrain.search.options import SearchOptions, Way
from odonata.posttrain.search.process_scores import AGGREGATES, Aggregate, aggregate_steps
from odonata.posttrain.search.scorers import (
    AnswerScorer,
    Scorer,
    StepScorer,
    answer_scores,
    logistic,
    share_of_steps,
    steps_of_answers,
    values_of,
)
from odonata.posttrain.search.step_beam import StepEnd, guided_beam
from odonata.posttrain.search.table import ScalingRow, format_costs, format_table, scaling_table
from odonata.posttrain.search.text_tree import grow_trees

_WIDTH = 4
_AGGREGATE: Aggregate = "min"
REWARD = "reward"


@dataclass
class Solved:
    """What every way to search came to."""

    rows: list[ScalingRow]
    tokens: dict[str, dict[int, float]]
    """Way → budget → tokens generated for a question, on average."""
    records: list[dict[str, Any]]
    """Of each question what was answered."""
    notes: list[str] = field(default_factory=list[str])

    def table(self) -> str:
        """Return accuracies and tokens as text."""
        return f"{format_table(self.rows)}\n\n{format_costs(self.tokens)}"

    def to_list(self) -> list[dict[str, Any]]:
        """Return a plain row for each way and budget."""
        return [{**row.to_dict(), "tokens": self.tokens[row.method][row.budget]} for row in self.rows]


def solve(
    model: LanguageModel,
    questions: Sequence[Question],
    *,
    by: Sequence[Way] = SearchOptions.by,
    budget: int = 64,
    reward: str = "",
    scorer: Scorer | None = None,
    **options: Any,
) -> Solved:
    """Answer questions in several ways, with budgets of 1, 2, 4 … answers.

    Args:
        model: answers.
        questions: from `read_questions`, or `open_source`.
        by: ways, of `greedy`, `sample`, `beam`, `best-of-n`, `vote`, `prm`, `mcts`.
        budget: the largest.
        reward: says how right an answer is, by name; empty: what fits the first row.
        scorer: a reward model of answers, or of steps.
        options: other fields of `SearchOptions`.

    Returns:
        accuracies with intervals over questions, tokens generated, and the answers.

    Raises:
        RecipeError: options that contradict each other, or that nothing uses.
        DataError: there is no question, or one cannot be read.
    """
    chosen = SearchOptions(by=tuple(by), budget=budget, **options)
    chosen.check(scorer)
    asked = asked_of(questions, Encoder(model.tokenizer, chosen.template))
    name = reward or truth_for(questions[0])
    truth = Truth(reward_named(name))
    speaker = Speaker(model, chosen.max_new_tokens, chosen.temperature, chosen.seed, chosen.batch_rows)
    search = _Search(speaker, asked, truth, chosen, scorer, key_of(name) if "vote" in chosen.by else None)
    return search.run()


@dataclass
class _Search:
    """One call of `solve`, and what it has found so far."""

    speaker: Speaker
    asked: list[Asked]
    truth: Truth
    options: SearchOptions
    scorer: Scorer | None
    key: Callable[[Answer], Any] | None
    outcomes: dict[str, dict[int, list[float]]] = field(default_factory=dict[str, dict[int, list[float]]])
    tokens: dict[str, dict[int, float]] = field(default_factory=dict[str, dict[int, float]])
    records: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    notes: list[str] = field(default_factory=list[str])

    @property
    def budgets(self) -> list[int]:
        return budgets_up_to(self.options.budget)

    def run(self) -> Solved:
        self.records = [{"where": q.where, "prompt": q.text, "row": dict(q.row)} for q in self.asked]
        ways: dict[Way, Callable[[], None]] = {
            "greedy": self.greedy, "beam": self.beam, "prm": self.steps, "mcts": self.trees,
        }  # fmt: skip
        chosen, sampled = self.samples()
        for way in self.options.by:
            self._take({name: found for name, found in chosen.items() if name.partition(" (")[0] == way}, sampled)
            if way in ways:
                ways[way]()
        self._take({CEILING: chosen[CEILING]}, sampled)
        unjudged, judged = self.truth.unjudged
        if unjudged:
            self.notes.append(
                f"{unjudged} of {judged} answers could not be judged by {self.truth.reward.name} and count as wrong"
            )
        return Solved(scaling_table(self.outcomes), self.tokens, self.records, self.notes)

    def samples(self) -> tuple[dict[str, dict[int, list[float]]], float]:
        """Draw the samples; return what each way makes of them, and the tokens of one."""
        answers = self.speaker.sample(self.asked, self.options.budget)
        flat = [answer for said in answers for answer in said]
        owners = [question for question, said in zip(self.asked, answers, strict=True) for _ in said]
        right = self.truth(owners, flat)
        scores, weights = self._scored(owners, flat)
        size = self.options.budget
        sampled = [
            Sampled(
                said, right[start : start + size], [self.key(answer) for answer in said] if self.key else (),
                {name: values[start : start + size] for name, values in scores.items()},
                {name: values[start : start + size] for name, values in weights.items()},
            )
            for start, said in zip(range(0, len(flat), size), answers, strict=True)
        ]  # fmt: skip
        for record, each in zip(self.records, sampled, strict=True):
            record["answers"] = [
                {**_plain(answer), "right": each.right[i], "scores": {name: s[i] for name, s in each.scores.items()}}
                for i, answer in enumerate(each.answers)
            ]
        cut = sum(not answer.finished for answer in flat)
        if cut:
            limit = self.options.max_new_tokens
            self.notes.append(f"{cut} of {len(flat)} samples did not come to an end within {limit} tokens")
        found = outcomes_of(sampled, self.budgets, seed=self.options.seed)
        renamed = {f"prm ({name})": found.pop(f"best-of-n (prm {name})") for name in AGGREGATES
                   if f"best-of-n (prm {name})" in found}  # fmt: skip
        return {**found, **renamed}, sum(len(answer.ids) for answer in flat) / len(flat)

    def _scored(
        self, owners: Sequence[Asked], answers: Sequence[Answer]
    ) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
        """Return scores to choose the best by, and weights of votes."""
        scores: dict[str, list[float]] = {}
        weights: dict[str, list[float]] = {}
        by = self.options.by
        if "best-of-n" in by:
            scores[LOGPROB] = [answer.logprob for answer in answers]
            scores[MEAN_LOGPROB] = [answer.mean_logprob for answer in answers]
        if isinstance(self.scorer, StepScorer) and {"vote", "prm"} & set(by):
            steps = steps_of_answers(self.scorer, owners, answers)
            if "prm" in by:
                scores |= {f"prm {how}": [aggregate_steps(each, how) for each in steps] for how in AGGREGATES}
            if "vote" in by:
                how = self.options.aggregate or _AGGREGATE
                weights[f"prm {how}"] = [share_of_steps(each, how) for each in steps]
        elif isinstance(self.scorer, AnswerScorer) and {"vote", "best-of-n"} & set(by):
            found = answer_scores(self.scorer, owners, answers)
            if "best-of-n" in by:
                scores[REWARD] = found
            if "vote" in by:
                weights[REWARD] = [logistic(score) for score in found]
        return scores, weights

    def greedy(self) -> None:
        answers = self.speaker.greedy(self.asked)
        self._keep("greedy", 1, answers, [len(answer.ids) for answer in answers])

    def beam(self) -> None:
        penalty = 1.0 if self.options.length_penalty is None else self.options.length_penalty
        for width in self.budgets:
            answers, scores, costs = self.speaker.beam(self.asked, width, penalty)
            self._keep("beam", width, answers, costs, scores)

    def steps(self) -> None:
        assert self.scorer is not None  # `SearchOptions.check` saw to it
        values = values_of(self.scorer, self.options.aggregate or _AGGREGATE)
        for budget in self.budgets:
            found = guided_beam(
                self.speaker, self.asked, values, self.options.step or StepEnd(), budget=budget,
                width=self.options.width or _WIDTH,
            )  # fmt: skip
            kept = [each.answer for each in found], [each.tokens for each in found], [each.value for each in found]
            self._keep("prm (beam)", budget, *kept)

    def trees(self) -> None:
        judge = self.truth if self.options.oracle else self.scorer
        assert judge is not None  # `SearchOptions.check` saw to it
        trees = grow_trees(
            self.speaker, self.asked, values_of(judge, self.options.aggregate or _AGGREGATE),
            self.options.step or StepEnd(), budget=self.options.budget, width=self.options.width or _WIDTH,
            enough=1.0 if self.options.oracle else math.inf,
        )  # fmt: skip
        name = "mcts (truth)" if self.options.oracle else "mcts"
        for budget in self.budgets:
            best = [tree.best(budget) for tree in trees]
            costs = [sum(each.tokens for each in tree.written[:budget]) for tree in trees]
            self._keep(name, budget, [each.answer for each in best], costs, [each.value for each in best])
        if self.options.oracle:
            self.notes.append(
                "mcts (truth) is told which answers are right: what a perfect judge would buy, no way to answer"
            )

    def _take(self, found: dict[str, dict[int, list[float]]], tokens: float) -> None:
        """Keep what was chosen among samples; each budget's cost is that of so many of them."""
        for name, by_budget in found.items():
            self.outcomes[name] = by_budget
            self.tokens[name] = {k: k * tokens for k in by_budget}

    def _keep(
        self, name: str, budget: int, answers: Sequence[Answer], costs: Sequence[int],
        scores: Sequence[float] | None = None,
    ) -> None:  # fmt: skip
        """Keep what was searched for with one budget."""
        right = self.truth(self.asked, answers)
        self.outcomes.setdefault(name, {})[budget] = right
        self.tokens.setdefault(name, {})[budget] = sum(costs) / len(costs)
        for i, record in enumerate(self.records):
            plain = {**_plain(answers[i]), "right": right[i], "generated": costs[i]}
            record.setdefault(name, {})[str(budget)] = plain | ({"score": scores[i]} if scores is not None else {})


def _plain(answer: Answer) -> dict[str, Any]:
    return {"text": answer.text, "tokens": len(answer.ids), "logprob": answer.logprob, "finished": answer.finished}
