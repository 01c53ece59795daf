"""Multi-head attention with separate query, key and value projections.

`torch.nn.MultiheadAttention` packs the three into one parameter, which low-rank adapters, freezing and quantisation
cannot take apart; four plain Linears can be replaced one by one. The score is `scaled_dot_product_attention`'s.
Normed queries and keys, rotary positions and fewer biases are options that cost nothing when off.
"""

from typing import Literal

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from odonata.nn.rope import Rotation, rotate

QKVBias = Literal["all", "no_key", "none"]
"""Which of the three projections have a bias. One on the keys moves all logits of a query alike, so it does nothing."""


class Attention(nn.Module):
    """Multi-head attention of `x` to itself, or to `context` (Vaswani et al. 2017, eq. 1).

    Args:
        dim: width of the queries and of the output.
        num_heads: number of heads.
        context_dim: width of the keys' and values' source; `dim` if not given.
        bias: whether the four projections have biases.
        head_dim: width of one head; `dim / num_heads` if not given.
        dropout: probability of dropping an attention weight while training.
        qkv_bias: which of query, key and value have a bias, where `bias` is true: `no_key` is DINOv3's.
        qk_norm: whether a LayerNorm over each head stands before the score (Dehghani et al. 2023, ViT-22B, eq. 3).
        norm_eps: epsilon of those norms.

    Raises:
        ValueError: `dim` is not divisible by `num_heads` and no `head_dim` is given.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        context_dim: int | None = None,
        bias: bool = True,
        head_dim: int | None = None,
        dropout: float = 0.0,
        qkv_bias: QKVBias = "all",
        qk_norm: bool = False,
        norm_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        if head_dim is None:
            if dim % num_heads:
                raise ValueError(f"dim {dim} is not divisible by num_heads {num_heads}; give head_dim")
            head_dim = dim // num_heads
        context_dim = dim if context_dim is None else context_dim
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.dropout = dropout
        self.q = nn.Linear(dim, num_heads * head_dim, bias=bias and qkv_bias != "none")
        self.k = nn.Linear(context_dim, num_heads * head_dim, bias=bias and qkv_bias == "all")
        self.v = nn.Linear(context_dim, num_heads * head_dim, bias=bias and qkv_bias != "none")
        self.proj = nn.Linear(num_heads * head_dim, dim, bias=bias)
        self.q_norm = nn.LayerNorm(head_dim, eps=norm_eps) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(head_dim, eps=norm_eps) if qk_norm else nn.Identity()

    def forward(
        self,
        x: Float[Tensor, "batch tokens dim"],
        context: Float[Tensor, "batch keys context_dim"] | None = None,
        mask: Bool[Tensor, "batch keys"] | Tensor | None = None,
        is_causal: bool = False,
        rotation: Rotation | None = None,
        values: Float[Tensor, "batch keys context_dim"] | None = None,
    ) -> Float[Tensor, "batch tokens dim"]:
        """Attends.

        Args:
            x: tokens that ask.
            context: tokens that answer; `x` if not given.
            mask: True where a key may be seen, `[batch, keys]`; or any boolean or additive mask that broadcasts to
                `[batch, heads, tokens, keys]`.
            is_causal: token i sees keys 0..i only. Not together with `mask`.
            rotation: rotary positions of the tokens of `x`; not together with `context`.
            values: what the values are made of where it is not what the keys are made of: tokens to whose queries and
                keys positions were added (DETR).

        Returns:
            Tokens of the shape of `x`.
        """
        if is_causal and mask is not None:
            raise ValueError("give either mask or is_causal: merge the causal rule into the mask yourself")
        q, k, v = self.project(x, context, values)
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        if mask is not None and mask.ndim == 2:
            mask = mask[:, None, None, :]
        return self.attend(q, k, v, mask, is_causal)

    def project(
        self,
        x: Float[Tensor, "batch tokens dim"],
        context: Float[Tensor, "batch keys context_dim"] | None = None,
        values: Float[Tensor, "batch keys context_dim"] | None = None,
    ) -> tuple[
        Float[Tensor, "batch heads tokens head_dim"],
        Float[Tensor, "batch heads keys head_dim"],
        Float[Tensor, "batch heads keys head_dim"],
    ]:
        """Returns queries, keys and values of each head; the arguments are those of `forward`."""
        source = x if context is None else context
        answers = source if values is None else values
        q, k, v = self._heads(self.q(x)), self._heads(self.k(source)), self._heads(self.v(answers))
        return self.q_norm(q), self.k_norm(k), v

    def attend(
        self,
        q: Float[Tensor, "batch heads tokens head_dim"],
        k: Float[Tensor, "batch heads keys head_dim"],
        v: Float[Tensor, "batch heads keys head_dim"],
        mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Float[Tensor, "batch tokens dim"]:
        """Returns what the values answer, projected; `mask` broadcasts to `[batch, heads, tokens, keys]`."""
        dropout = self.dropout if self.training else 0.0
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=is_causal)
        return self.proj(out.transpose(1, 2).flatten(2))

    def _heads(self, x: Float[Tensor, "batch tokens inner"]) -> Float[Tensor, "batch heads tokens head_dim"]:
        return x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)
