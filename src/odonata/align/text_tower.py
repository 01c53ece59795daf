"""Text towers of two-tower models: CLIP's causal one, SigLIP's and FLIP's bidirectional ones.

Notable:
- CLIP reads its feature at the end token of a causal transformer. Nothing after that token can reach it, so a batch is
  cut at its longest caption before the first block: the same numbers for a quarter of the work on class prompts.
  Where many captions begin alike, `share_prefixes` computes what they have in common once.
- SigLIP has neither causal nor padding mask and reads the last position: its input must be padded to the full context,
  with the published padding id, or the embedding changes. Shorter input is refused.
- Where the end token stands is found in two ways: the largest id (OpenAI), or the first occurrence of its id
  (transformers since its pull request 24773). They differ once tokens are added to the vocabulary.

Sources: Radford et al. 2021 (CLIP), sec. 2.4 and openai/CLIP `model.py`; Zhai et al. 2023 (SigLIP) and big_vision
`models/proj/image_text/text_transformer.py`; Li et al. 2022 (FLIP).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from odonata.align.prefix_tree import prefix_trees
from odonata.backbones.vit_init import init_siglip_blocks_
from odonata.nn.activations import ActivationName
from odonata.nn.transformer import MLP, Block, Transformer


@dataclass(frozen=True)
class TextConfig:
    """What a text tower is made of."""

    vocab_size: int = 49408
    """Size of the vocabulary."""
    context_length: int = 77
    """Largest number of tokens."""
    width: int = 512
    """Width of a token."""
    depth: int = 12
    """Number of blocks."""
    num_heads: int = 8
    """Attention heads."""
    mlp_width: int = 2048
    """Hidden width of the MLPs."""
    activation: ActivationName = "quick_gelu"
    """Activation of the MLPs."""
    causal: bool = True
    """Whether a token sees only those before it."""
    mask_padding: bool = False
    """Whether padding is hidden from attention in a bidirectional tower (BERT); SigLIP and FLIP do not hide it."""
    pool: Literal["eot", "argmax", "last", "first"] = "argmax"
    """Where the feature is read: first end token, largest id (OpenAI), last position (SigLIP), first (FLIP)."""
    eot_id: int = 49407
    """Id of the end token."""
    pad_id: int = 0
    """Id of the padding: 0 for OpenAI's CLIP, 1 for SigLIP, 0 for SigLIP 2 and BERT."""
    norm_eps: float = 1e-5
    """Epsilon of the LayerNorms."""
    init: Literal["clip", "siglip", "bert"] = "clip"
    """Whose initialisation."""
    checkpointing: bool = False
    """Recompute activations in the backward pass to save memory."""

    def __post_init__(self) -> None:
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} is not a multiple of num_heads {self.num_heads}")
        if self.pool == "eot" and not 0 <= self.eot_id < self.vocab_size:
            raise ValueError(f"eot_id {self.eot_id} is not in a vocabulary of {self.vocab_size}")
        if self.causal and self.pool == "first":
            raise ValueError("pool 'first' reads a position that sees only itself in a causal tower")
        if self.causal and self.mask_padding:
            raise ValueError(
                "mask_padding is for bidirectional towers: a causal one never sees what follows its end token"
            )


