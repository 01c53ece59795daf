"""DETR as a directory of transformers (`DetrForObjectDetection`).

Notable:
- Two generations of names for the same tensors are read: what is published and what `save_pretrained` writes
  (`backbone.conv_encoder`, `out_proj`, `layers.N.fc1`), and what the classes of version 5 call them. The former is
  written.
- The tower is either transformers' own residual network or timm's, whose names are torchvision's; the latter is written
  only for DC5, because transformers' own does not dilate.
- There is no pre-norm.

Source: transformers 5.23 `models/detr`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from odonata.weights import resnet_hf, resnet_torchvision
from odonata.weights.coco_names import table
from odonata.weights.detectors import ModelLayout, ModelPlan, within
from odonata.weights.detr_official import FRAMING
from odonata.weights.detr_tower import COUNTERS, Tower, check_form, tower_of, tower_rules, without_counters
from odonata.weights.layout import Files, Plain, require, shape_of
from odonata.weights.maps import KeyMap, Rule, layers, pair, rename
from odonata.weights.read import Raw, read_json
from odonata.weights.towers import Hints

_BODY = "model.backbone.conv_encoder.model."
_PUBLISHED = (
    (re.compile(r"^model\.backbone\.model\."), _BODY),
    (re.compile(r"\.o_proj\."), ".out_proj."),
    (re.compile(r"\.mlp\.(fc[12])\."), r".\1."),
)
"""From the names of version 5's classes to the published ones."""
_COSTS = {
    "class_cost": "class_cost",
    "bbox_cost": "l1_cost",
    "giou_cost": "giou_cost",
    "bbox_loss_coefficient": "l1_weight",
    "giou_loss_coefficient": "giou_weight",
    "eos_coefficient": "no_object_weight",
}
"""Their names of weights, and ours."""


def recognises(raw: Raw) -> bool:
    """A configuration of model type `detr` with a detector's outputs."""
    return (raw.config or {}).get("model_type") == "detr" and "class_labels_classifier.weight" in raw.state


def published_name(name: str) -> str:
    """Returns the published name of a tensor, whichever generation's it has."""
    for pattern, to in _PUBLISHED:
        name = pattern.sub(to, name)
    return name


def transformer_rules(encoder: int, decoder: int) -> list[Rule]:
    """Returns the rules of encoder and decoder."""

    def attention(theirs: str, ours: str) -> list[Rule]:
        parts = (("q_proj", "q"), ("k_proj", "k"), ("v_proj", "v"), ("out_proj", "proj"))
        return [rule for a, b in parts for rule in pair(f"layers.{{i}}.{theirs}.{a}", f"layers.{{i}}.{ours}.{b}")]

    def norm(theirs: str, number: int) -> list[Rule]:
        return pair(f"layers.{{i}}.{theirs}", f"layers.{{i}}.norm{number}")

    mlp = pair("layers.{i}.fc1", "layers.{i}.mlp.fc1") + pair("layers.{i}.fc2", "layers.{i}.mlp.fc2")
    first = attention("self_attn", "attn") + norm("self_attn_layer_norm", 1) + mlp
    cross = attention("encoder_attn", "cross") + norm("encoder_attn_layer_norm", 2)
    rules = within(layers(first + norm("final_layer_norm", 2), encoder), "model.encoder.", "transformer.encoder.")
    rules += within(
        layers(first + cross + norm("final_layer_norm", 3), decoder), "model.decoder.", "transformer.decoder."
    )
    return rules + pair("model.decoder.layernorm", "transformer.decoder.norm")


def head_rules() -> list[Rule]:
    """Returns the rules of all that stands around the transformer."""
    rules = pair("model.input_projection", "project") + pair("class_labels_classifier", "class_logits")
    rules.append(rename("model.query_position_embeddings.weight", "query_positions"))
    for layer in range(3):
        rules += pair(f"bbox_predictor.layers.{layer}", f"box_head.{2 * layer}")
    return rules


def body_rules(tower: Tower, timm: bool) -> list[Rule]:
    """Returns the rules of the tower, in timm's names or in transformers'."""
    key_map = resnet_torchvision.key_map(tower.fields, 0) if timm else resnet_hf.key_map(tower.fields, 0, "")
    return tower_rules(key_map, _BODY)


