"""The published two-tower models by name, and laptop sizes of both families.

Sources: openai/CLIP (Radford et al. 2021, tables 19 and 20); big_vision's README of SigLIP (Zhai et al. 2023) and of
SigLIP 2 (Tschannen et al. 2025, table 1); transformers' published configurations for epsilons and padding ids.
"""

import math
from dataclasses import replace

from odonata.align.dual_encoder import DualEncoderConfig
from odonata.align.text_tower import TextConfig
from odonata.backbones.modified_resnet import VARIANTS as RESNETS
from odonata.backbones.vit import ViTConfig


def _vit(width: int, depth: int, num_heads: int, mlp_width: int | None = None) -> ViTConfig:
    return ViTConfig(width=width, depth=depth, num_heads=num_heads, mlp_width=mlp_width or 4 * width)


_BASE, _LARGE = _vit(768, 12, 12), _vit(1024, 24, 16)
_SO400M, _GIANT_OPT = _vit(1152, 27, 16, 4304), _vit(1536, 40, 16)


def clip_vit(size: ViTConfig, patch_size: int, image_size: int, embed_dim: int, text: TextConfig) -> DualEncoderConfig:
    """CLIP with a ViT of the given size.

    Args:
        size: width, depth, heads and MLP width are taken from it.
        patch_size: side of a patch in pixels.
        image_size: side of the image in pixels.
        embed_dim: width of the common space.
        text: the text tower.
    """
    visual = replace(
        size,
        patch_size=patch_size,
        image_size=image_size,
        activation=text.activation,
        pre_norm=True,
        patch_bias=False,
        pool="class",
        norm_eps=1e-5,
        init="clip",
    )
    return DualEncoderConfig(visual=visual, text=text, embed_dim=embed_dim)


