"""big_vision's own SigLIP files: `.npz` of Flax parameters, layers in a loop or stacked by `scan`.

Notable: Flax stores kernels as [in, heads, head width], convolutions as [height, width, in, out]; `t` is already the
logarithm of the scale. NaFlex has a dense patch embedding over (row, column, channel) and a square grid of positions.
The names are checked against the keys that open_clip's own reader of these files asks for, and against its outputs; no
published file was at hand, so the shape of NaFlex's grid of positions is read leniently.

Source: google-research/big_vision `models/vit.py`, `models/proj/image_text/{two_towers,text_transformer}.py`.
"""

import math
from collections.abc import Mapping

from torch import Tensor

from odonata.weights.layout import Files, Layout, Plain, Plan, ReadOptions, require, shape_of, square_side
from odonata.weights.maps import KeyMap, Rule, depth_of, layers, permute, rename, reshape, stacked_layers, transpose
from odonata.weights.read import Raw

_BLOCK = "encoderblock"


def key_map(config: Plain, prefix: str = "params/", stacked: bool = False, grid_shape: tuple[int, ...] = ()) -> KeyMap:
    """Returns the map for a configuration.

    Args:
        config: configuration of the two towers.
        prefix: what stands before `img/` and `txt/`.
        stacked: whether layers are stacked along a first axis.
        grid_shape: shape of the image positions in the file, if it is not the usual one.
    """
    visual, text = config["visual"], config["text"]
    image, words = f"{prefix}img/", f"{prefix}txt/"
    naflex, width = visual["positions"] == "naflex", visual["width"]
    side = visual["image_size"] // visual["patch_size"]
    usual = (side, side, width) if naflex else (1, side * side, width)
    patches = [
        transpose(f"{image}embedding/kernel", "visual.patch_embed.proj.weight")
        if naflex
        else permute(f"{image}embedding/kernel", "visual.patch_embed.proj.weight", (3, 2, 0, 1)),
        rename(f"{image}embedding/bias", "visual.patch_embed.proj.bias"),
        reshape(f"{image}pos_embedding", "visual.positions", grid_shape or usual, (-1, width)),
    ]
    rules = [
        *patches,
        *_encoder(f"{image}Transformer/", "visual.transformer.layers", visual, stacked),
        *_norm(f"{image}Transformer/encoder_norm", "visual.norm"),
        *_pooling(f"{image}MAPHead_0/", visual),
        rename(f"{words}Embed_0/embedding", "text.token_embedding.weight"),
        reshape(f"{words}pos_embedding", "text.positions", (1, -1, text["width"]), (-1, text["width"])),
        *_encoder(f"{words}Encoder_0/", "text.transformer.layers", text, stacked),
        *_norm(f"{words}Encoder_0/encoder_norm", "text.norm"),
        *_dense(f"{words}head", "text_projection"),
        reshape(f"{prefix}t", "logit_scale", (1,), ()),
        reshape(f"{prefix}b", "logit_bias", (1,), ()),
    ]
    return KeyMap(rules)


def _encoder(theirs: str, ours: str, tower: Plain, stacked: bool) -> list[Rule]:
    source, target = theirs + (_BLOCK if stacked else _BLOCK + "_{i}"), ours + ".{i}"
    rules = [
        *_norm(f"{source}/LayerNorm_0", f"{target}.norm1"),
        *_attention(f"{source}/MultiHeadDotProductAttention_0", f"{target}.attn", tower),
        *_norm(f"{source}/LayerNorm_1", f"{target}.norm2"),
        *_mlp(f"{source}/MlpBlock_0", f"{target}.mlp"),
    ]
    return (stacked_layers if stacked else layers)(rules, tower["depth"])


def _pooling(theirs: str, visual: Plain) -> list[Rule]:
    return [
        rename(f"{theirs}probe", "visual.pool.probe"),
        *_attention(f"{theirs}MultiHeadDotProductAttention_0", "visual.pool.attn", visual),
        *_norm(f"{theirs}LayerNorm_0", "visual.pool.norm"),
        *_mlp(f"{theirs}MlpBlock_0", "visual.pool.mlp"),
    ]


def _attention(theirs: str, ours: str, tower: Plain) -> list[Rule]:
    heads, width = tower["num_heads"], tower["width"]
    head = width // heads
    rules = [rename(f"{theirs}/out/bias", f"{ours}.proj.bias"), _out_kernel(theirs, ours, heads, head)]
    for part, name in (("q", "query"), ("k", "key"), ("v", "value")):
        rules += [
            _in_kernel(f"{theirs}/{name}/kernel", f"{ours}.{part}.weight", heads, head),
            reshape(f"{theirs}/{name}/bias", f"{ours}.{part}.bias", (heads, head), (width,)),
        ]
    return rules


def _in_kernel(theirs: str, ours: str, heads: int, head: int) -> Rule:
    return Rule(
        (theirs,),
        (ours,),
        lambda tensors: [tensors[0].flatten(1).T.contiguous()],
        lambda tensors: [tensors[0].T.unflatten(1, (heads, head)).contiguous()],
    )


def _out_kernel(theirs: str, ours: str, heads: int, head: int) -> Rule:
    return Rule(
        (f"{theirs}/out/kernel",),
        (f"{ours}.proj.weight",),
        lambda tensors: [tensors[0].flatten(0, 1).T.contiguous()],
        lambda tensors: [tensors[0].T.unflatten(0, (heads, head)).contiguous()],
    )


