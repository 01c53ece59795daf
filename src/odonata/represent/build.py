"""From a recipe of this room to what the engine trains."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from odonata.backbones.create import build as build_tower
from odonata.backbones.create import variant
from odonata.backbones.interface import Backbone
from odonata.backbones.pretrained import load_backbone
from odonata.backbones.vit import ViT
from odonata.data.loader import Batches
from odonata.data.pictures import (
    PictureData,
    ViewDataset,
    collate_views,
    picture_sampler,
    train_and_heldout_pictures,
    with_classes_of,
)
from odonata.data.preprocess import IMAGENET, Preprocess
from odonata.data.sample import ImageTextSource
from odonata.engine.recipe import Recipe
from odonata.engine.task import Task
from odonata.errors import DataError, RecipeError, WeightsError
from odonata.represent.assets import TowerAssets
from odonata.represent.classify import Classify, ClassifyConfig
from odonata.represent.evaluation import Evaluator, readable
from odonata.represent.finetune import finetuning_form
from odonata.represent.methods import METHOD_OF
from odonata.represent.monitor import Monitor
from odonata.represent.representation import Representation, TowerOptions
from odonata.weights.towers import Hints

log = logging.getLogger(__name__)
_HEADS = ("head.", "head_distilled.")
DEFAULT_TOWER = "resnet8"
"""The tower where neither --backbone nor --init names one: small enough for a laptop's CPU."""


def build(recipe: Recipe, folder: Path | None = None) -> Task:
    """Return the task of a recipe.

    Args:
        recipe: of a method of this room.
        folder: the `assets/` of a run that is resumed.

    Raises:
        OdonataError: the data, weights or options cannot be used.
    """
    data: PictureData = recipe.data
    train, heldout = train_and_heldout_pictures(data)
    start = None if folder else read_start(recipe.method)
    recipe, derived = effective(at_size(recipe, start), len(train))
    config: TowerOptions = recipe.method
    notes = describe(train, heldout, config)
    assets = TowerAssets.load(folder) if folder else tower_assets(config, train, start)
    if heldout is not None and config.learns_classes:
        heldout = with_classes_of(heldout, assets.classes)
    backbone = build_tower(assets.tower)
    if start:
        start_from(backbone, start, config)
        notes += start.notes
    method = make_method(config, backbone, assets)
    if start and start.rest:
        notes += [f"init: {note}" for note in method.load_published_rest(start.rest)]
    dataset = ViewDataset(train, type(method).views(config), recipe.seed, on_error=data.on_error)
    sampler = picture_sampler(train, data, recipe.seed)
    evaluator = Evaluator(assets, train, heldout, recipe.evaluation, skips=data.on_error == "skip")
    return Task(
        method=method,
        batches=Batches(dataset, sampler, collate_views, data.workers, recipe.seed),
        batch_size=data.batch_size,
        fingerprint=train.fingerprint(),
        evaluate=evaluator.measure if evaluator.measures else None,
        goal=evaluator.goal(method),
        save_assets=assets.save,
        assets=assets,
        recipe=recipe,
        watch=None if config.learns_classes else Monitor(method, recipe.steps),
        notes=notes + evaluator.notes + derived,
    )


def at_size(recipe: Recipe, start: Start | None) -> Recipe:
    """Return the recipe with the side of its pictures filled in, where it is left open."""
    config: TowerOptions = recipe.method
    if config.image_size:
        return recipe
    size = start.preprocess.height_width[0] if start else native_size(variant(config.backbone or DEFAULT_TOWER))
    return dataclasses.replace(recipe, method=dataclasses.replace(config, image_size=size))


def native_size(tower: Any) -> int:
    """Return the side, in pixels, of the pictures that a tower is made for: its own, else 224, or 32 of a small one."""
    for name in ("image_size", "resolution"):
        if hasattr(tower, name):
            return int(getattr(tower, name))
    with torch.device("meta"):
        return 224 if build_tower(tower).taps[-1].stride >= 32 else 32


def make_method(config: TowerOptions, backbone: Backbone, assets: TowerAssets) -> Representation:
    """Return the method of a configuration around a tower."""
    kind: Callable[..., Representation] = METHOD_OF[type(config)]
    if isinstance(config, ClassifyConfig):
        return Classify(config, backbone, assets.preprocess, len(assets.classes))
    return kind(config, backbone, assets.preprocess)


