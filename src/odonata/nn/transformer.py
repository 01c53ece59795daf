"""Transformer blocks, and a stack of them.

Pre-norm by default, as in ViT, GPT-2 and CLIP; post-norm as in the first transformer and BERT. Stochastic depth,
layer scale and activation checkpointing are options that cost nothing when off.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from odonata.nn.activations import ActivationName, activation
from odonata.nn.attention import Attention, QKVBias
from odonata.nn.rope import Rotation
from odonata.nn.swiglu import SwiGLU


class DropPath(nn.Module):
    """Stochastic depth: drops a residual branch per sample and rescales the rest (Huang et al. 2016, sec. 3).

    Args:
        rate: probability of dropping, 0 ≤ rate < 1; acts in training mode only.
    """

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise ValueError(f"drop-path rate {rate} is not in [0, 1)")
        self.rate = rate

    def forward(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
        """Returns `x`, with whole samples set to zero while training."""
        if not self.training or self.rate == 0:
            return x
        keep = 1 - self.rate
        mask = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep)
        return x * mask / keep

    def extra_repr(self) -> str:
        return f"rate={self.rate}"


class LayerScale(nn.Module):
    """A learned scale per channel on a residual branch (Touvron et al. 2021, CaiT, eq. 3).

    Args:
        dim: channels.
        init: start value.
    """

    def __init__(self, dim: int, init: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((dim,), init))

    def forward(self, x: Float[Tensor, "... dim"]) -> Float[Tensor, "... dim"]:
        """Returns `x` times the scale."""
        return x * self.scale


class MLP(nn.Module):
    """Two Linears with an activation between them.

    Args:
        dim: width in and out.
        width: hidden width.
        act: name of the activation.
        dropout: probability of dropping after each Linear.
    """

    def __init__(self, dim: int, width: int, act: ActivationName = "gelu", dropout: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, width)
        self.act = activation(act)
        self.fc2 = nn.Linear(width, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "... dim"]) -> Float[Tensor, "... dim"]:
        """Applies the two layers to each token."""
        return self.dropout(self.fc2(self.dropout(self.act(self.fc1(x)))))


class Block(nn.Module):
    """One transformer block: attention, then MLP, each with a residual.

    Args:
        dim: width.
        num_heads: attention heads.
        mlp_width: hidden width of the MLP; `mlp_ratio * dim` if not given.
        mlp_ratio: used where `mlp_width` is not given.
        act: activation of the MLP.
        norm: `pre` (ViT, GPT-2, CLIP) or `post` (BERT, the first transformer).
        norm_eps: epsilon of the LayerNorms.
        dropout: dropout of the MLP and after the attention.
        attention_dropout: dropout of attention weights.
        drop_path: stochastic depth rate.
        layer_scale: start value of a layer scale, or None for none.
        mlp: `mlp` (two Linears) or `swiglu` (a gated MLP; `mlp_width` is then the width of its gate).
        qkv_bias, qk_norm: as in `Attention`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        mlp_width: int | None = None,
        mlp_ratio: float = 4.0,
        act: ActivationName = "gelu",
        norm: Literal["pre", "post"] = "pre",
        norm_eps: float = 1e-5,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        drop_path: float = 0.0,
        layer_scale: float | None = None,
        mlp: Literal["mlp", "swiglu"] = "mlp",
        qkv_bias: QKVBias = "all",
        qk_norm: bool = False,
    ) -> None:
        super().__init__()
        self.pre_norm = norm == "pre"
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = Attention(
            dim, num_heads, dropout=attention_dropout, qkv_bias=qkv_bias, qk_norm=qk_norm, norm_eps=norm_eps
        )
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        kind = SwiGLU if mlp == "swiglu" else MLP
        self.mlp = kind(dim, mlp_width or round(dim * mlp_ratio), act, dropout)
        self.dropout = nn.Dropout(dropout)
        self.drop_path = DropPath(drop_path)
        self.scale1 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)
        self.scale2 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)

    def forward(
        self,
        x: Float[Tensor, "batch tokens dim"],
        mask: Tensor | None = None,
        is_causal: bool = False,
        rotation: Rotation | None = None,
    ) -> Float[Tensor, "batch tokens dim"]:
        """Returns the transformed tokens; `mask`, `is_causal` and `rotation` as in `Attention.forward`."""
        if self.pre_norm:
            x = x + self._attend(self.norm1(x), mask, is_causal, rotation)
            return x + self.drop_path(self.scale2(self.mlp(self.norm2(x))))
        x = self.norm1(x + self._attend(x, mask, is_causal, rotation))
        return self.norm2(x + self.drop_path(self.scale2(self.mlp(x))))

    def _attend(self, x: Tensor, mask: Tensor | None, is_causal: bool, rotation: Rotation | None) -> Tensor:
        out = self.attn(x, mask=mask, is_causal=is_causal, rotation=rotation)
        return self.drop_path(self.scale1(self.dropout(out)))


