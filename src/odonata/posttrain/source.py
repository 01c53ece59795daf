"""Where a method that learns from files gets its model and its rows from, on the way to what the engine trains.

Rows come from a file, or are made of a built-in task before training (`sampled.py`). From there on both go the same
way: some are held back by their prompts, all become ids, and those that are too long are treated as the options say.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor

from odonata.data.loader import Batches
from odonata.engine.distributed import from_leader
from odonata.engine.method import Method
from odonata.engine.recipe import Recipe
from odonata.engine.task import Task as EngineTask
from odonata.errors import RecipeError, RunError
from odonata.language.sampling import Sampling
from odonata.posttrain.evaluation import PolicyEvaluator
from odonata.posttrain.heldout import OfflineEvaluation
from odonata.posttrain.options import DialogueData
from odonata.posttrain.precompute import answer_logprobs, device_of
from odonata.posttrain.preference import PairRow
from odonata.posttrain.questions import SetQuestions
from odonata.posttrain.rewards.names import reward_named
from odonata.posttrain.rollout import Asking
from odonata.posttrain.rows import Encoder, Parts, Reader, encoded, read_parts
from odonata.posttrain.sampled import Row, read_of, read_rows, write_rows
from odonata.posttrain.start import Start, starting_point
from odonata.posttrain.tasks import Task

_REFERENCE = "reference-logprobs.safetensors"
Measure = Callable[[Method], dict[str, float]]
Encoded = TypeVar("Encoded")


@dataclass
class Source:
    """A start with its rows, on the way to a task."""

    recipe: Recipe
    start: Start
    folder: Path | None
    data: DialogueData
    """With the limit of length that the model itself has."""
    notes: list[str]
    rows: list[Row] | None = None
    """Those made of a task."""
    known: dict[str, Tensor] = dataclasses.field(default_factory=dict[str, Tensor])
    """What the reference says of rows, where it was asked once."""
    parts: Parts = dataclasses.field(init=False)
    """Set by `read`."""

    @property
    def encoder(self) -> Encoder:
        """Prompts and completions to ids."""
        return Encoder(self.start.assets.tokenizer, self.start.assets.template)

    @property
    def task(self) -> Task | None:
        """The built-in task, if its rows are learned."""
        return self.start.task

    @property
    def pad_id(self) -> int:
        """What fills up."""
        return self.start.assets.tokenizer.pad_id

    def read(self, reader: Reader, make: Callable[[Start, Task, list[str]], list[Row]]) -> None:
        """Read the rows of the file, or those of the task: made now, or kept by the run that is resumed."""
        if self.task is None:
            self.parts = read_parts(reader, self.data, self.recipe.seed)
        else:
            self.rows = self._made(self.task, make) if self.folder is None else read_rows(self.folder)
            made = read_of(self.rows, self.task.texts.name)
            self.parts = read_parts(lambda *_, **__: made, self.data, self.recipe.seed)
        self.notes += self.parts.notes

    def _made(self, task: Task, make: Callable[[Start, Task, list[str]], list[Row]]) -> list[Row]:
        """Return the leader's rows: what is drawn by chance must not differ among ranks by a last bit."""
        leads = not dist.is_initialized() or dist.get_rank() == 0
        self.start.decoder.to(device_of(self.recipe))
        return json.loads(from_leader(json.dumps(make(self.start, task, self.notes)) if leads else ""))

    def encoded(
        self, encode: Callable[[Any], Encoded], length: Callable[[Encoded], int],
        cut: Callable[[Encoded, int], Encoded | None],
    ) -> tuple[list[Encoded], list[Encoded]]:  # fmt: skip
        """Return the rows to train on and those held back that are used, as ids."""
        held = self.parts.heldout.items[: self.recipe.evaluation.rows] if self.parts.heldout is not None else ()
        train, heldout = (
            encoded(items, encode, length, cut, self.data, self.notes, least=least)
            for items, least in ((self.parts.train.items, 1), (held, 0))
        )
        return train, heldout

    def reference_logprobs(
        self, train: Sequence[PairRow], heldout: Sequence[PairRow]
    ) -> dict[str, Float[Tensor, "rows 2"]]:
        """Return what the model as it begins says of the answers of pairs: asked now, or kept by the run."""
        if self.folder is not None:
            file = self.folder / _REFERENCE
            if not file.is_file():
                raise RunError(f"{file} is missing: the run cannot go on without what its reference said")
            self.known = load_file(file)
        else:
            asked = {"train": train, "heldout": heldout}
            self.known = {
                name: answer_logprobs(self.start.decoder, rows, self.pad_id, self.data.batch_size, self.recipe)
                for name, rows in asked.items()
            }
            self.notes.append(
                f"reference: asked once of {2 * len(train)} answers to learn from and {2 * len(heldout)} held back; a "
                "step needs half the passes, and no copy of the weights is kept"
            )
        for name, rows in (("train", train), ("heldout", heldout)):
            if len(self.known[name]) != len(rows):
                raise RunError(
                    f"the run's reference knows {len(self.known[name])} rows ({name}) and the data have {len(rows)}: "
                    "they have changed since the run began"
                )
        return self.known

    def save(self, folder: Path) -> None:
        """Write what a resumed run needs, and what a person may look at."""
        self.start.save(folder)
        if self.rows is not None:
            write_rows(folder, self.rows)
        if self.known:
            save_file(self.known, folder / _REFERENCE)

    def finished(self, method: Method, batches: Batches[Any], measure: Measure | None) -> EngineTask:
        """Return the task."""
        answers = answers_evaluator(self.start, self.recipe)
        measures = [part for part in (measure, answers.measure if answers else None) if part is not None]

        def evaluate(method: Method) -> dict[str, float]:
            return {name: value for part in measures for name, value in part(method).items()}

        return EngineTask(
            method=method,
            batches=batches,
            batch_size=self.data.batch_size,
            fingerprint=self.parts.train.fingerprint(),
            evaluate=evaluate if measures else None,
            goal="heldout/right" if answers else "heldout/loss" if measures else "",
            better="higher" if answers else "lower",
            save_assets=self.save,
            assets=self.start.assets,
            notes=self.notes,
        )


