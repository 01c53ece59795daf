"""From a recipe of a method that learns from files to what the engine trains."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from odonata.data.dialogues import Judgement, Preference, read_exchanges, read_judgements, read_preferences
from odonata.data.loader import Batches, Key, Shuffled
from odonata.engine.recipe import Recipe
from odonata.engine.task import Task
from odonata.errors import DataError, RecipeError
from odonata.language.next_token import NextToken
from odonata.posttrain.heldout import ExampleEvaluator, JudgementEvaluator, PairEvaluator
from odonata.posttrain.kto import KTO, JudgedRow, JudgedRows, KTOOptions, PadJudged, Partners
from odonata.posttrain.options import DialogueData
from odonata.posttrain.preference import (
    PadPairs,
    PairOptions,
    PairRow,
    PreferenceMethod,
    SimPOOptions,
    objective_of,
)
from odonata.posttrain.preference_losses import kto_weights
from odonata.posttrain.sampled import judged_answers, judgement_rows, pair_rows, worked_rows
from odonata.posttrain.sft import ExchangeEncoder, LearnedRow, PadLearned, SFTOptions
from odonata.posttrain.source import Source, open_source

Item = TypeVar("Item")


def build_sft(recipe: Recipe, folder: Path | None = None) -> Task:
    """Return the task of supervised fine-tuning.

    Args:
        recipe: of `sft`.
        folder: the `assets/` of a run that is resumed.

    Raises:
        OdonataError: the data, weights or options cannot be used.
    """
    options: SFTOptions = recipe.method
    source = open_source(recipe, folder, wants_reference=False)
    source.read(read_exchanges, lambda _, task, notes: worked_rows(task, options.examples, recipe.seed, notes))
    _note_answers(source, options)
    encoder = ExchangeEncoder(source.encoder, options.learn)
    train, heldout = source.encoded(encoder, lambda row: len(row.ids), LearnedRow.cut)
    pad = PadLearned(source.pad_id)
    evaluator = ExampleEvaluator(heldout, pad, recipe.evaluation.batch_size)
    return source.finished(
        NextToken(source.start.decoder), _batches(recipe, Keyed(train), len(train), pad),
        evaluator.measure if heldout else None,
    )  # fmt: skip


def build_preference(recipe: Recipe, folder: Path | None = None) -> Task:
    """Return the task of DPO, IPO or SimPO.

    Args:
        recipe: of one of them.
        folder: the `assets/` of a run that is resumed.

    Raises:
        OdonataError: the data, weights or options cannot be used.
    """
    options: PairOptions = recipe.method
    referred = not isinstance(options, SimPOOptions)
    once = not isinstance(options, SimPOOptions) and options.precompute_reference
    source = open_source(recipe, folder, wants_reference=referred and not once)
    source.read(
        read_preferences,
        lambda start, _, notes: pair_rows(judged_answers(start, options.sampled, recipe.seed, notes)),
    )
    encoder = source.encoder

    def encode(item: Preference) -> PairRow:
        prompt = item.prompt
        sides = (tuple(encoder.completion(prompt, text)) for text in (item.chosen, item.rejected))
        return PairRow(tuple(encoder.prompt(prompt)), *sides).check()

    train, heldout = source.encoded(encode, lambda row: row.length, PairRow.cut)
    known = source.reference_logprobs(train, heldout) if once else {}
    pad = PadPairs(source.pad_id)
    refs = known["train"].tolist() if known else [None] * len(train)
    evaluator = PairEvaluator(heldout, pad, recipe.evaluation.batch_size, known.get("heldout"))
    return source.finished(
        PreferenceMethod(source.start.decoder, objective_of(options), source.start.reference),
        _batches(recipe, Keyed(list(zip(train, refs, strict=True))), len(train), pad),
        evaluator.measure if heldout else None,
    )


def build_kto(recipe: Recipe, folder: Path | None = None) -> Task:
    """Return the task of KTO.

    Args:
        recipe: of `kto`.
        folder: the `assets/` of a run that is resumed.

    Raises:
        OdonataError: the data, weights or options cannot be used.
    """
    options: KTOOptions = recipe.method
    data: DialogueData = recipe.data
    if data.batch_size < 2:
        raise RecipeError(
            "--data.batch-size 1: kto compares with answers to other prompts of the batch; take 2 or more"
        )
    source = open_source(recipe, folder, wants_reference=True)
    source.read(
        read_judgements,
        lambda start, _, notes: judgement_rows(judged_answers(start, options.sampled, recipe.seed, notes)),
    )
    encoder = source.encoder

    def encode(item: Judgement) -> JudgedRow:
        prompt, answer = encoder.prompt(item.prompt), encoder.completion(item.prompt, item.completion)
        return JudgedRow(tuple(prompt), tuple(answer), item.desirable)

    train, heldout = source.encoded(encode, lambda row: row.length, JudgedRow.cut)
    if len({row.prompt for row in train}) < 2:
        raise DataError(f"{source.parts.train.origin}: all rows have one prompt; kto needs answers to others as well")
    weights = _weights(train, options, source.notes)
    pad, most = PadJudged(source.pad_id), source.data.max_length
    evaluator = JudgementEvaluator(JudgedRows(heldout, most), pad, recipe.evaluation.batch_size)
    assert source.start.reference is not None  # it was asked for
    batches = _batches(recipe, JudgedRows(train, most), len(train), pad)
    assert isinstance(batches.sampler, Shuffled)
    return source.finished(
        KTO(source.start.decoder, options, weights, source.start.reference),
        dataclasses.replace(batches, sampler=Partners(batches.sampler, [row.prompt for row in train])),
        evaluator.measure if heldout else None,
    )


def _weights(train: Sequence[JudgedRow], options: KTOOptions, notes: list[str]) -> tuple[float, float]:
    good = sum(row.desirable for row in train)
    if options.balance is None:
        weights = 1.0, 1.0
    elif not 0 < good < len(train):
        raise DataError(
            f"{'no' if good else 'all'} answers are unwanted, so the two kinds cannot be balanced: add rows of the "
            "other kind, or set --balance None"
        )
    else:
        weights = kto_weights(good, len(train) - good, options.balance)
    notes.append(f"{good} answers are wanted and weigh {weights[0]:.3g}, {len(train) - good} are not: {weights[1]:.3g}")
    return weights


def _note_answers(source: Source, options: SFTOptions) -> None:
    """Say what of conversations is learned; refuse to choose where there is no choice."""
    answers = [sum(turn.role == "assistant" for turn in item.turns) for item in source.parts.train.items]
    if options.learn == "all" and not any(answers):
        raise RecipeError(
            f"--learn all is about conversations; {source.parts.train.origin} holds prompts that are text"
        )
    earlier = sum(count - 1 for count in answers if count)
    if earlier and options.learn == "last":
        source.notes.append(f"{earlier} earlier answers of the conversations are not learned (--learn all)")


@dataclass(frozen=True)
class Keyed(Generic[Item]):
    """Rows by (epoch, index); an epoch changes nothing."""

    rows: Sequence[Item]

    def __getitem__(self, key: Key) -> Item:
        return self.rows[key[1]]


def _batches(recipe: Recipe, dataset: Any, length: int, pad: Callable[[Any], Any]) -> Batches[Any]:
    data: DialogueData = recipe.data
    if length < data.batch_size:
        raise DataError(f"{length} rows to train on are fewer than --data.batch-size {data.batch_size}")
    return Batches(dataset, Shuffled(length, data.batch_size, recipe.seed), pad, data.workers, recipe.seed)
