"""The official DINOv2 and DINOv3 towers: timm's names but for registers, gated MLP, masked biases and rotary periods.

Notable:
- DINOv2's training files keep blocks in chunks, `blocks.C.N`; N counts through all chunks.
- DINOv2 resizes positions by a scale that is 0.1 cell too large; with registers it does not, and it antialiases.
- DINOv3's key bias is held but masked to zero: ours has none. Its training norm of local class tokens is left out.

Sources: facebookresearch/dinov2 `models/vision_transformer.py`; facebookresearch/dinov3 `models/vision_transformer.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from odonata.nn.rope import rope_periods
from odonata.weights.layout import Files, Plain, require
from odonata.weights.maps import KeyMap
from odonata.weights.read import Raw
from odonata.weights.towers import Hints, TowerLayout, TowerPlan
from odonata.weights.vit_timm import (
    IMAGENET,
    LEFT_OUT,
    Names,
    heads,
    infer,
    key_map,
    plain_state,
    renamed,
    require_plain,
)

_V2, _V3 = Names("register_tokens", "w12"), Names("storage_tokens", "w1")
_CHUNKED = re.compile(r"^blocks\.(\d+)\.(\d+)\.")
_V3_LEFT_OUT = (*LEFT_OUT, "rope_embed.periods", "local_cls_norm.*", "cls_norm.*")


def recognises_v2(raw: Raw) -> bool:
    """Layer scales and a mask token, blocks perhaps in chunks."""
    return "mask_token" in raw.state and "pos_embed" in raw.state and any(k.endswith(".ls1.gamma") for k in raw.state)


def recognises_v3(raw: Raw) -> bool:
    """Rotary periods, storage tokens or masked biases."""
    return "rope_embed.periods" in raw.state or "storage_tokens" in raw.state


def _unchunked(raw: Raw) -> tuple[Raw, dict[str, str]]:
    """The checkpoint with its blocks numbered through, and number → chunk and number."""
    chunks = {f"blocks.{m[2]}.": m[0] for name in raw.state if (m := _CHUNKED.match(name))}
    return replace(raw, state={_CHUNKED.sub(r"blocks.\2.", k): v for k, v in raw.state.items()}), chunks


def plan_v2(raw: Raw, hints: Hints) -> TowerPlan:
    """Returns how to read DINOv2's file."""
    flat, chunks = _unchunked(raw)
    config = infer(flat, _V2)
    certain = {384: 6, 1536: 24}.get(config["width"])
    config["num_heads"], note = heads(raw, config, hints, certain)
    config["position_convention"] = "open_clip" if config["registers"] else "dino"
    notes = [note, "norm epsilon 1e-6, as DINOv2 has it", f"positions resized as {config['position_convention']}"]
    if chunks:
        notes.append("blocks in chunks; numbered through")
    found = renamed(key_map(config, 0, _V2), r"^blocks\.\d+\.", chunks)
    return TowerPlan(config, found, "DINOv2 ViT", 0, IMAGENET, (*LEFT_OUT, "head.*"), notes)


def write_v2(state: Mapping[str, Tensor], config: Plain, classes: int, preprocess: Plain | None) -> Files:
    """Returns the file that DINOv2's `DinoVisionTransformer` reads; its mask token is zero."""
    require_plain(config, "dinov2")
    require(config["layer_scale"] is not None, "dinov2 layout: DINOv2 has a layer scale")
    require(config["qkv_bias"] == "all" and not config["qk_norm"], "dinov2 layout: all biases, no norm of queries")
    require(config["class_token"] and config["class_position"] and not config["distilled"],
            "dinov2 layout: a class token with a position, and no distillation token")  # fmt: skip
    require(config["positions"] != "rope" and not config["fc_norm"] and not classes,
            "dinov2 layout: additive positions, the norm before the pooling, no classifier")  # fmt: skip
    theirs = key_map(config, 0, _V2).from_ours(plain_state(state, config))
    return Files("model.safetensors", theirs | {"mask_token": torch.zeros(1, config["width"])})


def plan_v3(raw: Raw, hints: Hints) -> TowerPlan:
    """Returns how to read DINOv3's file."""
    config: Plain = infer(raw, _V3) | {"norm_eps": 1e-5, "rope_base": 100.0, "rope_rescale": 2.0}
    config["num_heads"], note = heads(raw, config, hints, {384: 6, 1280: 20, 4096: 32}.get(config["width"]))
    periods = raw.state.get("rope_embed.periods")
    wanted = rope_periods(config["width"] // config["num_heads"], 100.0)
    require(
        periods is None or (periods.shape == wanted.shape and torch.allclose(periods.float(), wanted, rtol=1e-2)),
        f"{raw.path}: rope_embed.periods are not those of base 100 and {config['num_heads']} heads; say num_heads",
    )
    notes = [note, "norm epsilon 1e-5, as DINOv3 has it", "rotary positions of base 100", "biases of keys are masked"]
    return TowerPlan(
        config, _v3_map(config), "DINOv3 ViT", 0, IMAGENET | {"resize": "squash"}, (*_V3_LEFT_OUT, "head.*"), notes
    )


def _v3_map(config: Plain) -> KeyMap:
    return key_map(config, 0, _V3)


def write_v3(state: Mapping[str, Tensor], config: Plain, classes: int, preprocess: Plain | None) -> Files:
    """Returns the file that DINOv3's `DinoVisionTransformer` reads; its mask token is zero."""
    require_plain(config, "dinov3")
    require(config["positions"] == "rope" and config["registers"] > 0 and config["layer_scale"] is not None,
            "dinov3 layout: DINOv3 has rotary positions, storage tokens and a layer scale")  # fmt: skip
    require(config["rope_base"] == 100.0, "dinov3 layout: the rotary base is 100")
    require(config["qkv_bias"] != "all" and not config["fc_norm"] and not classes and not config["distilled"],
            "dinov3 layout: no bias of keys, the norm before the pooling, no classifier, no distillation")  # fmt: skip
    theirs = _v3_map(config).from_ours(state)
    periods = rope_periods(config["width"] // config["num_heads"], 100.0)
    extra = {"mask_token": torch.zeros(1, config["width"]), "rope_embed.periods": periods}
    return Files("model.safetensors", theirs | extra)


TOWER = (
    TowerLayout("dinov3", "vit", recognises_v3, plan_v3, write_v3),
    TowerLayout("dinov2", "vit", recognises_v2, plan_v2, write_v2),
)
