"""The protocols of `odonata evaluate`, each figure with its bootstrap interval over pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from odonata.align.predictor import TwoTowerPredictor
from odonata.data.image_text import ImageTextData, hold_back, train_and_heldout
from odonata.data.sample import ImageTextSource
from odonata.data.scenes import TEMPLATES
from odonata.data.sources import open_image_text
from odonata.errors import DataError
from odonata.metrics.bootstrap import bootstrap_mean
from odonata.metrics.figure import Figure
from odonata.metrics.knn import knn_scores
from odonata.metrics.probe import sweep_linear_probe
from odonata.metrics.retrieval import ranks
from odonata.metrics.templates import read_templates, templates


class Embedder(Protocol):
    """What the protocols for classes ask of a model."""

    def embed_image(self, images: Sequence[Any], batch_size: int = 64) -> Float[Tensor, "images dim"]: ...


def pairs(path: str, split: str | None) -> ImageTextSource:
    """Return the pairs to retrieve among: the split named, else test, else val, else all."""
    source = open_image_text(path)
    chosen = split or next((name for name in ("test", "val") if source.has_split(name)), None)
    return source.split(chosen) if chosen else source


def heldout_of(data: ImageTextData) -> ImageTextSource:
    """Return what a run held back.

    Raises:
        DataError: it held nothing back.
    """
    _, heldout = train_and_heldout(data)
    if heldout is None:
        raise DataError(f"{data.path}: the run held nothing back; name pairs with --retrieval")
    return heldout


def retrieval_figures(model: Any, source: ImageTextSource, most: int, batch_size: int) -> dict[str, Figure]:
    """Return R@1, 5, 10 both ways and median ranks. Captions of one picture are resampled together.

    Raises:
        DataError: the model has no text tower.
    """
    samples = source[:most]
    images = model.embed_image([sample.image for sample in samples], batch_size)
    texts = model.embed_text([caption for sample in samples for caption in sample.captions])
    owner = torch.tensor([row for row, sample in enumerate(samples) for _ in sample.captions])
    by_image, by_text = ranks(images, texts, owner)
    figures: dict[str, Figure] = {}
    for k in (1, 5, 10):
        figures[f"image_to_text/recall@{k}"] = _share((by_image <= k).double(), len(samples))
        figures[f"text_to_image/recall@{k}"] = _share_of_captions((by_text <= k).double(), owner, len(samples))
    for name, found in (("image_to_text", by_image), ("text_to_image", by_text)):
        figures[f"{name}/median_rank"] = Figure(found.double().quantile(0.5).item(), None, None, len(found))
    return figures


def zeroshot_figures(
    model: Any, path: str, template_file: Path | None, most: int, batch_size: int
) -> dict[str, Figure]:
    """Return top-1 and top-5 of the nearest class prompt.

    Raises:
        DataError: the set has no classes, or the model no text tower.
    """
    source = _with_classes(open_image_text(path))
    held = next((name for name in ("test", "val") if source.has_split(name)), None)
    source = source.split(held) if held else source
    assert source.classes is not None
    if template_file:
        prompts = read_templates(template_file)
    else:
        prompts = TEMPLATES if path.startswith("scenes") else templates("small")
    images, labels = _features(model, source, most, batch_size)
    if isinstance(model, TwoTowerPredictor):
        scores = images @ model.embed_classes(source.classes, prompts).T
    else:
        chosen = _evenly(source, most)
        predictions = model.predict([source[i].image for i in chosen], source.classes)
        scores = torch.tensor([p.probabilities for p in predictions])
    return {
        f"zeroshot/top{k}": _share(_hits(scores, labels, k), len(labels)) for k in (1, 5) if k < len(source.classes)
    }


def probe_figures(model: Embedder, path: str, most: int, batch_size: int) -> dict[str, Figure]:
    """Return the accuracy of logistic regression on frozen features (2103.00020, app. A.3: l2 by validation)."""
    train, test = _train_and_test(path)
    fit, validation = hold_back(train, 0.2)
    if validation is None:
        raise DataError(f"{path}: too few pictures for a probe")
    (x, y), (x_val, y_val), (images, labels) = (
        _features(model, part, most, batch_size) for part in (fit, validation, test)
    )
    probe, _ = sweep_linear_probe(x, y, x_val, y_val)
    accuracy = _share((probe.scores(images).argmax(1) == labels).double(), len(labels))
    return {"probe/top1": accuracy, "probe/l2": Figure(probe.l2, None, None, len(y) + len(y_val))}


def knn_figures(model: Embedder, path: str, most: int, batch_size: int, k: int = 20) -> dict[str, Figure]:
    """Return the accuracy of weighted nearest neighbours (DINO, 2104.14294: temperature 0.07)."""
    train, test = _train_and_test(path)
    assert train.classes is not None
    bank, bank_labels = _features(model, train, most, batch_size)
    images, labels = _features(model, test, most, batch_size)
    scores = knn_scores(bank, bank_labels, images, k=min(k, len(bank)), classes=len(train.classes))
    return {f"knn/top1 (k={min(k, len(bank))})": _share((scores.argmax(1) == labels).double(), len(labels))}


def _train_and_test(path: str) -> tuple[ImageTextSource, ImageTextSource]:
    source = _with_classes(open_image_text(path))
    held = next((name for name in ("test", "val") if source.has_split(name)), None)
    if held and source.has_split("train"):
        return source.split("train"), source.split(held)
    train, test = hold_back(source, 0.3)
    if test is None:
        raise DataError(f"{path}: too few pictures to hold any back")
    return train, test


def _with_classes(source: ImageTextSource) -> ImageTextSource:
    if source.classes is None or len(source.classes) < 2:
        raise DataError(f"{source.origin}: a folder of classes is needed, with two classes or more")
    return source


def _evenly(source: ImageTextSource, most: int) -> list[int]:
    """Indices spread over the whole source: folders lie class by class."""
    count = min(most, len(source))
    return [i * len(source) // count for i in range(count)]


def _features(
    model: Embedder, source: ImageTextSource, most: int, batch_size: int
) -> tuple[Float[Tensor, "images dim"], Int[Tensor, " images"]]:
    chosen = _evenly(source, most)
    images = model.embed_image([source[i].image for i in chosen], batch_size)
    return images, torch.tensor([source[i].label if source[i].label is not None else -1 for i in chosen])


def _hits(scores: Float[Tensor, "images classes"], labels: Int[Tensor, " images"], k: int) -> Float[Tensor, " images"]:
    return (scores.topk(k, 1).indices == labels[:, None]).any(1).double()


def _share(hits: Float[Tensor, " pictures"], count: int) -> Figure:
    interval = bootstrap_mean(hits.tolist())
    return Figure(float(hits.mean()), interval.low, interval.high, count)


def _share_of_captions(
    hits: Float[Tensor, " captions"], owner: Int[Tensor, " captions"], pictures: int, resamples: int = 2_000
) -> Figure:
    """Return the share of captions; its interval draws whole pictures, for their captions are not independent."""
    found = torch.zeros(pictures, dtype=torch.float64).index_add_(0, owner, hits)
    asked = torch.bincount(owner, minlength=pictures).double()
    drawn = torch.randint(pictures, (resamples, pictures), generator=torch.Generator().manual_seed(0))
    shares = found[drawn].sum(1) / asked[drawn].sum(1).clamp(min=1)
    low, high = shares.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Figure(float(hits.mean()), low, high, len(hits))