def clip_text(width: int, depth: int = 12) -> TextConfig:
    """CLIP's text tower: heads of 64 channels, MLP four times as wide."""
    return TextConfig(width=width, depth=depth, num_heads=width // 64, mlp_width=4 * width)


def _clip_resnet(name: str, text_width: int) -> DualEncoderConfig:
    visual = RESNETS[name]
    return DualEncoderConfig(
        visual=visual, text=clip_text(text_width), embed_dim=visual.embed_dim, visual_projection=False
    )


def siglip(
    size: ViTConfig,
    patch_size: int,
    image_size: int,
    vocab_size: int = 32000,
    text_size: ViTConfig | None = None,
    naflex: bool = False,
    context_length: int = 64,
) -> DualEncoderConfig:
    """SigLIP or SigLIP 2: both towers of one size, attention pooling, sigmoid scale and bias.

    Args:
        size: width, depth, heads and MLP width of both towers.
        patch_size: side of a patch in pixels.
        image_size: side of the image in pixels; for NaFlex the side of the learned grid in pixels.
        vocab_size: 32,000 (SigLIP), 250,000 (its multilingual model), 256,000 (SigLIP 2).
        text_size: size of the text tower if it differs.
        naflex: flat patches of any grid.
        context_length: tokens of a text: 64, but 16 for SigLIP So400m/14 at 224 pixels.
    """
    visual = replace(
        size,
        patch_size=patch_size,
        image_size=image_size,
        activation="gelu_tanh",
        class_token=False,
        pool="map",
        positions="naflex" if naflex else "learned",
        position_convention="hf",
        init="siglip",
    )
    written = text_size or size
    text = TextConfig(
        vocab_size=vocab_size,
        context_length=context_length,
        width=written.width,
        depth=written.depth,
        num_heads=written.num_heads,
        mlp_width=written.mlp_width,
        activation="gelu_tanh",
        causal=False,
        pool="last",
        eot_id=1,
        # SigLIP pads with its end token (id 1); SigLIP 2's Gemma tokenizer with <pad> (id 0).
        pad_id=0 if vocab_size == 256000 else 1,
        norm_eps=1e-6,
        init="siglip",
    )
    return DualEncoderConfig(
        visual=visual,
        text=text,
        embed_dim=size.width,
        visual_projection=False,
        text_projection="linear_bias",
        logit_scale_init=math.log(10),
        logit_bias_init=-10.0,
    )


CLIP: dict[str, DualEncoderConfig] = {
    "ViT-B-32": clip_vit(_BASE, 32, 224, 512, clip_text(512)),
    "ViT-B-16": clip_vit(_BASE, 16, 224, 512, clip_text(512)),
    "ViT-L-14": clip_vit(_LARGE, 14, 224, 768, clip_text(768)),
    "ViT-L-14-336": clip_vit(_LARGE, 14, 336, 768, clip_text(768)),
    "RN50": _clip_resnet("RN50", 512),
    "RN101": _clip_resnet("RN101", 512),
    "RN50x4": _clip_resnet("RN50x4", 640),
    "RN50x16": _clip_resnet("RN50x16", 768),
    "RN50x64": _clip_resnet("RN50x64", 1024),
    "clip-laptop": clip_vit(
        _vit(192, 4, 3),
        16,
        64,
        128,
        TextConfig(vocab_size=4096, context_length=32, width=128, depth=3, num_heads=2, mlp_width=512, eot_id=4095),
    ),
}
"""CLIP by open_clip's names; `clip-laptop` sees 64 pixels. Set the vocabulary to the tokenizer's with `replace`."""

_LAPTOP = siglip(_vit(192, 4, 3), 16, 64, 4096, _vit(128, 3, 2))

SIGLIP: dict[str, DualEncoderConfig] = {
    "ViT-B-16-SigLIP": siglip(_BASE, 16, 224),
    "ViT-B-16-SigLIP-256": siglip(_BASE, 16, 256),
    "ViT-B-16-SigLIP-i18n-256": siglip(_BASE, 16, 256, 250000),
    "ViT-B-16-SigLIP-384": siglip(_BASE, 16, 384),
    "ViT-B-16-SigLIP-512": siglip(_BASE, 16, 512),
    "ViT-L-16-SigLIP-256": siglip(_LARGE, 16, 256),
    "ViT-L-16-SigLIP-384": siglip(_LARGE, 16, 384),
    "ViT-SO400M-14-SigLIP": siglip(_SO400M, 14, 224, context_length=16),
    "ViT-SO400M-14-SigLIP-384": siglip(_SO400M, 14, 384),
    "ViT-B-32-SigLIP2-256": siglip(_BASE, 32, 256, 256000),
    "ViT-B-16-SigLIP2": siglip(_BASE, 16, 224, 256000),
    "ViT-B-16-SigLIP2-256": siglip(_BASE, 16, 256, 256000),
    "ViT-B-16-SigLIP2-384": siglip(_BASE, 16, 384, 256000),
    "ViT-B-16-SigLIP2-512": siglip(_BASE, 16, 512, 256000),
    "ViT-L-16-SigLIP2-256": siglip(_LARGE, 16, 256, 256000),
    "ViT-L-16-SigLIP2-384": siglip(_LARGE, 16, 384, 256000),
    "ViT-L-16-SigLIP2-512": siglip(_LARGE, 16, 512, 256000),
    "ViT-SO400M-14-SigLIP2": siglip(_SO400M, 14, 224, 256000),
    "ViT-SO400M-16-SigLIP2-256": siglip(_SO400M, 16, 256, 256000),
    "ViT-SO400M-16-SigLIP2-384": siglip(_SO400M, 16, 384, 256000),
    "ViT-SO400M-16-SigLIP2-512": siglip(_SO400M, 16, 512, 256000),
    "ViT-gopt-16-SigLIP2-256": siglip(_GIANT_OPT, 16, 256, 256000, _SO400M),
    "ViT-gopt-16-SigLIP2-384": siglip(_GIANT_OPT, 16, 384, 256000, _SO400M),
    "ViT-B-16-SigLIP2-NaFlex": siglip(_BASE, 16, 256, 256000, naflex=True),
    "ViT-SO400M-16-SigLIP2-NaFlex": siglip(_SO400M, 16, 256, 256000, naflex=True),
    "siglip-laptop": replace(_LAPTOP, text=replace(_LAPTOP.text, context_length=24)),
}
"""SigLIP and SigLIP 2 by open_clip's names; `siglip-laptop` sees 64 pixels."""


def flip(size: ViTConfig, patch_size: int, image_size: int, embed_dim: int, text: TextConfig) -> DualEncoderConfig:
    """FLIP (Li et al. 2022): fixed positions, mean of all tokens, a BERT-like text tower of CLIP's size.

    Args:
        size: width, depth, heads and MLP width are taken from it.
        patch_size: side of a patch in pixels.
        image_size: side of the image in pixels.
        embed_dim: width of the common space.
        text: the text tower's size.
    """
    visual = replace(
        size, patch_size=patch_size, image_size=image_size, pool="mean", positions="sincos_2d", patch_dropout=0.5
    )
    written = replace(
        text, context_length=32, activation="gelu", causal=False, pool="first", eot_id=102, norm_eps=1e-6, init="bert"
    )
    return DualEncoderConfig(visual=visual, text=written, embed_dim=embed_dim)


_FLIP_TEXT = TextConfig(vocab_size=30522)

FLIP: dict[str, DualEncoderConfig] = {
    "FLIP-B-16": flip(_BASE, 16, 224, 512, replace(_FLIP_TEXT, width=512, num_heads=8)),
    "FLIP-L-16": flip(_LARGE, 16, 224, 768, replace(_FLIP_TEXT, width=768, num_heads=12, mlp_width=3072)),
    "FLIP-H-14": flip(
        _vit(1280, 32, 16), 14, 224, 1024, replace(_FLIP_TEXT, width=1024, depth=24, num_heads=16, mlp_width=4096)
    ),
    "flip-laptop": flip(
        _vit(192, 4, 3), 8, 64, 128, TextConfig(vocab_size=4096, width=128, depth=3, num_heads=2, mlp_width=512)
    ),
}
"""FLIP's sizes; `flip-laptop` sees 64 pixels."""

VARIANTS: dict[str, DualEncoderConfig] = CLIP | SIGLIP | FLIP
"""All of them."""