def plan(raw: Raw) -> ModelPlan:
    """Returns how to read the checkpoint."""
    hf = raw.config or {}
    require(
        hf.get("position_embedding_type", "sine") == "sine", f"{raw.path}: learned positions of the map are not DETR's"
    )
    require(
        hf.get("activation_function", "relu") == "relu", f"{raw.path}: config.json: activation_function is not relu"
    )
    for name in ("attention_heads", "ffn_dim"):
        a, b = (_read(hf, f"{part}_{name}") for part in ("encoder", "decoder"))
        require(a == b, f"{raw.path}: config.json: encoder and decoder differ in {name}: {a} and {b}")
    to_file = {published_name(name): name for name in raw.state}
    state = {new: raw.state[old] for new, old in to_file.items()}
    timm = f"{_BODY}conv1.weight" in state
    tower = _tower(raw, state, hf, timm)
    outputs = shape_of(state, "class_labels_classifier.weight", raw.path)[0]
    config: Plain = {
        "backbone": tower.name(raw.path),
        "framing": _framing(raw.path),
        "freeze": 1,
        "dim": _read(hf, "d_model"),
        "num_heads": _read(hf, "encoder_attention_heads"),
        "encoder_layers": _read(hf, "encoder_layers"),
        "decoder_layers": _read(hf, "decoder_layers"),
        "mlp_width": _read(hf, "encoder_ffn_dim"),
        "dropout": float(_read(hf, "dropout")),
        "norm": "post",
        "positions_at": "attention",
        "queries": shape_of(state, "model.query_position_embeddings.weight", raw.path)[0],
    }
    config |= {ours: float(hf[theirs]) for theirs, ours in _COSTS.items() if theirs in hf}
    rules = (
        transformer_rules(config["encoder_layers"], config["decoder_layers"]) + head_rules() + body_rules(tower, timm)
    )
    rules = [replace(rule, theirs=tuple(to_file.get(name, name) for name in rule.theirs)) for rule in rules]
    notes = [f"tower in {'timm' if timm else 'transformers'}'s names, {'DC5' if tower.dilates else 'stride 32'}"]
    return ModelPlan(
        config, KeyMap(rules), "transformers DETR", outputs - 1, _categories(hf, outputs - 1), (COUNTERS,), notes
    )


_DEFAULTS: Plain = {
    **{f"{part}_{name}": value for part in ("encoder", "decoder") for name, value in
       (("layers", 6), ("ffn_dim", 2048), ("attention_heads", 8))},
    "d_model": 256, "dropout": 0.1,
}  # fmt: skip
"""Of `DetrConfig`, whose files may leave out what is default."""


def _read(hf: Plain, name: str) -> Any:
    return hf.get(name, _DEFAULTS[name])


def _tower(raw: Raw, state: Mapping[str, Tensor], hf: Plain, timm: bool) -> Tower:
    body = replace(raw, state={k[len(_BODY) :]: v for k, v in state.items() if k.startswith(_BODY)})
    if timm:
        said = hf.get("backbone_config") or {}
        dilates = bool(hf.get("dilation")) or said.get("output_stride", 32) == 16
        return Tower(resnet_torchvision.infer(body), dilates)
    inner = hf.get("backbone_config") or {}
    require(inner.get("model_type") == "resnet", f"{raw.path}: config.json: the tower is no residual network")
    fields = resnet_hf.plan(replace(body, config=inner), Hints()).config
    return Tower(fields, False, fields["stride_in"])


def _framing(path: Path) -> Plain:
    """The sizes that `preprocessor_config.json` beside the weights names, or DETR's."""
    file = (path if path.is_dir() else path.parent) / "preprocessor_config.json"
    said = read_json(file) if file.is_file() else {}
    size = said.get("size", 800)
    short, long = (size.get("shortest_edge"), size.get("longest_edge")) if isinstance(size, dict) else (size, None)
    require(short is not None, f"{file}: a size of {size} is not by the shortest edge")
    return FRAMING | {"size": short, "max_size": long or said.get("max_size", 1333)}


