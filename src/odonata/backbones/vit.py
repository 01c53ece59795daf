"""The Vision Transformer, as CLIP, SigLIP, SigLIP 2 NaFlex, FLIP, DeiT, MAE, MoCo v3 and the DINOs each build it.

Notable:
- CLIP: a LayerNorm before the blocks, no bias in the patch projection, class token pooled.
- SigLIP: no class token, attention pooling over all normed tokens. NaFlex: flat patches of any grid, padding masked.
- FLIP: fixed sine-cosine positions, patches dropped while training, mean of all output tokens (class token included).
- DeiT: a distillation token with a head of its own; the answers of both heads are averaged.
- DINOv2: layer scale, registers, a gated MLP in the largest. DINOv3: rotary positions and no additive ones.
- Positions are resized when an image has another size than the tower was made for, by a named convention; and patches
  of another size than it was trained with are taken by resampling the projection (FlexiViT).
- `forward_packed` takes images of any sizes at once, packed into few rows (NaViT). Deliberate difference: positions are
  those of `forward`, not NaViT's factorised ones.
- `merge_tokens` (ToMe) acts outside training, and only on what `forward` returns: `features` gives every token.

Sources: Dosovitskiy et al. 2020 (ViT); Radford et al. 2021 (CLIP); Zhai et al. 2023 (SigLIP); Tschannen et al. 2025
(SigLIP 2); Li et al. 2022 (FLIP); Touvron et al. 2020 (DeiT); He et al. 2021 (MAE); Chen et al. 2021 (MoCo v3); Oquab
et al. 2023 (DINOv2); Darcet et al. 2023 (registers); Siméoni et al. 2025 (DINOv3); Beyer et al. 2022 (FlexiViT);
Dehghani et al. 2023 (NaViT); Bolya et al. 2022 (ToMe).
"""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from odonata.backbones.interface import Backbone, Format, Tap, tokens_in_format
from odonata.backbones.vit_config import ViTConfig
from odonata.backbones.vit_init import INITIALISERS
from odonata.backbones.vit_variants import VARIANTS
from odonata.nn.packing import pack
from odonata.nn.patch_kernels import resample_patch_kernel
from odonata.nn.patches import FlatPatchEmbed, PatchDropout, PatchEmbed, patchify
from odonata.nn.pooling import MAPHead
from odonata.nn.positions import resize_positions, resize_positions_per_image, sincos_2d
from odonata.nn.rope import AxialRoPE, Rotation
from odonata.nn.token_merging import run_merging
from odonata.nn.transformer import Block, Transformer

__all__ = ["VARIANTS", "ViT", "ViTConfig", "build"]


