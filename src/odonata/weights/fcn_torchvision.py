"""torchvision's `fcn_resnet50` and `fcn_resnet101`: a dilated residual network under a head of two convolutions.

Notable: 21 outputs are VOC's classes. The auxiliary head is kept where the file has it; torchvision's reference script
weighs its loss by 0.5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from odonata.weights.detectors import ModelLayout, ModelPlan, within
from odonata.weights.dilated_names import head_rules, tower_fields, tower_name, uncounted
from odonata.weights.layout import Files, Plain, require, shape_of
from odonata.weights.maps import KeyMap, Rule
from odonata.weights.read import Raw
from odonata.weights.resnet_torchvision import infer, key_map
from odonata.weights.segment_names import table

_BODY = "backbone."


def recognises(raw: Raw) -> bool:
    """A residual network beside a head whose first layer is a convolution (DeepLab's is a pyramid)."""
    return f"{_BODY}layer4.0.conv1.weight" in raw.state and {"classifier.0.weight", "classifier.4.weight"} <= set(
        raw.state
    )


def rules(tower: Plain, auxiliary: bool) -> list[Rule]:
    """The rules of the whole model."""
    made = within(key_map(tower, 0).rules, _BODY, "network.backbone.") + head_rules("classifier", "network.head")
    return made + (head_rules("aux_classifier", "network.auxiliary") if auxiliary else [])


def plan(raw: Raw) -> ModelPlan:
    """Returns how to read the checkpoint."""
    body = replace(raw, state={k[len(_BODY) :]: v for k, v in raw.state.items() if k.startswith(_BODY)})
    tower = infer(body)
    auxiliary = any(name.startswith("aux_classifier.") for name in raw.state)
    classes = shape_of(raw.state, "classifier.4.weight", raw.path)[0]
    stem = "" if tower["stem_width"] == 64 else f"stem_width={tower['stem_width']},"
    config: Plain = {
        "backbone": tower_name(tower, f"{stem}output_stride=8", raw.path),
        "head": "torchvision",
        "aux_weight": 0.5 if auxiliary else 0.0,
        "framing": {"resize": "shortest", "size": 520, "max_size": 0, "divisor": 1},
    }
    made = KeyMap(uncounted(rules(tower, auxiliary), raw.state))
    notes = [
        "a dilated residual network without skips, as torchvision has it; the shorter side is scaled to 520 pixels"
    ]
    return ModelPlan(config, made, "torchvision FCN", classes, table(classes), notes=notes)


def write(state: Mapping[str, Tensor], config: Any, categories: Sequence[tuple[int | str, str]]) -> Files:
    """Returns the file that torchvision's `fcn_resnet…(…).load_state_dict` reads."""
    require(config.head == "torchvision", "torchvision layout: torchvision's FCN has no skips; --to pytorch-fcn has")
    tower = tower_fields(state, "torchvision")
    require(tower["stem"] == "imagenet", "torchvision layout: its residual networks have no deep stem")
    return Files("model.safetensors", KeyMap(rules(tower, config.aux_weight > 0)).from_ours(state))


MODEL = ModelLayout("torchvision", "fcn-8s", recognises, plan, write)
