"""Layer-wise adaptive rates, for batches of thousands."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class LARS(Optimizer):
    """SGD with momentum whose rate each layer scales by ‖w‖ / ‖g‖ (You et al. 2017, arXiv:1708.03888, eq. 6).

    Args:
        params: groups; a group with `adapt` false (biases, norms) learns at the plain rate and without decay.
        lr: rate.
        momentum: of the buffer.
        weight_decay: added to the gradient before the ratio is taken.
        trust: coefficient of the ratio.
        clip: use min(ratio, 1 / lr) · lr as rate, so that it never exceeds the plain one (LARC, as SwAV uses it).

    Source of the order of operations: MoCo v3 `moco/optimizer.py` and NVIDIA apex `parallel/LARC.py`; the two agree
    where `clip` is off, but that apex adds the decay to the norm of the denominator instead of to the gradient.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 1e-3,
        clip: bool = False,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust, "clip": clip}
        super().__init__(params, {**defaults, "adapt": True})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Apply one update."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        if group["adapt"]:
            weight_norm, decay = parameter.norm(), group["weight_decay"]
            if group["clip"]:
                gradient_norm = gradient.norm()
                ratio = group["trust"] * weight_norm / (gradient_norm + weight_norm * decay + 1e-8)
                ratio = (ratio / group["lr"]).clamp(max=1.0) if group["lr"] else torch.ones_like(ratio)
                gradient = gradient + decay * parameter
            else:
                gradient = gradient + decay * parameter
                gradient_norm = gradient.norm()
                ratio = group["trust"] * weight_norm / gradient_norm
            usable = (weight_norm > 0) & (gradient_norm > 0)
            gradient = gradient * torch.where(usable, ratio, torch.ones_like(ratio))
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        buffer = state["momentum"].mul_(group["momentum"]).add_(gradient)
        parameter.add_(buffer, alpha=-group["lr"])
