"""From a recipe of a reward model, or of a method with a value network, to what the engine trains."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch import nn

from odonata.data.dialogues import NEUTRAL, Preference, Steps, read_preferences, read_steps
from odonata.data.loader import Batches, Shuffled
from odonata.engine.distributed import world_size
from odonata.engine.method import Method
from odonata.engine.recipe import Recipe
from odonata.engine.task import Task
from odonata.errors import DataError, RecipeError
from odonata.language.assets import adapt
from odonata.posttrain.build_offline import Keyed
from odonata.posttrain.build_online import asking_of, check_rewards, questions, truth_of, with_truth
from odonata.posttrain.evaluation import PolicyEvaluator
from odonata.posttrain.options import DialogueData, PolicyOptions, PromptData
from odonata.posttrain.ppo import PPO, PPOOptions
from odonata.posttrain.preference import PairRow
from odonata.posttrain.process_reward import (
    PadSteps,
    PRMOptions,
    ProcessReward,
    StepEvaluator,
    StepRow,
    encode_steps,
    outcome_only,
    solution_rows,
)
from odonata.posttrain.reward_losses import IGNORED
from odonata.posttrain.reward_model import PadPairs, PairEvaluator, RewardModel, RewardOptions
from odonata.posttrain.sampled import judged_answers, pair_rows, write_rows
from odonata.posttrain.scorer import (
    Scorer,
    ScorerAssets,
    StepRule,
    check_vocabulary,
    decoder_folder,
    open_scorer,
)
from odonata.posttrain.source import Source, check_rows, source_of
from odonata.posttrain.start import Start, starting_point
from odonata.weights.scorers import OUTPUTS, ScorerKind

_VALUE = "value"
"""Where the `assets/` of a run of PPO describe its value network."""


def build_reward(recipe: Recipe, folder: Path | None = None) -> Task:
    """Return the task of a reward model.

    Args:
        recipe: of `reward`.
        folder: the `assets/` of a run that is resumed.

    Raises:
        OdonataError: the data, weights or options cannot be used.
    """
    options: RewardOptions = recipe.method
    source = _open(recipe, folder)
    source.read(
        read_preferences,
        lambda start, _, notes: pair_rows(judged_answers(start, options.sampled, recipe.seed, notes)),
    )
    _note_margins(source, options)
    encoder = source.encoder

    def encode(item: Preference) -> tuple[PairRow, float]:
        prompt = tuple(encoder.prompt(item.prompt))
        sides = (tuple(encoder.completion(item.prompt, text)) for text in (item.chosen, item.rejected))
        return PairRow(prompt, *sides).check(), _margin(item, options)

    def cut(row: tuple[PairRow, float], most: int) -> tuple[PairRow, float] | None:
        shorter = row[0].cut(most)
        return (shorter, row[1]) if shorter is not None else None

    train, heldout = source.encoded(encode, lambda row: row[0].length, cut)
    scorer, assets = _scorer(source, "reward")
    pad = PadPairs(source.pad_id)
    evaluator = PairEvaluator(heldout, pad, recipe.evaluation.batch_size)
    return _finished(
        source, assets, RewardModel(scorer, options), _batches(source, train, pad),
        evaluator.measure if heldout else None, "heldout/loss", better="lower",
    )  # fmt: skip


def build_prm(recipe: Recipe, folder: Path | None = None) -> Task:
    """Return the task of a process reward model.

    Args:
        recipe: of `prm`.
        folder: the `assets/` of a run that is resumed.

    Raises:
        OdonataError: the data, weights or options cannot be used.
    """
    options: PRMOptions = recipe.method
    source = _open(recipe, folder)
    by_steps = source.task is not None and source.task.texts.name.startswith("digits-sum")
    source.read(
        partial(read_steps, zero=options.zero or None),
        lambda start, _, notes: solution_rows(
            judged_answers(start, options.sampled, recipe.seed, notes), by_steps=by_steps
        ),
    )
    _check_neutral(source, options)
    steps: StepRule = "separator" if source.task is None else "digits-sum" if by_steps else "whole"
    separator = options.separator.replace("\\n", "\n") if source.task is None else ""

    def encode(item: Steps) -> StepRow:
        return encode_steps(item, source.encoder, separator, options.neutral)

    train, heldout = source.encoded(encode, lambda row: row.length, StepRow.cut)
    train, heldout = ([row for row in rows if set(row.labels) != {IGNORED}] for rows in (train, heldout))
    learned = [outcome_only(row) for row in train] if options.labels == "outcome" else train
    scorer, assets = _scorer(source, "steps", steps, separator)
    pad = PadSteps(source.pad_id)
    evaluator = StepEvaluator(heldout, pad, recipe.evaluation.batch_size)
    goal = "heldout/outcome" if options.labels == "outcome" else "heldout/balanced"
    return _finished(
        source, assets, ProcessReward(scorer), _batches(source, learned, pad),
        evaluator.measure if heldout else None, goal,
    )  # fmt: skip


def build_ppo(recipe: Recipe, folder: Path | None = None) -> Task:
    """Return the task of PPO.

    Args:
        recipe: of `ppo`.
        folder: the `assets/` of a run that is resumed.

    Raises:
        OdonataError: the data, weights, rewards or options cannot be used.
    """
    data: PromptData = recipe.data
    recipe.method.check(data.path)
    data.check()
    if (share := data.batch_size // world_size()) < recipe.method.minibatches:
        raise RecipeError(
            f"--minibatches {recipe.method.minibatches}: a process has {share} answers of a step to divide; take fewer "
            "updates, or a larger --data.batch-size"
        )
    check_rewards(recipe.method, data.path)
    recipe = with_truth(recipe)
    options: PPOOptions = recipe.method
    start = starting_point(options, data.path, seed=recipe.seed, wants_reference=options.beta > 0, folder=folder)
    value, assets, notes = _value_network(start, options, folder, share=recipe.parallel == "ddp")
    sources = questions(start, data, recipe)
    asking = asking_of(options, start, recipe.seed, 1)
    evaluator = PolicyEvaluator(sources.heldout, asking, recipe.evaluation.batch_rows, truth_of(asking, start))

    def save(place: Path) -> None:
        start.save(place)
        (place / _VALUE).mkdir(exist_ok=True)
        assets.save(place / _VALUE)

    return Task(
        method=PPO(start.decoder, value, options, asking, start.reference),
        batches=Batches(
            sources.train, Shuffled(len(sources.train), data.batch_size, recipe.seed), list, data.workers, recipe.seed
        ),
        batch_size=data.batch_size,
        fingerprint=sources.fingerprint,
        evaluate=evaluator.measure if evaluator.measures else None,
        goal="heldout/right" if evaluator.measures else "",
        save_assets=save,
        assets=start.assets,
        recipe=recipe,
        notes=[*start.notes, *notes, *sources.notes],
    )


def _value_network(
    start: Start, options: PPOOptions, folder: Path | None, *, share: bool
) -> tuple[Scorer, ScorerAssets, list[str]]:
    """Return the value network with what belongs to it, and what to say of it.

    Args:
        start: the policy, with its adapters.
        options: say what it begins as.
        folder: the `assets/` of a run that is resumed.
        share: with adapters on both, whether the value network may hold the policy's frozen weights.
    """
    lora, tokenizer = options.lora, start.assets.tokenizer
    if folder is not None:
        assets = ScorerAssets.load(folder / _VALUE)
        scorer, notes = assets.make(), list[str]()
    elif options.value_model:
        scorer, assets, notes = open_scorer(options.value_model)
        if assets.kind != "reward":
            raise RecipeError(f"--value-model {options.value_model} scores steps; values begin from a reward model")
        check_vocabulary(tokenizer, assets.decoder.tokenizer, f"--value-model {options.value_model}")
        notes = [f"values begin from {note}" for note in notes[:1]]
        if lora.rank:
            adapt(scorer.decoder, lora)
            assets = dataclasses.replace(assets, decoder=dataclasses.replace(assets.decoder, lora=lora))
    else:
        scorer = Scorer(copy.deepcopy(start.decoder))
        assets = ScorerAssets(dataclasses.replace(start.assets, config=scorer.decoder.config), "reward")
        notes = ["values begin from the policy, with a head of zero"]
    if lora.rank and share and not options.value_model:
        shared = share_frozen(start.decoder, scorer.decoder)
        notes.append(f"values share {shared:,} frozen weights with the policy")
    return scorer, assets, notes


def share_frozen(policy: nn.Module, value: nn.Module) -> int:
    """Let the value network hold the policy's own frozen parameters in place of equal ones; return how many weights."""
    theirs = {name: parameter for name, parameter in policy.named_parameters() if not parameter.requires_grad}
    shared = 0
    for name, parameter in list(value.named_parameters()):
        if name in theirs and not parameter.requires_grad:
            parent, _, last = name.rpartition(".")
            setattr(value.get_submodule(parent), last, theirs[name])
            shared += parameter.numel()
    return shared


