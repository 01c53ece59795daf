"""A decoder language model: the family of Llama and Qwen, and GPT-2.

Each token is a vector; layers of causal self-attention and of a gated MLP add to it; its last state scores what comes
next. Llama's changes to GPT-2 (RMSNorm before each part, rotary positions, a gated MLP, fewer heads of keys than of
queries) are options here, so one file is both, and the modules carry the names of Llama's and Qwen's published files.

Notable:
- Sequences to train on are padded on the right: causal attention then needs no mask, and what stands behind a sequence
  changes none of its numbers. Prompts to continue are padded on the left, with a mask; a row of padding may see itself,
  so that no softmax is over nothing.
- A cache holds keys before they are repeated for the heads of queries.
- A tied head is the embedding itself: there is no `lm_head` then, as in the published files.
- The last layer goes no further than attention for tokens whose states nobody wants: in a prompt, all but the last.
- Every number agrees with transformers to the last bit for Qwen2, Qwen3 and Llama in float32 on a CPU.
- New matrices are drawn with deviation 0.02, which suits wide models only, or by their width (`initialise`).

References: Vaswani et al. 2017; Radford et al. 2019; Shazeer 2020 (SwiGLU); Su et al. 2021 (RoPE); Ainslie et al. 2023
(grouped queries); Touvron et al. 2023; Qwen Team 2024 and 2025 (biases; norms of queries and keys).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from odonata.errors import WeightsError
from odonata.language.cache import Cache
from odonata.nn.activations import ActivationName, activation
from odonata.nn.rms_norm import RMSNorm
from odonata.nn.rope import Rotation, rotate
from odonata.nn.rope_text import RopeScaling, TextRoPE

Initialisation = Literal["flat", "scaled"]
"""How new matrices are drawn; see `initialise`."""


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes and options, in the words of transformers' config.json."""

    vocab_size: int = 259
    hidden_size: int = 64
    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    num_key_value_heads: int = 4
    head_dim: int = 16
    intermediate_size: int = 160
    max_position_embeddings: int = 1024
    """Tokens of a sequence at most. Rotary positions go on beyond it; learned ones do not."""
    norm_eps: float = 1e-6
    positions: Literal["rotary", "learned"] = "rotary"
    norm: Literal["rms", "layer"] = "rms"
    mlp: Literal["gated", "plain"] = "gated"
    activation: ActivationName = "silu"
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling = field(default_factory=RopeScaling)
    qkv_bias: bool = False
    """Biases of the projections to queries, keys and values: Qwen2."""
    output_bias: bool = False
    """Bias of the projection after attention: GPT-2."""
    mlp_bias: bool = False
    qk_norm: bool = False
    """RMSNorm of each head of queries and keys before they are turned: Qwen3."""
    tie_word_embeddings: bool = True
    """The head is the embedding."""
    dropout: float = 0.0
    """While training: after the embedding, in attention, after each part."""

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
        for name in (*sizes, "head_dim", "intermediate_size", "max_position_embeddings"):
            if getattr(self, name) < 1:
                raise WeightsError(f"{name} is {getattr(self, name)}; a decoder wants at least 1")
        if self.num_attention_heads % self.num_key_value_heads:
            raise WeightsError(
                f"{self.num_attention_heads} heads of queries cannot share {self.num_key_value_heads} heads of keys"
            )
        if self.positions == "rotary" and self.head_dim % 2:
            raise WeightsError(f"rotary positions turn pairs: head_dim is {self.head_dim}, which is odd")

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> DecoderConfig:
        """Return the configuration that `to_dict` wrote.

        Raises:
            WeightsError: a field is unknown.
        """
        unknown = set(plain) - {f.name for f in fields(cls)}
        if unknown:
            raise WeightsError(f"a decoder has no field {', '.join(sorted(unknown))}")
        values: dict[str, Any] = {**plain, "rope_scaling": RopeScaling(**plain.get("rope_scaling", {}))}
        return cls(**values)


def variant(name: str, vocab_size: int, context: int = 256, dropout: float = 0.0) -> DecoderConfig:
    """Return a size by name, in Qwen2's form; KeyError if there is none."""
    width, layers, heads, shared = VARIANTS[name]
    return DecoderConfig(
        vocab_size=vocab_size, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=shared, head_dim=width // heads, intermediate_size=width * 8 // 3 // 16 * 16,
        max_position_embeddings=context, qkv_bias=True, dropout=dropout,
    )  # fmt: skip


VARIANTS = {
    "nano": (32, 2, 4, 4),
    "micro": (64, 2, 4, 4),
    "mini": (128, 4, 4, 2),
    "small": (256, 6, 8, 4),
    "base": (512, 8, 8, 4),
}
"""Name → width, layers, heads of queries, heads of keys: from 24 thousand weights to 23 million, embeddings aside."""


