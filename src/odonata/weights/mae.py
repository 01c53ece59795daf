"""Masked autoencoders, encoder and decoder: facebookresearch/mae's checkpoints and transformers' ViTMAEForPreTraining.

Notable: `mae_pretrain_vit_*.pth` hold the encoder alone; those of the authors' demo hold both. Both store the fixed
positions, which are computed here, so that reading checks them and writing makes them. Heads cannot be seen in shapes.
transformers has had three names for a decoder's block: its files' of version 4, those of a model in version 5, and
those that version 5.23 writes (`decoder_encoder.layer`); all are read, and the first is written, which all can load.

Sources: facebookresearch/mae `models_mae.py`; transformers 5.23 `models/vit_mae`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from odonata.errors import WeightsError
from odonata.nn.positions import sincos_2d
from odonata.weights.hf_names import one_size, tower_from_hf, tower_to_hf
from odonata.weights.layout import Files, Plain, require, shape_of, square_side
from odonata.weights.maps import KeyMap, Rule, depth_of, layers, packed_attention, pair, reshape
from odonata.weights.read import Raw

LayoutName = Literal["mae", "hf"]
_HEADS = {768: 12, 1024: 16, 1280: 16}
"""Of the published encoders, by width."""
_DECODER_HEADS = {512: 16}
_HF_DEFAULTS: Plain = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "image_size": 224,
    "patch_size": 16,
    "num_channels": 3,
    "mask_ratio": 0.75,
    "norm_pix_loss": False,
    "decoder_hidden_size": 512,
    "decoder_num_hidden_layers": 8,
    "decoder_num_attention_heads": 16,
    "decoder_intermediate_size": 2048,
}
_POSITIONS = {
    "mae": ("pos_embed", "decoder_pos_embed"),
    "hf": ("vit.embeddings.position_embeddings", "decoder.decoder_pos_embed"),
}
# What version 5 of transformers calls differently from version 4, in its models and in the files that it writes.
_NEW_NAMES = (
    (r"^vit\.layers\.", "vit.encoder.layer."),
    (r"^decoder\.decoder_encoder\.layer\.", "decoder.decoder_layers."),
    (r"\.attention\.([qkv])_proj\.", lambda found: f".attention.attention.{_HF_PARTS[found[1]]}."),
    (r"\.attention\.o_proj\.", ".attention.output.dense."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
)
_HF_PARTS = {"q": "query", "k": "key", "v": "value"}


@dataclass
class Pretraining:
    """A masked autoencoder, read."""

    tower: Plain
    """Fields of `ViTConfig`, and `family`."""
    decoder: Plain
    """Fields of `MAEConfig` that the file tells."""
    state: dict[str, Tensor]
    """Weights under our names, `backbone.…` and `decoder.…`, positions left out."""
    notes: list[str] = field(default_factory=list[str])


def recognises(state: Mapping[str, Tensor]) -> LayoutName | None:
    """Return the layout of a state that holds a decoder, in whole or beside an encoder; None if there is none."""
    if "decoder_embed.weight" in state:
        return "mae"
    return "hf" if "decoder.decoder_embed.weight" in state else None


def version_4_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return transformers' tensors under the names of its version 4."""
    renamed: dict[str, Tensor] = {}
    for name, value in state.items():
        for pattern, new in _NEW_NAMES:
            name = re.sub(pattern, new, name)
        renamed[name] = value
    return renamed


def _blocks(layout: LayoutName, theirs: str, ours: str, depth: int) -> list[Rule]:
    source, target = theirs + ".{i}", ours + ".transformer.layers.{i}"
    if layout == "mae":
        rules = [
            *pair(f"{source}.norm1", f"{target}.norm1"),
            *packed_attention(f"{source}.attn", f"{target}.attn", packed="qkv.{part}", out="proj"),
            *pair(f"{source}.norm2", f"{target}.norm2"),
            *pair(f"{source}.mlp.fc1", f"{target}.mlp.fc1"),
            *pair(f"{source}.mlp.fc2", f"{target}.mlp.fc2"),
        ]
        return layers(rules, depth)
    rules = [
        *pair(f"{source}.layernorm_before", f"{target}.norm1"),
        *pair(f"{source}.layernorm_after", f"{target}.norm2"),
        *pair(f"{source}.attention.output.dense", f"{target}.attn.proj"),
        *pair(f"{source}.intermediate.dense", f"{target}.mlp.fc1"),
        *pair(f"{source}.output.dense", f"{target}.mlp.fc2"),
    ]
    for letter, name in _HF_PARTS.items():
        rules += pair(f"{source}.attention.attention.{name}", f"{target}.attn.{letter}")
    return layers(rules, depth)


