"""`odonata predict` of models that say what a picture shows in words or classes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.table import Table

from odonata.app.commands.arguments import at_least, pictures_in, print_json, print_table
from odonata.errors import RecipeError


@dataclass(frozen=True)
class LabelArguments:
    """Say what pictures show: `odonata predict RUN photo.jpg`, with --labels "a dog" "a cat" for pictures and words."""

    model: Annotated[Path, tyro.conf.Positional]
    """A run folder, or published weights."""
    pictures: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Pictures, or folders of them."""
    labels: tuple[str, ...] = ()
    """What they might show, in words; a classifier has classes of its own."""
    templates: Path | None = None
    """File with one prompt a line, `{}` standing for the label; their embeddings are averaged."""
    tokenizer: Path | None = None
    """The tokenizer's file, for published weights that come without it."""
    top: int = 5
    """Labels shown a picture."""
    json: bool = False
    """For programs: a list of {image, labels: [{label, probability}]}."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""


def predict_labels(options: LabelArguments) -> None:
    """Print a table of probabilities."""
    at_least(1, top=options.top)
    pictures = pictures_in(options.pictures)
    from odonata.app.api import load, room_of

    if not options.labels and room_of(options.model) == "align":
        raise RecipeError('predict needs --labels, such as --labels "a dog" "a cat"')
    from odonata.metrics.templates import read_templates

    more: dict[str, Any] = {"tokenizer": options.tokenizer} if options.tokenizer else {}
    model = load(options.model, device=options.device, **more)
    templates = read_templates(options.templates) if options.templates else ("{}",)
    predictions = model.predict(pictures, list(options.labels), templates)
    if options.json:
        print_json([prediction.to_dict() for prediction in predictions])
        return
    table = Table(box=None, pad_edge=False)
    for column in ("picture", "label", "probability"):
        table.add_column(column, justify="right" if column == "probability" else "left")
    for prediction in predictions:
        for number, (label, probability) in enumerate(prediction.ranked()[: options.top]):
            table.add_row(prediction.image if number == 0 else "", label, f"{probability:.1%}")
    print_table(table)
