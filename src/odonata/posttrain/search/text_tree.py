"""Monte Carlo tree search over steps of text: a search for one agent, the question's answer its only reward.

A node is the beginning of an answer, an edge a next step. A leaf is looked at by writing several answers from it to the
end: their mean worth is its value, their first steps are its edges, and how many of them begin with a step is the
step's prior. Every answer that was written counts against the budget, and may be the one that is given.

After Silver et al. 2017, arXiv:1712.01815 (PUCT); Hubert et al. 2021, arXiv:2104.06303 (actions sampled from a policy,
with their shares as priors); Coulom 2007 (widening). DeepSeek-R1 (arXiv:2501.12948, section 4.2) reports that a search
of this kind did not scale for them.

Notable:
- Texts go on in more ways than were sampled. One edge of each node stands for them: it leads to the same beginning once
  more, where other answers are written. Its prior is Good and Turing's estimate of what was not seen: the steps that
  were seen once, one at least. So a node is widened as far as its visits are worth it.
- The answer that is given has the highest worth of all that were written, the first of equal ones. With fewer answers
  than a leaf gets, that is best-of-n by the same scorer. A search by a learned scorer finds what the scorer likes.
- Where the tree leads to an answer that is there already, nothing is written: visits without cost. They are limited.
- The trees of all questions grow side by side, so that the model writes for all of them at once.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field

from odonata.errors import RecipeError
from odonata.posttrain.search.asked import Answer, Asked
from odonata.posttrain.search.by_model import Speaker
from odonata.posttrain.search.mcts import MCTS, ConstantC, Decision, MCTSConfig
from odonata.posttrain.search.scorers import Values
from odonata.posttrain.search.step_beam import StepEnd
from odonata.posttrain.search.tree import Evaluation

Step = tuple[int, ...]
"""The tokens of a step; none: other steps than those."""
OTHER: Step = ()
_VISITS = 4
"""Simulations for each answer of the budget, at most."""
Search = Generator[list["Beginning"], Sequence[Evaluation[Step]], Decision[Step]]


@dataclass(frozen=True)
class Beginning:
    """An answer so far."""

    ids: tuple[int, ...]
    again: int = 0
    """How often it was come back to for other steps."""


@dataclass(frozen=True)
class Written:
    """An answer that was written to the end, and what it is worth."""

    answer: Answer
    value: float
    tokens: int
    """Generated for it: those behind the beginning that it was written from."""


@dataclass
class TextTree:
    """The tree of one question, as a problem of one agent.

    Args:
        asked: the question.

    Attributes:
        written: every answer, in the order of writing.
    """

    asked: Asked
    written: list[Written] = field(default_factory=list[Written])
    _ends: dict[tuple[int, ...], float] = field(default_factory=dict[tuple[int, ...], float])
    _proposed: dict[Beginning, list[tuple[Step, float]]] = field(
        default_factory=dict[Beginning, list[tuple[Step, float]]]
    )
    players: int = 1

    def actions(self, state: Beginning) -> Sequence[tuple[Step, float]]:
        """Return the steps that were found from a beginning, with their priors."""
        return self._proposed[state]

    def step(self, state: Beginning, action: Step) -> Beginning:
        """Return the beginning with a step more, or itself once more."""
        return Beginning(state.ids + action) if action else Beginning(state.ids, state.again + 1)

    def terminal_value(self, state: Beginning) -> float | None:
        """Return what an answer is worth that was written to here; None for a beginning."""
        return self._ends.get(state.ids)

    def take(self, state: Beginning, found: Sequence[Written], firsts: Sequence[Step]) -> Evaluation[Step]:
        """Return what is thought of a beginning after answers were written from it.

        Args:
            state: the beginning.
            found: the answers.
            firsts: their first steps.
        """
        self.written += found
        self._ends |= {each.answer.ids: each.value for each in found}
        known = {step for again in range(state.again) for step, _ in self._proposed[Beginning(state.ids, again)]}
        counts = Counter(step for step in firsts if step not in known)
        unseen = max(1, sum(count == 1 for count in counts.values()))
        self._proposed[state] = [*((step, float(count)) for step, count in counts.items()), (OTHER, float(unseen))]
        return Evaluation(math.fsum(each.value for each in found) / len(found), self._proposed[state])

    def best(self, budget: int) -> Written:
        """Return the best of the first answers."""
        return max(self.written[:budget], key=lambda each: each.value)


def grow_trees(
    speaker: Speaker,
    asked: Sequence[Asked],
    values: Values,
    step: StepEnd,
    *,
    budget: int,
    width: int,
    c: float = 1.4,
    enough: float = math.inf,
) -> list[TextTree]:
    """Search for an answer to each question; `best` of its tree is what a smaller budget would have given too.

    Args:
        speaker: writes answers.
        asked: questions.
        values: what answers are worth.
        step: where steps end.
        budget: answers for each question.
        width: answers from each leaf, fewer where the budget is smaller.
        c: weight of exploration.
        enough: an answer worth so much ends the search of its question.

    Raises:
        RecipeError: a number is below 1.
    """
    if budget < 1 or width < 1:
        raise RecipeError(f"a tree search wants a budget and a width of 1 or more, not {budget} and {width}")
    width = min(width, budget)
    trees = [TextTree(question) for question in asked]

    def look(wanted: Sequence[tuple[TextTree, Beginning]]) -> list[Evaluation[Step]]:
        return _look(speaker, wanted, values, step, width)

    def search(tree: TextTree) -> Search:
        config = MCTSConfig(exploration=ConstantC(c), unvisited="parent")
        grown = MCTS(tree, lambda states: look([(tree, state) for state in states]), Beginning(()), config)
        return grown.searching(_VISITS * budget)

    searches = [search(tree) for tree in trees]
    pending = {number: next(searches[number]) for number in range(len(trees))}
    while pending:
        found = iter(look([(trees[number], state) for number, states in pending.items() for state in states]))
        pending = {
            number: wanted
            for number, states in pending.items()
            if (wanted := _sent(searches[number], trees[number], [next(found) for _ in states], budget, enough))
        }
    return trees


def _sent(
    search: Search, tree: TextTree, found: Sequence[Evaluation[Step]], budget: int, enough: float
) -> list[Beginning]:
    """Tell a search what it asked for; return what it asks next, nothing where it is over."""
    if len(tree.written) >= budget or any(each.value >= enough for each in tree.written):
        return []
    try:
        return search.send(found)
    except StopIteration:
        return []


def _look(
    speaker: Speaker, wanted: Sequence[tuple[TextTree, Beginning]], values: Values, step: StepEnd, width: int
) -> list[Evaluation[Step]]:
    """Write answers from beginnings of several trees, all at once."""
    asked = [tree.asked for tree, _ in wanted]
    turns = [len(tree.written) for tree, _ in wanted]
    said = speaker.go_on(asked, [state.ids for _, state in wanted], width, turns)
    flat = [answer for answers in said for answer in answers]
    worth = iter(values([question for question in asked for _ in range(width)], flat))
    evaluations: list[Evaluation[Step]] = []
    for (tree, state), answers in zip(wanted, said, strict=True):
        start = len(state.ids)
        found = [Written(answer, next(worth), len(answer.ids) - start) for answer in answers]
        firsts = [step.first(answer.ids[start:], speaker.model.tokenizer) for answer in answers]
        evaluations.append(tree.take(state, found, firsts))
    return evaluations
