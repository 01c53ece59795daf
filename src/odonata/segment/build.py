"""From a recipe of this room to what the engine trains."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import torch
from torch import Tensor, nn

from odonata.backbones.vgg import VGG, VGGConfig, convolutional_state
from odonata.data.loader import Batches, Shuffled
from odonata.data.semantic import SemanticSource
from odonata.data.semantic_batches import (
    SemanticData,
    SemanticDataset,
    collate_semantic,
    train_and_heldout_semantic,
)
from odonata.engine.presets import with_preset
from odonata.engine.recipe import Recipe
from odonata.engine.task import Task
from odonata.errors import RecipeError, WeightsError
from odonata.segment.assets import SegmenterAssets
from odonata.segment.augmentation import training_transform
from odonata.segment.evaluation import Evaluator, label_table
from odonata.segment.methods import METHOD_OF
from odonata.segment.pspnet import PSPNetConfig
from odonata.segment.segmenter import Segmenter, SegmenterOptions

_SCORES = (".logits.", ".score.", ".skip_scores.", ".doublings.")
"""Parts of the names of tensors that count classes."""


def build(recipe: Recipe, folder: Path | None = None) -> Task:
    """Return the task of a recipe.

    Args:
        recipe: of a method of this room.
        folder: the `assets/` of a run that is resumed.

    Raises:
        OdonataError: the data, weights or options cannot be used.
    """
    data: SemanticData = recipe.data
    train, heldout = train_and_heldout_semantic(data)
    recipe, derived = effective(recipe, train)
    config: SegmenterOptions = recipe.method
    notes = describe(train, heldout)
    assets = (
        SegmenterAssets.load(folder) if folder else SegmenterAssets(recipe.name, config, train.classes, train.palette)
    )
    if heldout is not None:
        label_table(heldout.classes, assets.classes)
    method = assets.build()
    if folder is None and config.init:
        notes += start_from(method, config, assets.classes)
    dataset = SemanticDataset(train, training_transform(config, data), recipe.seed, on_error=data.on_error)
    evaluator = Evaluator(assets, heldout, recipe.evaluation)
    return Task(
        method=method,
        batches=Batches(
            dataset,
            Shuffled(len(train), data.batch_size, recipe.seed),
            collate_semantic(config.crop or config.framing.divisor),
            data.workers,
            recipe.seed,
        ),
        batch_size=data.batch_size,
        fingerprint=train.fingerprint(),
        evaluate=evaluator.measure if evaluator.measures else None,
        goal="mIoU" if evaluator.measures else "",
        save_assets=assets.save,
        assets=assets,
        recipe=recipe,
        notes=notes + derived,
    )


def effective(recipe: Recipe, train: SemanticSource) -> tuple[Recipe, list[str]]:
    """Return the recipe with its preset filled in and what follows from the data, and the lines that say so.

    Args:
        recipe: as it was given.
        train: the pictures to train on.

    Raises:
        RecipeError: the preset is unknown, or the batch too small for a normalisation.
    """
    config, batch, steps = with_preset(recipe.method), recipe.data.batch_size, recipe.steps
    if isinstance(config, PSPNetConfig) and config.norm == "batch" and batch // recipe.devices < 2 and 1 in config.bins:
        raise RecipeError(
            f"--data.batch-size is {batch} on {recipe.devices} devices: the mean over a whole picture is one number a "
            "channel, which a batch of one picture cannot be normalised by; take 2 or more a device, or --norm group"
        )
    if config.epochs:
        steps = max(1, math.ceil(config.epochs * max(1, len(train) // batch)))
    optim = dataclasses.replace(recipe.optim, lr_scales=rate_scales(config) | recipe.optim.lr_scales)
    method = dataclasses.replace(config, epochs=0.0, head_lr=1.0, bias_lr=1.0)
    line = f"effective length: {steps} steps = {steps * batch / len(train):.1f} epochs of {len(train)} pictures"
    return dataclasses.replace(recipe, method=method, optim=optim, steps=steps), [line]


def rate_scales(config: SegmenterOptions) -> dict[str, float]:
    """Return the factors on rates that `head_lr` and `bias_lr` ask for, by the beginnings of parameters' names."""
    with torch.device("meta"):
        method = METHOD_OF[type(config)](config, 2)
    scales: dict[str, float] = {}
    if config.head_lr != 1:
        for name, part in method.network.named_children():
            if name != "backbone" and any(p.requires_grad for p in part.parameters()):
                scales[f"network.{name}."] = config.head_lr
    if config.bias_lr != 1:
        for name, module in method.named_modules():
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                of_head = 1.0 if name.startswith("network.backbone.") else config.head_lr
                scales[f"{name}.bias"] = config.bias_lr * of_head
    return scales


