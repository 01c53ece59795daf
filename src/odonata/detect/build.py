"""From a recipe of this room to what the engine trains."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from odonata.backbones.darknet_network import DarknetNetwork
from odonata.data.loader import Batches, Shuffled
from odonata.data.object_batches import ObjectData, ObjectDataset, collate_objects, train_and_heldout_objects
from odonata.data.objects import Category, ObjectSource
from odonata.detect.assets import DetectorAssets
from odonata.detect.detector import Detector, DetectorOptions, with_preset
from odonata.detect.evaluation import Evaluator
from odonata.detect.methods import METHOD_OF
from odonata.detect.scale_policy import INFINITE, resolved_policy, training_pipeline
from odonata.engine.recipe import Recipe
from odonata.engine.task import Task
from odonata.errors import DataError, RecipeError, WeightsError
from odonata.weights.darknet import is_darknet
from odonata.weights.read import read_state


def build(recipe: Recipe, folder: Path | None = None) -> Task:
    """Return the task of a recipe.

    Args:
        recipe: of a method of this room.
        folder: the `assets/` of a run that is resumed.

    Raises:
        OdonataError: the data, weights or options cannot be used.
    """
    data: ObjectData = recipe.data
    train, heldout = train_and_heldout_objects(data)
    recipe, derived = effective(recipe, train)
    kind = METHOD_OF[type(recipe.method)]
    if kind.needs_masks and any(sample.outlines is None for sample in train):
        raise DataError(f"{train.origin}: {recipe.name} learns from outlines, and the objects have boxes only")
    notes = describe(train, heldout)
    assets = DetectorAssets.load(folder) if folder else DetectorAssets(recipe.name, recipe.method, train.categories)
    method = assets.build()
    if folder is None and recipe.method.init:
        notes += start_from(method, recipe.method, assets.categories)
    transform, mixes = training_pipeline(recipe.method, data)
    dataset = ObjectDataset(
        train,
        transform,
        recipe.seed,
        mixes=mixes,
        masks=kind.needs_masks or data.copy_paste > 0,
        on_error=data.on_error,
    )
    evaluator = Evaluator(assets, heldout, recipe.evaluation)
    return Task(
        method=method,
        batches=Batches(
            dataset,
            Shuffled(len(train), data.batch_size, recipe.seed),
            collate_objects(recipe.method.framing.divisor),
            data.workers,
            recipe.seed,
        ),
        batch_size=data.batch_size,
        fingerprint=train.fingerprint(),
        evaluate=evaluator.measure if evaluator.measures else None,
        goal="AP" if evaluator.measures else "",
        save_assets=assets.save,
        assets=assets,
        recipe=recipe,
        notes=notes + derived,
    )


def effective(recipe: Recipe, train: ObjectSource) -> tuple[Recipe, list[str]]:
    """Return the recipe with its preset filled in and what follows from the data, and the lines that say so.

    Args:
        recipe: as it was given.
        train: the pictures to train on.

    Raises:
        RecipeError: the preset is unknown, or the policy's ranges do not fit its sizes.
    """
    config, pictures = resolved_policy(with_preset(recipe.method).fitted(train), train), len(train)
    batch, steps = recipe.data.batch_size, recipe.steps
    if config.epochs:
        steps = max(1, math.ceil(config.epochs * (pictures // batch)))
    scales = dict(recipe.optim.lr_scales)
    if config.backbone_lr != 1.0:
        prefix = tower_prefix(config)
        scales.setdefault(prefix, config.backbone_lr)
    optim = dataclasses.replace(recipe.optim, lr_scales=scales)
    method = dataclasses.replace(config, epochs=0.0, backbone_lr=1.0)
    lines = [f"effective length: {steps} steps = {steps * batch / pictures:.1f} epochs of {pictures} pictures"]
    if config.scale_ranges:
        ranges = zip(config.scale_sizes, config.scale_ranges, strict=True)
        shown = ", ".join(f"{s} px: {a:g} to {'∞' if b >= INFINITE else f'{b:g}'}" for s, (a, b) in ranges)
        lines.append(f"{config.scale_policy}: √area that counts at each size: {shown}")
    return dataclasses.replace(recipe, method=method, optim=optim, steps=steps), lines


def tower_prefix(config: DetectorOptions) -> str:
    """Return how the names of the tower's parameters begin in a detector of this configuration."""
    with torch.device("meta"):
        detector = METHOD_OF[type(config)](dataclasses.replace(config, freeze=0), 1)
    tower = detector.tower
    return next(f"{name}." for name, module in detector.named_modules() if module is tower)


