"""Pictures for a run's report: what lies next to what, in the eyes of the tower."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from odonata.data.pictures import PictureData, train_and_heldout_pictures
from odonata.data.sample import ImageText
from odonata.metrics.embedding_map import tsne
from odonata.represent.drawing import draw_map
from odonata.represent.evaluation import labels_tensor, pooled_features, spread_over
from odonata.represent.mae import MAE
from odonata.represent.mae_pictures import reconstructions
from odonata.represent.predictor import TowerPredictor, load

BANK = 500
NEAREST = 4
POINTS = 500
"""Held-back pictures on the map."""


def exhibits(recipe: Any, run: Path, count: int) -> Iterator[tuple[str, list[str]]]:
    """Yield held-back pictures with what a run of this room makes of them; see `shown_by`."""
    yield from shown_by(load(run, recipe.name, torch.device("cpu")), recipe.data, count)


def shown_by(model: TowerPredictor, data: PictureData, count: int) -> Iterator[tuple[str, list[str]]]:
    """Yield held-back pictures: with a classifier's answer, MAE's reconstruction, or beside those nearest to them."""
    train, heldout = train_and_heldout_pictures(data)
    if heldout is None:
        return
    samples, bank = spread_over(heldout, count), spread_over(train, BANK)
    yield from _map_of(model, spread_over(heldout, POINTS))
    if model.classifies:
        for sample, said in zip(samples, model.predict([s.image for s in samples]), strict=True):
            truth = heldout.classes[sample.label or 0] if heldout.classes else "?"
            shares = ", ".join(f"{name} {share:.0%}" for name, share in said.ranked()[:3])
            yield _as_address([sample.image.open()]), [f"model: {shares}", f"label: {truth}"]
        return
    if isinstance(model.method, MAE):
        for pictures, lines in reconstructions(model.method, samples, model.preprocess):
            yield _as_address(pictures), lines
        return
    rows = torch.nn.functional.normalize(
        pooled_features(model.backbone, [*samples, *bank], _assets(model), 64, torch.device("cpu")), dim=1
    )
    similar, nearest = (rows[: len(samples)] @ rows[len(samples) :].T).topk(min(NEAREST, len(bank)), dim=1)
    for number, sample in enumerate(samples):
        others = [bank[i] for i in nearest[number].tolist()]
        lines = [f"nearest, cosine {similar[number, 0]:.2f} … {similar[number, -1]:.2f}"]
        if train.classes and sample.label is not None:
            same = sum(other.label == sample.label for other in others)
            lines.append(f"{same} of {len(others)} are of its class, {train.classes[sample.label]!r}")
        yield _as_address([sample.image.open(), *(other.image.open() for other in others)]), lines


def _map_of(model: TowerPredictor, samples: Sequence[ImageText]) -> Iterator[tuple[str, list[str]]]:
    """Yield one drawing: held-back pictures as points, neighbours in the tower's eyes close to one another."""
    if len(samples) < 30:
        return
    rows = torch.nn.functional.normalize(
        pooled_features(model.backbone, samples, _assets(model), 64, torch.device("cpu")), dim=1
    )
    perplexity = min(30.0, len(samples) / 4)
    drawing = draw_map(tsne(rows, perplexity), labels_tensor(samples).tolist())
    yield (
        _png(drawing),
        [f"t-SNE of {len(samples)} held-back pictures, perplexity {perplexity:g}", "one colour a class"],
    )


def _assets(model: Any) -> Any:
    from odonata.represent.assets import TowerAssets

    return TowerAssets(model.backbone.config, model.preprocess, model.classes)


def _as_address(pictures: list[Image.Image], side: int = 64) -> str:
    """The pictures in a row, the first apart from the rest."""
    gap = side // 8 if len(pictures) > 1 else 0
    canvas = Image.new("RGB", (side * len(pictures) + gap, side), "white")
    for number, picture in enumerate(pictures):
        small = picture.convert("RGB")
        small.thumbnail((side, side)) if max(small.size) > side else None
        canvas.paste(small.resize((side, side)), (number * side + (gap if number else 0), 0))
    return _png(canvas)


def _png(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