class ViT(Backbone):
    """A Vision Transformer.

    Args:
        config: what it is made of.
    """

    family = "vit"

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        self.num_features = config.num_features
        self.prefix_tokens = config.prefix_tokens
        width, learns_positions = config.width, config.positions in ("learned", "naflex")
        embed = FlatPatchEmbed if config.positions == "naflex" else PatchEmbed
        self.patch_embed = embed(config.patch_size, width, config.channels, config.patch_bias)
        self.class_token = nn.Parameter(torch.empty(width)) if config.class_token else None
        self.distillation_token = nn.Parameter(torch.empty(width)) if config.distilled else None
        self.register_tokens = nn.Parameter(torch.empty(config.registers, width)) if config.registers else None
        self.positions: Tensor | None = None
        if config.positions in ("sincos_2d", "sincos_2d_y"):
            first = "y" if config.positions == "sincos_2d_y" else "x"
            fixed = sincos_2d(width, config.grid, config.placed_prefix_tokens, first)
            del self.positions
            self.register_buffer("positions", fixed, persistent=False)
        elif learns_positions:
            tokens = config.placed_prefix_tokens + config.grid[0] * config.grid[1]
            self.positions = nn.Parameter(torch.empty(tokens, width))
        self.rope = (
            AxialRoPE(
                width // config.num_heads, config.rope_base, config.rope_shift, config.rope_jitter, config.rope_rescale
            )
            if config.positions == "rope"
            else None
        )
        self.patch_dropout = PatchDropout(config.patch_dropout, self.prefix_tokens)
        self.norm_pre = nn.LayerNorm(width, eps=config.norm_eps) if config.pre_norm else nn.Identity()
        self.transformer = _transformer(config)
        self.norm = nn.Identity() if config.fc_norm else nn.LayerNorm(width, eps=config.norm_eps)
        self.pool = (
            MAPHead(width, config.num_heads, config.mlp_width, config.activation, config.norm_eps)
            if config.pool == "map"
            else None
        )
        self.fc_norm = nn.LayerNorm(self.num_features, eps=config.norm_eps) if config.fc_norm else nn.Identity()
        self.head: nn.Module = nn.Identity()
        self.head_distilled: nn.Module = nn.Identity()
        self._initialise()

    def _initialise(self) -> None:
        INITIALISERS[self.config.init](self, self.patch_embed.proj, self.positions, self.class_token)
        for tokens in (self.distillation_token, self.register_tokens):
            if tokens is not None:
                nn.init.trunc_normal_(tokens, std=0.02)
        if self.config.frozen_patch_embed:
            self.patch_embed.requires_grad_(False)

    def forward(
        self,
        images: Float[Tensor, "batch channels height width"] | Float[Tensor, "batch patches pixels"],
        mask: Bool[Tensor, "batch patches"] | None = None,
        grids: Int[Tensor, "batch 2"] | None = None,
        generator: torch.Generator | None = None,
        patch_size: int | None = None,
    ) -> Float[Tensor, "batch out_dim"] | Float[Tensor, "batch tokens dim"]:
        """Pooled features (all tokens for pool `none`), or logits after `reset_head`.

        Args:
            images: images; or, for a NaFlex tower, flat patches with pixels ordered (row, column, channel).
            mask: True at real patches (NaFlex).
            grids: rows and columns of each image's patches (NaFlex).
            generator: source of random numbers for patch dropout and rotary augmentation.
            patch_size: side of a patch in pixels where it is not the configuration's (FlexiViT).
        """
        return self.forward_head(self.forward_features(images, mask, grids, generator, patch_size), mask=mask)

    def forward_features(
        self,
        images: Float[Tensor, "batch channels height width"] | Float[Tensor, "batch patches pixels"],
        mask: Bool[Tensor, "batch patches"] | None = None,
        grids: Int[Tensor, "batch 2"] | None = None,
        generator: torch.Generator | None = None,
        patch_size: int | None = None,
    ) -> Float[Tensor, "batch tokens dim"]:
        """Tokens after the final norm: class, distillation, registers, patches; arguments as in `forward`."""
        tokens, kept = self.patch_dropout(self.embed(images, grids, patch_size), generator)
        rotation = self._rotation(images, kept, generator, patch_size)
        tokens = self.norm_pre(tokens)
        if self.config.merge_tokens and not self.training:
            blocks = cast("list[Block]", list(self.transformer.layers))
            return self.norm(run_merging(blocks, tokens, self.config.merge_tokens, self.prefix_tokens))
        return self.norm(self.transformer(tokens, mask=mask, rotation=rotation))

    def forward_head(
        self,
        features: Float[Tensor, "batch tokens dim"],
        pre_logits: bool = False,
        mask: Bool[Tensor, "batch tokens"] | None = None,
    ) -> Float[Tensor, "batch out_dim"] | Float[Tensor, "batch tokens dim"]:
        """Pools the tokens of `forward_features`; `pre_logits` leaves the classifier out.

        With a distillation token: the mean of both tokens, or of the logits of both heads.
        """
        if self.config.distilled:
            token, distilled = self.fc_norm(features[:, 0]), self.fc_norm(features[:, 1])
            if not pre_logits:
                token, distilled = self.head(token), self.head_distilled(distilled)
            return (token + distilled) / 2
        pooled = self.fc_norm(self._pooled(features, mask))
        return pooled if pre_logits else self.head(pooled)

    def _pooled(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        if self.pool is not None:
            return self.pool(tokens, mask)
        match self.config.pool:
            case "class":
                return tokens[:, 0]
            case "mean":
                return tokens.mean(1)
            case "patches":
                return tokens[:, self.prefix_tokens :].mean(1)
            case "class_mean":
                return torch.cat([tokens[:, 0], tokens[:, self.prefix_tokens :].mean(1)], 1)
            case _:
                return tokens

    def forward_heads(
        self, images: Float[Tensor, "batch channels height width"], generator: torch.Generator | None = None
    ) -> tuple[Float[Tensor, "batch classes"], Float[Tensor, "batch classes"]]:
        """Logits of the class token and of the distillation token, which DeiT's loss takes apart (eq. 2 and 3).

        Raises:
            ValueError: there is no distillation token.
        """
        if not self.config.distilled:
            raise ValueError("forward_heads needs a distillation token: distilled=True")
        features = self.forward_features(images, generator=generator)
        return self.head(self.fc_norm(features[:, 0])), self.head_distilled(self.fc_norm(features[:, 1]))

    def reset_head(self, num_classes: int) -> None:
        """Puts new linear classifiers on the pooled features, N(0, 0.01²) with zero bias; 0 takes them away."""
        super().reset_head(num_classes)
        if self.config.distilled:
            self.head_distilled = copy.deepcopy(self.head)
            if isinstance(self.head_distilled, nn.Linear):
                nn.init.trunc_normal_(self.head_distilled.weight, std=0.01)

    def forward_packed(
        self, images: Sequence[Float[Tensor, "channels _ _"]], row_length: int | None = None
    ) -> Float[Tensor, "images out_dim"]:
        """What `forward` gives for each image, computed for images of different sizes at once (NaViT).

        No patch is dropped, and no token is merged.

        Args:
            images: of any sizes.
            row_length: tokens in a row, into which the images are packed; that of the largest image if not given.

        Raises:
            ValueError: there is no image, one is larger than a row, or the tower returns all tokens.
        """
        if self.config.pool == "none":
            raise ValueError("forward_packed gives one vector per image; pool 'none' has none")
        packed = pack([self.norm_pre(self.embed(image[None]))[0] for image in images], row_length)
        rotation = None
        if self.rope is not None:
            turns = [self.rope(self._grid(image[None], None), self.prefix_tokens) for image in images]
            cos, sin = packed.tokens.new_ones(2, *packed.tokens.shape[:2], turns[0].cos.shape[1]).unbind()
            for (row, start, end), turn in zip(packed.spans, turns, strict=True):
                cos[row, start:end], sin[row, start:end] = turn.cos, turn.sin
            rotation = Rotation(cos, sin)
        tokens = self.norm(self.transformer(packed.tokens, mask=packed.mask, rotation=rotation))
        return torch.cat([self.forward_head(one[None]) for one in packed.unpack(tokens)])

    def with_patch_size(self, patch_size: int) -> "ViT":
        """Returns a copy for patches of another size, its projection resampled (FlexiViT) and its grid the same.

        Raises:
            ValueError: a NaFlex tower, whose patches are flat.
        """
        if self.config.positions == "naflex":
            raise ValueError("a NaFlex tower takes flat patches; they have no other size")
        other = copy.deepcopy(self)
        side = self.config.grid[0] * patch_size
        other.config = replace(self.config, image_size=side, patch_size=patch_size)
        kernel = self.patch_embed.proj.weight
        projection = PatchEmbed(patch_size, self.config.width, self.config.channels, self.config.patch_bias)
        other.patch_embed = projection.to(kernel).requires_grad_(kernel.requires_grad)
        with torch.no_grad():
            projection.proj.weight.copy_(resample_patch_kernel(kernel, (patch_size, patch_size)))
            if projection.proj.bias is not None:
                projection.proj.bias.copy_(cast(Tensor, self.patch_embed.proj.bias))
        return other

    def features(
        self,
        images: Float[Tensor, "batch channels height width"] | Float[Tensor, "batch patches pixels"],
        layers: Sequence[int],
        format: Format = "native",
        mask: Bool[Tensor, "batch patches"] | None = None,
        grids: Int[Tensor, "batch 2"] | None = None,
    ) -> list[Tensor]:
        """Tokens, prefix tokens first and not yet normed, after each of the named blocks; no patch is dropped.

        `nchw` and `nlc` leave the prefix tokens out.
        """
        tokens = self.norm_pre(self.embed(images, grids))
        rotation = self._rotation(images, None, None, None)
        taken = self.transformer.features(tokens, layers, mask=mask, rotation=rotation)
        grid = self._grid(images, None)
        return [tokens_in_format(tokens, self.prefix_tokens, grid, format) for tokens in taken]

    @property
    def taps(self) -> tuple[Tap, ...]:
        """What each block gives."""
        return (Tap(self.config.width, self.config.patch_size),) * self.config.depth

    def embed(
        self,
        images: Float[Tensor, "batch channels height width"] | Float[Tensor, "batch patches pixels"],
        grids: Int[Tensor, "batch 2"] | None = None,
        patch_size: int | None = None,
    ) -> Float[Tensor, "batch tokens dim"]:
        """Prefix tokens and patch tokens with their positions, as they enter `norm_pre`; arguments as in `forward`.

        Raises:
            ValueError: the shape is not that of images, or of flat patches with `grids`.
        """
        if self.config.positions == "naflex":
            return self._embed_naflex(images, grids)
        if images.ndim != 4 or images.shape[1] != self.config.channels:
            raise ValueError(
                f"images of shape {tuple(images.shape)}: want [batch, {self.config.channels}, height, width]"
            )
        tokens = self._patches(images, patch_size)
        tops: list[Tensor] = [token for token in (self.class_token, self.distillation_token) if token is not None]
        prefix = torch.stack(tops).to(tokens.dtype) if tops else tokens.new_zeros(0, tokens.shape[2])
        if self.positions is not None:
            grid = self._grid(images, patch_size)
            placed = self.config.placed_prefix_tokens
            positions = resize_positions(
                self.positions, self.config.grid, grid, convention=self.config.position_convention
            ).to(tokens.dtype)
            tokens = tokens + positions[placed:]
            prefix = prefix + positions[:placed] if placed else prefix
        if self.register_tokens is not None:
            prefix = torch.cat([prefix, self.register_tokens.to(tokens.dtype)])
        return torch.cat([prefix.expand(tokens.shape[0], -1, -1), tokens], 1) if len(prefix) else tokens

    def _patches(self, images: Tensor, patch_size: int | None) -> Tensor:
        if patch_size in (None, self.config.patch_size):
            return self.patch_embed(images)
        projection = cast(nn.Conv2d, self.patch_embed.proj)
        kernel = resample_patch_kernel(projection.weight, (patch_size, patch_size))
        maps = nn.functional.conv2d(images, kernel, projection.bias, stride=patch_size)
        return maps.flatten(2).transpose(1, 2)

    def _grid(self, images: Tensor, patch_size: int | None) -> tuple[int, int]:
        size = patch_size or self.config.patch_size
        return images.shape[-2] // size, images.shape[-1] // size

    def _rotation(
        self, images: Tensor, kept: Tensor | None, generator: torch.Generator | None, patch_size: int | None
    ) -> Rotation | None:
        if self.rope is None:
            return None
        rotation: Rotation = self.rope(self._grid(images, patch_size), self.prefix_tokens, generator)
        if kept is None:
            return rotation
        prefix = torch.arange(self.prefix_tokens, device=kept.device).expand(kept.shape[0], -1)
        return rotation.take(torch.cat([prefix, kept + self.prefix_tokens], 1))

    def _embed_naflex(self, images: Tensor, grids: Tensor | None) -> Tensor:
        stored = cast(Tensor, self.positions)
        if images.ndim == 4:
            tokens = self.patch_embed(patchify(images, self.config.patch_size))
            positions = resize_positions(stored, self.config.grid, self._grid(images, None), convention="naflex")
        elif grids is None:
            raise ValueError("flat patches need grids: the rows and columns of each image")
        else:
            tokens = self.patch_embed(images)
            positions = resize_positions_per_image(stored, self.config.grid, grids, images.shape[1])
        return tokens + positions.to(tokens.dtype)


def _transformer(config: ViTConfig) -> Transformer:
    return Transformer(
        config.width,
        config.depth,
        config.num_heads,
        mlp_width=config.mlp_width,
        act=config.activation,
        norm_eps=config.norm_eps,
        drop_path=config.drop_path,
        layer_scale=config.layer_scale,
        mlp=config.mlp,
        qkv_bias=config.qkv_bias,
        qk_norm=config.qk_norm,
        checkpointing=config.checkpointing,
    )


def build(config: ViTConfig) -> ViT:
    """Returns a tower of this configuration."""
    return ViT(config)