def describe(train: ObjectSource, heldout: ObjectSource | None) -> list[str]:
    """Return the lines that say what is trained on."""
    held = f", {len(heldout)} held back" if heldout is not None else ", none held back"
    names = ", ".join(train.names[:8]) + (f" and {len(train.names) - 8} more" if len(train.names) > 8 else "")
    notes = [
        f"data: {len(train)} pictures of {train.origin} ({train.kind}){held}",
        f"objects: {train.num_objects} of {len(train.names)} classes: {names}",
    ]
    empty = sum(len(sample.boxes) == 0 for sample in train)
    if empty:
        notes.append(f"{empty} pictures have no object; they are kept as negatives")
    if train.problems:
        notes.append(f"mended or left out: {len(train.problems)}, first: {train.problems[0]}")
    return notes


@dataclass
class _Start:
    """Weights that a run begins with, under our names."""

    state: dict[str, Tensor]
    categories: tuple[Category, ...] | None
    where: str
    notes: list[str]


def start_from(method: Detector, config: DetectorOptions, categories: tuple[Category, ...]) -> list[str]:
    """Fill a detector with the weights that `--init` names, and return notes.

    A detector's weights fill all that has the same name and shape, but the outputs of classes only where the tables of
    categories have the same names. A tower's weights fill the tower.

    Raises:
        WeightsError: nothing there, or nothing fits.
    """
    path = Path(config.init)
    if not path.exists():
        raise WeightsError(f"--init {path}: no such run folder or weights")
    from odonata.detect.predictor import load, recognises

    if (path / "config.yaml").is_file() or recognises(path):
        name = None
        if (path / "config.yaml").is_file():
            from odonata.engine.config_file import read_recipe_name

            name = read_recipe_name(path / "config.yaml")[0]
        loaded = load(path, name, torch.device("cpu"))
        same = [c.name for c in loaded.assets.categories] == [c.name for c in categories]
        return _fill(method, loaded.detector.state_dict(), str(path), same)
    if isinstance(method.tower, DarknetNetwork) and is_darknet(path):
        # A part of a network, such as darknet53.conv.74: its layers have the numbers of the cfg's.
        return _fill(method.tower, read_state(path).state, str(path), True)
    from odonata.backbones.pretrained import load_backbone

    found = load_backbone(path)
    theirs = {k: v for k, v in found.backbone.state_dict().items() if not k.startswith("head.")}
    notes = _fill(method.tower, theirs, str(path), True)
    if (found.preprocess.mean, found.preprocess.std) != (config.framing.mean, config.framing.std):
        raise RecipeError(
            f"--init {path}: its pictures are normalised by mean {found.preprocess.mean} and std "
            f"{found.preprocess.std}; set --framing.mean and --framing.std to them"
        )
    return notes


def _fill(module: torch.nn.Module, theirs: dict[str, Tensor], where: str, same_classes: bool) -> list[str]:
    own = module.state_dict()
    fits = {k: v for k, v in theirs.items() if k in own and own[k].shape == v.shape}
    if not same_classes:
        fits = {k: v for k, v in fits.items() if "class_logits" not in k and "class_embed" not in k}
    if not fits:
        raise WeightsError(f"--init {where}: none of its {len(theirs)} tensors fits this model; check --backbone")
    module.load_state_dict(fits, strict=False)
    anew = [k for k in own if k not in fits and not k.endswith("num_batches_tracked")]
    notes = [f"init: {len(fits)} of {len(own)} tensors from {where}"]
    if anew:
        notes.append(f"init: anew: {', '.join(anew[:4])}{f' and {len(anew) - 4} more' if len(anew) > 4 else ''}")
    return notes
