"""Rules and configuration fields that transformers' CLIP and SigLIP checkpoints share."""

from odonata.errors import WeightsError
from odonata.weights.layout import Plain
from odonata.weights.maps import Rule, layers, pair, rename

IGNORED = ("*.position_ids",)
ACTIVATIONS = {
    "quick_gelu": "quick_gelu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
}
_THEIRS = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}


def blocks(theirs: str, ours: str, depth: int) -> list[Rule]:
    """The layers of an encoder, `{theirs}.encoder.layers.N` ⇄ `{ours}.N`."""
    source, target = theirs + ".encoder.layers.{i}", ours + ".{i}"
    rules = [
        *pair(f"{source}.layer_norm1", f"{target}.norm1"),
        *pair(f"{source}.layer_norm2", f"{target}.norm2"),
        *pair(f"{source}.self_attn.out_proj", f"{target}.attn.proj"),
        *pair(f"{source}.mlp.fc1", f"{target}.mlp.fc1"),
        *pair(f"{source}.mlp.fc2", f"{target}.mlp.fc2"),
    ]
    for part in "qkv":
        rules += pair(f"{source}.self_attn.{part}_proj", f"{target}.attn.{part}")
    return layers(rules, depth)


def text(config: Plain) -> list[Rule]:
    """The text tower, without its projection."""
    return [
        rename("text_model.embeddings.token_embedding.weight", "text.token_embedding.weight"),
        rename("text_model.embeddings.position_embedding.weight", "text.positions"),
        *blocks("text_model", "text.transformer.layers", config["text"]["depth"]),
        *pair("text_model.final_layer_norm", "text.norm"),
    ]


def tower_from_hf(section: Plain, defaults: Plain, where: str) -> Plain:
    """Returns the fields that all of transformers' towers share; what the file leaves out takes `defaults`."""
    full = defaults | section
    name = full["hidden_act"]
    if name not in ACTIVATIONS:
        raise WeightsError(f"{where}.hidden_act {name!r} is not known: {', '.join(ACTIVATIONS)}")
    return {
        "width": full["hidden_size"],
        "depth": full["num_hidden_layers"],
        "num_heads": full["num_attention_heads"],
        "mlp_width": full["intermediate_size"],
        "activation": ACTIVATIONS[name],
        "norm_eps": full["layer_norm_eps"],
    }


def tower_to_hf(tower: Plain) -> Plain:
    """Returns a tower's shared fields in transformers' names."""
    return {
        "hidden_size": tower["width"],
        "num_hidden_layers": tower["depth"],
        "num_attention_heads": tower["num_heads"],
        "intermediate_size": tower["mlp_width"],
        "hidden_act": _THEIRS[tower["activation"]],
        "layer_norm_eps": tower["norm_eps"],
    }


def one_size(value: object, name: str) -> int:
    """Returns a size that may be written as a pair of equal numbers; WeightsError for a rectangle."""
    if isinstance(value, list) and len(set(value)) == 1:
        value = value[0]
    if not isinstance(value, int):
        raise WeightsError(f"config.json: {name} {value} is not square")
    return value
