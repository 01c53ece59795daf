"""From a recipe of a method that learns from its own answers to what the engine trains."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from odonata.data.dialogues import Question, read_questions
from odonata.data.loader import Batches, Shuffled
from odonata.engine.distributed import world_size
from odonata.engine.recipe import Recipe
from odonata.engine.task import Task as EngineTask
from odonata.errors import DataError, RecipeError
from odonata.language.sampling import Sampling
from odonata.posttrain import presets
from odonata.posttrain.evaluation import PolicyEvaluator
from odonata.posttrain.grpo import GRPO, GRPOOptions
from odonata.posttrain.options import OnlineOptions, PromptData
from odonata.posttrain.questions import PromptItem, Questions, RowQuestions, SetQuestions
from odonata.posttrain.rewards.interface import Reward, check_weights
from odonata.posttrain.rewards.model import ModelReward
from odonata.posttrain.rewards.names import reward_named
from odonata.posttrain.rollout import Asking
from odonata.posttrain.rows import Encoder, encoded, read_parts
from odonata.posttrain.start import Start, starting_point
from odonata.posttrain.tasks import TASKS, Task, task_named


def build_grpo(recipe: Recipe, folder: Path | None = None) -> EngineTask:
    """Return the task of GRPO or one of its kin.

    Args:
        recipe: of such a method.
        folder: the `assets/` of a run that is resumed.

    Raises:
        OdonataError: the data, weights, rewards or options cannot be used.
    """
    recipe, filled = _with_preset(recipe)
    options: GRPOOptions = recipe.method
    data: PromptData = recipe.data
    options.check(data.path)
    data.check()
    check_rewards(options, data.path)
    _check_buffer(options, data.path)
    recipe = with_truth(recipe)
    options = recipe.method
    start = starting_point(options, data.path, seed=recipe.seed, wants_reference=options.beta > 0, folder=folder)
    sources = questions(start, data, recipe)
    asking = asking_of(options, start, recipe.seed, options.group)
    rounds = options.resample + 1
    if isinstance(sources.train, RowQuestions) and len(sources.train) < data.batch_size * rounds:
        raise DataError(
            f"{data.path}: {len(sources.train)} prompts are fewer than the {data.batch_size} × {rounds} that a step "
            "sets aside: lower --data.batch-size or --resample"
        )
    evaluator = PolicyEvaluator(sources.heldout, asking, recipe.evaluation.batch_rows, truth_of(asking, start))
    return EngineTask(
        method=GRPO(start.decoder, options, asking, start.reference),
        batches=Batches(
            sources.train, Shuffled(len(sources.train), data.batch_size * rounds, recipe.seed), list, data.workers,
            recipe.seed,
        ),
        batch_size=data.batch_size * options.group,
        fingerprint=sources.fingerprint,
        evaluate=evaluator.measure if evaluator.measures else None,
        goal="heldout/right" if evaluator.measures else "",
        save_assets=start.save,
        assets=start.assets,
        recipe=recipe,
        notes=[*start.notes, *sources.notes, *filled],
    )  # fmt: skip


def _check_buffer(options: GRPOOptions, path: str) -> None:
    """Refuse a price on overlong answers that no answer of a task is long enough for, before its base is made."""
    if path:
        return
    limit = min(options.max_new_tokens, longest_answer(task_named(options.task or next(iter(TASKS)))))
    if options.overlong_buffer >= limit:
        raise RecipeError(
            f"--overlong-buffer {options.overlong_buffer} must be below the {limit} tokens that an answer to this task "
            "has at most"
        )


def _with_preset(recipe: Recipe) -> tuple[Recipe, list[str]]:
    """Return a recipe with its preset filled in, and what to say of it."""
    if not (preset := recipe.method.preset):
        return recipe, []
    from odonata.posttrain.recipes import by_name  # at call: recipes name the options of every method

    chosen = presets.applied(recipe, by_name(recipe.name))
    wanted = presets.named(recipe.name)[preset]
    got = {name: chosen.optim.lr if name == "optim.lr" else getattr(chosen.method, name) for name in wanted}
    shown = ", ".join(f"--{name.replace('_', '-')} {value}" for name, value in got.items())
    return chosen, [f"preset {preset}: {shown}"]


@dataclass
class Sources:
    """Prompts to train on, and held back."""

    train: Questions
    heldout: Sequence[PromptItem]
    fingerprint: str
    notes: list[str]


def questions(start: Start, data: PromptData, recipe: Recipe) -> Sources:
    """Return the prompts of a task, or of a file.

    Raises:
        DataError: the file cannot be used, a prompt is too long, or there are fewer than a step or its ranks need.
    """
    ranks, count = world_size(), recipe.evaluation.prompts
    if data.batch_size < ranks:
        raise DataError(f"--data.batch-size {data.batch_size}: {ranks} processes need a prompt each")
    if start.task is not None:
        texts = start.task.texts
        heldout = SetQuestions(texts, "test", start.assets.tokenizer)
        train = SetQuestions(texts, "train", start.assets.tokenizer)
        notes = [f"data: {texts.name}, embedded: new prompts without end; {count} others held back"]
        return Sources(train, [heldout[0, i] for i in range(count)], texts.name, notes)
    encoder = Encoder(start.assets.tokenizer, start.assets.template)
    data, notes = _within_positions(data, start, recipe.method.max_new_tokens)
    parts = read_parts(read_questions, data, recipe.seed)
    parts.notes += notes
    rows = _rows(parts.train.items, encoder, data, parts.notes)
    held = _rows(parts.heldout.items, encoder, data, parts.notes)[:count] if parts.heldout is not None and count else []
    if len(rows) < data.batch_size:
        raise DataError(f"{data.path}: {len(rows)} prompts are fewer than --data.batch-size {data.batch_size}")
    heldout = [RowQuestions(held)[0, i] for i in range(len(held))]
    return Sources(RowQuestions(rows), heldout, parts.train.fingerprint(), parts.notes)


Row = tuple[tuple[int, ...], str, dict[str, object]]


def _within_positions(data: PromptData, start: Start, answer: int) -> tuple[PromptData, list[str]]:
    """Return the data's options with room for an answer within the positions that a model has learned."""
    config = start.decoder.config
    room = config.max_position_embeddings - answer
    if config.positions != "learned" or data.max_length <= room:
        return data, []
    if room < 1:
        raise RecipeError(
            f"--max-new-tokens {answer}: the model's positions end at {config.max_position_embeddings}, and a prompt "
            "needs some"
        )
    note = (
        f"the model's positions end at {room + answer}: --data.max-length is taken as {room}, the rest is the answer's"
    )
    return dataclasses.replace(data, max_length=room), [note]