def _categories(hf: Plain, classes: int) -> Sequence[tuple[int | str, str]] | None:
    names = {int(number): str(name) for number, name in (hf.get("id2label") or {}).items()}
    if sorted(names) != list(range(classes)) or all(name == f"LABEL_{i}" for i, name in names.items()):
        return table(classes)
    coco = table(classes)
    # COCO's unused ids all have one name in these files, and categories are told apart by theirs.
    if coco and all(names[i] == name for i, name in coco if i and not name.startswith("unused")):
        return coco
    return sorted(names.items())


def write(state: Mapping[str, Tensor], config: Any, categories: Sequence[tuple[int | str, str]]) -> Files:
    """Returns the directory that `DetrForObjectDetection.from_pretrained` and `DetrImageProcessor` read."""
    check_form(config, "hf")
    require(config.norm == "post", "hf layout: transformers' DETR has no pre-norm")
    require(config.class_weight == 1, "hf layout: transformers' DETR does not weigh its classes' loss")
    require(
        config.framing.resize == "shortest",
        f"hf layout: pictures are scaled by their shortest side, not {config.framing.resize!r}",
    )
    tower = tower_of(state, config.backbone, "hf")
    rules = (
        transformer_rules(config.encoder_layers, config.decoder_layers)
        + head_rules()
        + body_rules(tower, tower.dilates)
    )
    hf: Plain = {
        "architectures": ["DetrForObjectDetection"],
        "model_type": "detr",
        "d_model": config.dim,
        "num_queries": config.queries,
        "dropout": config.dropout,
        "attention_dropout": config.dropout,
        "auxiliary_loss": False,  # with it on, transformers norms each layer's answer before the next layer
        "id2label": {str(number): name for number, (_, name) in enumerate(categories)},
        "label2id": {name: number for number, (_, name) in enumerate(categories)},
        **_described(tower),
        **{
            theirs: _whole(getattr(config, ours), ours) for theirs, ours in _COSTS.items() if ours != "no_object_weight"
        },
        "eos_coefficient": config.no_object_weight,
    }
    for part in ("encoder", "decoder"):
        hf |= {f"{part}_layers": getattr(config, f"{part}_layers"), f"{part}_ffn_dim": config.mlp_width}
        hf[f"{part}_attention_heads"] = config.num_heads
    framing = config.framing
    preprocess: Plain = {
        "image_processor_type": "DetrImageProcessor",
        "size": {"shortest_edge": framing.size, "longest_edge": framing.max_size},
        "image_mean": list(framing.mean),
        "image_std": list(framing.std),
    }
    texts: Mapping[str, Plain | str] = {"config.json": hf, "preprocessor_config.json": preprocess}
    return Files("model.safetensors", KeyMap(rules).from_ours(without_counters(state)), texts)


def _whole(value: float, name: str) -> int:
    """A weight as `DetrConfig` takes it."""
    require(value == int(value), f"hf layout: transformers' DETR has whole numbers as weights, and {name} is {value}")
    return int(value)


def _described(tower: Tower) -> Plain:
    """What `config.json` says of the tower."""
    fields = tower.fields
    if tower.dilates:
        require(tower.stride_in == "3x3", "hf layout: timm's towers, which DC5 needs, stride in the 3 × 3 (v1.5)")
        name = tower.name("hf layout").partition(":")[0]
        said: Plain = {"model_type": "timm_backbone", "backbone": name, "output_stride": 16, "features_only": True,
                       "use_pretrained_backbone": False, "out_indices": [1, 2, 3, 4], "num_channels": 3}  # fmt: skip
        return {"backbone_config": said, "dilation": True}
    expansion = 4 if fields["block"] == "bottleneck" else 1
    inner: Plain = {
        "model_type": "resnet",
        "layer_type": fields["block"],
        "depths": list(fields["depths"]),
        "hidden_sizes": [width * expansion for width in fields["widths"]],
        "embedding_size": fields["stem_width"],
        "downsample_in_bottleneck": tower.stride_in == "1x1",
        "hidden_act": "relu",
        "out_features": ["stage4"],
    }
    return {"backbone_config": inner}


MODEL = ModelLayout("hf", "detr", recognises, plan, write)
