"""The SigLIP image towers of timm, as open_clip's checkpoints hold them under `visual.trunk.`.

Notable: `attn_pool` keeps the query apart and packs key and value; positions have a leading axis of 1. Heads and
activation follow from timm's model name, the other sizes from the shapes.

Source: timm 1.0.31 `vision_transformer.py` and `layers/attention_pool.py`.
"""

import re

from odonata.errors import WeightsError
from odonata.weights.layout import Plain, shape_of
from odonata.weights.maps import Rule, depth_of, layers, packed_attention, pair, rename, reshape, split
from odonata.weights.read import Raw

_NAME = re.compile(r"vit_(base|large|so400m|giantopt)_patch(14|16|32)_siglip_(\d+)")
_HEADS = {"base": 12, "large": 16, "so400m": 16, "giantopt": 16}
_SIZES = {"base": (768, 12, 3072), "large": (1024, 24, 4096), "so400m": (1152, 27, 4304), "giantopt": (1536, 40, 6144)}
# timm gives these the tanh approximation, all others the exact GELU.
_TANH = {
    "vit_base_patch32_siglip_256",
    "vit_large_patch16_siglip_512",
    "vit_so400m_patch16_siglip_256",
    "vit_so400m_patch16_siglip_384",
    "vit_so400m_patch16_siglip_512",
    "vit_giantopt_patch16_siglip_256",
    "vit_giantopt_patch16_siglip_384",
}
_KNOWN = {
    *(f"vit_base_patch16_siglip_{size}" for size in (224, 256, 384, 512)),
    *(f"vit_large_patch16_siglip_{size}" for size in (256, 384)),
    *(f"vit_so400m_patch14_siglip_{size}" for size in (224, 378, 384)),
} | _TANH


def trunk_rules(config: Plain) -> list[Rule]:
    """The tower `visual.trunk.*`."""
    visual = config["visual"]
    width, source, pool = visual["width"], "visual.trunk.blocks.{i}", "visual.trunk.attn_pool"
    target = "visual.transformer.layers.{i}"
    block = [
        *pair(f"{source}.norm1", f"{target}.norm1"),
        *packed_attention(f"{source}.attn", f"{target}.attn", "qkv.{part}", "proj"),
        *pair(f"{source}.norm2", f"{target}.norm2"),
        *pair(f"{source}.mlp.fc1", f"{target}.mlp.fc1"),
        *pair(f"{source}.mlp.fc2", f"{target}.mlp.fc2"),
    ]
    return [
        *pair("visual.trunk.patch_embed.proj", "visual.patch_embed.proj"),
        reshape("visual.trunk.pos_embed", "visual.positions", (1, -1, width), (-1, width)),
        *layers(block, visual["depth"]),
        *pair("visual.trunk.norm", "visual.norm"),
        rename(f"{pool}.latent", "visual.pool.probe"),
        *pair(f"{pool}.q", "visual.pool.attn.q"),
        *(
            split(f"{pool}.kv.{part}", [f"visual.pool.attn.{name}.{part}" for name in "kv"])
            for part in ("weight", "bias")
        ),
        *pair(f"{pool}.proj", "visual.pool.attn.proj"),
        *pair(f"{pool}.norm", "visual.pool.norm"),
        *pair(f"{pool}.mlp.fc1", "visual.pool.mlp.fc1"),
        *pair(f"{pool}.mlp.fc2", "visual.pool.mlp.fc2"),
    ]


def infer_trunk(raw: Raw, cfg: Plain, image_size: int) -> Plain:
    """Returns the tower's configuration from timm's name in open_clip's `vision_cfg`, and from shapes."""
    name = cfg["timm_model_name"]
    match = _NAME.fullmatch(name)
    if match is None or cfg.get("timm_pool") != "map" or cfg.get("timm_proj") not in ("none", ""):
        raise WeightsError(f"{raw.path}: the timm tower {name!r} is not known; known are SigLIP's: vit_*_siglip_*")
    width, channels, patch, _ = shape_of(raw.state, "visual.trunk.patch_embed.proj.weight", raw.path)
    return {
        "kind": "vit",
        "image_size": image_size,
        "patch_size": patch,
        "width": width,
        "depth": depth_of(raw.state, "visual.trunk.blocks."),
        "num_heads": _HEADS[match.group(1)],
        "mlp_width": shape_of(raw.state, "visual.trunk.blocks.0.mlp.fc1.weight", raw.path)[0],
        "activation": "gelu_tanh" if name in _TANH else "gelu",
        "channels": channels,
        "class_token": False,
        "pre_norm": False,
        "patch_bias": True,
        "pool": "map",
        "positions": "learned",
        "position_convention": "open_clip",
        "norm_eps": 1e-6,
        "init": "siglip",
    }


def timm_name(visual: Plain) -> str:
    """Returns timm's name of a tower; WeightsError if timm has none with this size, patch and activation."""
    wanted = (visual["width"], visual["depth"], visual["mlp_width"])
    for size, numbers in _SIZES.items():
        name = f"vit_{size}_patch{visual['patch_size']}_siglip_{visual['image_size']}"
        activation = "gelu_tanh" if name in _TANH else "gelu"
        if numbers == wanted and visual["num_heads"] == _HEADS[size] and name in _KNOWN:
            if visual["activation"] != activation:
                raise WeightsError(
                    f"open_clip layout: {name} computes {activation} in timm, this model {visual['activation']}; "
                    "export it as hf, which can say so"
                )
            return name
    raise WeightsError(
        "open_clip layout: open_clip builds SigLIP towers from timm's names, and timm has none of width, depth, MLP "
        f"{wanted} with patches of {visual['patch_size']} at {visual['image_size']} pixels; export it as hf"
    )