class Decoder(nn.Module):
    """The network: ids to hidden states to scores.

    Args:
        config: its sizes.
        initialisation: how its matrices are drawn.
    """

    def __init__(self, config: DecoderConfig, initialisation: Initialisation = "flat") -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.embed_positions = (
            nn.Embedding(config.max_position_embeddings, config.hidden_size) if config.positions == "learned" else None
        )
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList([Block(config) for _ in range(config.num_hidden_layers)])
        self.norm = _norm(config, config.hidden_size)
        self.rope = (
            TextRoPE(config.head_dim, config.rope_theta, config.rope_scaling) if config.positions == "rotary" else None
        )
        self.lm_head = (
            None if config.tie_word_embeddings else nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        )
        initialise(self, initialisation)

    @property
    def head_weight(self) -> Float[Tensor, "vocab dim"]:
        """The matrix that scores: the head's, or the embedding."""
        return self.embed_tokens.weight if self.lm_head is None else self.lm_head.weight

    def forward(
        self, ids: Int[Tensor, "batch time"], mask: Bool[Tensor, "batch time"] | None = None
    ) -> Float[Tensor, "batch time vocab"]:
        """Return the scores of every next token.

        Args:
            ids: tokens.
            mask: which are real; needed where padding stands on the left, harmless on the right.
        """
        return self.logits(self.hidden(ids, mask))

    def logits(self, hidden: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch vocab"]:
        """Return scores of hidden states."""
        return F.linear(hidden, self.head_weight)

    def hidden(
        self,
        ids: Int[Tensor, "batch time"],
        mask: Bool[Tensor, "batch total"] | None = None,
        cache: Cache | None = None,
        wanted: Bool[Tensor, "batch time"] | None = None,
    ) -> Float[Tensor, "*tokens dim"]:
        """Return the last states, after the final norm: `[batch, time, dim]`, or `[wanted, dim]`.

        Args:
            ids: tokens; those that follow what the cache holds, if there is one.
            mask: which tokens are real, those of the cache included; None: all.
            cache: is filled with the keys and values of these tokens.
            wanted: the tokens whose states are wanted; they come in one row, sequence by sequence. None: all, in place.

        Raises:
            WeightsError: positions are learned, and the sequence is longer than there are.
        """
        done = cache.length if cache is not None else 0
        time = ids.shape[1]
        if mask is None:
            positions = torch.arange(done, done + time, device=ids.device)
            seen = None
        else:
            positions, seen = _seen_at(mask, done, time)
        x = self.embed_tokens(ids)
        if self.embed_positions is not None:
            self._check_length(done + time)
            x = x + self.embed_positions(positions)
        rotation = self.rope(positions, x.dtype) if self.rope is not None else None
        x = self.dropout(x)
        last = len(self.layers) - 1
        for index, layer in enumerate(self.layers):
            x = layer(x, rotation, seen, cache, index, wanted if index == last else None)
        if cache is not None:
            cache.length += time
        return self.norm(x)

    def _check_length(self, length: int) -> None:
        if length > self.config.max_position_embeddings:
            raise WeightsError(
                f"a sequence of {length} tokens: this model's learned positions end at "
                f"{self.config.max_position_embeddings}"
            )


class Block(nn.Module):
    """Attention and an MLP, each after a norm and beside a skip."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.input_layernorm = _norm(config, config.hidden_size)
        self.self_attn = SelfAttention(config)
        self.post_attention_layernorm = _norm(config, config.hidden_size)
        self.mlp = GatedMLP(config) if config.mlp == "gated" else PlainMLP(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x: Float[Tensor, "batch time dim"],
        rotation: Rotation | None,
        seen: Tensor | None,
        cache: Cache | None,
        index: int,
        wanted: Tensor | None = None,
    ) -> Float[Tensor, "*tokens dim"]:
        """Add what attention and MLP say; of the tokens that are wanted, or of all."""
        mixed = self.self_attn.mix(self.input_layernorm(x), rotation, seen, cache, index)
        if wanted is not None:
            x, mixed = x[wanted], mixed[wanted]
        x = x + self.dropout(self.self_attn.o_proj(mixed))
        return x + self.dropout(self.mlp(self.post_attention_layernorm(x)))


class SelfAttention(nn.Module):
    """Causal attention whose heads of keys are shared by groups of heads of queries (Ainslie et al. 2023)."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.heads, self.shared, self.head_dim = (
            config.num_attention_heads, config.num_key_value_heads, config.head_dim,
        )  # fmt: skip
        self.drop = config.dropout
        self.q_proj = nn.Linear(config.hidden_size, self.heads * self.head_dim, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, self.shared * self.head_dim, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.hidden_size, self.shared * self.head_dim, bias=config.qkv_bias)
        self.o_proj = nn.Linear(self.heads * self.head_dim, config.hidden_size, bias=config.output_bias)
        self.q_norm = RMSNorm(self.head_dim, config.norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(self.head_dim, config.norm_eps) if config.qk_norm else nn.Identity()

    def mix(
        self, x: Tensor, rotation: Rotation | None, seen: Tensor | None, cache: Cache | None, index: int
    ) -> Float[Tensor, "batch time heads_dim"]:
        """Return each token's mixture of the values of what it may see, heads side by side, before `o_proj`.

        Args:
            x: states.
            rotation: by which queries and keys are turned.
            seen: `[batch, 1, time, total]`, what each may see; None: all that stands before it.
            cache: keys and values of what stands before.
            index: this layer's place in the cache.
        """
        queries = self.q_norm(self.q_proj(x).unflatten(-1, (self.heads, self.head_dim))).transpose(1, 2)
        keys = self.k_norm(self.k_proj(x).unflatten(-1, (self.shared, self.head_dim))).transpose(1, 2)
        values = self.v_proj(x).unflatten(-1, (self.shared, self.head_dim)).transpose(1, 2)
        if rotation is not None:
            queries, keys = rotate(queries, rotation), rotate(keys, rotation)
        if cache is not None:
            keys, values = cache.extend(index, keys, values)
        alone = queries.shape[2] == 1
        if alone:  # heads that share keys become rows of one head, so that keys and values are read once for all
            queries = queries.reshape(len(x), self.shared, -1, self.head_dim)
        # Without a mask each token sees what stands before it; a single new one sees everything.
        causal = seen is None and not alone
        if causal and keys.shape[2] > queries.shape[2]:
            seen, causal = _causal(queries.shape[2], keys.shape[2], queries.device), False
        out = F.scaled_dot_product_attention(
            queries, keys, values, attn_mask=seen, is_causal=causal,
            dropout_p=self.drop if self.training else 0.0, enable_gqa=self.heads != self.shared and not alone,
        )  # fmt: skip
        return out.reshape(len(x), 1, -1) if alone else out.transpose(1, 2).flatten(2)


class GatedMLP(nn.Module):
    """act(x W_gate) · (x W_up), and back by W_down (Shazeer 2020, eq. 6)."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)
        self.act = activation(config.activation)

    def forward(self, x: Float[Tensor, "... dim"]) -> Float[Tensor, "... dim"]:
        """Apply it to each token."""
        return self.down_proj(self.act(self.gate_proj(x)) * self.up_proj(x))


class PlainMLP(nn.Module):
    """Two Linears with an activation between: GPT-2's."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)
        self.act = activation(config.activation)

    def forward(self, x: Float[Tensor, "... dim"]) -> Float[Tensor, "... dim"]:
        """Apply it to each token."""
        return self.down_proj(self.act(self.up_proj(x)))


def _norm(config: DecoderConfig, dim: int) -> nn.Module:
    return RMSNorm(dim, config.norm_eps) if config.norm == "rms" else nn.LayerNorm(dim, config.norm_eps)


def initialise(decoder: Decoder, way: Initialisation) -> None:
    """Draw all matrices anew, from normal distributions; biases are zero.

    Args:
        decoder: is changed in place.
        way: `flat`: deviation 0.02, as configurations of Llama and Qwen say. `scaled`: GPT-2's, whose 0.02 is for 768
            inputs: 0.02 · √(768 / inputs), and less by √(2 · layers) where a layer adds to its input (Radford et al.
            2019, section 2.3). At 64 dimensions that is 3.5 times as large, and what takes two layers is learned many
            times sooner.
    """
    for name, module in decoder.named_modules():
        if not isinstance(module, (nn.Linear, nn.Embedding)):
            continue
        inputs = module.in_features if isinstance(module, nn.Linear) else module.embedding_dim
        deviation = 0.02 * (768 / inputs) ** 0.5 if way == "scaled" else 0.02
        if way == "scaled" and name.endswith(("o_proj", "down_proj")):
            deviation /= (2 * decoder.config.num_hidden_layers) ** 0.5
        nn.init.normal_(module.weight, std=deviation)
        if isinstance(module, nn.Linear) and module.bias is not None:  # pyright: ignore[reportUnnecessaryComparison]
            nn.init.zeros_(module.bias)


def _causal(time: int, total: int, device: torch.device) -> Bool[Tensor, "time total"]:
    return torch.ones(time, total, dtype=torch.bool, device=device).tril(total - time)


def _seen_at(mask: Bool[Tensor, "batch total"], done: int, time: int) -> tuple[Tensor, Tensor]:
    """Return positions and visibility of the last `time` tokens; one alone, which is real, needs no triangle."""
    if time == 1 and done:
        return mask.sum(1, keepdim=True) - 1, mask[:, None, None, :]
    return (mask.long().cumsum(1) - 1).clamp(min=0)[:, done : done + time], _visible(mask, done, time)


def _visible(mask: Bool[Tensor, "batch total"], done: int, time: int) -> Bool[Tensor, "batch 1 time total"]:
    """Return what each of the last `time` tokens sees: the real ones up to itself, and itself in any case."""
    total = done + time
    causal = _causal(time, total, mask.device)
    itself = torch.zeros(time, total, dtype=torch.bool, device=mask.device)
    itself[torch.arange(time), torch.arange(done, total)] = True
    return ((causal & mask[:, None, :total]) | itself)[:, None]