class Transformer(nn.Module):
    """A stack of blocks, without embeddings and without a final norm.

    Args:
        dim: width.
        depth: number of blocks.
        num_heads: attention heads.
        drop_path: stochastic depth rate of the last block; grows linearly from 0 (Huang et al. 2016, eq. 4).
        checkpointing: recompute activations in the backward pass instead of keeping them.
        mlp_width, mlp_ratio, act, norm, norm_eps, dropout, attention_dropout, layer_scale, mlp: as in `Block`.
        qkv_bias, qk_norm: as in `Attention`.
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        num_heads: int,
        *,
        mlp_width: int | None = None,
        mlp_ratio: float = 4.0,
        act: ActivationName = "gelu",
        norm: Literal["pre", "post"] = "pre",
        norm_eps: float = 1e-5,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        drop_path: float = 0.0,
        layer_scale: float | None = None,
        mlp: Literal["mlp", "swiglu"] = "mlp",
        qkv_bias: QKVBias = "all",
        qk_norm: bool = False,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        rates = [drop_path * i / max(depth - 1, 1) for i in range(depth)]
        self.layers = nn.ModuleList(
            Block(
                dim,
                num_heads,
                mlp_width=mlp_width,
                mlp_ratio=mlp_ratio,
                act=act,
                norm=norm,
                norm_eps=norm_eps,
                dropout=dropout,
                attention_dropout=attention_dropout,
                drop_path=rate,
                layer_scale=layer_scale,
                mlp=mlp,
                qkv_bias=qkv_bias,
                qk_norm=qk_norm,
            )
            for rate in rates
        )
        self.checkpointing = checkpointing

    def forward(
        self,
        x: Float[Tensor, "batch tokens dim"],
        mask: Tensor | None = None,
        is_causal: bool = False,
        rotation: Rotation | None = None,
    ) -> Float[Tensor, "batch tokens dim"]:
        """Returns the tokens after the last block; `mask`, `is_causal`, `rotation` as in `Attention.forward`."""
        for layer in self.layers:
            x = self._run(layer, x, mask, is_causal, rotation)
        return x

    def features(
        self,
        x: Float[Tensor, "batch tokens dim"],
        layers: Sequence[int],
        mask: Tensor | None = None,
        is_causal: bool = False,
        rotation: Rotation | None = None,
    ) -> list[Float[Tensor, "batch tokens dim"]]:
        """Returns the tokens after each of the blocks named by `layers`, in that order; negative numbers count back.

        Raises:
            ValueError: a layer does not exist.
        """
        wanted = wanted_layers(layers, len(self.layers))
        found: dict[int, Tensor] = {}
        for i, layer in enumerate(self.layers[: max(wanted, default=-1) + 1]):
            x = self._run(layer, x, mask, is_causal, rotation)
            if i in wanted:
                found[i] = x
        return [found[i] for i in wanted]

    def _run(
        self, layer: nn.Module, x: Tensor, mask: Tensor | None, is_causal: bool, rotation: Rotation | None
    ) -> Tensor:
        if self.checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(layer, x, mask, is_causal, rotation, use_reentrant=False)  # pyright: ignore[reportReturnType]
        return layer(x, mask, is_causal, rotation)


def wanted_layers(layers: Sequence[int], depth: int) -> list[int]:
    """Turns layer numbers, negative ones counting back from the end, into 0..depth-1; ValueError if out of range."""
    wrong = [i for i in layers if not -depth <= i < depth]
    if wrong:
        raise ValueError(f"layers {wrong} do not exist: there are {depth}, numbered 0..{depth - 1} or -{depth}..-1")
    return [i % depth for i in layers]
