"""Teachers: any tower of the house, one trained on the spot, or a model that knows words."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from odonata.align.dual_encoder import DualEncoder
from odonata.align.predictor import TwoTowerPredictor
from odonata.align.predictor import load as load_words
from odonata.backbones.create import build as build_tower
from odonata.data.preprocess import Preprocess
from odonata.distill.distill import DistillConfig
from odonata.distill.losses.interface import Taps
from odonata.distill.taps import TappedTower
from odonata.engine.config_file import read_recipe_name
from odonata.engine.distributed import World
from odonata.engine.fit import train as train_task
from odonata.engine.recipe import Recipe
from odonata.engine.run import write_atomically
from odonata.errors import OdonataError, RecipeError, WeightsError
from odonata.represent import METHODS
from odonata.represent.assets import TowerAssets
from odonata.represent.predictor import TowerPredictor, recognises
from odonata.represent.predictor import load as load_tower
from odonata.represent.recipes import classify

DEFAULT = "resnet20"
"""The teacher that is trained where none is given."""


@dataclass
class Teacher:
    """A teacher, ready to be asked."""

    module: nn.Module
    """Normalised pictures → taps."""
    preprocess: Preprocess
    classes: tuple[str, ...]
    """Names of the rows of its classifier; empty where they are not known."""
    description: dict[str, Any]
    """What a run keeps of it besides its weights, which are in the checkpoints."""
    notes: list[str]

    def save(self, folder: Path) -> None:
        """Write `teacher.json`."""
        write_atomically(folder / "teacher.json", json.dumps(self.description, indent=1))


class WordsTeacher(nn.Module):
    """A model of pictures and words that teaches by its logits for the names of the classes.

    Args:
        model: the two towers.
        words: unit-length embedding of each class.
    """

    words: Tensor

    def __init__(self, model: DualEncoder, words: Float[Tensor, "classes dim"]) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("words", words)

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Taps:
        """Return the picture's embedding as pooled features, and its scaled cosines with the classes as logits."""
        pooled = nn.functional.normalize(self.model.encode_image(images), dim=-1)
        return Taps([], [], pooled, self.model.logit_scale.exp() * pooled @ self.words.T)


def find_teacher(config: DistillConfig, recipe: Recipe, classes: tuple[str, ...]) -> Teacher:
    """Return the teacher that a recipe names, or train one.

    Raises:
        OdonataError: it cannot be read, or knows other classes.
    """
    if not config.teacher:
        return _trained(config, recipe)
    path = Path(config.teacher)
    if not path.exists():
        raise WeightsError(f"--teacher {path}: no such run folder or weights")
    name = read_recipe_name(path / "config.yaml")[0] if (path / "config.yaml").is_file() else None
    if name == "distill":
        from odonata.distill.build import load as load_student

        return _tower(load_student(path, name, torch.device("cpu")), config.teacher)
    if name in METHODS or (name is None and recognises(path)):
        hints = {"part": config.teacher_part} if config.teacher_part else {}
        return _tower(load_tower(path, name, torch.device("cpu"), **hints), config.teacher)
    return _words(load_words(path, name, torch.device("cpu")), path, classes)


def teacher_of(folder: Path, classes: tuple[str, ...]) -> Teacher:
    """Return the teacher that `Teacher.save` described, its weights still to come from a checkpoint.

    Raises:
        WeightsError: the description cannot be read, or the file of a teacher that knows words has gone.
    """
    path = folder / "teacher.json"
    try:
        plain = json.loads(path.read_text())
        if "words" in plain:
            source = Path(plain["words"])
            name = read_recipe_name(source / "config.yaml")[0] if (source / "config.yaml").is_file() else None
            return _words(load_words(source, name, torch.device("cpu")), source, classes)
        assets = TowerAssets.from_plain(plain, str(path))
    except (OSError, json.JSONDecodeError, KeyError) as error:
        raise WeightsError(f"{path}: cannot read the teacher's description: {error}") from error
    backbone = build_tower(assets.tower)
    if plain["rows"]:
        backbone.reset_head(plain["rows"])
    return Teacher(TappedTower(backbone, "teacher"), assets.preprocess, assets.classes, plain, [])


def _tower(model: TowerPredictor, source: str) -> Teacher:
    weight = getattr(model.backbone.head, "weight", None)
    assets = TowerAssets(model.backbone.config, model.preprocess, model.classes)
    about = assets.to_plain() | {"rows": 0 if weight is None else int(weight.shape[0])}
    notes = [f"teacher: {source}: {note}" for note in model.notes[:3]]
    return Teacher(TappedTower(model.backbone, "teacher"), model.preprocess, model.classes, about, notes)


def _words(model: Any, path: Path, classes: tuple[str, ...]) -> Teacher:
    if not isinstance(model, TwoTowerPredictor):
        raise RecipeError(f"--teacher {path}: neither a tower nor a model of pictures and words")
    words = model.embed_classes(classes, ("a photo of a {}", "a picture of a {}", "{}"))
    note = f"teacher: {path} knows words: it teaches by its logits for the {len(classes)} classes' names"
    preprocess: Preprocess = model.assets.preprocess
    return Teacher(WordsTeacher(model.model, words), preprocess, classes, {"words": str(path)}, [note])


def _trained(config: DistillConfig, recipe: Recipe) -> Teacher:
    """Train the default teacher on the same pictures."""
    import dataclasses

    from odonata.represent.build import build

    base = classify()
    method = dataclasses.replace(
        base.method, backbone=DEFAULT, image_size=config.image_size, augmentation=config.augmentation
    )
    evaluation = dataclasses.replace(recipe.evaluation, pictures=0)
    chosen = dataclasses.replace(
        base, method=method, data=recipe.data, evaluation=evaluation, steps=config.teacher_steps, seed=recipe.seed
    )
    task = build(chosen)
    try:
        train_task(task.recipe, task, None, World(0, 1, torch.device("cpu")))
    except OdonataError as error:
        raise RecipeError(f"the teacher could not be trained: {error}") from error
    found: Any = task.method
    model = TowerPredictor(
        found.backbone.eval().cpu(), task.assets.preprocess, task.assets.classes, torch.device("cpu")
    )
    teacher = _tower(model, DEFAULT)
    teacher.notes.append(f"teacher: a {DEFAULT}, trained for {config.teacher_steps} steps on the same pictures")
    return teacher
