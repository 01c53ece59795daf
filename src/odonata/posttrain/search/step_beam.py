"""A beam search over steps of text, kept by what a scorer thinks of them.

From each of the beams kept, several next steps are drawn by chance; of all of them the best go on. So a process reward
model steers an answer while it is written, where best-of-n can only choose among answers that are there.

Snell et al. 2024, arXiv:2408.03314, section 5.2: N first steps, the best N / M kept, M next steps from
each. Lightman et al. 2023, arXiv:2305.20050, for the scores.

Notable:
- A budget of N stands for N beams at any time, so for N answers or fewer; tokens are counted as they were generated.
- Equal beginnings count once, or the copies of one would fill the beams.
- An answer that has ended keeps its place as long as it is among the best, and is not drawn on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from odonata.errors import RecipeError
from odonata.posttrain.search.asked import Answer, Asked
from odonata.posttrain.search.by_model import Speaker, Stop
from odonata.posttrain.search.scorers import Values
from odonata.text.text_tokenizer import TextTokenizer


@dataclass(frozen=True)
class StepEnd:
    """Where a step of text ends."""

    text: str = "\n"
    """With the token in which this stands; empty: by the number of tokens alone."""
    tokens: int = 128
    """After so many tokens in any case."""

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise RecipeError(f"--step-tokens is {self.tokens}; a step has at least 1")

    def stop(self, tokenizer: TextTokenizer) -> Stop:
        """Return what says whether a step, its tokens so far, has ended."""

        def ended(ids: Sequence[int]) -> bool:
            return len(ids) >= self.tokens or (bool(self.text) and self.text in tokenizer.decode(ids[-1:]))

        return ended

    def first(self, ids: Sequence[int], tokenizer: TextTokenizer) -> tuple[int, ...]:
        """Return the tokens of the first step: all of them where it has not ended."""
        ended = self.stop(tokenizer)
        length = next((place + 1 for place in range(len(ids)) if ended(ids[: place + 1])), len(ids))
        return tuple(ids[:length])


@dataclass
class _Beams:
    """The beams of one question."""

    asked: Asked
    kept: list[tuple[float, Answer]] = field(default_factory=list[tuple[float, Answer]])
    tokens: int = 0

    def open(self, longest: int) -> list[Answer]:
        return [answer for _, answer in self.kept if not answer.finished and len(answer.ids) < longest]


@dataclass(frozen=True)
class Guided:
    """What a search came to."""

    answer: Answer
    value: float
    """What the scorer thinks of it, 0 to 1."""
    tokens: int
    """Generated for it, all beams together."""


def guided_beam(
    speaker: Speaker, asked: Sequence[Asked], values: Values, step: StepEnd, *, budget: int, width: int
) -> list[Guided]:
    """Return the answer of a beam search over steps to each question.

    Args:
        speaker: draws steps.
        asked: questions; they are searched side by side.
        values: what beginnings of answers are worth.
        step: where steps end.
        budget: beams; with fewer than `width` just so many next steps are drawn.
        width: next steps of each beam that is kept.

    Raises:
        RecipeError: a number is below 1.
    """
    if budget < 1 or width < 1:
        raise RecipeError(f"a beam search over steps wants a budget and a width of 1 or more, not {budget} and {width}")
    more, keep = min(width, budget), max(1, budget // width)
    stop = step.stop(speaker.model.tokenizer)
    beams = [_Beams(question) for question in asked]
    firsts = speaker.go_on(asked, [()] * len(asked), budget, [0] * len(asked), stop)
    _choose(beams, list(zip(beams, [()] * len(beams), firsts, strict=True)), keep, values)
    turn = 1
    while True:
        waiting = [(each, answer) for each in beams for answer in each.open(speaker.max_new_tokens)]
        if not waiting:
            return [_result(each) for each in beams]
        prefixes = [answer.ids for _, answer in waiting]
        # The turn tells rounds apart, and beams within one.
        turns = [turn * (keep + 1) + place for place in _places([each for each, _ in waiting])]
        found = speaker.go_on([each.asked for each, _ in waiting], prefixes, more, turns, stop)
        _choose(beams, [(each, answer.ids, said) for (each, answer), said in zip(waiting, found, strict=True)], keep,
                values)  # fmt: skip
        turn += 1


def _choose(
    beams: Sequence[_Beams], found: Sequence[tuple[_Beams, tuple[int, ...], list[Answer]]], keep: int, values: Values
) -> None:
    """Let the best of what was found go on, beside the answers that have ended."""
    new: dict[int, dict[tuple[int, ...], Answer]] = {}
    for each, prefix, said in found:
        each.tokens += sum(len(answer.ids) - len(prefix) for answer in said)
        new.setdefault(each.asked.number, {}).update({answer.ids: answer for answer in said})
    flat = [(each, answer) for each in beams for answer in new.get(each.asked.number, {}).values()]
    scores = iter(values([each.asked for each, _ in flat], [answer for _, answer in flat]))
    for each in beams:
        if each.asked.number not in new:
            continue
        ended = [(score, answer) for score, answer in each.kept if answer.finished]
        candidates = ended + [(next(scores), answer) for answer in new[each.asked.number].values()]
        each.kept = sorted(candidates, key=lambda pair: -pair[0])[:keep]


def _places(owners: Sequence[_Beams]) -> list[int]:
    """Return each one's place among those of its question."""
    counts: dict[int, int] = {}
    places: list[int] = []
    for each in owners:
        places.append(counts.get(each.asked.number, 0))
        counts[each.asked.number] = places[-1] + 1
    return places


def _result(beams: _Beams) -> Guided:
    """Return the best answer that has ended, or where none has the best that was cut."""
    ended = [pair for pair in beams.kept if pair[1].finished]
    value, answer = max(ended or beams.kept, key=lambda pair: pair[0])
    return Guided(answer, value, beams.tokens)
