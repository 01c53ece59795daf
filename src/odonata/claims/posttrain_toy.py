"""The bench of this room's claims: sums of digits, a base that has read them, and the product's own recipes.

Trials differ in the seed of what is sampled and drawn; the base is one and the same, made before them.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from odonata.claims.claim import Figures
from odonata.engine.distributed import World
from odonata.engine.fit import train as train_task
from odonata.engine.recipe import Recipe
from odonata.engine.task import Task as EngineTask
from odonata.language.assets import DecoderAssets
from odonata.language.decoder import Decoder
from odonata.language.language_model import open_model, published_files
from odonata.language.sampling import Sampling
from odonata.posttrain import recipes
from odonata.posttrain.build import build
from odonata.posttrain.evaluation import PolicyEvaluator
from odonata.posttrain.questions import SetQuestions
from odonata.posttrain.rewards.names import reward_named
from odonata.posttrain.rollout import Asking
from odonata.posttrain.start import make_base
from odonata.posttrain.tasks import Task, task_named
from odonata.weights.published import write_folder

DATA = (
    "Rows of six digits and the last digit of their sum, 30 % of the texts with the running sums before the answer, of "
    "which 3 in 100 go wrong. Texts are made by a rule, as every task whose answers a program can check is. The "
    "base has "
    "96 thousand weights. Prompts that models are measured on are in no text that anything was trained on."
)
PROMPTS = 512
"""On which models are measured: two standard errors of a share are 4.4 points at most."""


def save_base(folder: Path, budget: float, task: str, variant: str = "", steps: int = 0) -> None:
    """Make a base and write it as a directory, unless it is there.

    Args:
        folder: the directory.
        budget: share of the full training.
        task: with its options.
        variant: size; empty: the task's own.
        steps: of training; 0: the task's own.
    """
    if (folder / "config.json").is_file():
        return
    found = task_named(task)
    built_in = dataclasses.replace(
        found.built_in,
        variant=variant or found.built_in.variant,
        steps=max(2, round((steps or found.built_in.steps) * budget)),
    )
    decoder, assets, _ = make_base(Task(found.texts, built_in), 0)
    write_folder(folder, published_files(decoder.state_dict(), assets))


def recipe_of(name: str, model: Path, *, task: str, steps: int, seed: int, **method: Any) -> Recipe:
    """Return a method's recipe on a task from a model, without evaluations on the way.

    Args:
        name: of the method.
        model: what it begins with.
        task: with its options.
        steps: updates.
        seed: of all chance.
        method: options of the method.
    """
    plain = recipes.by_name(name)
    asks = any(field.name == "prompts" for field in dataclasses.fields(plain.evaluation))
    return dataclasses.replace(
        plain,
        method=dataclasses.replace(plain.method, model=str(model), task=task, **method),
        evaluation=dataclasses.replace(plain.evaluation, prompts=0) if asks else plain.evaluation,
        steps=steps,
        seed=seed,
        eval_every=0,
    )


def trained(recipe: Recipe) -> EngineTask:
    """Train a recipe in memory and return its task, whose method holds what came out."""
    task = build(recipe)
    train_task(task.recipe or recipe, task, None, World(0, 1, torch.device("cpu")))
    return task


def policy_of(task: EngineTask) -> tuple[Decoder, DecoderAssets]:
    """Return the policy of a trained task, and its assets."""
    decoder = task.method.decoder
    assert isinstance(decoder, Decoder)
    return decoder, task.assets


def opened(folder: Path) -> tuple[Decoder, DecoderAssets]:
    """Return a model that was written."""
    decoder, assets, _ = open_model(folder)
    return decoder, assets


def figures_of(decoder: Decoder, assets: DecoderAssets, task: str, split: str, seed: int) -> Figures:
    """Return, in percent, `right` of sampled and `greedy` of greedy answers, and the sampled ones' `length` in tokens.

    Args:
        decoder: the model.
        assets: its tokenizer.
        task: with its options.
        split: `val` where settings are chosen, `test` where figures are reported.
        seed: of what is sampled.
    """
    found = task_named(task)
    source = SetQuestions(found.texts, split, assets.tokenizer)
    truth = reward_named(found.built_in.truth)
    asking = Asking(assets.tokenizer, [truth], [1.0], 1, found.texts.longest + 8, Sampling(), seed)
    evaluator = PolicyEvaluator([source[0, i] for i in range(PROMPTS)], asking, 256, truth.name)
    sampled, greedy = (evaluator.figures(decoder, Sampling(temperature)) for temperature in (1.0, 0.0))
    return {"right": 100 * sampled["right"], "greedy": 100 * greedy["right"], "length": sampled["length"]}
