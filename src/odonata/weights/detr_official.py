"""DETR under the names of facebookresearch/detr.

Notable:
- Query, key and value are packed, and one output more than COCO's largest id, 91 and "no object", makes 92 rows.
- The number of heads and whether the tower dilates (DC5) leave no trace in the tensors: heads are 8, as in all that was
  published; DC5 is read from the file's name, which is why it is written into one.
- Files of panoptic DETR carry the detector under `detr.`; their mask head is not used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from odonata.weights.coco_names import table
from odonata.weights.detectors import ModelLayout, ModelPlan, within
from odonata.weights.detr_tower import COUNTERS, Tower, check_form, tower_of, tower_rules, without_counters
from odonata.weights.layout import Files, Plain, require, shape_of
from odonata.weights.maps import KeyMap, Rule, depth_of, layers, packed_attention, pair, rename
from odonata.weights.read import Raw
from odonata.weights.resnet_torchvision import infer, key_map

HEADS = 8
"""Of every published DETR."""
FRAMING: Plain = {"size": 800, "max_size": 1333, "divisor": 1, "rounding": "detr", "antialias": True}
_BODY = "backbone.0.body."
_MASKS = ("mask_head.*", "bbox_attention.*")


def recognises(raw: Raw) -> bool:
    """Queries, a class output, and a tower in torchvision's names behind `backbone.0.body`."""
    prefix = _prefix(raw)
    return all(
        f"{prefix}{name}" in raw.state for name in ("query_embed.weight", "class_embed.weight", f"{_BODY}conv1.weight")
    )


def _prefix(raw: Raw) -> str:
    return "detr." if "detr.query_embed.weight" in raw.state else ""


def transformer_rules(encoder: int, decoder: int, pre_norm: bool) -> list[Rule]:
    """Returns the rules of the transformer, for so many layers."""
    mlp = pair("layers.{i}.linear1", "layers.{i}.mlp.fc1") + pair("layers.{i}.linear2", "layers.{i}.mlp.fc2")
    attention = packed_attention("layers.{i}.self_attn", "layers.{i}.attn", "in_proj_{part}")
    cross = packed_attention("layers.{i}.multihead_attn", "layers.{i}.cross", "in_proj_{part}")
    norms = [rule for n in (1, 2, 3) for rule in pair(f"layers.{{i}}.norm{n}", f"layers.{{i}}.norm{n}")]
    rules = within(layers(attention + mlp + norms[:4], encoder), "transformer.encoder.", "transformer.encoder.")
    rules += within(layers(attention + cross + mlp + norms, decoder), "transformer.decoder.", "transformer.decoder.")
    rules += pair("transformer.decoder.norm", "transformer.decoder.norm")
    return rules + (pair("transformer.encoder.norm", "transformer.encoder.norm") if pre_norm else [])


def head_rules() -> list[Rule]:
    """Returns the rules of all that stands around the transformer."""
    rules = pair("input_proj", "project") + pair("class_embed", "class_logits")
    rules.append(rename("query_embed.weight", "query_positions"))
    for layer in range(3):
        # A rectifier stands between our layers, and takes a number.
        rules += pair(f"bbox_embed.layers.{layer}", f"box_head.{2 * layer}")
    return rules


def plan(raw: Raw) -> ModelPlan:
    """Returns how to read the checkpoint."""
    prefix = _prefix(raw)
    state = {name.removeprefix(prefix): value for name, value in raw.state.items()}
    body = infer(replace(raw, state={k[len(_BODY) :]: v for k, v in state.items() if k.startswith(_BODY)}))
    tower = Tower(body, "dc5" in raw.path.name.lower())
    encoder, decoder = (depth_of(state, f"transformer.{part}.layers.") for part in ("encoder", "decoder"))
    pre_norm = "transformer.encoder.norm.weight" in state
    outputs, dim = shape_of(state, "class_embed.weight", raw.path)
    config: Plain = {
        "backbone": tower.name(raw.path),
        "framing": FRAMING,
        "freeze": 1,
        "dim": dim,
        "num_heads": HEADS,
        "encoder_layers": encoder,
        "decoder_layers": decoder,
        "mlp_width": shape_of(state, "transformer.decoder.layers.0.linear1.weight", raw.path)[0],
        "norm": "pre" if pre_norm else "post",
        "dropout": 0.1,
        "positions_at": "attention",
        "queries": shape_of(state, "query_embed.weight", raw.path)[0],
    }
    rules = transformer_rules(encoder, decoder, pre_norm) + head_rules() + tower_rules(key_map(body, 0), _BODY)
    dc5 = "DC5, by the file's name" if tower.dilates else "stride 32: no DC5 in the file's name"
    notes = [f"{HEADS} heads, as in all published files; shapes do not tell", dc5]
    left_out = (COUNTERS, *(_MASKS if prefix else ()))
    return ModelPlan(
        config,
        KeyMap(within(rules, prefix, "")),
        "facebookresearch/detr",
        outputs - 1,
        table(outputs - 1),
        left_out,
        notes,
    )


def write(state: Mapping[str, Tensor], config: Any, categories: Sequence[tuple[int | str, str]]) -> Files:
    """Returns the file whose entry `model` the original's `load_state_dict` reads."""
    check_form(config, "official")
    require(
        config.num_heads == HEADS, f"official layout: its readers take {HEADS} heads, and this has {config.num_heads}"
    )
    tower = tower_of(state, config.backbone, "official")
    require(tower.stride_in == "3x3", "official layout: its towers stride in the 3 × 3 (v1.5)")
    rules = transformer_rules(config.encoder_layers, config.decoder_layers, config.norm == "pre") + head_rules()
    rules += tower_rules(key_map(tower.fields, 0), _BODY)
    name = "detr-dc5.pth" if tower.dilates else "detr.pth"
    return Files(name, KeyMap(rules).from_ours(without_counters(state)), entry="model")


MODEL = ModelLayout("official", "detr", recognises, plan, write)