def _mlp(theirs: str, ours: str) -> list[Rule]:
    return [*_dense(f"{theirs}/Dense_0", f"{ours}.fc1"), *_dense(f"{theirs}/Dense_1", f"{ours}.fc2")]


def _dense(theirs: str, ours: str) -> list[Rule]:
    return [transpose(f"{theirs}/kernel", f"{ours}.weight"), rename(f"{theirs}/bias", f"{ours}.bias")]


def _norm(theirs: str, ours: str) -> list[Rule]:
    return [rename(f"{theirs}/scale", f"{ours}.weight"), rename(f"{theirs}/bias", f"{ours}.bias")]


def recognises(raw: Raw) -> bool:
    """An `.npz` with an image and a text tower."""
    return raw.kind == "npz" and any(name.endswith("img/embedding/kernel") for name in raw.state)


def plan(raw: Raw, options: ReadOptions) -> Plan:
    """Infers the architecture from the shapes and returns how to read the weights."""
    state, where = raw.state, raw.path
    prefix = next(name for name in state if name.endswith("img/embedding/kernel"))[: -len("img/embedding/kernel")]
    image, words = f"{prefix}img/", f"{prefix}txt/"
    stacked = f"{image}Transformer/{_BLOCK}/LayerNorm_0/scale" in state
    kernel = shape_of(state, f"{image}embedding/kernel", where)
    naflex = len(kernel) == 2
    positions = shape_of(state, f"{image}pos_embedding", where)
    grid = square_side(math.prod(positions[:-1]), f"{image}pos_embedding", where)
    # Pixels of a NaFlex patch are (row, column, channel) of three channels.
    patch = square_side(kernel[0] // 3, f"{image}embedding/kernel", where) if naflex else kernel[0]
    visual = _tower(state, f"{image}Transformer/", stacked, where) | {
        "kind": "vit",
        "image_size": grid * patch,
        "patch_size": patch,
        "channels": 3 if naflex else kernel[2],
        "class_token": False,
        "pre_norm": False,
        "patch_bias": True,
        "pool": "map",
        "positions": "naflex" if naflex else "learned",
        "position_convention": "naflex" if naflex else "big_vision",
    }
    vocabulary = shape_of(state, f"{words}Embed_0/embedding", where)[0]
    text = _tower(state, f"{words}Encoder_0/", stacked, where) | {
        "vocab_size": vocabulary,
        "context_length": shape_of(state, f"{words}pos_embedding", where)[1],
        "causal": False,
        "pool": "last",
        "eot_id": 1,
        "pad_id": 0 if vocabulary == 256000 else 1,
    }
    config: Plain = {
        "visual": visual,
        "text": text,
        "embed_dim": shape_of(state, f"{words}head/kernel", where)[1],
        "visual_projection": False,
        "text_projection": "linear_bias",
        "logit_scale_init": math.log(10),
        "logit_bias_init": -10.0,
    }
    notes = [
        "activation gelu_tanh: Flax's default, used throughout big_vision",
        f"layers {'stacked by scan' if stacked else 'in a loop'}; heads read from the kernels' shapes",
        f"text feature read at the last position, padded with id {text['pad_id']}",
        "positions resized as big_vision does (bilinear, corners aligned) for other image sizes",
    ]
    tokenizer: Plain = {"kind": "sentencepiece", "context_length": text["context_length"], "files": {}}
    key = key_map(config, prefix, stacked, positions)
    return Plan(config, key, {"source": "naflex" if naflex else "big_vision", "config": {}}, tokenizer, notes)


def _tower(state: Mapping[str, Tensor], prefix: str, stacked: bool, where: object) -> Plain:
    block = f"{prefix}{_BLOCK}" if stacked else f"{prefix}{_BLOCK}_0"
    query = shape_of(state, f"{block}/MultiHeadDotProductAttention_0/query/kernel", where)
    width, heads, _ = query[-3:]
    depth = query[0] if stacked else depth_of(_dotted(state, f"{prefix}{_BLOCK}_"), "")
    return {
        "width": width,
        "depth": depth,
        "num_heads": heads,
        "mlp_width": shape_of(state, f"{block}/MlpBlock_0/Dense_0/kernel", where)[-1],
        "activation": "gelu_tanh",
        "norm_eps": 1e-6,
        "init": "siglip",
    }


def _dotted(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :].replace("/", "."): state[name] for name in state if name.startswith(prefix)}


def write(state: Mapping[str, Tensor], config: Plain, preprocess: Plain | None) -> Files:
    """Writes an `.npz` with layers in a loop, as the SigLIP files are."""
    visual, text = config["visual"], config["text"]
    require(
        visual["kind"] == "vit" and visual["pool"] == "map" and not visual["class_token"] and not visual["pre_norm"],
        "big_vision layout: the image tower must be SigLIP's: attention pooling, no class token",
    )
    for tower in (visual, text):
        require(
            tower["activation"] == "gelu_tanh" and tower["norm_eps"] == 1e-6,
            "big_vision layout: towers must use gelu_tanh and norm_eps 1e-6, which readers take for granted",
        )
    require(
        not text["causal"] and config["text_projection"] == "linear_bias" and not config["visual_projection"],
        "big_vision layout: the text tower must be bidirectional and projected with bias, the image not projected",
    )
    return Files("siglip.npz", key_map(config).from_ours(state))


LAYOUT = Layout("big_vision", recognises, plan, write)