def _open(recipe: Recipe, folder: Path | None) -> Source:
    """Check the options, and return the model that a scorer is made of as a source of rows."""
    data: DialogueData = recipe.data
    options: PolicyOptions = recipe.method
    options.check(data.path)
    check_rows(data)
    inner = decoder_folder(folder) if folder is not None else None
    start = starting_point(options, data.path, seed=recipe.seed, wants_reference=False, folder=inner)
    return source_of(recipe, start, folder)


def _scorer(
    source: Source, kind: ScorerKind, steps: StepRule = "separator", separator: str = "\n"
) -> tuple[Scorer, ScorerAssets]:
    """Return the scorer of a source's model, which loses its head, and what belongs to it."""
    start = source.start
    scorer = Scorer(start.decoder, OUTPUTS[kind], bias=kind == "steps")
    decoder = dataclasses.replace(start.assets, config=scorer.decoder.config)
    return scorer, ScorerAssets(decoder, kind, steps, separator)


def _batches(source: Source, rows: Sequence[Any], pad: Callable[[Any], Any]) -> Batches[Any]:
    data: DialogueData = source.recipe.data
    if len(rows) < data.batch_size:
        raise DataError(f"{len(rows)} rows to train on are fewer than --data.batch-size {data.batch_size}")
    sampler = Shuffled(len(rows), data.batch_size, source.recipe.seed)
    return Batches(Keyed(rows), sampler, pad, data.workers, source.recipe.seed)


