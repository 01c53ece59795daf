"""A detector as an ONNX file: any batch and size, suppression inside or raw heads, its categories in the metadata.

The graph takes pictures in their frame, values from 0 to 255 in RGB, sides multiples of the framing's `divisor`; it
normalises them itself. With suppression inside it returns four lists over all detections of the batch: the picture each
is in, box, score and label. Raw, it returns every box and every score.

What is exported is checked: onnxruntime must give the detections that PyTorch gives, on batches and sizes that the
export did not see.

Differences from `predict`: neither the candidates before suppression nor the detections of a picture are counted off
(`pre_nms`, `max_detections`): each class of each picture may keep `max_detections`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import warnings
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from odonata.detect.detector import Detector
from odonata.detect.predictor import DetectorPredictor
from odonata.errors import RecipeError, WeightsError

OPSET = 18
LEAST_CELL = 8
"""Detectors whose frames need no multiple of at least so many pixels are exported for multiples of 16."""
TOLERANCE = 1e-3
"""Largest relative difference between PyTorch's and onnxruntime's numbers that passes."""
ALONE = 0.02
"""Largest share of detections without a partner within that tolerance: where scores or overlaps are equal but for
rounding, suppression may keep the other box."""


class Graph(nn.Module):
    """What is exported.

    Args:
        detector: with `dense`.
        raw: leave suppression out.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, detector: Detector, raw: bool) -> None:
        super().__init__()
        self.detector, self.raw = detector, raw
        framing = detector.options.framing
        self.flips = framing.order == "bgr"
        self.register_buffer("mean", torch.tensor(framing.mean)[:, None, None] * 255)
        self.register_buffer("std", torch.tensor(framing.std)[:, None, None] * 255)

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> tuple[Tensor, ...]:
        """Raw: boxes and scores; else picture, box, score and label of every detection."""
        pixels = (images - self.mean) / self.std
        boxes, scores = self.detector.dense(pixels.flip(1) if self.flips else pixels)  # pyright: ignore[reportCallIssue]
        width, height = images.shape[-1], images.shape[-2]
        x, y = boxes[..., 0::2].clamp(0, width), boxes[..., 1::2].clamp(0, height)
        boxes = torch.stack([x[..., 0], y[..., 0], x[..., 1], y[..., 1]], -1)
        if self.raw:
            return boxes, scores
        options = self.detector.options
        by_class = scores.transpose(1, 2)
        chosen = torch.onnx.ops.symbolic(
            "NonMaxSuppression",
            [
                boxes,
                by_class,
                torch.tensor([options.max_detections], dtype=torch.int64),
                torch.tensor([options.nms_threshold]),
                torch.tensor([self.detector.dense_threshold]),
            ],
            attrs={"center_point_box": 0},
            dtype=torch.int64,
            shape=[boxes.shape[0] * options.max_detections, 3],
            version=OPSET,
        )
        picture, label, place = chosen[:, 0], chosen[:, 1], chosen[:, 2]
        return picture, boxes[picture, place], by_class[picture, label, place], label


@dataclass(frozen=True)
class Exported:
    """What was written, and how well it agrees."""

    path: Path
    outputs: tuple[str, ...]
    report: list[str]
    """One line a check."""


def export_onnx(model: DetectorPredictor, path: Path, raw: bool = False) -> Exported:
    """Write a detector as ONNX and compare it with PyTorch.

    Args:
        model: the detector.
        path: the file, written whole or not at all.
        raw: leave suppression out.

    Raises:
        RecipeError: the detector has stages that cannot be one graph, or the extra `export` is not installed.
        WeightsError: onnxruntime gives other numbers.
    """
    detector = model.detector.cpu().eval()
    if not hasattr(detector, "dense"):
        raise RecipeError(f"{model.assets.method} chooses regions between its stages, which is no fixed graph: no ONNX")
    raw = raw or not detector.suppresses
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise RecipeError("export needs ONNX: pip install 'odonata[export]'") from error
    names = ("boxes", "scores") if raw else ("picture", "boxes", "scores", "labels")
    graph = Graph(detector, raw).eval()
    # An example of two pictures: with one, the batch would be frozen. Two sides that differ, likewise.
    batch = torch.export.Dim("batch", min=1, max=1024)
    shape: dict[int, Any] = {0: batch}
    if model.framing.resize == "squash":
        sides = [(model.framing.size, model.framing.size)] * 3
    else:
        cell = model.framing.divisor if model.framing.divisor >= LEAST_CELL else 2 * LEAST_CELL
        sides = [(4 * cell, 5 * cell), (3 * cell, 6 * cell), (5 * cell, 4 * cell)]
        height, width = (torch.export.Dim(f"{side}_cells", min=1, max=512) for side in ("height", "width"))
        shape |= {2: cell * height, 3: cell * width}
    example = torch.rand(2, 3, *sides[0]) * 255
    with _quiet():
        program = torch.onnx.export(
            graph,
            (example,),
            dynamo=True,
            dynamic_shapes=(shape,),
            input_names=["images"],
            output_names=list(names),
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}")
    try:
        program.save(str(partial))
        written = onnx.load(str(partial))
        for key, value in metadata(model, raw).items():
            entry = written.metadata_props.add()
            entry.key, entry.value = key, value
        onnx.save(written, str(partial))
        session = onnxruntime.InferenceSession(str(partial), providers=["CPUExecutionProvider"])
        report = compare(graph, session, sides[1:])
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return Exported(path, names, report)


