"""Pictures for a run's report: what the segmenter says beside what is there."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from odonata.data.class_map import ClassMap
from odonata.data.pictures import chosen_indices
from odonata.data.semantic import VOID
from odonata.data.semantic_batches import train_and_heldout_semantic
from odonata.segment.predictor import load

SIDE = 320
"""Longest side of a picture on the page, in pixels."""


def exhibits(recipe: Any, run: Path, count: int) -> Iterator[tuple[str, list[str]]]:
    """Yield held-back pictures: what is there on the left, what a run of this room says on the right."""
    _, heldout = train_and_heldout_semantic(recipe.data)
    if heldout is None:
        return
    model = load(run, recipe.name, torch.device("cpu"))
    samples = [heldout[i] for i in chosen_indices(len(heldout), count)]
    for sample, answer in zip(samples, model.find([s.image for s in samples]), strict=True):
        picture, there = sample.image.open(), torch.from_numpy(sample.map.read())
        truth = ClassMap(there, (), heldout.palette)
        plain = ClassMap(answer.map, (), model.palette)
        counted = there != VOID
        right = float((answer.map == there)[counted].float().mean()) if bool(counted.any()) else 0.0
        painted = [painted_on(picture, truth), painted_on(picture, plain)]
        yield in_a_row(painted), [f"right: {right:.0%} of the pixels", f"found: {answer.summary()[2]}"]


def painted_on(picture: Image.Image, answer: ClassMap) -> Image.Image:
    """The picture with the classes painted onto it, without a legend."""
    from odonata.data.drawing import draw_class_map

    return draw_class_map(picture, answer.map.numpy(), answer.palette)


def in_a_row(pictures: list[Image.Image], gap: int = 6) -> str:
    """The pictures beside each other as a data: address."""
    for picture in pictures:
        picture.thumbnail((SIDE, SIDE))
    canvas = Image.new("RGB", (sum(p.width + gap for p in pictures) - gap, max(p.height for p in pictures)), "white")
    left = 0
    for picture in pictures:
        canvas.paste(picture, (left, 0))
        left += picture.width + gap
    buffer = io.BytesIO()
    canvas.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
