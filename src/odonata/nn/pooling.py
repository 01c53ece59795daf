"""Pooling by attention: CLIP's for feature maps, SigLIP's for tokens."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from odonata.nn.activations import ActivationName
from odonata.nn.attention import Attention
from odonata.nn.positions import PositionConvention, resize_positions
from odonata.nn.transformer import MLP


class AttentionPool2d(nn.Module):
    """The attention pooling of CLIP's ResNets: the mean of a feature map asks, the mean and all cells answer.

    Args:
        grid: side of the feature map that the positions are learned for.
        dim: channels of the feature map.
        num_heads: heads.
        out_dim: width of the result; `dim` if not given.
        convention: how the positions are resized for maps of another size.

    Source: openai/CLIP `model.py`, `AttentionPool2d` (CLIP, Radford et al. 2021, sec. 2.4).
    """

    def __init__(
        self,
        grid: int,
        dim: int,
        num_heads: int,
        out_dim: int | None = None,
        convention: PositionConvention = "open_clip",
    ) -> None:
        super().__init__()
        self.grid = grid
        self.num_heads = num_heads
        self.convention: PositionConvention = convention
        self.positions = nn.Parameter(torch.randn(grid * grid + 1, dim) * dim**-0.5)
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, out_dim or dim)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch out_dim"]:
        """Returns one vector per map."""
        grid = (x.shape[2], x.shape[3])
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([x.mean(1, keepdim=True), x], 1)
        x = x + resize_positions(self.positions, (self.grid, self.grid), grid, convention=self.convention).to(x.dtype)
        q, k, v = (
            layer(source).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for layer, source in ((self.q, x[:, :1]), (self.k, x), (self.v, x))
        )
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(1))


class MAPHead(nn.Module):
    """Multihead attention pooling: one learned probe asks all tokens, then LayerNorm and MLP with a residual.

    Args:
        dim: width.
        num_heads: heads.
        mlp_width: hidden width of the MLP; `4 * dim` if not given.
        act: activation of the MLP.
        norm_eps: epsilon of the LayerNorm.

    Source: big_vision `models/vit.py`, `MAPHead` (Zhai et al. 2021, Scaling ViT, sec. 3.2).
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_width: int | None = None,
        act: ActivationName = "gelu_tanh",
        norm_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.probe = nn.Parameter(torch.empty(1, 1, dim))
        self.attn = Attention(dim, num_heads)
        self.norm = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = MLP(dim, mlp_width or 4 * dim, act)
        # Flax takes the probe's fans as (1, dim); torch's xavier_uniform_ would read the last axis as a kernel.
        bound = (6 / (1 + dim)) ** 0.5
        nn.init.uniform_(self.probe, -bound, bound)

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], mask: Bool[Tensor, "batch tokens"] | None = None
    ) -> Float[Tensor, "batch dim"]:
        """Returns one vector per sample; `mask` is True at real tokens."""
        pooled = self.attn(self.probe.expand(x.shape[0], -1, -1), context=x, mask=mask)
        return (pooled + self.mlp(self.norm(pooled)))[:, 0]
