"""What `odonata evaluate` asks of a tower: neighbours, probes, few labels, fine-tuning; each with its interval."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from odonata.backbones.create import build
from odonata.backbones.interface import Backbone
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
from odonata.data.sample import ImageText
from odonata.engine.distributed import World
from odonata.engine.fit import train as train_task
from odonata.engine.recipe import AdamW, Recipe, Schedule
from odonata.engine.task import Task
from odonata.errors import DataError
from odonata.metrics.bootstrap import bootstrap_mean
from odonata.metrics.figure import Figure
from odonata.metrics.knn import knn_scores
from odonata.metrics.probe import fit_linear_probe
from odonata.represent.classify import Classify, ClassifyConfig
from odonata.represent.evaluation import labels_tensor, spread_over
from odonata.represent.finetune import finetuning_form
from odonata.represent.predictor import TowerPredictor
from odonata.represent.protocols import KNN, PROBES, Tapping, probe_scores


@dataclass
class LabelledFeatures:
    """Frozen features of a set's two parts, by tapping."""

    train_samples: list[ImageText]
    test_samples: list[ImageText]
    classes: tuple[str, ...]
    compute: Callable[[list[ImageText], Tapping], Tensor]

    def __post_init__(self) -> None:
        self._found: dict[tuple[str, str], Tensor] = {}
        self.train_labels, self.test_labels = labels_tensor(self.train_samples), labels_tensor(self.test_samples)

    def train(self, taps: Tapping = "pooled") -> Float[Tensor, "train dim"]:
        """Return the features of the training part, computed once."""
        return self._get("train", self.train_samples, taps)

    def test(self, taps: Tapping = "pooled") -> Float[Tensor, "test dim"]:
        """Return the features of the held-back part, computed once."""
        return self._get("test", self.test_samples, taps)

    def _get(self, part: str, samples: list[ImageText], taps: Tapping) -> Tensor:
        if (part, taps) not in self._found:
            self._found[part, taps] = self.compute(samples, taps)
        return self._found[part, taps]


def labelled_features(model: TowerPredictor, data: PictureData, most: int, batch_size: int) -> LabelledFeatures:
    """Open a set of classes and return its features, computed when they are asked for.

    Args:
        model: the tower.
        data: where the pictures are; one with a single part gives a tenth of them for testing.
        most: pictures used at most of each part.
        batch_size: pictures encoded at a time.

    Raises:
        DataError: the set has no classes, or nothing to test on.
    """
    train, heldout = train_and_heldout_pictures(data)
    if train.classes is None or len(train.classes) < 2:
        raise DataError(f"{train.origin}: kNN, probes and fine-tuning need two classes or more: path/class/*.jpg")
    if heldout is None:
        raise DataError(f"{train.origin}: nothing is held back to test on; add a folder val or test, or more pictures")
    heldout = with_classes_of(heldout, train.classes)
    learned, held = (_only_labelled(spread_over(part, most)) for part in (train, heldout))
    return LabelledFeatures(
        learned, held, train.classes, lambda samples, taps: _features(model, samples, taps, batch_size)
    )


def _only_labelled(samples: Any) -> list[ImageText]:
    return [sample for sample in samples if sample.label is not None]


@torch.no_grad()
def _features(model: TowerPredictor, samples: list[ImageText], taps: Tapping, batch_size: int) -> Tensor:
    rows: list[Tensor] = []
    for start in range(0, len(samples), batch_size):
        part = samples[start : start + batch_size]
        images = torch.stack([model.preprocess(sample.image.tensor()) for sample in part]).to(model.device)
        rows.append(tap(model.backbone, images, taps).float().cpu())
    return torch.cat(rows)


