"""DETR's encoder and decoder: positions are added to queries and keys of every layer, never to values.

Notable: the decoder's tokens begin at zero, and what tells one query from another is a learned position that is added
to the queries and keys of each self-attention and to the queries of each cross-attention. Post-norm as published;
pre-norm as the original's `--pre_norm`, which then has a norm after the encoder too. One norm stands behind every layer
of the decoder whose answer is read.

transformers, trained with its auxiliary losses on, hands that norm's output on to the next layer and norms the last one
twice; the original does not, and neither does this.

Reference: Carion et al., End-to-End Object Detection with Transformers, arXiv:2005.12872, appendix A.3;
facebookresearch/detr `models/transformer.py`.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from odonata.nn.attention import Attention
from odonata.nn.transformer import MLP

NormPlace = Literal["post", "pre"]
"""Whether a norm stands behind each residual sum or before each branch."""
PositionsAt = Literal["attention", "both"]
"""Whether positions are added to queries and keys only, or to the tokens at the input too, which carries them into the
values (table 3 of the paper tries the input alone)."""


class EncoderLayer(nn.Module):
    """Self-attention among the cells of the map, then an MLP.

    Args:
        dim: width.
        num_heads: of the attention.
        mlp_width: hidden width of the MLP.
        norm: where the norms stand.
        dropout: of attention weights, of each branch, and within the MLP.
    """

    def __init__(self, dim: int, num_heads: int, mlp_width: int, norm: NormPlace, dropout: float) -> None:
        super().__init__()
        self.pre_norm = norm == "pre"
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim, num_heads, dropout=dropout)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = MLP(dim, mlp_width, "relu", dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Float[Tensor, "batch cells dim"], positions: Tensor, seen: Bool[Tensor, "batch cells"] | None
    ) -> Float[Tensor, "batch cells dim"]:
        """Return the next tokens.

        Args:
            x: tokens of the map.
            positions: of its cells; broadcasts over the batch.
            seen: which cells belong to the picture; None: all.
        """
        if self.pre_norm:
            x = x + self._attend(self.norm1(x), positions, seen)
            return x + self.mlp(self.norm2(x))
        x = self.norm1(x + self._attend(x, positions, seen))
        return self.norm2(x + self.mlp(x))

    def _attend(self, x: Tensor, positions: Tensor, seen: Tensor | None) -> Tensor:
        placed = x + positions
        return self.dropout(self.attn(placed, placed, seen, values=x))


class DecoderLayer(nn.Module):
    """Self-attention among the queries, attention to the map, then an MLP.

    Args:
        dim, num_heads, mlp_width, norm, dropout: as in `EncoderLayer`.
    """

    def __init__(self, dim: int, num_heads: int, mlp_width: int, norm: NormPlace, dropout: float) -> None:
        super().__init__()
        self.pre_norm = norm == "pre"
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim, num_heads, dropout=dropout)
        self.norm2 = nn.LayerNorm(dim)
        self.cross = Attention(dim, num_heads, dropout=dropout)
        self.norm3 = nn.LayerNorm(dim)
        self.mlp = MLP(dim, mlp_width, "relu", dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Float[Tensor, "batch queries dim"],
        query_positions: Tensor,
        keys: Float[Tensor, "batch cells dim"],
        memory: Float[Tensor, "batch cells dim"],
        seen: Bool[Tensor, "batch cells"] | None,
    ) -> Float[Tensor, "batch queries dim"]:
        """Return the next tokens of the queries.

        Args:
            x: tokens of the queries.
            query_positions: what tells the queries apart; broadcasts over the batch.
            keys: the encoder's answer with positions added.
            memory: the encoder's answer.
            seen: which cells belong to the picture; None: all.
        """
        if self.pre_norm:
            x = x + self._attend(self.norm1(x), query_positions)
            x = x + self.dropout(self.cross(self.norm2(x) + query_positions, keys, seen, values=memory))
            return x + self.mlp(self.norm3(x))
        x = self.norm1(x + self._attend(x, query_positions))
        x = self.norm2(x + self.dropout(self.cross(x + query_positions, keys, seen, values=memory)))
        return self.norm3(x + self.mlp(x))

    def _attend(self, x: Tensor, query_positions: Tensor) -> Tensor:
        placed = x + query_positions
        return self.dropout(self.attn(placed, placed, values=x))


class Encoder(nn.Module):
    """A stack of encoder layers, and with pre-norm a norm after them."""

    def __init__(self, depth: int, dim: int, num_heads: int, mlp_width: int, norm: NormPlace, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(dim, num_heads, mlp_width, norm, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(dim) if norm == "pre" else nn.Identity()


class Decoder(nn.Module):
    """A stack of decoder layers, and the norm through which each of them is read."""

    def __init__(self, depth: int, dim: int, num_heads: int, mlp_width: int, norm: NormPlace, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(dim, num_heads, mlp_width, norm, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)


class QueryTransformer(nn.Module):
    """From the cells of a map to one token for each query.

    Args:
        dim: width.
        num_heads: of every attention.
        encoder_layers, decoder_layers: depths; the encoder may have none.
        mlp_width: hidden width of the MLPs.
        norm: where the norms stand.
        dropout: of attention weights, branches and MLPs.
        positions_at: where positions are added.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        encoder_layers: int,
        decoder_layers: int,
        mlp_width: int,
        norm: NormPlace = "post",
        dropout: float = 0.1,
        positions_at: PositionsAt = "attention",
    ) -> None:
        super().__init__()
        self.at_input = positions_at == "both"
        self.encoder = Encoder(encoder_layers, dim, num_heads, mlp_width, norm, dropout)
        self.decoder = Decoder(decoder_layers, dim, num_heads, mlp_width, norm, dropout)
        self.checkpointing = False
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(
        self,
        x: Float[Tensor, "batch cells dim"],
        positions: Float[Tensor, "#batch cells dim"],
        query_positions: Float[Tensor, "queries dim"],
        seen: Bool[Tensor, "batch cells"] | None = None,
        every_layer: bool = False,
    ) -> Float[Tensor, "layers batch queries dim"]:
        """Return the normed tokens of the queries after the last decoder layer, or after each of them.

        Args:
            x: tokens of the map, row by row.
            positions: of its cells.
            query_positions: learned, one for each query.
            seen: which cells belong to the picture; None: all.
            every_layer: for auxiliary losses.
        """
        if self.at_input:
            x = x + positions
        for layer in self.encoder.layers:
            x = self._run(layer, x, positions, seen)
        memory = self.encoder.norm(x)
        keys = memory + positions
        tokens = memory.new_zeros(x.shape[0], *query_positions.shape)
        if self.at_input:
            tokens = tokens + query_positions
        answers: list[Tensor] = []
        for number, layer in enumerate(self.decoder.layers):
            tokens = self._run(layer, tokens, query_positions, keys, memory, seen)
            if every_layer or number == len(self.decoder.layers) - 1:
                answers.append(self.decoder.norm(tokens))
        return torch.stack(answers)

    def _run(self, layer: nn.Module, *inputs: Tensor | None) -> Tensor:
        if self.checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(layer, *inputs, use_reentrant=False)  # pyright: ignore[reportReturnType]
        return layer(*inputs)