def describe(train: SemanticSource, heldout: SemanticSource | None) -> list[str]:
    """Return the lines that say what is trained on."""
    held = f", {len(heldout)} held back" if heldout is not None else ", none held back"
    names = ", ".join(train.classes[:8]) + (f" and {len(train.classes) - 8} more" if len(train.classes) > 8 else "")
    notes = [
        f"data: {len(train)} pictures of {train.origin} ({train.kind}){held}",
        f"{len(train.classes)} classes: {names}",
    ]
    if train.problems:
        notes.append(f"left out: {len(train.problems)}, first: {train.problems[0]}")
    return notes


def start_from(method: Segmenter, config: SegmenterOptions, classes: tuple[str, ...]) -> list[str]:
    """Fill a segmenter with the weights that `--init` names, and return notes.

    A segmenter's weights fill all that has the same name and shape, so that FCN-16s begins where an FCN-32s ended; but
    scores of classes only where both tables are the same. A tower's weights fill the tower; a VGG classifier's dense
    layers become convolutions where the tower has such.

    Raises:
        WeightsError: nothing there, or nothing fits.
        RecipeError: the tower's pictures are normalised otherwise.
    """
    path = Path(config.init)
    if not path.exists():
        raise WeightsError(f"--init {path}: no such run folder or weights")
    from odonata.segment.predictor import load, recognises

    is_run = (path / "config.yaml").is_file()
    if is_run or recognises(path):
        name = None
        if is_run:
            from odonata.engine.config_file import read_recipe_name

            name = read_recipe_name(path / "config.yaml")[0]
        loaded = load(path, name, torch.device("cpu"))
        return _fill(method, loaded.segmenter.state_dict(), str(path), loaded.classes == classes)
    from odonata.backbones.pretrained import load_backbone

    found = load_backbone(path)
    theirs = {k: v for k, v in found.backbone.state_dict().items() if not k.startswith("head.")}
    if isinstance(found.backbone, VGG) and isinstance(method.tower, VGG):
        theirs = as_convolutions(theirs, found.backbone.config, method.tower.config)
    notes = _fill(method.tower, theirs, str(path), True)
    if (found.preprocess.mean, found.preprocess.std) != (config.framing.mean, config.framing.std):
        raise RecipeError(
            f"--init {path}: its pictures are normalised by mean {found.preprocess.mean} and std "
            f"{found.preprocess.std}; set --framing.mean and --framing.std to them"
        )
    return notes


def as_convolutions(state: dict[str, Tensor], theirs: VGGConfig, ours: VGGConfig) -> dict[str, Tensor]:
    """Return a VGG's weights with dense layers as convolutions, where ours are and theirs are not."""
    fits = theirs.fc_width >= ours.fc_width and theirs.fc6_kernel >= ours.fc6_kernel
    if theirs.top == "dense" and ours.top == "convolutions" and fits:
        return convolutional_state(state, theirs, ours)
    return state


def _fill(module: nn.Module, theirs: dict[str, Tensor], where: str, same_classes: bool) -> list[str]:
    own = module.state_dict()
    fits = {k: v for k, v in theirs.items() if k in own and own[k].shape == v.shape}
    if not same_classes:
        fits = {k: v for k, v in fits.items() if not any(part in k for part in _SCORES)}
    if not fits:
        raise WeightsError(f"--init {where}: none of its {len(theirs)} tensors fits this model; check --backbone")
    module.load_state_dict(fits, strict=False)
    anew = [k for k in own if k not in fits and not k.endswith("num_batches_tracked")]
    notes = [f"init: {len(fits)} of {len(own)} tensors from {where}"]
    if anew:
        notes.append(f"init: anew: {', '.join(anew[:4])}{f' and {len(anew) - 4} more' if len(anew) > 4 else ''}")
    return notes