def tap(backbone: Backbone, images: Float[Tensor, "batch 3 height width"], taps: Tapping) -> Float[Tensor, "batch dim"]:
    """Return what a probe learns on; towers without class tokens give their pooled features in any case."""
    if taps == "pooled" or not isinstance(backbone, ViT) or not backbone.prefix_tokens:
        return backbone.forward_head(backbone.forward_features(images), pre_logits=True)
    blocks = 4 if taps.startswith("class_x4") else 1
    depth = len(backbone.taps)
    tokens = backbone.features(images, range(depth - min(blocks, depth), depth))
    normed = [backbone.norm(block) for block in tokens]
    parts = [block[:, 0] for block in normed]
    if taps.endswith("mean"):
        parts.append(normed[-1][:, backbone.prefix_tokens :].mean(1))
    return torch.cat(parts, 1)


def accuracy(scores: Float[Tensor, "batch classes"], labels: Int[Tensor, " batch"], note: str = "") -> Figure:
    """Return the top-1 accuracy."""
    right = (scores.argmax(1) == labels).double()
    return _figure(right, note)


def _figure(right: Float[Tensor, " batch"], note: str = "") -> Figure:
    interval = bootstrap_mean(right.numpy())
    return Figure(interval.estimate, interval.low, interval.high, len(right), note)


def knn_figures(features: LabelledFeatures, names: tuple[str, ...]) -> dict[str, Figure]:
    """Return `knn/NAME` for each protocol."""
    found: dict[str, Figure] = {}
    for name in names:
        protocol = KNN[name]
        scores = knn_scores(
            features.train(), features.train_labels, features.test(), k=protocol.k, temperature=protocol.temperature,
            classes=len(features.classes),
        )  # fmt: skip
        found[f"knn/{name}"] = accuracy(scores, features.test_labels, f"k = {protocol.k}, T = {protocol.temperature}")
    return found


def probe_figures(features: LabelledFeatures, names: tuple[str, ...], seed: int = 0) -> dict[str, Figure]:
    """Return `probe/NAME` for each protocol."""
    found: dict[str, Figure] = {}
    for name in names:
        protocol = PROBES[name]
        train, test = features.train(protocol.taps), features.test(protocol.taps)
        scores, note = probe_scores(
            train, features.train_labels, test, protocol, classes=len(features.classes), seed=seed
        )
        found[f"probe/{name}"] = accuracy(scores, features.test_labels, note)
    return found


def few_shot_figures(
    features: LabelledFeatures, shots: tuple[int, ...] = (1, 5, 10), draws: int = 5
) -> dict[str, Figure]:
    """Return `few-shot/N`: logistic regression on N pictures of each class, the mean over several draws of them.

    The interval is that of the mean over draws (± 1.96 standard errors), not over test pictures.
    """
    found: dict[str, Figure] = {}
    labels = features.train_labels
    for shot in shots:
        rows = [(labels == c).nonzero()[:, 0] for c in range(len(features.classes))]
        if min(len(r) for r in rows) < shot:
            continue
        values: list[float] = []
        for draw in range(draws):
            generator = torch.Generator().manual_seed(draw)
            chosen = torch.cat([r[torch.randperm(len(r), generator=generator)[:shot]] for r in rows])
            probe = fit_linear_probe(features.train()[chosen], labels[chosen], classes=len(rows))
            right = probe.scores(features.test()).argmax(1) == features.test_labels
            values.append(float(right.double().mean()))
        shares = torch.tensor(values, dtype=torch.float64)
        error = 1.96 * float(shares.std()) / draws**0.5
        mean = float(shares.mean())
        found[f"few-shot/{shot}"] = Figure(
            mean, mean - error, mean + error, len(features.test_labels), f"{draws} draws"
        )
    return found


