"""Multi-head attention with separate query, key and value projections.

`torch.nn.MultiheadAttention` packs the three into one parameter, which low-rank adapters, freezing and quantisation
cannot take apart; four plain Linears can be replaced one by one. The score is `scaled_dot_product_attention`'s.
"""

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head attention of `x` to itself, or to `context` (Vaswani et al. 2017, eq. 1).

    Args:
        dim: width of the queries and of the output.
        num_heads: number of heads.
        context_dim: width of the keys' and values' source; `dim` if not given.
        bias: whether the four projections have biases.
        head_dim: width of one head; `dim / num_heads` if not given.
        dropout: probability of dropping an attention weight while training.

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
        self.q = nn.Linear(dim, num_heads * head_dim, bias=bias)
        self.k = nn.Linear(context_dim, num_heads * head_dim, bias=bias)
        self.v = nn.Linear(context_dim, num_heads * head_dim, bias=bias)
        self.proj = nn.Linear(num_heads * head_dim, dim, bias=bias)

    def forward(
        self,
        x: Float[Tensor, "batch tokens dim"],
        context: Float[Tensor, "batch keys context_dim"] | None = None,
        mask: Bool[Tensor, "batch keys"] | Tensor | None = None,
        is_causal: bool = False,
    ) -> Float[Tensor, "batch tokens dim"]:
        """Attends.

        Args:
            x: tokens that ask.
            context: tokens that answer; `x` if not given.
            mask: True where a key may be seen, `[batch, keys]`; or any boolean or additive mask that broadcasts to
                `[batch, heads, tokens, keys]`.
            is_causal: token i sees keys 0..i only. Not together with `mask`.

        Returns:
            Tokens of the shape of `x`.
        """
        if is_causal and mask is not None:
            raise ValueError("give either mask or is_causal: merge the causal rule into the mask yourself")
        source = x if context is None else context
        q, k, v = self._heads(self.q(x)), self._heads(self.k(source)), self._heads(self.v(source))
        if mask is not None and mask.ndim == 2:
            mask = mask[:, None, None, :]
        dropout = self.dropout if self.training else 0.0
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=is_causal)
        return self.proj(out.transpose(1, 2).flatten(2))

    def _heads(self, x: Float[Tensor, "batch tokens inner"]) -> Float[Tensor, "batch heads tokens head_dim"]:
        return x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)
