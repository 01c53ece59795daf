"""OpenAI's own CLIP files: ViT and ResNet towers, everything inferred from shapes.

Notable: the published `.pt` files are TorchScript archives in half precision and hold three integers beside the weights
(image size, context, vocabulary), which are ignored. Heads are width / 64; the activation is QuickGELU throughout.

Source: openai/CLIP `model.py`, `build_model`.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from odonata.weights import clip_names
from odonata.weights.layout import Files, Layout, Plain, Plan, ReadOptions, require, shape_of, square_side
from odonata.weights.maps import KeyMap, depth_of
from odonata.weights.read import Raw

PREPROCESS: Plain = {"source": "openai", "config": {}}


def key_map(config: Plain) -> KeyMap:
    """Returns the map for a configuration."""
    tower = clip_names.resnet if config["visual"]["kind"] == "modified_resnet" else clip_names.vit
    return KeyMap(tower(config) + clip_names.text(config, "") + clip_names.scalars(config), clip_names.IGNORED)


def recognises(raw: Raw) -> bool:
    """OpenAI's files are TorchScript archives, or their state dictionaries, which keep `input_resolution`."""
    has_names = "visual.proj" in raw.state or "visual.attnpool.c_proj.weight" in raw.state
    return has_names and raw.config is None and (raw.kind == "torchscript" or "input_resolution" in raw.state)


def plan(raw: Raw, options: ReadOptions) -> Plan:
    """Infers the architecture and returns how to read it."""
    quick = options.quick_gelu is not False
    config = infer(raw, "quick_gelu" if quick else "gelu")
    notes = [f"activation {config['text']['activation']}: all of OpenAI's models use QuickGELU"] if quick else []
    notes += INFERENCES
    return Plan(config, key_map(config), PREPROCESS, tokenizer(config), notes)


INFERENCES = [
    "heads inferred as width / 64 in both towers (ResNet: width · 32 / 64)",
    "text feature read at the largest id (argmax), as openai/CLIP does",
    "positions resized as open_clip does (bicubic, antialias) for other image sizes; OpenAI's code refuses those",
]


def tokenizer(config: Plain) -> Plain:
    """Describes CLIP's byte-pair tokenizer, whose vocabulary is not in the file."""
    return {"kind": "clip_bpe", "context_length": config["text"]["context_length"], "files": {}}


def infer(raw: Raw, activation: str) -> Plain:
    """Returns the configuration that a state dictionary in openai/CLIP's names implies."""
    state, where = raw.state, raw.path
    context, width = shape_of(state, "positional_embedding", where)
    depth = depth_of(state, "transformer.resblocks.")
    embed_dim = shape_of(state, "text_projection", where)[1]
    vocabulary = shape_of(state, "token_embedding.weight", where)[0]
    text = {
        "vocab_size": vocabulary,
        "eot_id": vocabulary - 1,
        "context_length": context,
        "width": width,
        "depth": depth,
        "num_heads": max(1, width // 64),
        "mlp_width": shape_of(state, "transformer.resblocks.0.mlp.c_fc.weight", where)[0],
        "activation": activation,
        "causal": True,
        "pool": "argmax",
        "norm_eps": 1e-5,
        "init": "clip",
    }
    has_vit = "visual.proj" in state
    visual = infer_vit(state, where, activation) if has_vit else infer_resnet(state, where)
    return {
        "visual": visual,
        "text": text,
        "embed_dim": embed_dim,
        "visual_projection": has_vit,
        "text_projection": "linear",
        "logit_bias_init": float(state["logit_bias"]) if "logit_bias" in state else None,
    }


def infer_vit(state: Mapping[str, Tensor], where: object, activation: str) -> Plain:
    """Returns the configuration of a ViT tower in openai/CLIP's names."""
    width, channels, patch, _ = shape_of(state, "visual.conv1.weight", where)
    grid = square_side(
        shape_of(state, "visual.positional_embedding", where)[0] - 1, "visual.positional_embedding", where
    )
    return {
        "kind": "vit",
        "image_size": grid * patch,
        "patch_size": patch,
        "width": width,
        "depth": depth_of(state, "visual.transformer.resblocks."),
        "num_heads": max(1, width // 64),
        "mlp_width": shape_of(state, "visual.transformer.resblocks.0.mlp.c_fc.weight", where)[0],
        "activation": activation,
        "channels": channels,
        "class_token": True,
        "pre_norm": "visual.ln_pre.weight" in state,
        "patch_bias": False,
        "pool": "class",
        "positions": "learned",
        "position_convention": "open_clip",
        "norm_eps": 1e-5,
        "init": "clip",
    }


def infer_resnet(state: Mapping[str, Tensor], where: object) -> Plain:
    """Returns the configuration of a ResNet tower in openai/CLIP's names."""
    width = shape_of(state, "visual.layer1.0.conv1.weight", where)[0]
    name = "visual.attnpool.positional_embedding"
    grid = square_side(shape_of(state, name, where)[0] - 1, name, where)
    return {
        "kind": "modified_resnet",
        "image_size": 32 * grid,
        "layers": tuple(depth_of(state, f"visual.layer{i}.") for i in (1, 2, 3, 4)),
        "width": width,
        "num_heads": max(1, width * 32 // 64),
        "embed_dim": shape_of(state, "visual.attnpool.c_proj.weight", where)[0],
        "position_convention": "open_clip",
    }


def write(state: Mapping[str, Tensor], config: Plain, preprocess: Plain | None) -> Files:
    """Writes a plain state dictionary in openai/CLIP's names; what the layout cannot say is refused."""
    visual, text = config["visual"], config["text"]
    towers = [("text", text)] + ([("visual", visual)] if visual["kind"] == "vit" else [])
    for name, tower in towers:
        require(
            tower["activation"] == "quick_gelu", f"openai layout: {name}.activation must be quick_gelu; use open_clip"
        )
        require(
            tower["num_heads"] == max(1, tower["width"] // 64),
            f"openai layout: {name}.num_heads {tower['num_heads']} is not width / 64, which readers infer; use hf",
        )
        require(tower["norm_eps"] == 1e-5, f"openai layout: {name}.norm_eps must be 1e-5; use hf")
    if visual["kind"] == "vit":
        require(
            visual["pool"] == "class"
            and visual["pre_norm"]
            and not visual["patch_bias"]
            and visual["positions"] == "learned",
            "openai layout: the image tower must have class token, learned positions, pre_norm and no patch bias",
        )
    require(text["causal"] and text["pool"] in ("argmax", "eot"), "openai layout: the text tower must be causal")
    # The three integers tell readers, ours included, that these are OpenAI's conventions.
    sizes = {"input_resolution": visual["image_size"], "context_length": text["context_length"]}
    sizes["vocab_size"] = text["vocab_size"]
    theirs = key_map(config).from_ours(state) | {name: torch.tensor(size) for name, size in sizes.items()}
    return Files("openai_clip.pt", theirs)


LAYOUT = Layout("openai", recognises, plan, write)
