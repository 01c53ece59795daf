"""torchvision's detectors as `fixtures/make_torchvision_detectors.py` recorded them, beside ours with equal weights."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor

from fixtures.detector_numbers import weights
from fixtures.named_numbers import numbers
from odonata.data.object_batches import ObjectBatch
from odonata.detect.detector import Detector
from odonata.detect.predictor import DetectorPredictor, frame_batch, load

FOLDER = Path(__file__).parents[1] / "fixtures"
BOXES = [
    [[20.0, 30.0, 90.0, 140.0], [101.0, 10.0, 179.0, 60.0], [5.0, 5.0, 25.0, 20.0]],
    [[40.0, 20.0, 150.0, 110.0]],
]
LABELS = [[1, 3, 4], [2]]


class Record:
    """One recording."""

    def __init__(self, name: str) -> None:
        self.arrays = np.load(FOLDER / f"torchvision_{name}.npz")

    def plain(self, key: str) -> Any:
        return json.loads(self.arrays[key].tobytes())

    def state(self) -> dict[str, Tensor]:
        """torchvision's weights under its own names."""
        return {key: weights(key, tuple(shape)) for key, shape in self.plain("shapes").items()}

    def predictor(self, folder: Path, **config: Any) -> DetectorPredictor:
        """Ours, read from a file as torchvision saves it, with some options changed."""
        file = folder / "model.safetensors"
        safetensors.torch.save_file(self.state(), file)
        model = load(file, None, torch.device("cpu"))
        framing = replace(model.framing, size=192, max_size=320)
        assets = replace(model.assets, config=replace(model.assets.config, framing=framing, **config))
        detector = assets.build()
        detector.load_state_dict(model.detector.state_dict())
        return DetectorPredictor(detector.eval(), assets, torch.device("cpu"), model.name, model.notes)


def pictures() -> list[Tensor]:
    """The two pictures, values from 0 to 1."""
    return [torch.sigmoid(numbers("a", (3, 150, 200)) * 173), torch.sigmoid(numbers("c", (3, 128, 180)) * 152)]


def batch_of(model: DetectorPredictor) -> ObjectBatch:
    """The two pictures with their objects in the model's frames."""
    # Framing takes bytes; these pictures have values between them, so they go around it by their own scale.
    batch, places = frame_batch([picture * 255 for picture in pictures()], model.framing, torch.device("cpu"))
    boxes = [place.to_frame(torch.tensor(rows)) for place, rows in zip(places, BOXES, strict=True)]
    labels = [torch.tensor(rows) for rows in LABELS]
    return replace(
        batch, boxes=boxes, labels=labels, ignore=[torch.zeros(len(rows), dtype=torch.bool) for rows in LABELS]
    )


def double_of(model: DetectorPredictor) -> Detector:
    """The model's network in double precision, which sees the two pictures framed and normalised in double precision.

    In single precision a rectifier near zero opens here and not there, and a gradient's norm moves by 1e-4.
    """
    framing = model.framing
    framed = []
    for picture in pictures():
        size = framing.scaled_size(*picture.shape[-2:])
        framed.append(F.interpolate(picture.double()[None], size, mode="bilinear", align_corners=False)[0])
    height, width = (max(p.shape[axis] for p in framed) for axis in (1, 2))
    height, width = (-(-side // framing.divisor) * framing.divisor for side in (height, width))
    mean, std = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (framing.mean, framing.std))
    padded = [F.pad((p - mean) / std, (0, width - p.shape[2], 0, height - p.shape[1])) for p in framed]
    detector = copy.deepcopy(model.detector).double().train()
    detector.pixels = lambda batch: torch.stack(padded)  # type: ignore[method-assign]
    return detector


def relative(ours: Any, theirs: Any) -> float:
    """‖ours − theirs‖ / ‖theirs‖."""
    a, b = (torch.as_tensor(np.asarray(x), dtype=torch.float64) for x in (ours, theirs))
    assert a.shape == b.shape, (a.shape, b.shape)
    return float((a - b).norm() / b.norm())


def check_detections(model: DetectorPredictor, record: Record) -> None:
    """Boxes, scores and labels of both pictures are torchvision's."""
    with torch.no_grad():
        answers = model.detector.predict(batch_of(model))
    _, places = frame_batch([picture * 255 for picture in pictures()], model.framing, torch.device("cpu"))
    for number, (answer, place) in enumerate(zip(answers, places, strict=True)):
        theirs = {key: torch.as_tensor(record.arrays[f"{number}/{key}"]) for key in ("boxes", "scores", "labels")}
        ours = {"boxes": place.to_picture(answer.boxes), "scores": answer.scores, "labels": answer.labels}
        assert len(answer) > 0
        assert relative(ours["scores"], theirs["scores"]) < 1e-5
        # Scores that are equal but for rounding may stand in another order: each detection is held against its nearest.
        rows, other = (torch.cat([x["boxes"], 1e4 * x["labels"][:, None]], 1) for x in (ours, theirs))
        partner = torch.cdist(rows.double(), other.double()).argmin(1)
        assert sorted(partner.tolist()) == list(range(len(answer)))
        assert torch.equal(ours["labels"], theirs["labels"][partner])
        assert relative(ours["boxes"], theirs["boxes"][partner]) < 1e-5


def gradients(detector: Detector) -> dict[str, float]:
    """Norm of each parameter's gradient by its name."""
    return {name: float(p.grad.double().norm()) for name, p in detector.named_parameters() if p.grad is not None}
