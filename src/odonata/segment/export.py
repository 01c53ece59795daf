"""A segmenter as an ONNX file: any batch, and any size where the network allows it; its classes in the metadata.

The graph takes pictures in their frame, values from 0 to 255 in RGB, and normalises them itself. It returns the label
of each pixel and its probability.

What is exported is checked: onnxruntime must give the probabilities that PyTorch gives, on a batch, and where sizes are
free on sizes, that the export did not see.

Differences from `predict`: one look at the whole of what it is given; windows, mirroring and several scales are the
caller's. Pyramid pooling divides the map into bins whose borders depend on its size, which a graph of free size cannot
say: a PSPNet has the size of its window, or `FIXED` pixels a side.
"""

from __future__ import annotations

import contextlib
import json
import logging
import warnings
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from odonata.errors import RecipeError, WeightsError
from odonata.segment.dilated import DilatedNetwork
from odonata.segment.predictor import SegmenterPredictor
from odonata.segment.segmenter import Segmenter

OPSET = 18
TOLERANCE = 1e-3
"""Largest relative difference between PyTorch's and onnxruntime's probabilities that passes."""
FIXED = 257
"""Side of a PSPNet that has no window."""
MULTIPLE = 32
"""Sides of the others are a multiple of this."""


class Graph(nn.Module):
    """What is exported.

    Args:
        segmenter: the network.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, segmenter: Segmenter) -> None:
        super().__init__()
        self.segmenter = segmenter
        framing = segmenter.options.framing
        self.flips = framing.order == "bgr"
        self.register_buffer("mean", torch.tensor(framing.mean)[:, None, None] * 255)
        self.register_buffer("std", torch.tensor(framing.std)[:, None, None] * 255)

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> tuple[Tensor, Tensor]:
        """Label of each pixel, and its probability."""
        pixels = (images - self.mean) / self.std
        logits = self.segmenter.dense(pixels.flip(1) if self.flips else pixels)
        scores, labels = logits.softmax(1).max(1)
        return labels, scores


@dataclass(frozen=True)
class Exported:
    """What was written, and how well it agrees."""

    path: Path
    outputs: tuple[str, ...]
    report: list[str]
    """One line a check."""


def export_onnx(model: SegmenterPredictor, path: Path) -> Exported:
    """Write a segmenter as ONNX and compare it with PyTorch.

    Args:
        model: the segmenter.
        path: the file, written whole or not at all.

    Raises:
        RecipeError: the extra `export` is not installed.
        WeightsError: onnxruntime gives other numbers.
    """
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise RecipeError("export needs ONNX: pip install 'odonata[export]'") from error
    graph = Graph(model.segmenter.cpu().eval()).eval()
    side = fixed_side(model)
    shapes: dict[int, Any] = {0: torch.export.Dim("batch", min=1, max=1024)}
    if not side:
        height, width = (torch.export.Dim(f"{name}_cells", min=1, max=512) for name in ("height", "width"))
        shapes |= {2: MULTIPLE * height, 3: MULTIPLE * width}
    # An example of two pictures: with one, the batch would be frozen. Two sides that differ, likewise.
    example = torch.rand(2, 3, side or 4 * MULTIPLE, side or 5 * MULTIPLE) * 255
    names = ("labels", "scores")
    with _quiet():
        program = torch.onnx.export(
            graph,
            (example,),
            dynamo=True,
            dynamic_shapes=(shapes,),
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
        for key, value in metadata(model, side).items():
            entry = written.metadata_props.add()
            entry.key, entry.value = key, value
        onnx.save(written, str(partial))
        session = onnxruntime.InferenceSession(str(partial), providers=["CPUExecutionProvider"])
        report = compare(graph, session, side)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return Exported(path, names, report)


def fixed_side(model: SegmenterPredictor) -> int:
    """Side in pixels that the graph is for; 0 where it takes any multiple of `MULTIPLE`."""
    network = model.segmenter.network
    pools = isinstance(network, DilatedNetwork) and network.pooling is not None
    return (model.assets.config.window or FIXED) if pools else 0


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


def metadata(model: SegmenterPredictor, side: int) -> dict[str, str]:
    """What a reader of the file must know, as JSON by name: classes, framing, size."""
    table = [{"name": n, "colour": list(c)} for n, c in zip(model.classes, model.palette, strict=True)]
    return {
        "method": model.assets.method,
        "classes": json.dumps(table),
        "framing": json.dumps(model.framing.to_dict()),
        "side": str(side),
    }


def compare(graph: Graph, session: Any, side: int) -> list[str]:
    """Run both on a batch, and where sizes are free on sizes, that the export did not see.

    Raises:
        WeightsError: a probability differs by more than the tolerance.
    """
    lines: list[str] = []
    for batch, height, width in ((1, 3, 6), (3, 5, 4)):
        size = (side or height * MULTIPLE, side or width * MULTIPLE)
        images = torch.rand(batch, 3, *size) * 255
        labels, scores = (torch.from_numpy(value) for value in session.run(None, {"images": images.numpy()}))
        with torch.no_grad():
            ours, sure = graph(images)
        worst = float((scores - sure).norm() / sure.norm())
        same = float((labels == ours).float().mean())
        where = f"batch {batch}, {size[1]} × {size[0]} px"
        lines.append(f"{where}: relative difference {worst:.1e}, {same:.2%} of the labels the same")
        if not worst <= TOLERANCE:
            raise WeightsError(f"onnxruntime and PyTorch differ: {lines[-1]}")
    return lines
