"""CenterNet under its authors' names (xingyizhou/CenterNet): on residual networks and on hourglasses.

Checkpoints of key points, 3D boxes or extreme points have further outputs and are refused by their names; so are those
with deformable convolutions (`resdcn`, `dla`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from odonata.errors import WeightsError
from odonata.weights.coco_names import table
from odonata.weights.cornernet_official import COCO_FRAMING
from odonata.weights.detectors import ModelLayout, ModelPlan, within
from odonata.weights.hourglass_cornernet import SIGN, branch, counted, tower_name, tower_rules, tower_shape
from odonata.weights.layout import Files, Plain, require, shape_of
from odonata.weights.maps import KeyMap, Rule, depth_of, pair, rename
from odonata.weights.read import Raw
from odonata.weights.resnet_torchvision import infer, key_map, norm
from odonata.weights.torchvision_pyramid import resnet_fields
from odonata.weights.torchvision_pyramid import tower_name as resnet_name

_OUTPUTS = (("hm", "class_logits"), ("wh", "size"), ("reg", "offset"))
_CONVENTIONS: Plain = {"framing": COCO_FRAMING, "neck_norm": "batch", "score_threshold": 0.0}


def recognises(raw: Raw) -> bool:
    """A heat map `hm` and sizes `wh` on a tower."""
    return any(f"hm.{part}.weight" in raw.state for part in ("0", "0.1", "2")) and any(
        name.startswith("wh.") for name in raw.state
    )


def resnet_rules(tower: Plain, steps: int) -> list[Rule]:
    """Returns the rules of the residual form.

    Args:
        tower: plain fields of the residual network.
        steps: transposed convolutions.
    """
    rules = within(key_map(tower, 0).rules, "", "trunk.backbone.")
    for step in range(steps):
        # Convolution, norm and rectifier stand in one sequence on their side.
        rules.append(rename(f"deconv_layers.{3 * step}.weight", f"trunk.neck.convs.{step}.weight"))
        rules += norm(f"deconv_layers.{3 * step + 1}", f"trunk.neck.norms.{step}")
    for theirs, ours in _OUTPUTS:
        for part in (0, 2):
            rules += pair(f"{theirs}.{part}", f"heads.0.{ours}.{part}")
    return rules


def hourglass_rules(backbone: str) -> list[Rule]:
    """Returns the rules of the hourglass form.

    Raises:
        WeightsError: the tower is none.
    """
    config = tower_shape(backbone, "official")
    rules = tower_rules(config, "trunk.backbone.")
    for theirs, ours in _OUTPUTS:
        for stack in range(config.stacks):
            rules += branch(f"{theirs}.{stack}", f"heads.{stack}.{ours}")
    return rules


def plan(raw: Raw) -> ModelPlan:
    """Returns how to read the checkpoint.

    Raises:
        WeightsError: it has deformable convolutions, or outputs of another task.
    """
    if any("conv_offset_mask" in name or name.startswith("dla_up.") for name in raw.state):
        raise WeightsError(
            f"{raw.path}: CenterNet with deformable convolutions or on DLA; the forms without them are read: res_18, "
            "res_101 and hourglass"
        )
    if SIGN in raw.state:
        backbone = tower_name(raw)
        classes = shape_of(raw.state, "hm.0.1.weight", raw.path)[0]
        width = shape_of(raw.state, "hm.0.0.conv.weight", raw.path)[0]
        config: Plain = {**_CONVENTIONS, "backbone": backbone, "neck": "stacks", "head_width": width, "pad_bits": 127}
        rules = hourglass_rules(backbone)
    else:
        width, steps = shape_of(raw.state, "hm.0.weight", raw.path)[0], depth_of(raw.state, "deconv_layers.")
        outputs = {f"{theirs}." for theirs, _ in _OUTPUTS}
        body = {k: v for k, v in raw.state.items() if not k.startswith((*outputs, "deconv_layers."))}
        tower = infer(replace(raw, state=body))
        classes = shape_of(raw.state, "hm.2.weight", raw.path)[0]
        config = {**_CONVENTIONS, "backbone": resnet_name(tower, True, raw.path), "neck": "deconvolutions"}
        config |= {"head_width": width, "pad_bits": 31}
        config["neck_width"] = shape_of(raw.state, "deconv_layers.0.weight", raw.path)[1]
        rules = resnet_rules(tower, steps // 2)
    note = f"pictures in their own size, centred in frames of (side | {config['pad_bits']}) + 1, as the authors test"
    key_map_ = KeyMap(counted(rules, raw.state))
    return ModelPlan(config, key_map_, "CenterNet", classes, table(classes), notes=[note])


def write(state: Mapping[str, Tensor], config: Any, categories: Sequence[tuple[int | str, str]]) -> Files:
    """Returns the file that the authors' `create_model(…).load_state_dict` reads."""
    require(config.neck != "pyramid", "official layout: the authors' networks have no pyramid; use another --neck")
    if config.neck == "stacks":
        return Files("model.safetensors", KeyMap(hourglass_rules(config.backbone)).from_ours(state))
    require(config.neck_norm == "batch", "official layout: transposed convolutions are normalised by batch")
    tower = resnet_fields(state, config.backbone, "trunk.backbone.")
    rules = resnet_rules(tower, depth_of(state, "trunk.neck.convs."))
    return Files("model.safetensors", KeyMap(rules).from_ours(state))


MODEL = ModelLayout("official", "centernet", recognises, plan, write)
