"""RMSNorm: states divided by their root mean square.

Notable: in training its gradient is written out, in half the passes over memory that the parts would take; the value
has the same bits either way, those of transformers. Gradients of gradients are refused.

Sources: Zhang and Sennrich 2019, arXiv:1910.07467, eq. 4; Llama's code, which casts back before it scales.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

_FULL = (torch.float32, torch.float64)


class RMSNorm(nn.Module):
    """x / rms(x) · weight; the division in float32 where the states are of less.

    Args:
        dim: of the last axis.
        eps: added to the mean square.
    """

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """Normalise the last axis."""
        if x.dtype in _FULL and x.dtype == self.weight.dtype:
            if torch.is_grad_enabled():
                return _RMSNorm.apply(x, self.weight, self.eps)  # pyright: ignore[reportReturnType]
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)

    def extra_repr(self) -> str:
        return f"{len(self.weight)}, eps={self.eps}"


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)
        normal = x * scale
        ctx.save_for_backward(normal, scale, weight)
        return weight * normal

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None]:
        if torch.is_grad_enabled():
            raise RuntimeError("RMSNorm cannot be differentiated twice here; use create_graph=False")
        # With n = x / rms(x): ∂L/∂x = (g·w − n · mean(g·w·n)) / rms(x), and ∂L/∂w is the sum of g·n.
        normal, scale, weight = ctx.saved_tensors
        of_weight = grad_outputs[0] * normal
        along = (of_weight * weight).mean(-1, keepdim=True)
        of_x = (grad_outputs[0] * weight).addcmul_(normal, along, value=-1).mul_(scale)
        return of_x, of_weight.flatten(0, -2).sum(0), None