def _finished(
    source: Source,
    assets: ScorerAssets,
    method: Method,
    batches: Batches[Any],
    measure: Callable[[Method], dict[str, float]] | None,
    goal: str,
    *,
    better: Literal["higher", "lower"] = "higher",
) -> Task:
    def save(folder: Path) -> None:
        assets.save(folder)
        if source.rows is not None:
            write_rows(folder, source.rows)

    return Task(
        method=method,
        batches=batches,
        batch_size=source.data.batch_size,
        fingerprint=source.parts.train.fingerprint(),
        evaluate=measure,
        goal=goal if measure else "",
        better=better,
        save_assets=save,
        assets=assets,
        notes=source.notes,
    )


def _margin(item: Preference, options: RewardOptions) -> float:
    if options.margin != "file":
        return options.margin
    if item.margin is None:
        raise DataError("the row has no margin, and --margin file asks for it; name one number for all instead")
    return item.margin


def _note_margins(source: Source, options: RewardOptions) -> None:
    known = sum(getattr(item, "margin", None) is not None for item in source.parts.train.items)
    if known and options.margin != "file":
        source.notes.append(f"{known} rows say by how much their better answer is better; --margin file uses that")


def _check_neutral(source: Source, options: PRMOptions) -> None:
    neutral = any(NEUTRAL in item.labels for item in source.parts.train.items)
    if not neutral and options.neutral != "good":
        raise RecipeError(f"--neutral {options.neutral}: {source.parts.train.origin} has no neutral steps")
