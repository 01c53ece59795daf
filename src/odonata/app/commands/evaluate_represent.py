"""`odonata evaluate` of towers that learned from pictures alone: neighbours, probes, few labels, fine-tuning."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from odonata.app.commands.arguments import at_least
from odonata.errors import RecipeError

if TYPE_CHECKING:
    from odonata.metrics.figure import Figure
    from odonata.represent.predictor import TowerPredictor


@dataclass(frozen=True)
class Labelled:
    """Labelled pictures to measure on."""

    path: str = ""
    """Folder of classes, with train and val or test inside where it has them; empty: what the run was trained on."""
    split: str | None = None
    """Split to learn from, where it is not train."""


@dataclass(frozen=True)
class RepresentArguments:
    """Measure a tower: `odonata evaluate RUN --knn --probe --finetune --data.path photos/`.

    Every figure has a 95 % bootstrap interval over the test pictures. Without a question, a classifier gives its
    accuracy, and any other run its kNN.
    """

    model: Annotated[Path, tyro.conf.Positional]
    """A run folder, or published weights."""
    data: Labelled = field(default_factory=Labelled)
    knn: bool = False
    """Nearest neighbours."""
    probe: bool = False
    """Linear classifiers on frozen features."""
    few_shot: bool = False
    """Linear classifiers on 1, 5 and 10 pictures a class."""
    finetune: bool = False
    """Train the whole tower on the classes, rates falling from layer to layer."""
    baselines: bool = False
    """Also raw pixels, and the same tower untrained: what features must beat to be worth anything."""
    knn_protocols: tuple[Literal["dino", "lightly", "moco"], ...] = ("dino",)
    """Whose k and temperature."""
    probe_protocols: tuple[Literal["lbfgs", "mae", "moco", "dino", "dinov2"], ...] = ("lbfgs",)
    """Whose probe; where several are named their differences are printed."""
    finetune_steps: int = 300
    """Steps of --finetune."""
    most: int = 5000
    """Pictures used at most of each part."""
    batch_size: int = 64
    """Pictures encoded at a time."""
    which: Literal["best", "last"] = "best"
    """Which checkpoint of a run."""
    num_heads: int | None = None
    """For published transformers whose file does not tell."""
    part: str | None = None
    """Which network of a published training checkpoint."""
    out: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """Also write the figures here as JSON; a run keeps them in evaluation.json anyway."""
    json: bool = False
    """For programs: {name: {value, low, high, count}}."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""


def evaluate_represent(options: RepresentArguments) -> dict[str, Any]:
    """Return figures by name, each {value, low, high, count, note}.

    Raises:
        OdonataError: the model or the data cannot be used, or nothing is asked.
    """
    from odonata.app.api import load
    from odonata.represent import measures

    at_least(1, most=options.most, batch_size=options.batch_size, finetune_steps=options.finetune_steps)
    is_run = (options.model / "config.yaml").is_file()
    hints = {k: v for k in ("num_heads", "part") if (v := getattr(options, k)) is not None}
    model: TowerPredictor = load(
        options.model, device=options.device, **({"which": options.which} if is_run else hints)
    )
    data = _data(options, is_run)
    asked = options.knn or options.probe or options.few_shot or options.finetune
    figures: dict[str, Figure] = {}
    if not asked and model.classifies:
        figures |= measures.heldout_accuracy(model, data, options.most, options.batch_size)
    if options.probe and len(options.probe_protocols) > 1 and not options.json:
        _print_differences(options.probe_protocols)
    ask = options if asked or model.classifies else dataclasses.replace(options, knn=True)
    figures |= _frozen(model, ask, data)
    if options.baselines:
        features = measures.labelled_features(model, data, options.most, options.batch_size)
        figures |= measures.baseline_figures(features)
        untrained = _frozen(measures.untrained(model), ask, data)
        figures |= {f"untrained/{name}": figure for name, figure in untrained.items()}
    if options.finetune:
        figures |= measures.finetune_figures(model, data, options.finetune_steps, options.most, options.batch_size)
    return {name: figure.to_dict() for name, figure in figures.items()}


def _frozen(model: TowerPredictor, options: RepresentArguments, data: Any) -> dict[str, Figure]:
    from odonata.represent import measures

    if not (options.knn or options.probe or options.few_shot):
        return {}
    features = measures.labelled_features(model, data, options.most, options.batch_size)
    figures: dict[str, Figure] = {}
    if options.knn:
        figures |= measures.knn_figures(features, options.knn_protocols)
    if options.probe:
        figures |= measures.probe_figures(features, options.probe_protocols)
    if options.few_shot:
        figures |= measures.few_shot_figures(features)
    return figures


def _data(options: RepresentArguments, is_run: bool) -> Any:
    from odonata.app.api import read_run_recipe
    from odonata.data.pictures import PictureData

    if options.data.path:
        return PictureData(path=options.data.path, split=options.data.split)
    if not is_run:
        raise RecipeError("published weights come without pictures: name a folder of classes with --data.path")
    return read_run_recipe(options.model).data


def _print_differences(names: tuple[str, ...]) -> None:
    from rich.table import Table

    from odonata.app.commands.arguments import print_table
    from odonata.represent.protocols import differences

    table = Table(box=None, pad_edge=False)
    for column in ("protocol", *names):
        table.add_column(column)
    for field_name, values in differences(list(names)):
        table.add_row(field_name, *values)
    print_table(table)
