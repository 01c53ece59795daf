"""`odonata evaluate` of segmenters: mean IoU and its kin, and each class's IoU."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from odonata.errors import RecipeError

if TYPE_CHECKING:
    from torch import Tensor

    from odonata.data.semantic import SemanticSource


@dataclass(frozen=True)
class MapsMeasuredOn:
    """Pictures with maps of classes to measure on."""

    path: str = ""
    """CamVid's or VOC's folder, one with images/ and masks/, or an embedded set; empty: what the run was trained on,
    its held-back part. Classes are matched by their names."""
    images: str = ""
    """Folder of the pictures, where it is not found by itself."""
    split: str | None = None
    """Split to measure on; by default val or test if the set has one, else all of it."""


@dataclass(frozen=True)
class SegmentArguments:
    """Measure a segmenter: `odonata evaluate RUN`, or with `--data.path folder/`.

    Mean intersection over union, pixel accuracy, mean accuracy and frequency-weighted IoU, from one matrix of confusion
    over all pixels; and the IoU of each class.
    """

    model: Annotated[Path, tyro.conf.Positional]
    """A run folder, or published weights."""
    data: MapsMeasuredOn = field(default_factory=MapsMeasuredOn)
    most: int = 0
    """Pictures used at most (0 = all)."""
    tile: int = 0
    """Look at windows of this side, in pixels of the frame (0 = as the model has it)."""
    overlap: float | None = None
    """Share of a window that the next repeats; by default as the model has it."""
    flip: bool = False
    """Also look at the mirrored pictures, where the model does not by itself."""
    scales: tuple[float, ...] = ()
    """Factors on the pictures that they are looked at with; empty: as the model has them."""
    batch_size: int = 4
    """Pictures of one size computed together."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Autocast type."""
    resamples: int = 200
    """For the 95 % interval of mIoU over pictures (0 = none)."""
    json: bool = False
    """For programs."""
    out: Path | None = None
    """Also write the figures to this file."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""


def evaluate_segment(options: SegmentArguments) -> dict[str, Any]:
    """Return figures by name, each {value, low, high, count}; a class that is nowhere has None."""
    import torch

    from odonata.app.api import load
    from odonata.data.pictures import chosen_indices
    from odonata.metrics.figure import Figure
    from odonata.metrics.segmentation import segmentation_figures
    from odonata.segment.evaluation import confusions
    from odonata.segment.predictor import SegmenterPredictor

    model: SegmenterPredictor = load(options.model, device=options.device)
    source = _source(options)
    samples = [source[i] for i in (chosen_indices(len(source), options.most) if options.most else range(len(source)))]
    ways: dict[str, Any] = {
        "batch_size": options.batch_size,
        "precision": options.precision,
        "tile": options.tile,
        "overlap": options.overlap,
        "flip": options.flip or None,
        "scales": options.scales,
    }
    matrices = torch.stack(list(confusions(model, samples, source.classes, **ways)))
    result = segmentation_figures(matrices.sum(0), model.classes)
    low, high = interval(matrices, options.resamples) if options.resamples else (None, None)
    figures: dict[str, Any] = {}
    for name, value in result.flat().items():
        bounds = (low, high) if name == "mIoU" else (None, None)
        figures[name] = Figure(value, *bounds, len(samples)).to_dict()
    for name, value in result.to_dict()["per_class"].items():
        figures[f"IoU/{name}"] = {**Figure(0.0, None, None, len(samples)).to_dict(), "value": value}
    return figures


def interval(matrices: Tensor, resamples: int) -> tuple[float, float]:
    """95 % percentile bootstrap interval of mIoU over pictures.

    Args:
        matrices: of confusion, one a picture, int64 [pictures, classes, classes].
        resamples: how often to resample.
    """
    import numpy as np
    import torch

    from odonata.metrics.segmentation import segmentation_figures

    count, classes = matrices.shape[:2]
    generator = np.random.default_rng(0)
    drawn = generator.multinomial(count, [1 / count] * count, size=resamples)
    flat = matrices.reshape(count, -1).numpy()
    sums = [torch.from_numpy(times @ flat).view(classes, classes) for times in drawn]
    values = [segmentation_figures(matrix).miou for matrix in sums if int(matrix.sum())]
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def _source(options: SegmentArguments) -> SemanticSource:
    """The pictures to measure on."""
    from odonata.app.api import read_run_recipe
    from odonata.data.open_semantic import open_semantic
    from odonata.data.semantic_batches import train_and_heldout_semantic

    if options.data.path:
        source = open_semantic(options.data.path, images=options.data.images or None)
        wanted = options.data.split or next((s for s in ("val", "test") if source.has_split(s)), None)
        return source.split(wanted) if wanted else source
    if not (options.model / "config.yaml").is_file():
        raise RecipeError(f"{options.model} is no run: say what to measure on with --data.path")
    recipe = read_run_recipe(options.model)
    train, heldout = train_and_heldout_semantic(recipe.data)
    if heldout is None:
        raise RecipeError(f"{train.origin} has no held-back part: say what to measure on with --data.path")
    return heldout
