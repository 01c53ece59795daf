"""The gated MLP: one Linear decides how much of another passes.

Notable: gate and value are two Linears, so that adapters and quantisation can take them apart; DINOv2's code packs
them in one.

Source: Shazeer 2020, GLU Variants Improve Transformer, eq. 6.
"""

from jaxtyping import Float
from torch import Tensor, nn

from odonata.nn.activations import ActivationName, activation


class SwiGLU(nn.Module):
    """act(x W_gate) · (x W_up), and back by W_down; with `silu` it is SwiGLU.

    Args:
        dim: width in and out.
        width: hidden width; see `swiglu_width`.
        act: activation of the gate.
        dropout: probability of dropping before and after the last Linear.
    """

    def __init__(self, dim: int, width: int, act: ActivationName = "silu", dropout: float = 0.0) -> None:
        super().__init__()
        self.gate = nn.Linear(dim, width)
        self.up = nn.Linear(dim, width)
        self.act = activation(act)
        self.down = nn.Linear(width, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "... dim"]) -> Float[Tensor, "... dim"]:
        """Applies the layers to each token."""
        return self.dropout(self.down(self.dropout(self.act(self.gate(x)) * self.up(x))))


def swiglu_width(width: int, multiple: int = 8) -> int:
    """Two thirds of an MLP's hidden width, rounded up: three matrices then weigh what two did (Shazeer 2020, sec. 3).

    Args:
        width: hidden width of the plain MLP.
        multiple: what the result is a multiple of (DINOv2: 8; DINOv3's 7B: 64).
    """
    return -(-int(width * 2 / 3) // multiple) * multiple
