"""Published segmenters as `fixtures/make_segmenters.py` recorded them, beside ours with the same weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from fixtures.named_numbers import numbers
from odonata.data.semantic_batches import SemanticBatch
from odonata.segment.predictor import SegmenterPredictor, load
from odonata.segment.segmenter import Segmenter
from odonata.weights.fcn_pytorch_fcn import bilinear

FOLDER = Path(__file__).parents[1] / "fixtures"
CLASSES = 5


class Record:
    """One recording; of several networks in a file, the one named `part`."""

    def __init__(self, name: str, part: str = "") -> None:
        arrays = np.load(FOLDER / f"segmenter_{name}.npz")
        self.arrays = {k.removeprefix(part): arrays[k] for k in arrays.files if k.startswith(part)}

    def plain(self, key: str) -> Any:
        return json.loads(self.arrays[key].tobytes())

    def state(self) -> dict[str, Tensor]:
        """Their weights under their own names."""
        return {
            key: bilinear(CLASSES, shape[-1] // 2) if "upscore" in key else numbers(key, tuple(shape))
            for key, shape in self.plain("shapes").items()
        }

    def predictor(self, file: Path, **config: Any) -> SegmenterPredictor:
        """Ours, in float64, read from a file as they save it, with some options changed."""
        safetensors.torch.save_file(self.state(), file)
        model = load(file, None, torch.device("cpu"))
        assets = replace(model.assets, config=replace(model.assets.config, **config))
        segmenter = assets.build()
        segmenter.load_state_dict(model.segmenter.state_dict())
        return SegmenterPredictor(segmenter.double().eval(), assets, torch.device("cpu"), model.name, model.notes)


def picture(height: int, width: int) -> Tensor:
    """Two normalised pictures."""
    return numbers("pictures", (2, 3, height, width)).double() * (3 * height * width) ** 0.5


def target(height: int, width: int) -> Tensor:
    """Their classes, with void in a corner."""
    made = (numbers("classes", (2, height, width)).double() * (height * width) ** 0.5 * 7).round().long() % CLASSES
    made[:, : height // 4, : width // 3] = 255
    return made


def losses_of(segmenter: Segmenter, height: int, width: int) -> dict[str, Tensor]:
    """The losses on the two pictures, which are normalised already."""
    segmenter.pixels = lambda batch: batch.images  # type: ignore[method-assign]
    sizes = torch.tensor([[height, width]] * 2)
    return segmenter.loss(SemanticBatch(picture(height, width), target(height, width), sizes, torch.arange(2)))


def relative(ours: Any, theirs: Any) -> float:
    """‖ours − theirs‖ / ‖theirs‖."""
    a, b = (torch.as_tensor(np.asarray(x), dtype=torch.float64) for x in (ours, theirs))
    assert a.shape == b.shape, (a.shape, b.shape)
    return float((a - b).norm() / b.norm())


def check_gradients(segmenter: Segmenter, record: Record, names: dict[str, str]) -> None:
    """Norms of all gradients that were recorded; `names` is theirs → ours."""
    own = {k: float(p.grad.norm()) for k, p in segmenter.named_parameters() if p.grad is not None}
    recorded = record.plain("gradients")
    assert len(own) == len(recorded)
    for theirs, norm in recorded.items():
        assert abs(own[names[theirs]] - norm) <= 1e-5 * norm, theirs
