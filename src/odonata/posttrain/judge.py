"""What people touch of a reward model: it scores answers, or the steps of solutions.

    judge = Judge.load("runs/reward-1")
    judge.score("12+30=", "42")
    judge = Judge.load("runs/prm-1")
    judge.step_scores("12+30=", ["12+30 = 42", "The answer is 42"])

Notable: a reward model's scores have no unit and no zero: compare those of answers to one prompt. A process reward
model's are probabilities that a step is good.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar, cast

import torch

from odonata.data.dialogue_items import ROLES, Prompt, Role, Turn
from odonata.data.digit_sums import steps_of
from odonata.errors import DataError, RecipeError, WeightsError
from odonata.language.assets import DecoderAssets
from odonata.language.language_model import Text, with_assets
from odonata.language.sequences import Sequences, pad_sequences
from odonata.posttrain.process_reward import step_ids
from odonata.posttrain.rows import Encoder
from odonata.posttrain.scorer import Scorer, ScorerAssets, open_scorer
from odonata.posttrain.search.process_scores import Aggregate, aggregate_steps
from odonata.text.text_tokenizer import TextTokenizer
from odonata.weights.layout import Files
from odonata.weights.published import write_folder
from odonata.weights.scorers import files_of_scorer

Ids = Sequence[int]
T = TypeVar("T")


@dataclass
class Judge:
    """A scorer in evaluation mode, and what belongs to it.

    Args:
        scorer: the network, adapters merged.
        assets: its sizes, tokenizer, and what it scores.
        device: where it is.
        name: of the run or directory.
        notes: what was inferred in reading.
    """

    scorer: Scorer
    assets: ScorerAssets
    device: torch.device
    name: str = ""
    notes: list[str] = field(default_factory=list[str])
    batch_rows: int = 64
    """Texts read at a time."""

    @classmethod
    def load(cls, path: str | Path, device: torch.device | None = None, which: str = "best") -> Judge:
        """Return the reward model of a run, or of a directory as transformers writes it.

        Args:
            path: of a run of `reward` or `prm`, or of a `…ForSequenceClassification` or `…ForTokenClassification`.
            device: where to; None: the CPU.
            which: "best" or "last" checkpoint of a run.

        Raises:
            WeightsError: nothing there that scores.
        """
        scorer, assets, notes = open_scorer(path, which)
        place = device or torch.device("cpu")
        tokenizer = assets.decoder.tokenizer
        if tokenizer.pad_id in tokenizer.eos_ids and assets.kind == "reward":
            notes.append("padding is the end token: transformers scores the token before the end, Odonata the end")
        return cls(scorer.eval().to(place), assets, place, str(path), notes)

    @property
    def tokenizer(self) -> TextTokenizer:
        """Text to ids and back."""
        return self.assets.decoder.tokenizer

    def score(self, prompt: Text, completion: str, *, by: Aggregate | None = None) -> float:
        """Return the score of one answer.

        Args:
            prompt: a text to go on from, or a conversation.
            completion: the answer, without its end token.
            by: of a process reward model, how its steps become one score: min (the default), prod (its logarithm), mean
                or last.

        Raises:
            DataError: the prompt is empty; or the answer of which steps are scored is.
            RecipeError: `by` of a model that does not score steps.
        """
        encoder = self._encoder
        if self.assets.kind == "steps":
            if not (steps := self.split(completion)):
                raise DataError("an answer without a step has no score")
            return aggregate_steps(self.step_scores(prompt, steps), by or "min")
        if by is not None:
            raise RecipeError(f"{self.name} scores whole answers, so there is nothing to aggregate by {by!r}")
        asked = _prompt_of(prompt)
        return self.scores_of([encoder.prompt(asked)], [encoder.completion(asked, completion)])[0]

    def step_scores(self, prompt: Text, steps: Sequence[str]) -> list[float]:
        """Return for each step of one solution the probability that it is good.

        Args:
            prompt: the problem.
            steps: of the solution, without separators.

        Raises:
            DataError: there is no step, or one without a token.
            RecipeError: the model scores whole answers.
        """
        if not steps:
            raise DataError("a solution without steps has no scores")
        return self.step_scores_of([(self._encoder.prompt(_prompt_of(prompt)), steps)])[0]

    def split(self, completion: str) -> list[str]:
        """Return the steps of an answer, as those that were learned from, without separators; blank ones are left out.

        Raises:
            RecipeError: the model scores whole answers.
        """
        self._check_steps()
        if self.assets.steps == "digits-sum":
            return [text for text, _ in steps_of("", completion)]
        if self.assets.steps == "whole":
            return [completion] if completion else []
        parts = completion.split(self.assets.separator) if self.assets.separator else [completion]
        return [part for part in parts if part.strip()]

    def scores_of(self, prompts: Sequence[Ids], completions: Sequence[Ids]) -> list[float]:
        """Return the score of each answer, given as tokens: with its end token, or cut before it.

        Raises:
            RecipeError: the model scores steps.
        """
        if self.assets.kind != "reward":
            raise RecipeError(f"{self.name} scores steps, not whole answers: ask for step_scores")
        rows = list(zip(prompts, completions, strict=True))
        return self._read(rows, lambda batch: self.scorer.at_end(batch).tolist())

    def step_scores_of(self, solutions: Sequence[tuple[Ids, Sequence[str]]]) -> list[list[float]]:
        """Return for each solution the probabilities that its steps are good.

        Args:
            solutions: ids of the problem, and the steps.

        Raises:
            DataError: a step has no token.
            RecipeError: the model scores whole answers.
        """
        self._check_steps()
        ids = [step_ids(self._encoder, steps, self.assets.separator) for _, steps in solutions]
        rows = [
            (prompt, [token for step in steps for token in step])
            for (prompt, _), steps in zip(solutions, ids, strict=True)
        ]
        probabilities = self._read(rows, lambda batch: list(self.scorer(batch.ids).softmax(-1)[..., 1].cpu()))
        found: list[list[float]] = []
        for (prompt, _), steps, row in zip(rows, ids, probabilities, strict=True):
            last = len(prompt) - 1
            ends = [last := last + len(step) for step in steps]
            found.append(row[ends].clamp(0, 1).tolist())
        return found

    def convert(self, folder: Path, layout: str = "hf") -> list[Path]:
        """Write the model as transformers' sequence or token classification; return the files.

        Raises:
            WeightsError: another layout than `hf`, an architecture that has none, or a folder that is not empty.
        """
        if layout != "hf":
            raise WeightsError(f"--to {layout}: a reward model is written as hf")
        return write_folder(folder, scorer_files(self.scorer, self.assets))

    @property
    def _encoder(self) -> Encoder:
        return Encoder(self.tokenizer, self.assets.decoder.template)

    def _check_steps(self) -> None:
        if self.assets.kind != "steps":
            raise RecipeError(f"{self.name} scores whole answers, not steps")

    @torch.inference_mode()
    def _read(self, rows: Sequence[tuple[Ids, Ids]], say: Callable[[Sequences], list[T]]) -> list[T]:
        """Return what `say` makes of each row, in batches of like lengths."""
        order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]) + len(rows[i][1]))
        found: dict[int, T] = {}
        for start in range(0, len(order), self.batch_rows):
            part = order[start : start + self.batch_rows]
            batch = pad_sequences([rows[i][0] for i in part], [rows[i][1] for i in part], self.tokenizer.pad_id)
            moved = Sequences(batch.ids.to(self.device), batch.scored.to(self.device))
            found |= dict(zip(part, say(moved), strict=True))
        return [found[i] for i in range(len(rows))]


def scorer_files(scorer: Scorer, assets: ScorerAssets) -> Files:
    """Return the files of a reward model in the published layout.

    Raises:
        WeightsError: no published architecture has its options.
    """
    decoder: DecoderAssets = dataclasses.replace(assets.decoder, config=scorer.decoder.config)
    head = {name: value.detach() for name, value in scorer.score.state_dict().items()}
    files = files_of_scorer(
        scorer.decoder.state_dict(), head, assets.kind, decoder.config.to_dict(), decoder.published or None
    )
    return with_assets(files, decoder)


def _prompt_of(prompt: Text) -> Prompt:
    if isinstance(prompt, str):
        if not prompt:
            raise DataError("the prompt is empty; give the model something to go on from")
        return Prompt(text=prompt)
    turns: list[tuple[Role, str]] = [(cast("Role", turn["role"]), turn["content"]) for turn in prompt]
    if unknown := [role for role, _ in turns if role not in ROLES]:
        raise DataError(f"a turn of the conversation is of the role {unknown[0]!r}; there are {', '.join(ROLES)}")
    return Prompt(turns=tuple(Turn(role, content) for role, content in turns))