def effective(recipe: Recipe, pictures: int) -> tuple[Recipe, list[str]]:
    """Return the recipe with what follows from data and batch, and the lines that say so.

    Args:
        recipe: as it was given.
        pictures: to train on.
    """
    config, batch = recipe.method, recipe.data.batch_size
    lr, steps = recipe.optim.lr, recipe.steps
    rate = f"learning rate {lr:.4g}"
    if config.lr_per:
        lr = recipe.optim.lr * batch / config.lr_per
        rate = f"learning rate {recipe.optim.lr:.4g} × {batch} / {config.lr_per} = {lr:.4g}"
    if config.epochs:
        steps = max(1, math.ceil(config.epochs * (pictures // batch)))
    warms = config.head_warmup if config.head_warmup >= 0 else (0.1 if config.init else 0.0)
    slower = config.backbone_lr if config.backbone_lr >= 0 else (0.1 if config.init else 1.0)
    scales = dict(recipe.optim.lr_scales)
    if slower != 1.0 and "backbone." not in scales:
        scales |= {"backbone.": slower} | ({"backbone.head.": 1.0} if config.learns_classes else {})
    decay = getattr(config, "layer_decay", 0.0) or recipe.optim.layer_decay
    optim = dataclasses.replace(recipe.optim, lr=lr, lr_scales=scales, layer_decay=decay)
    method = dataclasses.replace(config, lr_per=0, epochs=0.0, head_warmup=warms, backbone_lr=1.0)
    share = f"{recipe.devices} × {batch // recipe.devices // recipe.accumulate} × {recipe.accumulate} accumulated"
    lines = [
        f"effective batch: {batch} = {share}",
        f"effective {rate}, then {recipe.schedule.kind} after a warm-up of {_warmup(recipe, steps)} steps",
        f"effective length: {steps} steps = {steps * batch / pictures:.1f} epochs of {pictures} pictures",
    ]
    if warms:
        lines.append(
            f"head warm-up: only the heads learn for {warms:.0%} of the run; then the tower at {slower:g} × the rate"
        )
    return dataclasses.replace(recipe, method=method, optim=optim, steps=steps), lines


def _warmup(recipe: Recipe, steps: int) -> int:
    warmup = recipe.schedule.warmup
    return round(warmup * steps) if warmup < 1 else round(warmup)


@dataclass
class Start:
    """The tower that a run begins with, as `--init` names it."""

    tower: Backbone
    preprocess: Preprocess
    notes: list[str]
    rest: dict[str, Tensor]
    """What else a published file holds: heads, queues."""


def read_start(config: TowerOptions) -> Start | None:
    """Return the tower that `--init` names; None where it names none.

    Raises:
        WeightsError: it cannot be read.
    """
    if not config.init:
        return None
    path, part = Path(config.init), config.init_part or None
    if not path.exists():
        raise WeightsError(f"--init {path}: no such run folder or weights")
    if (path / "config.yaml").is_file():
        from odonata.represent.predictor import tower_of_run

        tower, assets, name = tower_of_run(path, part)
        return Start(tower, assets.preprocess, [f"init: tower of {path} ({name}); heads start anew"], {})
    found = load_backbone(path, Hints(part=part))
    notes = [f"init: {note}" for note in found.published.notes]
    return Start(found.backbone, found.preprocess, notes, found.published.rest)


def start_from(backbone: Backbone, start: Start, config: TowerOptions) -> None:
    """Fill a tower with the weights of another.

    A transformer may come in another form than it was pre-trained in: with trainable positions, for another size of
    pictures, pooled otherwise, with stochastic depth.

    Raises:
        RecipeError: they are of another architecture.
    """
    tower = start.tower
    if isinstance(tower, ViT) and isinstance(backbone, ViT) and _same_blocks(tower, backbone):
        tower = finetuning_form(tower, backbone.config)
    own = backbone.state_dict()
    state = {k: v for k, v in tower.state_dict().items() if not k.startswith(_HEADS)}
    wrong = [k for k, v in state.items() if k not in own or own[k].shape != v.shape]
    wrong += [k for k in own if k not in state and not k.startswith(_HEADS)]
    if wrong:
        seen = list(state[wrong[0]].shape) if wrong[0] in state else "nothing"
        want = list(own[wrong[0]].shape) if wrong[0] in own else "nothing"
        raise RecipeError(
            f"--init {config.init}: {len(wrong)} tensors do not fit --backbone {config.backbone} at "
            f"--image-size {config.image_size}, such as {wrong[0]}: want {want}, found {seen}"
        )
    backbone.load_state_dict(state, strict=False)


def _same_blocks(one: ViT, other: ViT) -> bool:
    """Whether two transformers have the same blocks and patches, however they place and pool them."""
    names = ("width", "depth", "num_heads", "mlp_width", "patch_size", "class_token", "layer_scale")
    return all(getattr(one.config, name) == getattr(other.config, name) for name in names)


def tower_assets(config: TowerOptions, source: ImageTextSource, start: Start | None = None) -> TowerAssets:
    """Return what a recipe's tower is and what its pictures go through.

    Args:
        config: of the method.
        source: the pictures; gives the classes, where the method learns them.
        start: the tower that `--init` names: its architecture, where `--backbone` names none, and its normalisation.

    Raises:
        RecipeError: the tower cannot be had.
        DataError: the method learns classes, and there are not two.
    """
    tower = start.tower.config if start and not config.backbone else variant(config.backbone or DEFAULT_TOWER)
    name = config.backbone or type(tower).__name__
    fields = {field.name for field in dataclasses.fields(tower)}
    if "image_size" in fields:
        tower = _sized(tower, name, config.image_size)
    if getattr(config, "drop_path", 0.0):
        if "drop_path" not in fields:
            raise RecipeError(f"--drop-path: {name} has no stochastic depth")
        tower = dataclasses.replace(tower, drop_path=config.drop_path)  # pyright: ignore[reportAttributeAccessIssue]
    classes = source.classes or () if config.learns_classes else ()
    if config.learns_classes and len(classes) < 2:
        found = f"one class only ({classes[0]!r})" if classes else "no classes"
        raise DataError(f"{source.origin}: {found}: a classifier needs two or more, as folders path/class/*.jpg")
    size = config.image_size
    # Small pictures are scaled whole; larger ones as ImageNet's evaluation has it. The normalisation belongs to the
    # weights.
    way = {"resize": "squash"} if size <= 64 else {"resize": "shortest", "resize_size": round(size * 256 / 224)}
    if start:
        way |= {"mean": start.preprocess.mean, "std": start.preprocess.std}
        if start.preprocess.height_width != (size, size):
            made = start.preprocess.height_width[0]
            start.notes.append(f"init: made for pictures of {made} px; here --image-size is {size}")
    elif (made := native_size(tower)) >= 128 > 64 >= size and "image_size" not in fields:
        log.warning("%s is made for pictures of %d px and --image-size is %d: little is left of them", name, made, size)
    return TowerAssets(tower, Preprocess.from_dict(IMAGENET.to_dict() | {"size": size} | way), classes)


def _sized(tower: Any, name: str, size: int) -> Any:
    try:
        return dataclasses.replace(tower, image_size=size)
    except ValueError as error:
        raise RecipeError(f"--backbone {name} --image-size {size}: {error}") from error


def describe(train: ImageTextSource, heldout: ImageTextSource | None, config: TowerOptions) -> list[str]:
    held = f", {len(heldout)} held back" if heldout is not None else ", none held back"
    notes = [f"data: {len(train)} pictures of {train.origin}{held}"]
    if train.problems:
        notes.append(f"left out: {len(train.problems)} pictures, first: {train.problems[0]}")
    if train.classes and not config.learns_classes:
        notes.append(
            f"labels: {len(train.classes)} classes, not used for training; kNN on held-back pictures uses them"
        )
    # What cannot be read is named, or left out, where it is used.
    first = [s for s in train[: min(64, len(train))] if readable(s)]
    small = [s for s in first if min(s.image.tensor().shape[-2:]) < config.image_size]
    if small:
        notes.append(
            f"pictures smaller than --image-size {config.image_size}, such as {small[0].image.name}: they are enlarged"
        )
    return notes
