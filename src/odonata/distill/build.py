"""From a distillation recipe to what the engine trains, and from its run to the student."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from odonata.backbones.create import build as build_tower
from odonata.backbones.interface import Backbone
from odonata.data.loader import Batches, labels_of
from odonata.data.pictures import (
    PictureData,
    ViewDataset,
    collate_views,
    picture_sampler,
    train_and_heldout_pictures,
    with_classes_of,
)
from odonata.data.sample import ImageTextSource
from odonata.distill.distill import Distill, DistillConfig
from odonata.distill.losses.interface import DistillLoss, loss_class
from odonata.distill.taps import read_taps, shapes_of
from odonata.distill.teacher import Teacher, find_teacher, teacher_of
from odonata.engine.recipe import Recipe
from odonata.engine.task import Task
from odonata.errors import RecipeError
from odonata.represent.assets import TowerAssets
from odonata.represent.build import at_size, describe, effective, read_start, start_from, tower_assets
from odonata.represent.evaluation import Evaluator, labels_tensor, spread_over
from odonata.represent.exhibits import shown_by
from odonata.represent.predictor import TowerPredictor, bare_tower_of_run


@dataclass(frozen=True)
class DistillAssets:
    """Student and teacher as plain descriptions; their weights are in the checkpoints."""

    student: TowerAssets
    teacher: Teacher

    def save(self, folder: Path) -> None:
        """Write `model.json` (the student, as any tower of the house) and `teacher.json`."""
        self.student.save(folder)
        self.teacher.save(folder)


def build(recipe: Recipe, folder: Path | None = None) -> Task:
    """Return the task of a recipe.

    Args:
        recipe: of this room.
        folder: the `assets/` of a run that is resumed.

    Raises:
        OdonataError: the data, the weights or the options cannot be used, or teacher and student do not fit.
    """
    data: PictureData = recipe.data
    train, heldout = train_and_heldout_pictures(data)
    start = None if folder else read_start(recipe.method)
    recipe, derived = effective(at_size(recipe, start), len(train))
    config: DistillConfig = recipe.method
    assets = TowerAssets.load(folder) if folder else tower_assets(config, train, start)
    notes = describe(train, heldout, config)
    heldout = with_classes_of(heldout, assets.classes) if heldout is not None else None
    student = build_tower(assets.tower)
    if start:
        start_from(student, start, config)
        notes += start.notes
    student.reset_head(len(assets.classes))
    teacher = teacher_of(folder, assets.classes) if folder else find_teacher(config, recipe, assets.classes)
    notes += teacher.notes
    losses = make_losses(config, student, teacher, train, recipe.seed)
    method = Distill(
        config, student, assets.preprocess, len(assets.classes), teacher.module, teacher.preprocess, losses
    )
    if folder is None:
        notes += check_teacher(teacher, heldout, assets, recipe.evaluation.pictures)
    evaluator = Evaluator(assets, train, heldout, recipe.evaluation)
    dataset = ViewDataset(train, Distill.views(config), recipe.seed, on_error=data.on_error)
    return Task(
        method=method,
        batches=Batches(dataset, picture_sampler(train, data, recipe.seed), collate_views, data.workers, recipe.seed),
        batch_size=data.batch_size,
        fingerprint=train.fingerprint(),
        evaluate=evaluator.measure if evaluator.measures else None,
        goal=evaluator.goal(method),
        save_assets=DistillAssets(assets, teacher).save,
        assets=assets,
        recipe=recipe,
        notes=notes + evaluator.notes + derived,
    )


def make_losses(
    config: DistillConfig, student: Backbone, teacher: Teacher, train: ImageTextSource, seed: int
) -> dict[str, DistillLoss]:
    """Return the losses of a recipe, built for the shapes of both sides.

    Raises:
        RecipeError: a loss cannot compare these two; prints both sides' names and shapes.
    """
    names = [name for name in config.loss if name != "none"]
    if len(set(names)) < len(names):
        raise RecipeError(f"--loss names one loss twice: {' '.join(names)}")
    size, cpu = config.image_size, torch.device("cpu")
    student.eval()
    ours = shapes_of(lambda x: read_taps(student, x, "student"), f"student {config.backbone}", size, cpu)
    theirs = shapes_of(teacher.module.eval(), f"teacher {config.teacher or 'resnet20'}", size, cpu)
    student.train()
    options: dict[str, dict[str, Any]] = {"kd": {"temperature": config.temperature}, "crd": {}}
    if "crd" in names:
        labelled = config.negatives == "other_classes"
        options["crd"] = {
            "num_samples": len(train),
            "labels": torch.tensor(labels_of(train.samples)) if labelled else None,
            "negatives": config.negatives,
            "num_negatives": config.num_negatives,
            "seed": seed,
        }
    return {name: loss_class(name)(ours, theirs, **options.get(name, {})) for name in names}


@torch.no_grad()
def check_teacher(teacher: Teacher, heldout: ImageTextSource | None, assets: TowerAssets, most: int) -> list[str]:
    """Return what the teacher knows of the held-back pictures, and a warning where it knows nothing.

    Raises:
        RecipeError: its classes have other names, in another order, than those of the data.
    """
    count = len(assets.classes)
    if teacher.classes and teacher.classes != assets.classes and len(teacher.classes) == count:
        if set(teacher.classes) == set(assets.classes):
            raise RecipeError(
                "the teacher knows the same classes in another order: "
                f"{', '.join(teacher.classes[:4])} … against {', '.join(assets.classes[:4])} …"
            )
        return [
            f"teacher: its classes are called {', '.join(teacher.classes[:3])} …, those of the data "
            f"{', '.join(assets.classes[:3])} …: they are matched by number"
        ]
    samples = spread_over(heldout, min(most, 500)) if heldout and most else []
    rows: list[Tensor] = []
    for start in range(0, len(samples), 64):
        pixels = [teacher_view(sample.image.tensor(), teacher, assets) for sample in samples[start : start + 64]]
        logits = teacher.module(torch.stack(pixels)).logits
        if logits is None or logits.shape[1] != count:
            return [f"teacher: no classifier of {count} classes: only its features can teach"]
        rows.append(logits)
    if not rows:
        return []
    share = float((torch.cat(rows).argmax(1) == labels_tensor(samples)).double().mean())
    known = f"teacher: {share:.1%} of {len(samples)} held-back pictures right"
    return [known + ("; it knows little of these pictures: is --data.path right?" if share < 2 / count else "")]


def teacher_view(pixels: Tensor, teacher: Teacher, assets: TowerAssets) -> Tensor:
    """Return a picture as the teacher sees it in training: the student's size, its own statistics."""
    from dataclasses import replace

    own = teacher.preprocess
    return replace(assets.preprocess, mean=own.mean, std=own.std)(pixels)


def load(path: Path, method: str | None, device: torch.device, **options: Any) -> TowerPredictor:
    """Return the student of a run.

    Raises:
        WeightsError: the run's weights do not fit its description.
    """
    which = options.get("which", "best")
    student, assets = bare_tower_of_run(path, which), TowerAssets.load(path / "assets")
    note = f"the student of a distillation, {which} checkpoint"
    return TowerPredictor(student.eval().to(device), assets.preprocess, assets.classes, device, "distill", [note])


def exhibits(recipe: Recipe, run: Path, count: int) -> Iterator[tuple[str, list[str]]]:
    """Yield held-back pictures with what the student says of them."""
    yield from shown_by(load(run, recipe.name, torch.device("cpu")), recipe.data, count)