def _rows(items: Sequence[Question], encoder: Encoder, data: PromptData, notes: list[str]) -> list[Row]:
    def encode(item: Question) -> Row:
        return tuple(encoder.prompt(item.prompt)), encoder.text(item.prompt), dict(item.row)

    return encoded(items, encode, lambda row: len(row[0]), lambda row, most: None, data, notes)


def asking_of(options: OnlineOptions, start: Start, seed: int, group: int) -> Asking:
    """Return how prompts are answered and judged.

    Raises:
        RecipeError: no reward is named and there is no task, or one is unknown.
        DataError: the model has no token to end an answer with.
    """
    start.assets.tokenizer.end()
    rewards, weights = rewards_of(options.reward, options.reward_weights, start)
    longest = longest_answer(start.task) if start.task is not None else options.max_new_tokens
    return Asking(
        start.assets.tokenizer, rewards, weights, group, min(options.max_new_tokens, longest),
        Sampling(options.temperature), seed,
    )  # fmt: skip


def longest_answer(task: Task) -> int:
    """Return the tokens that an answer to a built-in task may have: those of its longest text, and a few more."""
    return task.texts.longest + 8


def check_rewards(options: OnlineOptions, path: str) -> None:
    """Refuse rewards and weights that cannot be used, before a base is made or weights are read.

    Raises:
        RecipeError: none is named and there is no task, one is unknown, or the weights do not fit.
    """
    if not options.reward and path:
        raise RecipeError("name what is earned with --reward: math, format, countdown, code, or file.py:function")
    names = options.reward or task_named(options.task or next(iter(TASKS))).built_in.rewards
    check_weights([reward_named(name).name for name in names], options.reward_weights or [1.0] * len(names))


def rewards_of(names: Sequence[str], weights: Sequence[float], start: Start) -> tuple[list[Reward], list[float]]:
    """Return rewards and their weights: those named, or the task's.

    Raises:
        RecipeError: none is named and there is no task, or one is unknown.
    """
    if not names:
        if start.task is None:
            raise RecipeError("name what is earned with --reward: math, format, countdown, code, or file.py:function")
        names, weights = start.task.built_in.rewards, weights or start.task.built_in.weights
    rewards = [reward_named(name) for name in names]
    for reward in rewards:
        if isinstance(reward, ModelReward):
            reward.check_reads(start.assets.tokenizer)
    return rewards, list(weights) or [1.0] * len(names)


def with_truth(recipe: Recipe) -> Recipe:
    """Return a recipe in which the true reward of a built-in task stands, with weight 0, beside those that are named.

    So a policy that finds out how to earn without being right is seen to.
    """
    options: OnlineOptions = recipe.method
    if recipe.data.path or not options.reward:
        return recipe
    truth = task_named(options.task or next(iter(TASKS))).built_in.truth
    if truth in options.reward:
        return recipe
    weights = options.reward_weights or (1.0,) * len(options.reward)
    method = dataclasses.replace(options, reward=(*options.reward, truth), reward_weights=(*weights, 0.0))
    return dataclasses.replace(recipe, method=method)


def truth_of(asking: Asking, start: Start) -> str:
    """Return the name of the reward that says whether an answer is right: the task's, or the first."""
    return start.task.built_in.truth if start.task is not None else asking.rewards[0].name
