"""Taps of two made-up networks, and the recorded cases of RepDistiller."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fixtures.named_numbers import numbers
from odonata.distill.losses.interface import Taps, TapShapes

RECORDED = np.load(Path(__file__).parents[1] / "fixtures" / "repdistiller.npz")
CASES = json.loads(RECORDED["json"].tobytes())
BATCH = 6


def tensor(name: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> Tensor:
    """Numbers of size 1."""
    return (numbers(name, shape) * math.sqrt(np.prod(shape[1:]))).to(dtype)


def taps_of(name: str, shapes: dict, dtype: torch.dtype = torch.float64, batch: int = BATCH) -> Taps:
    """The taps of one side of a case, all leaves of a graph."""

    def leaf(tap: str, *shape: int, size: float = 1) -> Tensor:
        return (size * tensor(f"{name}.{tap}", (batch, *shape), dtype)).requires_grad_()

    return Taps(
        [leaf(f"maps.{i}", *shape) for i, shape in enumerate(shapes["maps"])],
        [leaf(f"preactivations.{i}", *shape) for i, shape in enumerate(shapes["maps"][1:])],
        leaf("pooled", shapes["dim"]),
        leaf("logits", shapes["classes"], size=3),
    )


def both_taps(case: str, dtype: torch.dtype = torch.float64) -> tuple[Taps, Taps]:
    """Student and teacher of a recorded case."""
    student, teacher = (taps_of(f"{case}/{side}", CASES[case][side], dtype) for side in ("student", "teacher"))
    return student, teacher


def both_shapes(student: Taps, teacher: Taps) -> tuple[TapShapes, TapShapes]:
    """Their shapes."""
    return TapShapes.of("student", student), TapShapes.of("teacher", teacher)


def transformed(taps: Taps, change: Callable[[Tensor], Tensor]) -> Taps:
    """All taps, changed."""
    assert taps.pooled is not None and taps.logits is not None
    maps = [change(value) for value in taps.maps]
    return Taps(maps, [change(v) for v in taps.preactivations], change(taps.pooled), change(taps.logits))


def assert_close(ours: Tensor, recorded: np.ndarray, bound: float) -> None:
    """Relative error of the whole tensor below `bound`."""
    reference = torch.from_numpy(np.asarray(recorded)).double()
    error = float((ours.detach().double() - reference).norm() / reference.norm())
    assert error < bound, f"relative error {error:.2e}"
