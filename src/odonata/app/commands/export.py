"""`odonata export`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from odonata.app.commands.arguments import parse
from odonata.errors import RecipeError


@dataclass(frozen=True)
class ExportArguments:
    """Write a model as one graph: `odonata export RUN --to onnx`.

    Any batch and size; categories and framing stand in the file's metadata. Prints how far onnxruntime and PyTorch are
    apart; nothing is left behind where they disagree.
    """

    model: Annotated[Path, tyro.conf.Positional]
    """A run folder, or published weights."""
    to: Literal["onnx"] = "onnx"
    """The format."""
    out: Path | None = None
    """The file; empty: model.onnx in the run, or beside where you are."""
    raw: bool = False
    """Leave suppression (NMS) out: every box and every score."""


def export(arguments: Sequence[str]) -> None:
    """Export and print the comparison."""
    options = parse(ExportArguments, "export", arguments)
    from odonata.app.api import load, room_of

    room = room_of(options.model)
    if room not in ("detect", "segment"):
        raise RecipeError(f"{options.model} is a model of {room}; detectors and segmenters can be exported")
    model = load(options.model, device="cpu")
    is_run = (options.model / "config.yaml").is_file()
    path = options.out or (options.model / "model.onnx" if is_run else Path("model.onnx"))
    if room == "detect":
        from odonata.detect.export import export_onnx

        done = export_onnx(model, path, options.raw)
    else:
        from odonata.segment.export import export_onnx as export_segmenter

        done = export_segmenter(model, path)
    for line in done.report:
        print(f"- {line}")
    print(f"{done.path}: {', '.join(done.outputs)}")
