"""Choosing pairs with a filtering network before a DFN run trains on them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import torch

from odonata.align.assets import Assets
from odonata.align.clip import CLIP, CLIPConfig
from odonata.align.dfn import DFNConfig, best_share, score_pairs
from odonata.align.predictor import TwoTowerPredictor, load
from odonata.align.ring import alone
from odonata.data.sample import ImageTextSource
from odonata.engine.config_file import read_recipe_name
from odonata.engine.distributed import World
from odonata.engine.fit import train
from odonata.engine.recipe import Recipe
from odonata.engine.run import write_atomically
from odonata.engine.task import Task
from odonata.errors import RecipeError, WeightsError

_KEPT = "kept.json"
_FILTER = "filter"


def choose_pairs(
    recipe: Recipe, source: ImageTextSource, build: Callable[[Recipe, Path | None], Task], notes: list[str]
) -> tuple[list[int], TwoTowerPredictor]:
    """Return the indices of the pairs that a DFN run trains on, and the network that chose them.

    Args:
        recipe: of the run.
        source: the pool.
        build: builds the task of the filtering network's recipe.
        notes: told what happened.

    Raises:
        RecipeError: `--filter-by` holds no pair of towers.
    """
    config: DFNConfig = recipe.method
    if config.filter_by:
        scorer = open_filter(Path(config.filter_by), torch.device("cpu"))
    else:
        scorer = _train_filter(recipe, build)
        notes.append(f"filter: trained on {config.clean} for {config.filter_steps} steps")
    scores = score_pairs(scorer, source)
    kept = best_share(scores, config.keep)
    notes.append(f"filter: {scorer.name} keeps {len(kept)} of {len(source)} pairs, cosine ≥ {scores[kept].min():.3f}")
    return kept.tolist(), scorer


def open_filter(path: Path, device: torch.device) -> TwoTowerPredictor:
    """Return what scores pairs: a DFN run's own filter, another run's model, or published weights.

    Raises:
        RecipeError: it is no pair of towers.
        WeightsError: nothing there.
    """
    if not path.exists():
        raise WeightsError(f"{path}: no such run folder or weights")
    method = read_recipe_name(path / "config.yaml")[0] if (path / "config.yaml").is_file() else None
    own = path / "assets" / _FILTER
    found = load(own, None, device) if own.is_dir() else load(path, method, device)
    if not isinstance(found, TwoTowerPredictor):
        raise RecipeError(f"{path} scores no pairs: it is no pair of towers")
    return found


def _train_filter(recipe: Recipe, build: Callable[[Recipe, Path | None], Task]) -> TwoTowerPredictor:
    """Train the filtering network in memory; every rank trains the same one, so that they keep the same pairs."""
    config: DFNConfig = recipe.method
    shared = {f.name: getattr(config, f.name) for f in dataclasses.fields(CLIPConfig)}
    clean = dataclasses.replace(
        recipe,
        name="clip",
        method=CLIPConfig(**shared),
        data=dataclasses.replace(recipe.data, path=config.clean, images=None, split=None),
        evaluation=dataclasses.replace(recipe.evaluation, pairs=0, zeroshot="none"),
        steps=config.filter_steps,
        eval_every=0,
        early_stop=0,
        parallel="ddp",
    )
    task = build(clean, None)
    with alone():
        train(clean, task, None, World(0, 1, torch.device("cpu")))
    assert isinstance(task.method, CLIP) and isinstance(task.assets, Assets)
    return TwoTowerPredictor(task.method.model, task.assets, "the filtering network", torch.device("cpu"))


def read_kept(assets: Path) -> list[int]:
    """Return the choice that a run made at its start.

    Raises:
        WeightsError: it is missing.
    """
    try:
        return json.loads((assets / _KEPT).read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise WeightsError(f"{assets / _KEPT}: cannot read which pairs the run keeps: {error}") from error


def write_choice(assets: Path, kept: list[int], scorer: TwoTowerPredictor) -> None:
    """Write the choice, and the network that made it, into a run's `assets/`."""
    write_atomically(assets / _KEPT, json.dumps(kept))
    scorer.convert(assets / _FILTER)
