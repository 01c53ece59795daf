"""What TRL 1.16.0 and 1.12.0 computed (`fixtures/make_trl_losses.py`), in the precision that a test asks for."""

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

RECORDED = dict(np.load(Path(__file__).parents[1] / "fixtures/trl_losses.npz"))
FACTS = json.loads(bytes(RECORDED.pop("json")))
LENGTHS = torch.tensor([9, 3, 5, 7, 2, 9, 4, 6])
MASK = torch.arange(9) < LENGTHS[:, None]
"""Which tokens the answers have: eight rows of nine."""
BOUNDS = {torch.float64: 1e-10, torch.float32: 1e-6}
"""Relative errors that parity allows."""


def record(name: str, dtype: torch.dtype = torch.float64) -> Tensor:
    """An input or a result."""
    value = torch.from_numpy(RECORDED[name])
    return value.to(dtype) if value.is_floating_point() else value


def leaf(name: str, dtype: torch.dtype) -> Tensor:
    """An input that a gradient is asked of."""
    return record(name, dtype).requires_grad_()


def assert_close(found: Tensor, name: str, dtype: torch.dtype, where: Tensor | None = None) -> None:
    """Asserts that a tensor of that precision is the recorded one, in norm and where a mask says."""
    assert found.dtype == dtype
    expected = record(name)
    found, expected = (x if where is None else x[where] for x in (found.detach().double(), expected.double()))
    assert found.shape == expected.shape
    error = (found - expected).norm() / expected.norm()
    assert error < BOUNDS[dtype], f"{name}: relative error {error:.1e}"
