"""`odonata evaluate` of detectors: COCO's and VOC's figures, by size and class, curves, and why AP is zero."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from odonata.errors import RecipeError

if TYPE_CHECKING:
    from odonata.data.objects import ObjectSource
    from odonata.detect.predictor import DetectorPredictor


@dataclass(frozen=True)
class MeasuredOn:
    """Pictures with objects to measure on."""

    path: str = ""
    """COCO json, VOC or YOLO folder, or an embedded set; empty: what the run was trained on, its held-back part."""
    images: str = ""
    """Folder that the picture names of a COCO json are relative to."""
    split: str | None = None
    """Split to measure on; by default val or test if the set has one, else all of it."""


@dataclass(frozen=True)
class DetectArguments:
    """Measure a detector: `odonata evaluate RUN`, or with `--data.path annotations.json`.

    COCO's AP over IoU .50 to .95, by size and class; with --voc also VOC's. Where AP is near zero, says what is likely
    wrong: labels shifted, boxes in another format, scores below the threshold.
    """

    model: Annotated[Path, tyro.conf.Positional]
    """A run folder, or published weights."""
    data: MeasuredOn = field(default_factory=MeasuredOn)
    masks: bool = False
    """Measure outlines, not boxes."""
    voc: bool = False
    """Also VOC's AP at IoU .50, both definitions."""
    agnostic: bool = False
    """Whether an object is found, whatever its class is called: for weights whose classes are not the set's."""
    most: int = 0
    """Pictures used at most (0 = all)."""
    tile: int = 0
    """Look at windows of this side, in pixels (0 = the whole picture)."""
    overlap: float | None = None
    """Share of a window that the next repeats."""
    score: float | None = None
    """Least score of a detection; by default the model's own, but at most 0.05."""
    batch_size: int = 4
    """Pictures computed together."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Autocast type."""
    resamples: int = 200
    """For the 95 % interval of AP50 over pictures (0 = none)."""
    curves: Path | None = None
    """File for precision-recall curves: JSON, or a drawing (.png, .svg) with the extra `plot`."""
    json: bool = False
    """For programs."""
    out: Path | None = None
    """Also write the figures to this file."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""


NEAR_ZERO = 0.05
"""AP50 below which the doctor is asked."""


def evaluate_detect(options: DetectArguments) -> dict[str, Any]:
    """Return figures by name, each {value, low, high, count}; findings of the doctor under names `why/…`."""
    from odonata.app.api import load
    from odonata.data.pictures import chosen_indices
    from odonata.detect.evaluation import detections_of, founds, truths
    from odonata.metrics.coco import coco_figures
    from odonata.metrics.doctor import diagnose
    from odonata.metrics.figure import Figure
    from odonata.metrics.voc import voc_figures

    model: DetectorPredictor = load(options.model, device=options.device)
    source, trained = _source(options, model)
    samples = [source[i] for i in (chosen_indices(len(source), options.most) if options.most else range(len(source)))]
    # Figures of AP need the doubtful detections too; a published threshold for drawing would cut the curve.
    score = options.score if options.score is not None else min(0.05, model.assets.config.score_threshold)
    ways: dict[str, Any] = {"score": score, "precision": options.precision}
    if options.tile:
        ways |= {"tile": options.tile, "overlap": options.overlap}
    answers = detections_of(model, samples, options.batch_size, **ways)
    names = list(source.names)
    there, said = truths(samples, options.masks), founds(answers, options.masks)
    if options.agnostic:
        there, said, names = _without_classes(there), _without_classes(said), ["object"]
    kind = "masks" if options.masks else "boxes"
    result = coco_figures(there, said, names, kind=kind, resamples=options.resamples)
    figures = {name: figure.to_dict() for name, figure in result.figures().items()}
    for name, value in result.per_class.items():
        figures[f"AP/{name}"] = Figure(value, None, None, len(samples)).to_dict()
    if options.voc:
        for name, value in voc_figures(there, said, names).flat().items():
            figures[f"VOC/{name}"] = Figure(value, None, None, len(samples)).to_dict()
    if options.curves:
        _curves(options.curves, result)
    if not options.masks and not result.ap50 > NEAR_ZERO:
        sizes = [sample.size for sample in samples]
        findings = diagnose(there, said, names, sizes=sizes, threshold=score, trained=trained)
        for number, finding in enumerate(findings, 1):
            note = f"{finding.name}: {finding.text}"
            figures[f"why/{number}"] = Figure(float(result.ap50), None, None, len(samples), note).to_dict()
    return {name: _finite(figure) for name, figure in figures.items()}


def _finite(figure: dict[str, Any]) -> dict[str, Any]:
    """NaN, where there is no object of a kind, as None: JSON has no NaN."""
    return {k: None if isinstance(v, float) and v != v else v for k, v in figure.items()}


def _plain(value: float) -> float | None:
    return None if value != value else round(float(value), 6)


def _without_classes(pictures: list[Any]) -> list[Any]:
    import dataclasses

    return [dataclasses.replace(picture, labels=picture.labels * 0) for picture in pictures]


def _source(options: DetectArguments, model: DetectorPredictor) -> tuple[ObjectSource, list[int] | None]:
    """The pictures to measure on, labels counted by the model's table; and objects of each class in training."""
    import numpy as np

    from odonata.app.api import read_run_recipe
    from odonata.data.object_batches import train_and_heldout_objects
    from odonata.data.open_objects import open_objects

    if options.data.path:
        source = open_objects(options.data.path, images=options.data.images or None)
        wanted = options.data.split or next((s for s in ("val", "test") if source.has_split(s)), None)
        source = source.split(wanted) if wanted else source
        return (source if options.agnostic else source.with_categories(model.categories)), None
    if not (options.model / "config.yaml").is_file():
        raise RecipeError(f"{options.model} is no run: say what to measure on with --data.path")
    recipe = read_run_recipe(options.model)
    train, heldout = train_and_heldout_objects(recipe.data)
    if heldout is None:
        raise RecipeError(f"{train.origin} has no held-back part: say what to measure on with --data.path")
    counts = np.bincount(np.concatenate([s.labels[~s.crowd] for s in train]), minlength=len(train.names))
    return heldout.with_categories(model.categories), counts.tolist()


def _curves(path: Path, result: Any) -> None:
    """Write precision at recalls 0, .01, …, 1 of every class at each IoU."""
    import json

    import numpy as np

    from odonata.engine.run import write_atomically

    path.parent.mkdir(parents=True, exist_ok=True)
    names = list(result.per_class)
    if path.suffix == ".json":
        rows = {
            f"{iou:.2f}": {name: [_plain(value) for value in curve[:, i]] for i, name in enumerate(names)}
            for iou, curve in result.curves.items()
        }
        write_atomically(path, json.dumps({"recall": np.linspace(0, 1, 101).round(2).tolist(), "precision": rows}))
        return
    try:
        from matplotlib.figure import Figure as Canvas
    except ImportError as error:
        raise RecipeError("drawings need matplotlib: pip install 'odonata[plot]', or name a .json file") from error
    canvas = Canvas(figsize=(6, 5))
    axes = canvas.add_subplot()
    first = result.curves[min(result.curves)]
    for i, name in enumerate(names[:12]):
        axes.plot(np.linspace(0, 1, 101), first[:, i], label=f"{name} ({result.per_class50[name]:.2f})")
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02), title="IoU 0.50")
    axes.legend(fontsize=7)
    canvas.savefig(path)
