"""torchvision's detectors as `fixtures/make_torchvision_detectors.py` recorded them, beside ours with the same weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
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
    return [torch.sigmoid(numbers("a", (3, 150, 200)) * 173), torch.sigmoid(numbers("b", (3, 128, 180)) * 152)]


def batch_of(model: DetectorPredictor) -> ObjectBatch:
    """The two pictures with their objects in the model's frames."""
    # Framing takes bytes; these pictures have values between them, so they go around it by their own scale.
    batch, places = frame_batch([picture * 255 for picture in pictures()], model.framing, torch.device("cpu"))
    boxes = [place.to_frame(torch.tensor(rows)) for place, rows in zip(places, BOXES, strict=True)]
    labels = [torch.tensor(rows) for rows in LABELS]
    return replace(
        batch, boxes=boxes, labels=labels, ignore=[torch.zeros(len(rows), dtype=torch.bool) for rows in LABELS]
    )


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
        assert len(answer) > 0
        assert answer.labels.tolist() == record.arrays[f"{number}/labels"].tolist()
        assert relative(answer.scores, record.arrays[f"{number}/scores"]) < 1e-5
        assert relative(place.to_picture(answer.boxes), record.arrays[f"{number}/boxes"]) < 1e-5


def gradients(detector: Detector) -> dict[str, float]:
    """Norm of each parameter's gradient by its name."""
    return {name: float(p.grad.double().norm()) for name, p in detector.named_parameters() if p.grad is not None}
