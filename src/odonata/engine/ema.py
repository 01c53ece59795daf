"""A moving average of the weights."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class EMA:
    """avg ← decay·avg + (1 − decay)·weight after each update; buffers are copied.

    Args:
        module: what is averaged; its state's names are the average's.
        decay: in [0, 1). The first updates use (1 + n) / (10 + n) where that is smaller, so that the random start
        fades.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.average: dict[str, Tensor] = {k: v.detach().clone() for k, v in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Take in the weights after an update."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for key, value in module.state_dict().items():
            average = self.average[key]
            if average.is_floating_point():
                average.lerp_(value.detach(), 1 - decay)
            else:
                average.copy_(value)

    @contextmanager
    def applied(self, module: nn.Module) -> Generator[None]:
        """Let `module` hold the averaged weights inside the block."""
        saved = {k: v.detach().clone() for k, v in module.state_dict().items()}
        module.load_state_dict(self.average)
        try:
            yield
        finally:
            module.load_state_dict(saved)

    def state_dict(self) -> dict[str, object]:
        """Return what a checkpoint keeps."""
        return {"average": self.average, "updates": self.updates}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Take up what `state_dict` returned."""
        average = state["average"]
        assert isinstance(average, dict)
        for key, value in self.average.items():
            value.copy_(average[key])
        self.updates = int(state["updates"])  # pyright: ignore[reportArgumentType]
