"""CenterNet and CornerNet as their authors' code computes them, recorded, beside ours with the same weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
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
from odonata.detect.predictor import DetectorPredictor, load
from odonata.weights.maps import Rule

FOLDER = Path(__file__).parents[1] / "fixtures"
BOXES = [
    [[20.5, 31.0, 90.0, 108.5], [71.0, 10.0, 119.0, 61.0], [5.0, 5.0, 27.0, 20.0]],
    [[40.0, 21.0, 110.0, 110.0]],
]
LABELS = [[1, 2, 0], [2]]


def images(size: int) -> Tensor:
    """The two pictures of the recordings, as the network expects them."""
    return numbers("images", (2, 3, size, size)).double() * (3 * size * size) ** 0.5


def batch_of(size: int) -> ObjectBatch:
    """A batch with the recordings' objects."""
    return ObjectBatch(
        images=torch.zeros(2, 3, size, size),
        sizes=torch.full((2, 2), size),
        boxes=[torch.tensor(rows) for rows in BOXES],
        labels=[torch.tensor(rows) for rows in LABELS],
        ignore=[torch.zeros(len(rows), dtype=torch.bool) for rows in LABELS],
        scales=torch.ones(2),
        indices=torch.arange(2),
    )


def plain(recorded: Mapping[str, np.ndarray], key: str) -> Any:
    """Recorded plain values."""
    return json.loads(recorded[key].tobytes())


def state_of(recorded: Mapping[str, np.ndarray], key: str) -> dict[str, Tensor]:
    """The authors' weights under their own names."""
    return {name: weights(name, tuple(shape)) for name, shape in plain(recorded, key).items()}


def saved(state: Mapping[str, Tensor], folder: Path) -> DetectorPredictor:
    """Ours, read from a file with their names."""
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(dict(state), folder / "model.safetensors")
    return load(folder / "model.safetensors", None, torch.device("cpu"))


def relative(ours: Any, theirs: Any) -> float:
    """‖ours − theirs‖ / ‖theirs‖."""
    a, b = (torch.as_tensor(np.asarray(x), dtype=torch.float64) for x in (ours, theirs))
    assert a.shape == b.shape, (a.shape, b.shape)
    return float((a - b).norm() / b.norm())


def check_gradients(detector: Detector, recorded: Mapping[str, float], rules: list[Rule]) -> None:
    """The norm of every parameter's gradient is the recorded one."""
    own = dict(detector.named_parameters())
    ours = {rule.theirs[0]: rule.ours[0] for rule in rules}
    assert len(recorded) == len(own)
    for name, norm in recorded.items():
        gradient = own[ours[name]].grad
        assert gradient is not None, name
        assert abs(float(gradient.norm()) - norm) <= 1e-5 * norm + 1e-9, name