@contextlib.contextmanager
def _quiet() -> Generator[None]:
    """Keep back what PyTorch's exporter says of libraries that are not installed and not needed."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def metadata(model: DetectorPredictor, raw: bool) -> dict[str, str]:
    """What a reader of the file must know, as JSON by name: categories, framing, thresholds."""
    options = model.assets.config
    return {
        "method": model.assets.method,
        "categories": json.dumps([{"id": c.id, "name": c.name} for c in model.categories]),
        "framing": json.dumps(model.framing.to_dict()),
        "outputs": "raw" if raw else "suppressed",
        "score_threshold": str(options.score_threshold),
        "nms_threshold": str(options.nms_threshold),
    }


def compare(graph: Graph, session: Any, sides: Sequence[tuple[int, int]]) -> list[str]:
    """Run both on batches and sizes that the export did not see.

    Raises:
        WeightsError: a number differs by more than the tolerance.
    """
    lines: list[str] = []
    raw = Graph(graph.detector, True)
    for batch, (height, width) in zip((1, 3), sides, strict=True):
        images = torch.rand(batch, 3, height, width) * 255
        answers = [torch.from_numpy(value) for value in session.run(None, {"images": images.numpy()})]
        with torch.no_grad():
            boxes, scores = raw(images)
        where = f"batch {batch}, {width} × {height} px"
        if graph.raw:
            worst = max(_relative(answers[0], boxes), _relative(answers[1], scores))
            lines.append(f"{where}: relative difference {worst:.1e}")
        else:
            picture, found, said, label = answers
            ours = torch.cat([picture[:, None], label[:, None], said[:, None], found], 1).double()
            wanted = suppressed(boxes, scores, graph.detector)
            worst, alone = _difference(ours, wanted)
            more = f", {alone:.1%} without a partner" if alone else ""
            if len(wanted) or len(ours):
                lines.append(f"{where}: {len(wanted)} detections: relative difference {worst:.1e}{more}")
            else:
                lines.append(f"{where}: neither finds anything in noise, so nothing was compared; see --raw")
            worst = worst if alone <= ALONE else float("inf")
        if not worst <= TOLERANCE:
            raise WeightsError(f"onnxruntime and PyTorch differ: {lines[-1]}")
    return lines


def suppressed(boxes: Tensor, scores: Tensor, detector: Detector) -> Tensor:
    """Rows (picture, label, score, x1, y1, x2, y2) that survive suppression within each class of each picture."""
    from odonata.ops.nms import nms

    rows: list[Tensor] = [torch.zeros(0, 7, dtype=torch.float64)]
    for picture in range(len(boxes)):
        for label in range(scores.shape[2]):
            above = (scores[picture, :, label] > detector.dense_threshold).nonzero().squeeze(1)
            kept = above[nms(boxes[picture, above], scores[picture, above, label], detector.options.nms_threshold)]
            kept = kept[: detector.options.max_detections]
            head = boxes.new_tensor([picture, label]).expand(len(kept), 2)
            rows.append(torch.cat([head, scores[picture, kept, label][:, None], boxes[picture, kept]], 1).double())
    return torch.cat(rows)


def _difference(ours: Tensor, wanted: Tensor) -> tuple[float, float]:
    """Largest difference of detections that have a partner in the other list, and the share of those that have none.

    Relative to the largest coordinate; of the same picture and label, and within the tolerance.
    """
    if not len(ours) and not len(wanted):
        return 0.0, 0.0
    if not len(ours) or not len(wanted):
        return 0.0, 1.0
    # Picture and label weigh so much that only rows of the same can be near.
    weight = torch.tensor([1e6, 1e6, 1.0, 1.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    apart = torch.cdist(ours * weight, wanted * weight) / wanted[:, 3:].abs().max().clamp(min=1.0)
    nearest = torch.cat([apart.amin(1), apart.amin(0)])
    paired = nearest <= TOLERANCE
    return float(nearest[paired].max()) if paired.any() else 0.0, float((~paired).double().mean())


def _relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm().clamp(min=1e-12))