def finetune_figures(
    model: TowerPredictor, data: PictureData, steps: int, most: int, batch_size: int, seed: int = 0
) -> dict[str, Figure]:
    """Return `finetune`: the accuracy after training the whole tower, at laptop length.

    The recipe is MAE's (layer decay 0.65, AdamW, cosine; see `finetune.mae_finetune`) without its mixing of pictures,
    which needs long runs; towers with stages learn at one rate. The model itself is left as it is.

    Args:
        model: the tower.
        data: where the pictures are.
        steps: of training, on batches of at most 64.
        most: pictures used at most of the held-back part.
        batch_size: pictures encoded at a time.
        seed: of order and augmentation.

    Raises:
        DataError: as `labelled_features`.
    """
    train, _ = train_and_heldout_pictures(data)
    features = labelled_features(model, data, most, batch_size)
    size = model.preprocess.height_width[0]
    plain = isinstance(model.backbone, ViT)
    tower = finetuning_form(model.backbone) if isinstance(model.backbone, ViT) else copy.deepcopy(model.backbone)
    config = ClassifyConfig(image_size=size, lr_per=0)
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        method = Classify(config, tower, model.preprocess, len(features.classes))
        part = replace(data, batch_size=min(64, len(train)))
        recipe = Recipe(
            name="classify", method=config, data=part, evaluation=None, steps=steps, seed=seed,
            optim=AdamW(lr=1e-3, weight_decay=0.05, betas=(0.9, 0.999), layer_decay=0.65 if plain else 1.0),
            schedule=Schedule(warmup=0.1),
        )  # fmt: skip
        dataset = ViewDataset(train, Classify.views(config), seed)
        batches = Batches(dataset, picture_sampler(train, part, seed), collate_views, 0, seed)
        train_task(recipe, Task(method, batches, part.batch_size, ""), None, World(0, 1, model.device))
    rows: list[Tensor] = []
    method.eval()
    with torch.no_grad():
        for start in range(0, len(features.test_samples), batch_size):
            chosen = features.test_samples[start : start + batch_size]
            images = torch.stack([model.preprocess(sample.image.tensor()) for sample in chosen]).to(model.device)
            rows.append(method.logits(images).float().cpu())
    return {"finetune": accuracy(torch.cat(rows), features.test_labels, f"{steps} steps of {part.batch_size}")}


def baseline_figures(features: LabelledFeatures, size: int = 32) -> dict[str, Figure]:
    """Return kNN and probe of raw pixels, at most `size` a side: what features must beat to be worth anything."""
    from odonata.data.resize import resize

    def pixels(samples: list[ImageText], taps: Tapping) -> Tensor:
        return torch.stack([resize(s.image.tensor(), (size, size)).float().flatten() / 255 for s in samples])

    plain = LabelledFeatures(features.train_samples, features.test_samples, features.classes, pixels)
    found = knn_figures(plain, ("dino",)) | probe_figures(plain, ("lbfgs",))
    return {f"pixels/{name.partition('/')[0]}": figure for name, figure in found.items()}


def untrained(model: TowerPredictor) -> TowerPredictor:
    """Return the same tower with the weights that training starts from."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return replace(model, backbone=build(model.backbone.config).eval().to(model.device), method=None)


def heldout_accuracy(model: TowerPredictor, data: PictureData, most: int, batch_size: int) -> dict[str, Figure]:
    """Return the top-1 and top-5 accuracy of a classifier on the held-back part of a set.

    Classes are matched by name, or, where the model does not know the names of its own, by number.

    Raises:
        DataError: the set has no classes, others than the model's, or nothing held back.
    """
    train, heldout = train_and_heldout_pictures(data)
    if heldout is None:
        raise DataError(f"{train.origin}: nothing is held back to test on; add a folder val or test")
    source = with_classes_of(heldout, model.classes) if model.classes else heldout
    if source.classes is None:
        raise DataError(f"{source.origin}: accuracy needs classes: path/class/*.jpg")
    samples = _only_labelled(spread_over(source, most))
    rows: list[Tensor] = []
    with torch.no_grad():
        for start in range(0, len(samples), batch_size):
            part = samples[start : start + batch_size]
            images = torch.stack([model.preprocess(sample.image.tensor()) for sample in part]).to(model.device)
            rows.append(model.logits(images).float().cpu())
    scores, labels = torch.cat(rows), labels_tensor(samples)
    found = {"top1": accuracy(scores, labels)}
    if scores.shape[1] > 5:
        right = (scores.topk(5, dim=1).indices == labels[:, None]).any(1).double()
        found["top5"] = _figure(right)
    return found
