"""transformers' ViT classifiers (`ViTForImageClassification`), which is how CatLIP's towers travel.

Notable: `id2label` holds the names of the classes, here the nouns. A noun may have more words than its name; those
travel under `noun_words`, an entry that transformers carries along unread. Bare towers (`ViTModel`) have no classifier
and no `vit.` before their names. `layer_norm_eps` is 1e-12 unless the file says otherwise.

Source: transformers 5.23 `models/vit/configuration_vit.py`, `modeling_vit.py`; names as in its checkpoints.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor

from odonata.weights import hf_names
from odonata.weights.layout import Files, Plain, require
from odonata.weights.maps import KeyMap, Rule, layers, pair, reshape
from odonata.weights.read import Raw

_DEFAULTS: Plain = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 16,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "qkv_bias": True,
}
_PREFIX, _OURS = "vit.", "visual"


def recognises(raw: Raw) -> bool:
    """A configuration of model type `vit`."""
    return raw.config_name == "config.json" and (raw.config or {}).get("model_type") == "vit"


def encoder(theirs: str, ours: str, depth: int) -> list[Rule]:
    """The blocks and the norm after them; `theirs` ends in a dot or is empty. MAE's encoder has the same names.

    Args:
        theirs: what stands before transformers' names.
        ours: name of the tower in our model; empty where the tower is the whole.
        depth: number of blocks.
    """
    prefix = f"{ours}." if ours else ""
    source, target = theirs + "encoder.layer.{i}", prefix + "transformer.layers.{i}"
    rules = [
        *pair(f"{source}.layernorm_before", f"{target}.norm1"),
        *pair(f"{source}.layernorm_after", f"{target}.norm2"),
        *pair(f"{source}.attention.output.dense", f"{target}.attn.proj"),
        *pair(f"{source}.intermediate.dense", f"{target}.mlp.fc1"),
        *pair(f"{source}.output.dense", f"{target}.mlp.fc2"),
    ]
    for name, letter in (("query", "q"), ("key", "k"), ("value", "v")):
        rules += pair(f"{source}.attention.attention.{name}", f"{target}.attn.{letter}")
    return [*layers(rules, depth), *pair(f"{theirs}layernorm", f"{prefix}norm")]


def key_map(tower: Plain, classifier: bool = True) -> KeyMap:
    """Returns the map for an image tower, a plain `odonata.backbones.vit.ViTConfig`.

    Args:
        tower: its configuration.
        classifier: whether there is one.
    """
    width, tokens = tower["width"], (tower["image_size"] // tower["patch_size"]) ** 2 + 1
    embeddings = f"{_PREFIX}embeddings"
    rules = [
        reshape(f"{embeddings}.cls_token", f"{_OURS}.class_token", (1, 1, width), (width,)),
        reshape(f"{embeddings}.position_embeddings", f"{_OURS}.positions", (1, tokens, width), (tokens, width)),
        *pair(f"{embeddings}.patch_embeddings.projection", f"{_OURS}.patch_embed.proj"),
        *encoder(_PREFIX, _OURS, tower["depth"]),
    ]
    if classifier:
        rules += pair("classifier", f"{_OURS}.head")
    return KeyMap(rules, (f"{_PREFIX}pooler.*", f"{_PREFIX}embeddings.mask_token"))


def read(raw: Raw) -> tuple[Plain, dict[str, Tensor]]:
    """Reads a checkpoint.

    Returns:
        The tower's configuration, and the weights under our names, `visual.…`; `visual.head` only where there is a
        classifier.

    Raises:
        WeightsError: the configuration says what our tower cannot be, or tensors are missing or unknown.
    """
    hf = _DEFAULTS | (raw.config or {})
    require(bool(hf["qkv_bias"]), f"{raw.path}: config.json: qkv_bias is false; the tower here has these biases")
    tower = hf_names.tower_from_hf(hf, _DEFAULTS, "config.json") | {
        "image_size": hf_names.one_size(hf["image_size"], "image_size"),
        "patch_size": hf_names.one_size(hf["patch_size"], "patch_size"),
        "channels": hf["num_channels"],
        "position_convention": "hf",
    }
    state = raw.state
    if not any(name.startswith(_PREFIX) for name in state):
        state = {f"{_PREFIX}{name}": value for name, value in state.items()}
    ours, _ = key_map(tower, "classifier.weight" in state).to_ours(state, str(raw.path))
    return tower, ours


def labels(raw: Raw) -> tuple[tuple[str, ...], dict[str, int]]:
    """Returns the classes' names in order, and word → class. A name's comma-separated synonyms are words, too.

    Raises:
        WeightsError: the names are not numbered 0, 1, 2, …
    """
    config = raw.config or {}
    numbered = {int(number): str(name) for number, name in (config.get("id2label") or {}).items()}
    names = tuple(numbered.get(i, "") for i in range(len(numbered)))
    require(bool(names) and all(names), f"{raw.path}: config.json: id2label does not name the classes 0, 1, 2, …")
    if "noun_words" in config:
        return names, {str(word): int(index) for word, index in config["noun_words"].items()}
    words: dict[str, int] = {}
    for index, name in enumerate(names):
        for word in name.lower().split(","):
            words.setdefault(word.strip(), index)
    return names, words


def write(
    state: Mapping[str, Tensor],
    tower: Plain,
    names: Sequence[str],
    words: Mapping[str, int],
    preprocess: Plain | None = None,
) -> Files:
    """Writes `config.json` and safetensors that `ViTForImageClassification.from_pretrained` reads.

    Raises:
        WeightsError: transformers' ViT cannot be this tower.
    """
    require(
        tower["pool"] == "class" and tower["positions"] == "learned" and tower["patch_bias"],
        "hf layout: transformers' ViT has a class token, learned positions and a patch bias",
    )
    require(
        not tower["pre_norm"] and tower["layer_scale"] is None, "hf layout: transformers' ViT is a plain pre-norm ViT"
    )
    config: Plain = hf_names.tower_to_hf(tower) | {
        "architectures": ["ViTForImageClassification"],
        "model_type": "vit",
        "image_size": tower["image_size"],
        "patch_size": tower["patch_size"],
        "num_channels": tower["channels"],
        "qkv_bias": True,
        "attention_probs_dropout_prob": 0.0,
        "hidden_dropout_prob": 0.0,
        "problem_type": "multi_label_classification",
        "id2label": {str(index): name for index, name in enumerate(names)},
        "label2id": {name: index for index, name in enumerate(names)},
        "noun_words": dict(words),
    }
    texts = {"config.json": config} | ({"preprocessor_config.json": preprocess} if preprocess else {})
    return Files("model.safetensors", key_map(tower).from_ours(state), texts)
