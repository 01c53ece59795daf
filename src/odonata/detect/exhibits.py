"""Pictures for a run's report: what the detector finds beside what is there."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from odonata.data.detections import Detections
from odonata.data.object_batches import train_and_heldout_objects
from odonata.data.objects import ObjectImage
from odonata.data.pictures import chosen_indices
from odonata.detect.predictor import load

SIDE = 320
"""Longest side of a picture on the page, in pixels."""
SHOWN = 0.3
"""Least score that is drawn."""


def exhibits(recipe: Any, run: Path, count: int) -> Iterator[tuple[str, list[str]]]:
    """Yield held-back pictures: what is there on the left, what a run of this room finds on the right."""
    _, heldout = train_and_heldout_objects(recipe.data)
    if heldout is None:
        return
    model = load(run, recipe.name, torch.device("cpu"))
    samples = [heldout[i] for i in chosen_indices(len(heldout), count)]
    for sample, answer in zip(samples, model.find([s.image for s in samples]), strict=True):
        picture = sample.image.open()
        pair = [truth_of(sample, model.categories).draw(picture), answer.draw(picture, SHOWN)]
        shown = answer.above(SHOWN)
        best = f", the surest {shown.name_of(int(shown.labels[0]))} {float(shown.scores[0]):.0%}" if len(shown) else ""
        yield as_address(pair), [f"there: {len(sample.boxes)} objects", f"found: {len(shown)}{best}"]


def truth_of(sample: ObjectImage, categories: tuple[Any, ...]) -> Detections:
    """The annotation of a sample as detections without doubt."""
    boxes, labels = torch.from_numpy(sample.boxes).float(), torch.from_numpy(sample.labels)
    return Detections(boxes, torch.ones(len(boxes)), labels, sample.size, categories)


def as_address(pictures: list[Image.Image]) -> str:
    """The pictures in a row as a data: address."""
    small = [picture.convert("RGB") for picture in pictures]
    for picture in small:
        picture.thumbnail((SIDE, SIDE))
    gap = 6
    canvas = Image.new("RGB", (sum(p.width + gap for p in small) - gap, max(p.height for p in small)), "white")
    left = 0
    for picture in small:
        canvas.paste(picture, (left, 0))
        left += picture.width + gap
    buffer = io.BytesIO()
    canvas.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
