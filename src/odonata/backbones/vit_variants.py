"""Published Vision Transformers by name; `odonata.backbones.FAMILIES` lists the same names."""

from dataclasses import replace

from odonata.backbones.vit_config import ViTConfig


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

_PLAIN = {
    f"vit-{name}{patch}": replace(config, patch_size=patch)
    for name, config in _SIZES.items()
    for patch in (8, 14, 16, 32)
} | {
    f"vit-tiny{patch}": replace(_size(192, 4, 3), image_size=32 if patch == 4 else 64, patch_size=patch)
    for patch in (4, 8, 16)
}

# Touvron et al. 2020, table 1; fine-tuned at other sizes with positions resized without antialiasing (its main.py).
_DEIT = {
    f"deit-{size}16{suffix}": replace(_SIZES[size], init="timm", position_convention="hf", distilled=bool(suffix))
    for size in ("ti", "s", "b")
    for suffix in ("", "-distilled")
}

# He et al. 2021: fixed positions, columns first.
_MAE = {
    f"mae-{size}{patch}": replace(
        _SIZES[size], patch_size=patch, positions="sincos_2d", position_convention="hf", init="mae"
    )
    for size, patch in (("b", 16), ("l", 16), ("h", 14))
}

# Chen et al. 2021, appendix: ViT-S has 12 heads; fixed positions, rows first; the patch projection is not trained.
_MOCO_V3 = {
    f"moco-v3-{size}16": replace(
        _SIZES[size],
        num_heads=12,
        positions="sincos_2d_y",
        position_convention="hf",
        frozen_patch_embed=True,
        init="moco_v3",
    )
    for size in ("s", "b")
}

# Caron et al. 2021, table 1.
_DINO = {
    f"dino-{size}{patch}": replace(_SIZES[size], patch_size=patch, init="timm", position_convention="dino")
    for size, patch in (("ti", 16), ("s", 16), ("s", 8), ("b", 16), ("b", 8))
}

# Oquab et al. 2023, table 17, trained last at 518 pixels; Darcet et al. 2023 for the registers, which came with another
# resizing of positions.
_DINOV2_SIZES = {name: _SIZES[name] for name in ("s", "b", "l")} | {
    "g": replace(_size(1536, 40, 24, 4096), mlp="swiglu", activation="silu")
}
_DINOV2 = {
    f"dinov2-{size}14{suffix}": replace(
        config,
        image_size=518,
        patch_size=14,
        layer_scale=1e-5,
        registers=registers,
        position_convention="open_clip" if registers else "dino",
        init="timm",
    )
    for size, config in _DINOV2_SIZES.items()
    for suffix, registers in (("", 0), ("-reg", 4))
}

# Siméoni et al. 2025, table 2 and facebookresearch/dinov3 hub/backbones.py.
_DINOV3_SIZES = {
    "s16": _size(384, 12, 6),
    "s16plus": replace(_size(384, 12, 6, 1536), mlp="swiglu", activation="silu"),
    "b16": _size(768, 12, 12),
    "l16": _size(1024, 24, 16),
    "h16plus": replace(_size(1280, 32, 20, 5120), mlp="swiglu", activation="silu"),
    "7b16": replace(_size(4096, 40, 32, 8192), mlp="swiglu", activation="silu", qkv_bias="none"),
}
_DINOV3 = {
    f"dinov3-{size}": replace(
        config,
        qkv_bias="none" if size == "7b16" else "no_key",
        registers=4,
        positions="rope",
        rope_rescale=2.0,
        norm_eps=1e-5,
        layer_scale=1e-5,
        init="timm",
    )
    for size, config in _DINOV3_SIZES.items()
}

VARIANTS: dict[str, ViTConfig] = _PLAIN | _DEIT | _MAE | _MOCO_V3 | _DINO | _DINOV2 | _DINOV3
"""Published sizes by name, `vit-b16` and the like at 224 pixels, and `vit-tiny16` at 64 pixels for a laptop."""