class TextTransformer(nn.Module):
    """A transformer over token ids with one feature vector per text.

    Args:
        config: what it is made of.
    """

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.num_features = config.width
        self.token_embedding = nn.Embedding(config.vocab_size, config.width)
        self.positions = nn.Parameter(torch.empty(config.context_length, config.width))
        self.transformer = Transformer(
            config.width,
            config.depth,
            config.num_heads,
            mlp_width=config.mlp_width,
            act=config.activation,
            norm_eps=config.norm_eps,
            checkpointing=config.checkpointing,
        )
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        {"clip": _init_clip, "siglip": _init_siglip, "bert": _init_bert}[config.init](self)

    def forward(
        self, tokens: Int[Tensor, "batch length"], trim: bool = True, share_prefixes: bool = False
    ) -> Float[Tensor, "batch dim"]:
        """Returns the pooled, normed feature of each text, before any projection.

        Args:
            tokens: token ids. Causal towers (and those that mask padding) take any length up to the context;
                the others take the full context only.
            trim: cut a causal batch after its longest text: exact, and faster. Costs a synchronisation on a GPU.
            share_prefixes: compute what the texts of a causal batch have in common at their beginning once: exact
                (without dropout), and faster still for prompts. Other towers take no notice.

        Raises:
            ValueError: wrong length; or, when trimming for pool `eot`, a text without an end token.
        """
        self._check_length(tokens)
        if self.config.pool in ("eot", "argmax"):
            ends = self._ends(tokens)
            if share_prefixes and self.config.causal:
                return self.norm(self._features_of_trees(tokens, ends))
            if trim and self.config.causal and not torch.compiler.is_compiling():
                tokens = self._trim(tokens, ends)
            x = self.forward_features(tokens)
            # Norm and pooling commute, for the norm acts on each token alone.
            return self.norm(x[torch.arange(x.shape[0], device=x.device), ends])
        x = self.forward_features(tokens)
        return self.norm(x[:, 0] if self.config.pool == "first" else x[:, -1])

    def forward_features(self, tokens: Int[Tensor, "batch length"]) -> Float[Tensor, "batch length dim"]:
        """Returns all tokens after the last block, before the final norm."""
        x = self.token_embedding(tokens)
        x = x + self.positions[: tokens.shape[1]].to(x.dtype)
        return self.transformer(x, mask=self._padding_mask(tokens), is_causal=self.config.causal)

    def _features_of_trees(self, tokens: Tensor, ends: Tensor) -> Float[Tensor, "batch dim"]:
        self._check_ends(tokens, ends)
        trees = prefix_trees(tokens, ends)
        x = self.token_embedding(trees.tokens)
        x = x + self.positions[trees.depths].to(x.dtype)
        return self.transformer(x, mask=trees.mask).flatten(0, 1)[trees.ends]

    def _check_length(self, tokens: Int[Tensor, "batch length"]) -> None:
        length, context = tokens.shape[1], self.config.context_length
        if length > context:
            raise ValueError(f"texts of {length} tokens are longer than the context of {context}: truncate them")
        free = self.config.causal or self.config.mask_padding
        if length < context and not free:
            raise ValueError(
                f"texts of {length} tokens: this bidirectional tower sees its padding and takes exactly {context}; "
                f"pad with id {self.config.pad_id} (max_length padding)"
            )

    def _ends(self, tokens: Int[Tensor, "batch length"]) -> Int[Tensor, "batch"]:
        if self.config.pool == "argmax":
            return tokens.argmax(1)
        return (tokens == self.config.eot_id).int().argmax(1)

    def _trim(self, tokens: Int[Tensor, "batch length"], ends: Int[Tensor, "batch"]) -> Int[Tensor, "batch shorter"]:
        self._check_ends(tokens, ends)
        return tokens[:, : int(ends.max()) + 1]

    def _check_ends(self, tokens: Int[Tensor, "batch length"], ends: Int[Tensor, "batch"]) -> None:
        if self.config.pool == "eot":
            rows = torch.arange(tokens.shape[0], device=tokens.device)
            missing = (tokens[rows, ends] != self.config.eot_id).nonzero().flatten().tolist()
            if missing:
                raise ValueError(f"texts {missing[:8]} of the batch have no end token (id {self.config.eot_id})")

    def _padding_mask(self, tokens: Int[Tensor, "batch length"]) -> Bool[Tensor, "batch length"] | None:
        return tokens != self.config.pad_id if self.config.mask_padding else None


@torch.no_grad()
def _init_clip(tower: TextTransformer) -> None:
    """openai/CLIP `model.py`, `initialize_parameters`; biases and norms at PyTorch's defaults, packed biases zero."""
    width = tower.config.width
    nn.init.normal_(tower.token_embedding.weight, std=0.02)
    nn.init.normal_(tower.positions, std=0.01)
    attention_std = width**-0.5
    residual_std = attention_std * (2 * tower.config.depth) ** -0.5
    for block in tower.transformer.layers:
        assert isinstance(block, Block) and isinstance(block.mlp, MLP)
        for linear in (block.attn.q, block.attn.k, block.attn.v):
            nn.init.normal_(linear.weight, std=attention_std)
            nn.init.zeros_(linear.bias)
        nn.init.normal_(block.attn.proj.weight, std=residual_std)
        nn.init.zeros_(block.attn.proj.bias)
        nn.init.normal_(block.mlp.fc1.weight, std=(2 * width) ** -0.5)
        nn.init.normal_(block.mlp.fc2.weight, std=residual_std)


@torch.no_grad()
def _init_siglip(tower: TextTransformer) -> None:
    """big_vision `text_transformer.py`: embeddings and positions N(0, 1/width), blocks as the vision tower's."""
    std = tower.config.width**-0.5
    nn.init.normal_(tower.token_embedding.weight, std=std)
    nn.init.normal_(tower.positions, std=std)
    init_siglip_blocks_(tower)


@torch.no_grad()
def _init_bert(tower: TextTransformer) -> None:
    """google-research/bert `modeling.py`: every matrix truncated N(0, 0.02), biases zero."""
    nn.init.trunc_normal_(tower.positions, std=0.02)
    for part in tower.modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            nn.init.trunc_normal_(part.weight, std=0.02)
        if isinstance(part, nn.Linear):
            nn.init.zeros_(part.bias)
