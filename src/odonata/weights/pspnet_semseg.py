"""PSPNet under the names of its authors' PyTorch code, semseg.

Notable:
- The stem and its norms are numbered in one row, ReLUs and the pooling among them.
- The auxiliary head is there in training files; the code builds it only while training and drops it at test.
- The number of classes tells which set the weights are for, and with it the sizes that `config/*.yaml` has: 19 are
  Cityscapes' (longest side 2048, windows of 713), others are VOC's and ADE20K's (512 and 473).

Source: hszhao/semseg `model/pspnet.py`, `config/*/*_pspnet*.yaml`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from odonata.weights.detectors import ModelLayout, ModelPlan
from odonata.weights.dilated_names import head_rules, tower_fields, tower_name, uncounted
from odonata.weights.layout import Files, Plain, require, shape_of
from odonata.weights.maps import KeyMap, Rule, depth_of, rename
from odonata.weights.read import Raw
from odonata.weights.resnet_torchvision import key_map, norm
from odonata.weights.segment_names import table

_STEM = (("layer0.0", "layer0.1"), ("layer0.3", "layer0.4"), ("layer0.6", "layer0.7"))


def recognises(raw: Raw) -> bool:
    """A deep stem in one row beside a pyramid pooling."""
    return "layer0.6.weight" in raw.state and "ppm.features.0.1.weight" in raw.state


def rules(tower: Plain, bins: int, auxiliary: bool) -> list[Rule]:
    """The rules of the whole model."""
    made: list[Rule] = []
    for number, (conv, normed) in enumerate(_STEM):
        made.append(rename(f"{conv}.weight", f"network.backbone.stem.convs.{number}.weight"))
        made += norm(normed, f"network.backbone.stem.norms.{number}")
    for rule in key_map(tower, 0).rules:
        # The stages have torchvision's names; its stem has not.
        if rule.ours[0].startswith("stages."):
            made.append(rename(rule.theirs[0], f"network.backbone.{rule.ours[0]}"))
    for number in range(bins):
        name, ours = f"ppm.features.{number}", "network.pooling"
        made.append(rename(f"{name}.1.weight", f"{ours}.convs.{number}.weight"))
        made += norm(f"{name}.2", f"{ours}.norms.{number}")
    made += head_rules("cls", "network.head")
    return made + (head_rules("aux", "network.auxiliary") if auxiliary else [])


def plan(raw: Raw) -> ModelPlan:
    """Returns how to read the checkpoint."""
    state, where = raw.state, raw.path
    count = depth_of(state, "layer") - 1
    tower: Plain = {
        "block": "bottleneck",
        "depths": [depth_of(state, f"layer{s + 1}.") for s in range(count)],
        "widths": [shape_of(state, f"layer{s + 1}.0.conv3.weight", where)[0] // 4 for s in range(count)],
        "stem_width": shape_of(state, "layer0.6.weight", where)[0],
        "shortcut": "conv",
    }
    options = f"stem=deep,stem_width={tower['stem_width']},output_stride=8,dilate_first=true"
    auxiliary = any(name.startswith("aux.") for name in state)
    classes, head_width = shape_of(state, "cls.4.weight", where)[:2]
    bins = depth_of(state, "ppm.features.")
    require(bins == 4, f"{where}: {bins} poolings; the published networks have four, of 1, 2, 3 and 6 bins")
    base, side = (2048, 713) if classes == 19 else (512, 473)
    config: Plain = {
        "backbone": tower_name(tower, options, where),
        "head_width": head_width,
        "aux_weight": 0.4 if auxiliary else 0.0,
        "framing": {"resize": "shortest", "size": base, "max_size": base, "divisor": 1},
        "window": side,
        "crop": side,
        "flip": True,
    }
    made = KeyMap(uncounted(rules(tower, bins, auxiliary), state))
    notes = [
        f"longest side {base}, windows of {side} pixels, mirrored too, as the authors' settings for {classes} classes"
    ]
    return ModelPlan(config, made, "semseg PSPNet", classes, table(classes, city=True), notes=notes)


def write(state: Mapping[str, Tensor], config: Any, categories: Sequence[tuple[int | str, str]]) -> Files:
    """Returns the file that semseg's `PSPNet(…).load_state_dict` reads."""
    tower = tower_fields(state, "semseg")
    require(tower["stem"] == "deep", "semseg layout: its residual networks have a deep stem; use stem=deep")
    require(tuple(config.bins) == (1, 2, 3, 6), "semseg layout: four poolings, of 1, 2, 3 and 6 bins")
    require(config.align_corners, "semseg layout: scores are enlarged with aligned corners")
    require(config.norm == "batch", "semseg layout: heads have batch normalisation")
    return Files("model.safetensors", KeyMap(rules(tower, 4, config.aux_weight > 0)).from_ours(state))


MODEL = ModelLayout("semseg", "pspnet", recognises, plan, write)
