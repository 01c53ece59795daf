"""The Vision Transformer, as CLIP, SigLIP, SigLIP 2 NaFlex, FLIP and MAE each build it.

Notable:
- CLIP: a LayerNorm before the blocks, no bias in the patch projection, class token pooled.
- SigLIP: no class token, attention pooling over all normed tokens. NaFlex: flat patches of any grid, padding masked.
- FLIP: fixed sine-cosine positions, patches dropped while training, mean of all output tokens (class token included).
- Positions are resized when an image has another size than the tower was made for, by a named convention.

Sources: Dosovitskiy et al. 2020 (ViT); Radford et al. 2021 (CLIP); Zhai et al. 2023 (SigLIP); Tschannen et al. 2025
(SigLIP 2); Li et al. 2022 (FLIP); He et al. 2021 (MAE).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from odonata.backbones.vit_init import INITIALISERS
from odonata.nn.activations import ActivationName
from odonata.nn.patches import FlatPatchEmbed, PatchDropout, PatchEmbed, patchify
from odonata.nn.pooling import MAPHead
from odonata.nn.positions import PositionConvention, resize_positions, resize_positions_per_image, sincos_2d
from odonata.nn.transformer import Transformer


@dataclass(frozen=True)
class ViTConfig:
    """What a Vision Transformer is made of; see `VARIANTS` for the published sizes."""

    image_size: int = 224
    """Side of the square image, in pixels, that the positions are made for."""
    patch_size: int = 16
    """Side of a patch in pixels."""
    width: int = 768
    """Width of a token."""
    depth: int = 12
    """Number of blocks."""
    num_heads: int = 12
    """Attention heads."""
    mlp_width: int = 3072
    """Hidden width of the MLPs."""
    activation: ActivationName = "gelu"
    """Activation of the MLPs: quick_gelu for CLIP's released models, gelu_tanh for models from Flax."""
    channels: int = 3
    """Channels of the image."""
    class_token: bool = True
    """Whether a learned class token is put before the patches."""
    pre_norm: bool = False
    """Whether a LayerNorm stands before the blocks (CLIP's ln_pre)."""
    patch_bias: bool = True
    """Whether the patch projection has a bias (CLIP's has none)."""
    pool: Literal["class", "mean", "map", "none"] = "class"
    """Pooling after the final norm: class token, mean of all tokens, attention pooling, or all tokens as they are."""
    positions: Literal["learned", "sincos_2d", "naflex"] = "learned"
    """Position embedding; naflex also takes flat patches of any grid."""
    position_convention: PositionConvention = "open_clip"
    """How learned positions are resized for images of another size."""
    norm_eps: float = 1e-6
    """Epsilon of the LayerNorms: 1e-5 for CLIP, 1e-6 for most others."""
    drop_path: float = 0.0
    """Stochastic depth rate of the last block."""
    patch_dropout: float = 0.0
    """Share of patches dropped at random while training (FLIP)."""
    layer_scale: float | None = None
    """Start value of a layer scale, or none."""
    init: Literal["clip", "siglip", "mae"] = "mae"
    """Whose initialisation."""
    checkpointing: bool = False
    """Recompute activations in the backward pass to save memory."""

    def __post_init__(self) -> None:
        if self.image_size < self.patch_size:
            raise ValueError(f"image_size {self.image_size} is smaller than patch_size {self.patch_size}")
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} is not a multiple of num_heads {self.num_heads}")
        if self.pool == "class" and not self.class_token:
            raise ValueError("pool 'class' needs class_token=True")
        if self.positions == "naflex" and (self.class_token or self.patch_dropout or self.pool not in ("map", "none")):
            raise ValueError("positions 'naflex' goes with pool 'map' or 'none', no class token and no patch_dropout")

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of whole patches of an image of `image_size` (SigLIP So400m/14 has 384 // 14 = 27)."""
        side = self.image_size // self.patch_size
        return side, side


class ViT(nn.Module):
    """A Vision Transformer.

    Args:
        config: what it is made of.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        self.num_features = config.width
        self.prefix_tokens = int(config.class_token)
        embed = FlatPatchEmbed if config.positions == "naflex" else PatchEmbed
        self.patch_embed = embed(config.patch_size, config.width, config.channels, config.patch_bias)
        self.class_token = nn.Parameter(torch.empty(config.width)) if config.class_token else None
        tokens = self.prefix_tokens + config.grid[0] * config.grid[1]
        if config.positions == "sincos_2d":
            self.register_buffer(
                "positions", sincos_2d(config.width, config.grid, self.prefix_tokens), persistent=False
            )
        else:
            self.positions = nn.Parameter(torch.empty(tokens, config.width))
        self.patch_dropout = PatchDropout(config.patch_dropout, self.prefix_tokens)
        self.norm_pre = nn.LayerNorm(config.width, eps=config.norm_eps) if config.pre_norm else nn.Identity()
        self.transformer = Transformer(
            config.width,
            config.depth,
            config.num_heads,
            mlp_width=config.mlp_width,
            act=config.activation,
            norm_eps=config.norm_eps,
            drop_path=config.drop_path,
            layer_scale=config.layer_scale,
            checkpointing=config.checkpointing,
        )
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.pool = (
            MAPHead(config.width, config.num_heads, config.mlp_width, config.activation, config.norm_eps)
            if config.pool == "map"
            else None
        )
        self.head: nn.Module = nn.Identity()
        INITIALISERS[config.init](self, self.patch_embed.proj, self.positions, self.class_token)

    def forward(
        self,
        images: Float[Tensor, "batch channels height width"] | Float[Tensor, "batch patches pixels"],
        mask: Bool[Tensor, "batch patches"] | None = None,
        grids: Int[Tensor, "batch 2"] | None = None,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "batch out_dim"] | Float[Tensor, "batch tokens dim"]:
        """Pooled features (all tokens for pool `none`), or logits after `reset_head`.

        Args:
            images: images; or, for a NaFlex tower, flat patches with pixels ordered (row, column, channel).
            mask: True at real patches (NaFlex).
            grids: rows and columns of each image's patches (NaFlex).
            generator: source of random numbers for patch dropout.
        """
        return self.forward_head(self.forward_features(images, mask, grids, generator), mask=mask)

    def forward_features(
        self,
        images: Float[Tensor, "batch channels height width"] | Float[Tensor, "batch patches pixels"],
        mask: Bool[Tensor, "batch patches"] | None = None,
        grids: Int[Tensor, "batch 2"] | None = None,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "batch tokens dim"]:
        """Tokens after the final norm, class token first; arguments as in `forward`."""
        tokens, _ = self.patch_dropout(self.embed(images, grids), generator)
        return self.norm(self.transformer(self.norm_pre(tokens), mask=mask))

    def forward_head(
        self,
        features: Float[Tensor, "batch tokens dim"],
        pre_logits: bool = False,
        mask: Bool[Tensor, "batch tokens"] | None = None,
    ) -> Float[Tensor, "batch out_dim"] | Float[Tensor, "batch tokens dim"]:
        """Pools the tokens of `forward_features`; `pre_logits` leaves the classifier out."""
        if self.pool is not None:
            features = self.pool(features, mask)
        elif self.config.pool == "class":
            features = features[:, 0]
        elif self.config.pool == "mean":
            features = features.mean(1)
        return features if pre_logits else self.head(features)

    def features(
        self,
        images: Float[Tensor, "batch channels height width"] | Float[Tensor, "batch patches pixels"],
        layers: Sequence[int],
        mask: Bool[Tensor, "batch patches"] | None = None,
        grids: Int[Tensor, "batch 2"] | None = None,
    ) -> list[Float[Tensor, "batch tokens dim"]]:
        """Tokens, class token first and not yet normed, after each of the named blocks; no patch is dropped."""
        return self.transformer.features(self.norm_pre(self.embed(images, grids)), layers, mask=mask)

    def embed(
        self,
        images: Float[Tensor, "batch channels height width"] | Float[Tensor, "batch patches pixels"],
        grids: Int[Tensor, "batch 2"] | None = None,
    ) -> Float[Tensor, "batch tokens dim"]:
        """Class token and patch tokens with their positions, as they enter `norm_pre`.

        Raises:
            ValueError: the shape is not that of images, or of flat patches with `grids`.
        """
        if self.config.positions == "naflex":
            return self._embed_naflex(images, grids)
        if images.ndim != 4 or images.shape[1] != self.config.channels:
            raise ValueError(
                f"images of shape {tuple(images.shape)}: want [batch, {self.config.channels}, height, width]"
            )
        grid = (images.shape[2] // self.config.patch_size, images.shape[3] // self.config.patch_size)
        tokens = self.patch_embed(images)
        if self.class_token is not None:
            tokens = torch.cat([self.class_token.to(tokens.dtype).expand(tokens.shape[0], 1, -1), tokens], 1)
        positions = resize_positions(self.positions, self.config.grid, grid, convention=self.config.position_convention)
        return tokens + positions.to(tokens.dtype)

    def _embed_naflex(self, images: Tensor, grids: Tensor | None) -> Tensor:
        if images.ndim == 4:
            size = self.config.patch_size
            grid = (images.shape[2] // size, images.shape[3] // size)
            tokens = self.patch_embed(patchify(images, size))
            positions = resize_positions(self.positions, self.config.grid, grid, convention="naflex")
        elif grids is None:
            raise ValueError("flat patches need grids: the rows and columns of each image")
        else:
            tokens = self.patch_embed(images)
            positions = resize_positions_per_image(self.positions, self.config.grid, grids, images.shape[1])
        return tokens + positions.to(tokens.dtype)

    def reset_head(self, num_classes: int) -> None:
        """Puts a new linear classifier on the pooled features; 0 takes it away."""
        if num_classes == 0:
            self.head = nn.Identity()
            return
        self.head = nn.Linear(self.num_features, num_classes).to(self.norm.weight)
        nn.init.trunc_normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)


def _size(width: int, depth: int, num_heads: int, mlp_width: int | None = None) -> ViTConfig:
    return ViTConfig(width=width, depth=depth, num_heads=num_heads, mlp_width=mlp_width or 4 * width)


# Dosovitskiy et al. 2020, table 1; Zhai et al. 2021, table 2 (g, G); Alabdulmohsin et al. 2023 (So400m).
_SIZES = {
    "ti": _size(192, 12, 3),
    "s": _size(384, 12, 6),
    "b": _size(768, 12, 12),
    "l": _size(1024, 24, 16),
    "h": _size(1280, 32, 16),
    "so400m": _size(1152, 27, 16, 4304),
    "g": _size(1408, 40, 16, 6144),
    "giant_opt": _size(1536, 40, 16, 6144),
}

VARIANTS: dict[str, ViTConfig] = {
    f"{name}/{patch}": replace(config, patch_size=patch) for name, config in _SIZES.items() for patch in (8, 14, 16, 32)
} | {f"tiny/{patch}": replace(_size(192, 4, 3), image_size=64, patch_size=patch) for patch in (8, 16)}
"""Published sizes by name, `b/16` and the like at 224 pixels, and `tiny/16` at 64 pixels for a laptop."""