def encoder_map(layout: LayoutName, width: int, depth: int) -> KeyMap:
    """Return the map of the encoder, ours under `backbone`; positions are no part of it."""
    names = {
        "mae": ("cls_token", "patch_embed.proj", "blocks", "norm"),
        "hf": (
            "vit.embeddings.cls_token",
            "vit.embeddings.patch_embeddings.projection",
            "vit.encoder.layer",
            "vit.layernorm",
        ),
    }
    token, patches, blocks, norm = names[layout]
    rules = [
        reshape(token, "backbone.class_token", (1, 1, width), (width,)),
        *pair(patches, "backbone.patch_embed.proj"),
        *_blocks(layout, blocks, "backbone", depth),
        *pair(norm, "backbone.norm"),
    ]
    return KeyMap(rules)


def decoder_map(layout: LayoutName, width: int, depth: int) -> KeyMap:
    """Return the map of the decoder, ours under `decoder`; positions are no part of it."""
    prefix, blocks = ("", "decoder_blocks") if layout == "mae" else ("decoder.", "decoder.decoder_layers")
    rules = [
        reshape(f"{prefix}mask_token", "decoder.mask_token", (1, 1, width), (width,)),
        *pair(f"{prefix}decoder_embed", "decoder.embed"),
        *_blocks(layout, blocks, "decoder", depth),
        *pair(f"{prefix}decoder_norm", "decoder.norm"),
        *pair(f"{prefix}decoder_pred", "decoder.pred"),
    ]
    return KeyMap(rules)


def decoder_of(state: Mapping[str, Tensor], where: str = "checkpoint") -> dict[str, Tensor] | None:
    """Return a decoder's weights under our names, `decoder.…`; None where the state holds none.

    Args:
        state: a checkpoint, or what is left of it without the tower.
        where: what to call it in messages.

    Raises:
        WeightsError: the decoder is incomplete.
    """
    layout = recognises(state)
    if layout is None:
        return None
    state = version_4_names(state) if layout == "hf" else state
    stack, embed = _decoder_names(layout)
    key_map = decoder_map(layout, shape_of(state, embed, where)[0], depth_of(state, stack))
    wanted = {name for rule in key_map.rules for name in rule.theirs}
    return key_map.to_ours({k: v for k, v in state.items() if k in wanted}, where)[0]


def _decoder_names(layout: LayoutName) -> tuple[str, str]:
    if layout == "mae":
        return "decoder_blocks.", "decoder_embed.weight"
    return "decoder.decoder_layers.", "decoder.decoder_embed.weight"


def read(
    raw: Raw, num_heads: int | None = None, decoder_heads: int | None = None, norm_pix: bool | None = None
) -> Pretraining:
    """Read encoder and decoder.

    Args:
        raw: the checkpoint.
        num_heads: of the encoder, where the file leaves it open.
        decoder_heads: of the decoder, likewise.
        norm_pix: whether it predicts normalised patches, which only transformers' configuration tells.

    Raises:
        WeightsError: no decoder, an incomplete file, or heads that must be said.
    """
    layout = recognises(raw.state)
    require(layout is not None, f"{raw.path}: no decoder of a masked autoencoder; load the encoder as a backbone")
    assert layout is not None
    state = version_4_names(raw.state) if layout == "hf" else dict(raw.state)
    found = _read_hf(raw) if layout == "hf" else _read_mae(raw, num_heads, decoder_heads)
    if norm_pix is not None:
        found.decoder["norm_pix"] = norm_pix
    _take_positions(state, found, layout, str(raw.path))
    maps = (
        encoder_map(layout, found.tower["width"], found.tower["depth"]),
        decoder_map(layout, found.decoder["decoder_width"], found.decoder["decoder_depth"]),
    )
    whole = KeyMap([rule for part in maps for rule in part.rules], ("head.*",))
    ours, unused = whole.to_ours(state, str(raw.path))
    found.state = ours
    found.notes += raw.notes + ([f"not used: {', '.join(unused)}"] if unused else [])
    return found


def _read_mae(raw: Raw, num_heads: int | None, decoder_heads: int | None) -> Pretraining:
    state, where = raw.state, str(raw.path)
    width, channels, patch, _ = shape_of(state, "patch_embed.proj.weight", where)
    narrow = shape_of(state, "decoder_embed.weight", where)[0]
    side = square_side(shape_of(state, "pos_embed", where)[1] - 1, "pos_embed", where)
    heads, narrow_heads = num_heads or _HEADS.get(width), decoder_heads or _DECODER_HEADS.get(narrow)
    require(heads is not None, f"{where}: an encoder of width {width} is not published; say num_heads")
    require(narrow_heads is not None, f"{where}: a decoder of width {narrow} is not published; say decoder_heads")
    depth = depth_of(state, "blocks.")
    tower: Plain = {
        "family": "vit",
        "image_size": side * patch,
        "patch_size": patch,
        "width": width,
        "depth": depth,
        "num_heads": heads,
        "mlp_width": shape_of(state, "blocks.0.mlp.fc1.weight", where)[0],
        "channels": channels,
        "norm_eps": 1e-6,
    }
    decoder: Plain = {
        "decoder_width": narrow,
        "decoder_depth": depth_of(state, "decoder_blocks."),
        "decoder_heads": narrow_heads,
        "norm_pix": False,
    }
    note = "norm_pix: not known from the file; off unless it is said"
    return Pretraining(tower, decoder, {}, [f"layout mae: heads {heads}, decoder's {narrow_heads}", note])