def open_source(recipe: Recipe, folder: Path | None, *, wants_reference: bool) -> Source:
    """Check the options and open the model.

    Args:
        recipe: of a method that learns from files.
        folder: the `assets/` of a run that is resumed.
        wants_reference: whether a frozen copy is to be kept.

    Raises:
        OdonataError: the weights or options cannot be used.
    """
    data: DialogueData = recipe.data
    recipe.method.check(data.path)
    evaluation: OfflineEvaluation = recipe.evaluation
    if data.path and evaluation.prompts != OfflineEvaluation.prompts:
        raise RecipeError(
            f"--evaluation.prompts is about built-in tasks; {data.path} has no answers that can be judged"
        )
    check_rows(data)
    start = starting_point(recipe.method, data.path, seed=recipe.seed, wants_reference=wants_reference, folder=folder)
    return source_of(recipe, start, folder)


def check_rows(data: DialogueData) -> None:
    """Refuse options about files where a built-in task brings the rows.

    Raises:
        RecipeError: names one.
    """
    for name in ("prompts", "prompt_template", "on_error") if not data.path else ():
        if getattr(data, name) != getattr(DialogueData, name):
            raise RecipeError(f"--data.{name.replace('_', '-')} is about files; a built-in task brings its own rows")


def source_of(recipe: Recipe, start: Start, folder: Path | None) -> Source:
    """Return a start as a source of rows.

    Args:
        recipe: of a method that learns from files.
        start: its model.
        folder: where the run that is resumed keeps the rows made of a task.
    """
    data: DialogueData = recipe.data
    notes = list(start.notes)
    config = start.decoder.config
    if config.positions == "learned" and data.max_length > config.max_position_embeddings:
        data = dataclasses.replace(data, max_length=config.max_position_embeddings)
        notes.append(f"the model's positions end at {data.max_length}: that is what --data.max-length is taken as")
    return Source(recipe, start, folder, data, notes)


def answers_evaluator(start: Start, recipe: Recipe) -> PolicyEvaluator | None:
    """Return what asks held-back prompts of a task; None without a task."""
    evaluation: OfflineEvaluation = recipe.evaluation
    if start.task is None or not evaluation.prompts:
        return None
    texts, truth = start.task.texts, start.task.built_in.truth
    asking = Asking(start.assets.tokenizer, [reward_named(truth)], [1.0], 1, texts.longest + 8, Sampling(), recipe.seed)
    questions = SetQuestions(texts, "test", start.assets.tokenizer)
    items = [questions[0, i] for i in range(evaluation.prompts)]
    return PolicyEvaluator(items, asking, evaluation.batch_rows, truth)
