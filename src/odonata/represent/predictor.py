"""What people touch: a tower of this room that embeds, classifies, shows its features and is converted."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from odonata.backbones.create import build as build_tower
from odonata.backbones.interface import Backbone, Format
from odonata.backbones.pretrained import load_backbone, published_files
from odonata.data.any_picture import Picture, as_tensor, several
from odonata.data.preprocess import Preprocess
from odonata.engine.checkpoint import weights_file
from odonata.engine.config_file import from_plain, read_recipe_name
from odonata.errors import RecipeError, WeightsError
from odonata.represent import METHODS
from odonata.represent.assets import TowerAssets
from odonata.represent.build import make_method
from odonata.represent.classify import Classify
from odonata.represent.recipes import by_name
from odonata.represent.representation import Representation
from odonata.weights.layout import Files
from odonata.weights.maps import check_fit
from odonata.weights.published import write_folder
from odonata.weights.read import read_json, read_state
from odonata.weights.towers import Hints, is_tower

HINTS = ("num_heads", "part", "convention")
"""Options of `load` that a published file may leave open."""


@dataclass(frozen=True)
class ClassPrediction:
    """What a classifier says of one picture."""

    image: str
    probabilities: dict[str, float]

    def ranked(self) -> list[tuple[str, float]]:
        """Classes with their probabilities, the likeliest first."""
        return sorted(self.probabilities.items(), key=lambda item: -item[1])

    def to_dict(self) -> dict[str, Any]:
        """For programs."""
        return {"image": self.image, "labels": [{"label": k, "probability": round(v, 6)} for k, v in self.ranked()]}


@dataclass
class TowerPredictor:
    """A tower with its preprocessing, in evaluation mode.

    Args:
        backbone: the tower; with a classifier where it has one.
        preprocess: what its pictures go through.
        classes: what the classifier's rows are called.
        device: where it is.
        name: of the method, or the source of the weights.
        notes: what was inferred in reading.
        method: of a run: the whole method, whose heads a classifier may need.
    """

    backbone: Backbone
    preprocess: Preprocess
    classes: tuple[str, ...]
    device: torch.device
    name: str = ""
    notes: list[str] = field(default_factory=list[str])
    method: Representation | None = None

    @property
    def classifies(self) -> bool:
        """Whether there is a classifier."""
        return not isinstance(self.backbone.head, torch.nn.Identity)

    def prepare(self, image: UInt8[Tensor, "3 height width"]) -> Float[Tensor, "3 new_height new_width"]:
        """Return one picture as the tower expects it."""
        return self.preprocess(image)

    @torch.no_grad()
    def embed_prepared(self, images: Sequence[Tensor]) -> Float[Tensor, "pictures dim"]:
        """Return unit-length embeddings of prepared pictures."""
        return F.normalize(self.pooled(torch.stack(list(images)).to(self.device)).float(), dim=1).cpu()

    def embed_image(self, pictures: Picture | Sequence[Picture], batch_size: int = 64) -> Float[Tensor, "pictures dim"]:
        """Return unit-length embeddings of pictures."""
        many = several(pictures)
        parts = [many[i : i + batch_size] for i in range(0, len(many), batch_size)]
        return torch.cat([self.embed_prepared([self.prepare(as_tensor(p)) for p in part]) for part in parts])

    def embed_text(self, texts: Any) -> Tensor:
        """Refuse: this tower knows no words.

        Raises:
            RecipeError: always.
        """
        raise RecipeError(f"{self.name} learned from pictures alone: search by --image, not by words")

    @torch.no_grad()
    def pooled(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch dim"]:
        """Return the pooled features of prepared pictures, before any classifier."""
        return self.backbone.forward_head(self.backbone.forward_features(images), pre_logits=True)

    @torch.no_grad()
    def logits(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch classes"]:
        """Return the classifier's scores of prepared pictures.

        Raises:
            RecipeError: the tower has no classifier.
        """
        if isinstance(self.method, Classify):
            return self.method.logits(images)
        if not self.classifies:
            raise RecipeError(f"{self.name} has no classifier: train one with odonata train classify --init")
        return self.backbone(images)

    @torch.no_grad()
    def features(self, picture: Picture, layers: Sequence[int], format: Format = "nchw") -> list[Tensor]:
        """Return the features of one picture after the named layers; see `Backbone.features`."""
        return self.backbone.features(self.prepare(as_tensor(picture))[None].to(self.device), layers, format)

    @torch.no_grad()
    def predict(
        self, pictures: Picture | Sequence[Picture], labels: Sequence[str] = (), templates: Sequence[str] = ()
    ) -> list[ClassPrediction]:
        """Return the probabilities of the classes for each picture.

        Raises:
            RecipeError: the tower has no classifier, or labels are given to one that has classes of its own.
        """
        if labels:
            raise RecipeError(f"{self.name} has {len(self.classes)} classes of its own and takes no --labels")
        found: list[ClassPrediction] = []
        for picture in several(pictures):
            image = self.prepare(as_tensor(picture))[None].to(self.device)
            shares: list[float] = self.logits(image)[0].float().softmax(0).tolist()
            names = self.classes or tuple(f"class {i}" for i in range(len(shares)))
            found.append(ClassPrediction(str(picture), dict(zip(names, shares, strict=True))))
        return found

    def convert(self, folder: Path, layout: str) -> list[Path]:
        """Write the tower in a published layout, or in Odonata's own; return the files.

        Raises:
            WeightsError: the layout cannot say what this tower is, or the folder is not empty.
        """
        if layout != "odonata":
            return write_folder(folder, published_files(self.backbone, layout, self.preprocess))
        assets = TowerAssets(self.backbone.config, self.preprocess, self.classes)
        files = Files("model.safetensors", dict(self.backbone.state_dict()), {"model.json": assets.to_plain()})
        return write_folder(folder, files)


def recognises(path: Path) -> bool:
    """Whether a folder of Odonata's, or published weights, hold a tower.

    Raises:
        WeightsError: the file cannot be read.
    """
    if (path / "model.json").is_file():
        return "tower" in read_json(path / "model.json")
    return is_tower(path)


def load(path: Path, method: str | None, device: torch.device, **options: Any) -> TowerPredictor:
    """Return what embeds or classifies with a run of this room, a folder of Odonata's, or a published tower.

    Args:
        path: run folder, or weights.
        method: name of the run's method; None for weights.
        device: where to.
        options: `which` checkpoint of a run (`best`, `last`); and of published weights those of `HINTS`.

    Raises:
        WeightsError: nothing that this room can read.
    """
    if method is not None:
        return _load_run(path, device, options.get("which", "best"))
    if (path / "model.json").is_file():
        return _load_own(path, device)
    found = load_backbone(path, Hints(**{k: v for k, v in options.items() if k in HINTS}))
    classes = published_classes(path, found.published.classes)
    return TowerPredictor(
        found.backbone.to(device), found.preprocess, classes, device, found.published.source, found.published.notes
    )


def _load_run(path: Path, device: torch.device, which: str) -> TowerPredictor:
    method, assets, name = method_of_run(path, which)
    method = method.eval().to(device)
    notes = [f"{which} checkpoint of a {name} run"]
    return TowerPredictor(method.encoder, assets.preprocess, assets.classes, device, name, notes, method)


def method_of_run(path: Path, which: str = "best") -> tuple[Representation, TowerAssets, str]:
    """Return the trained method of a run, its assets, and its name.

    Raises:
        WeightsError: the run's weights do not fit its description.
    """
    name, plain = read_recipe_name(path / "config.yaml")
    recipe = from_plain(plain, by_name(name), str(path / "config.yaml"))
    assets = TowerAssets.load(path / "assets")
    method = make_method(recipe.method, build_tower(assets.tower), assets)
    try:
        method.load_state_dict(read_state(weights_file(path, which)).state)
    except RuntimeError as error:
        raise WeightsError(f"{path}: the weights do not fit the run's description: {error}") from error
    return method, assets, name


def tower_of_run(path: Path, part: str | None = None) -> tuple[Backbone, TowerAssets, str]:
    """Return the tower that a run learned, its assets, and the method's name.

    Args:
        path: the run folder.
        part: name of a tower within the method, such as `slow_backbone`; None takes the one that is measured.

    Raises:
        WeightsError: there is no such part.
    """
    name = read_recipe_name(path / "config.yaml")[0]
    if name not in METHODS:  # of another room: its measured tower is called `backbone` there too
        return bare_tower_of_run(path), TowerAssets.load(path / "assets"), name
    method, assets, name = method_of_run(path)
    if part is None:
        return method.encoder, assets, name
    tower = getattr(method, part, None)
    if not isinstance(tower, Backbone):
        parts = [key for key, module in method.named_children() if isinstance(module, Backbone)]
        raise WeightsError(f"{path}: a run of {name} has no tower {part!r}; it has {', '.join(parts)}")
    return tower, assets, name


def bare_tower_of_run(path: Path, which: str = "best") -> Backbone:
    """Return the tower that a run of another room learned, with its classifier; the method calls it `backbone`.

    Raises:
        WeightsError: the run's weights do not fit its description.
    """
    assets, prefix = TowerAssets.load(path / "assets"), "backbone."
    tower = build_tower(assets.tower)
    if assets.classes:
        tower.reset_head(len(assets.classes))
    state = read_state(weights_file(path, which)).state
    own = {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}
    check_fit(own, tower.state_dict(), str(path))
    tower.load_state_dict(own)
    return tower


def _load_own(path: Path, device: torch.device) -> TowerPredictor:
    assets = TowerAssets.load(path)
    backbone = build_tower(assets.tower)
    state = read_state(path / "model.safetensors").state
    if "head.weight" in state:
        backbone.reset_head(int(state["head.weight"].shape[0]))
    try:
        backbone.load_state_dict(state)
    except RuntimeError as error:
        raise WeightsError(f"{path}: the weights do not fit model.json: {error}") from error
    return TowerPredictor(
        backbone.eval().to(device), assets.preprocess, assets.classes, device, "an Odonata tower", [f"tower of {path}"]
    )


def published_classes(path: Path, count: int) -> tuple[str, ...]:
    """Return the names of a published classifier's classes, from transformers' configuration; empty if unknown."""
    file = (path if path.is_dir() else path.parent) / "config.json"
    if not count or not file.is_file():
        return ()
    named = {int(k): str(v) for k, v in (json.loads(file.read_text()).get("id2label") or {}).items()}
    return tuple(named.get(i, f"class {i}") for i in range(count)) if named else ()
