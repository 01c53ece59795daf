"""`odonata evaluate`: what a model is measured by depends on its room."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from odonata.app.commands.arguments import parse, print_json, print_table
from odonata.errors import RecipeError

ROOMS = {
    "align": ("odonata.app.commands.evaluate_align", "AlignArguments", "evaluate_align"),
    "represent": ("odonata.app.commands.evaluate_represent", "RepresentArguments", "evaluate_represent"),
    "detect": ("odonata.app.commands.evaluate_detect", "DetectArguments", "evaluate_detect"),
    "segment": ("odonata.app.commands.evaluate_segment", "SegmentArguments", "evaluate_segment"),
    "distill": ("odonata.app.commands.evaluate_represent", "RepresentArguments", "evaluate_represent"),
    "language": ("odonata.app.commands.evaluate_language", "LanguageArguments", "evaluate_language"),
    "decide": ("odonata.app.commands.evaluate_decide", "DecideArguments", "evaluate_decide"),
    "posttrain": ("odonata.app.commands.evaluate_recipe", "RecipeArguments", "evaluate_recipe"),
}
"""Room → module, its arguments, and its function from arguments to figures."""


def evaluate(arguments: Sequence[str]) -> None:
    """Print a table of figures; a run keeps them in evaluation.json."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return
    options = parse(arguments_of(arguments), "evaluate", arguments)
    figures = run_evaluation(options)
    if options.json:
        print_json(figures)
        return
    table = Table(box=None, pad_edge=False)
    for column in ("figure", "value", "95 % interval", "of", ""):
        table.add_column(column, justify="left" if column in ("figure", "") else "right")
    for name, figure in figures.items():
        bounded = figure["high"] is not None and "rank" not in name and not name.startswith(NO_SHARES)
        percent = bounded or name.startswith(SHARES)
        shown = [_shown(figure[key], percent) for key in ("value", "low", "high")]
        interval = f"{shown[1]} – {shown[2]}" if figure["high"] is not None else ""
        table.add_row(name, shown[0], interval, str(figure["count"]), figure.get("note", ""))
    print_table(table)


def _shown(value: float | None, percent: bool) -> str:
    if value is None:
        return "–"
    return f"{value:.1%}" if percent else f"{value:.4g}"


SHARES = ("AP", "AR", "VOC/", "mIoU", "IoU", "pixel_accuracy", "mean_accuracy", "frequency_weighted")
"""How the names of figures begin that are shares without an interval."""


NO_SHARES = ("return", "nats", "perplexity", "bits_per_byte")
"""How the names of figures begin that have an interval and are no shares."""


def usage() -> str:
    """Return the help of `odonata evaluate` itself."""
    return """usage: odonata evaluate MODEL [options]

Measures a run, or published weights. What can be asked depends on what MODEL is; `odonata evaluate MODEL --help` tells.
  pictures and words   --retrieval, --zeroshot, --probe, --knn
  pictures alone       --knn, --probe, --few-shot, --finetune, --baselines, each on --data.path
  detectors            COCO's AP by size and class, --voc, --curves, --masks; why it is zero where it is
  segmenters           mIoU and each class's IoU, pixel accuracy; --flip, --scales, --tile
  what decides         returns of played episodes; how far tables are from the exact values
  language models      nats and perplexity of texts; after post-training, what held-back prompts earn"""


def arguments_of(arguments: Sequence[str]) -> Any:
    """Return the class of arguments for the model that is named first.

    Raises:
        RecipeError: no model is named.
        WeightsError: no room can read it.
    """
    if arguments[0].startswith("-"):
        raise RecipeError(f"the model comes first: odonata evaluate MODEL {arguments[0]} …")
    from odonata.app.api import room_of

    module, name, _ = ROOMS[room_of(Path(arguments[0]))]
    return getattr(importlib.import_module(module), name)


def run_evaluation(options: Any) -> dict[str, Any]:
    """Return figures by name, each {value, low, high, count}; a run folder keeps them in evaluation.json.

    Raises:
        OdonataError: the model or the data cannot be used, or nothing is asked.
    """
    from odonata.engine.run import write_atomically

    module, function = next((m, f) for m, name, f in ROOMS.values() if name == type(options).__name__)
    figures: dict[str, Any] = getattr(importlib.import_module(module), function)(options)
    places = [options.model / "evaluation.json"] if (options.model / "config.yaml").is_file() else []
    for path in [*places, *([options.out] if options.out else [])]:
        write_atomically(path, json.dumps(figures, indent=1))
    return figures