def _read_hf(raw: Raw) -> Pretraining:
    require(raw.config is not None, f"{raw.path}: transformers' weights without config.json beside them")
    hf = _HF_DEFAULTS | (raw.config or {})
    require(hf.get("qkv_bias", True), f"{raw.path}: config.json: qkv_bias is false; the tower here has these biases")
    hidden, narrow = hf["decoder_intermediate_size"], hf["decoder_hidden_size"]
    require(hidden == 4 * narrow, f"{raw.path}: config.json: the decoder's MLP is {hidden} wide, not 4 x {narrow}")
    tower: Plain = {
        "family": "vit",
        **tower_from_hf(hf, _HF_DEFAULTS, "config.json"),
        "image_size": one_size(hf["image_size"], "image_size"),
        "patch_size": one_size(hf["patch_size"], "patch_size"),
        "channels": hf["num_channels"],
    }
    decoder: Plain = {
        "decoder_width": hf["decoder_hidden_size"],
        "decoder_depth": hf["decoder_num_hidden_layers"],
        "decoder_heads": hf["decoder_num_attention_heads"],
        "norm_pix": hf["norm_pix_loss"],
        "mask_ratio": hf["mask_ratio"],
    }
    return Pretraining(tower, decoder, {}, ["layout hf (ViTMAEForPreTraining)"])


def _take_positions(state: dict[str, Tensor], found: Pretraining, layout: LayoutName, where: str) -> None:
    """Take the fixed positions out of a state, and see that they are what is computed here."""
    side = found.tower["image_size"] // found.tower["patch_size"]
    found.tower |= {"positions": "sincos_2d", "position_convention": "hf"}
    for name, width in zip(_POSITIONS[layout], (found.tower["width"], found.decoder["decoder_width"]), strict=True):
        stored = state.pop(name, None)
        fixed = sincos_2d(width, (side, side), 1)
        if stored is not None and (
            stored.shape[1:] != fixed.shape or not torch.allclose(stored[0].float(), fixed, atol=1e-4)
        ):
            raise WeightsError(
                f"{where}: {name} {list(stored.shape)} are not the fixed positions of a grid of {side}x{side}; "
                "trained or resized positions belong to a fine-tuned model, which has no decoder"
            )


def write(
    state: Mapping[str, Tensor], tower: Plain, decoder: Plain, layout: LayoutName, preprocess: Plain | None = None
) -> Files:
    """Return the files of a masked autoencoder.

    Args:
        state: our weights, `backbone.…` and `decoder.…`.
        tower: fields of `ViTConfig`.
        decoder: fields of `MAEConfig`.
        layout: `mae` (`load_state_dict` of the authors' model) or `hf`.
        preprocess: content of transformers' `preprocessor_config.json`.

    Raises:
        WeightsError: the encoder is not MAE's.
    """
    plain = {"pre_norm": False, "layer_scale": None, "class_token": True, "patch_bias": True, "registers": 0,
             "distilled": False, "positions": "sincos_2d", "mlp": "mlp", "qk_norm": False}  # fmt: skip
    for name, value in plain.items():
        seen = tower.get(name, value)
        require(seen == value, f"{layout} layout: MAE's encoder has {name}={value}, this one {seen}")
    maps = (
        encoder_map(layout, tower["width"], tower["depth"]),
        decoder_map(layout, decoder["decoder_width"], decoder["decoder_depth"]),
    )
    theirs = KeyMap([rule for part in maps for rule in part.rules]).from_ours(state)
    side = tower["image_size"] // tower["patch_size"]
    for name, width in zip(_POSITIONS[layout], (tower["width"], decoder["decoder_width"]), strict=True):
        theirs[name] = sincos_2d(width, (side, side), 1)[None]
    if layout == "mae":
        require(tower["activation"] == "gelu" and tower["norm_eps"] == 1e-6, "mae layout: GELU and epsilon 1e-6")
        return Files("checkpoint.pth", theirs)
    config = tower_to_hf(tower) | {
        "architectures": ["ViTMAEForPreTraining"],
        "model_type": "vit_mae",
        "image_size": tower["image_size"],
        "patch_size": tower["patch_size"],
        "num_channels": tower["channels"],
        "qkv_bias": True,
        "decoder_hidden_size": decoder["decoder_width"],
        "decoder_num_hidden_layers": decoder["decoder_depth"],
        "decoder_num_attention_heads": decoder["decoder_heads"],
        "decoder_intermediate_size": 4 * decoder["decoder_width"],
        "mask_ratio": decoder["mask_ratio"],
        "norm_pix_loss": decoder["norm_pix"],
    }
    texts = {"config.json": config} | ({"preprocessor_config.json": preprocess} if preprocess else {})
    return Files("model.safetensors", theirs, texts)
