"""FCN-32s, 16s and 8s under the names of the PyTorch port of the authors' networks, pytorch-fcn.

Notable:
- Its transposed convolutions are stored. Where they are bilinear they are dropped on reading and made again on writing;
  where those before the last have learned, they are read; a last one that has learned is refused.
- Files do not say whether the poolings were scaled for training at once; the published file of that network has
  `atonce` in its name, and that is looked at.
- The stride is told by the score layers. The tower's rules, and BGR turned to RGB, are those of `vgg_torchvision`.

Source: wkentaro/pytorch-fcn `torchfcn/models/fcn{32,16,8}s.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from odonata.weights.detectors import ModelLayout, ModelPlan
from odonata.weights.layout import Files, Plain, require, shape_of
from odonata.weights.maps import KeyMap, Rule, pair, rename
from odonata.weights.read import Raw
from odonata.weights.segment_names import table
from odonata.weights.towers import Hints
from odonata.weights.vgg_torchvision import fcn_key_map, plan_fcn, recognises_fcn

_MEAN = [value / 255 for value in (122.67891434, 116.66876762, 104.00698793)]
_DOUBLINGS = {32: (), 16: ("upscore2",), 8: ("upscore2", "upscore_pool4")}
"""Stride → its transposed convolutions before the last, which is called `upscore` for 32 and by its factor else."""
_LAST = {32: "upscore", 16: "upscore16", 8: "upscore8"}
_WIDTHS = [64, 128, 256, 512, 512]


def stride_of(raw: Raw) -> int:
    """Stride of the network by its score layers; 0 where it is none of the three."""
    if not recognises_fcn(raw) or "score_fr.weight" not in raw.state:
        return 0
    return 8 if "score_pool3.weight" in raw.state else 16 if "score_pool4.weight" in raw.state else 32


def bilinear(classes: int, factor: int) -> Tensor:
    """A stored transposed convolution that interpolates each class by itself."""
    side = 2 * factor
    ramp = 1 - (torch.arange(side, dtype=torch.float64) - (factor - 0.5)).abs() / factor
    kernel = (ramp[:, None] * ramp[None, :]).float()
    weight = torch.zeros(classes, classes, side, side)
    weight[torch.arange(classes), torch.arange(classes)] = kernel
    return weight


def _made(name: str, classes: int, factor: int) -> Rule:
    """A bilinear tensor that only the file has."""

    def make(tensors: list[Tensor]) -> list[Tensor]:
        return [bilinear(classes, factor)]

    return Rule((name,), (), lambda tensors: [], make)


def rules(tower: Plain, stride: int, classes: int, learned: bool) -> list[Rule]:
    """The rules of the whole model."""
    made = [
        replace(rule, ours=tuple(f"network.backbone.{name}" for name in rule.ours)) for rule in fcn_key_map(tower).rules
    ]
    made += pair("score_fr", "network.score")
    for number, doubling in enumerate(_DOUBLINGS[stride]):
        made += pair(f"score_pool{4 - number}", f"network.skip_scores.{number}")
        name = f"{doubling}.weight"
        made.append(rename(name, f"network.doublings.{number}.weight") if learned else _made(name, classes, 2))
    return [*made, _made(f"{_LAST[stride]}.weight", classes, stride)]


def _is_bilinear(raw: Raw, name: str, classes: int, factor: int) -> bool:
    wanted = (classes, classes, 2 * factor, 2 * factor)
    shape = shape_of(raw.state, f"{name}.weight", raw.path)
    require(
        shape == wanted, f"{raw.path}: {name}.weight has shape {list(shape)}; {factor} times of {classes} is {wanted}"
    )
    return torch.equal(raw.state[f"{name}.weight"].float(), bilinear(classes, factor))


def plan(raw: Raw) -> ModelPlan:
    """Returns how to read the checkpoint."""
    stride = stride_of(raw)
    tower = plan_fcn(raw, Hints()).config
    classes = shape_of(raw.state, "score_fr.weight", raw.path)[0]
    require(
        _is_bilinear(raw, _LAST[stride], classes, stride),
        f"{raw.path}: {_LAST[stride]}.weight has learned; here the last transposed convolution is fixed",
    )
    learned = not all(_is_bilinear(raw, name, classes, 2) for name in _DOUBLINGS[stride])
    options: list[str] = []
    if tower["widths"] != _WIDTHS:
        options.append(f"widths={tower['widths']}".replace(" ", ""))
    if tower["fc_width"] != 4096:
        options.append(f"fc_width={tower['fc_width']}")
    at_once = any("atonce" in file.name for file in (raw.path, *raw.files))
    config: Plain = {
        "backbone": "vgg16-fcn" + (f":{','.join(options)}" if options else ""),
        "framing": {"resize": "keep", "divisor": 1, "mean": _MEAN, "std": [1 / 255] * 3},
        "loss_over": "pictures",
        "learn_upsampling": learned,
    }
    notes = ["padding 100 and poolings that round up, as FCN has them; names and shapes do not tell"]
    if stride == 8:
        config["at_once"] = at_once
        how = "scaled before they are scored" if at_once else "scored as they are"
        notes.append(f"poolings {how}, by the file's name; contents do not tell")
    made = KeyMap(rules(tower, stride, classes, learned))
    return ModelPlan(config, made, f"pytorch-fcn FCN-{stride}s", classes, table(classes), notes=notes)


def write(state: Mapping[str, Tensor], stride: int, config: Any, classes: int) -> Files:
    """Returns the file that pytorch-fcn's `FCN…s(…).load_state_dict` reads.

    Raises:
        WeightsError: the network is not the paper's on VGG-16.
    """
    require(config.head == "skips", "pytorch-fcn layout: its networks have skips; --to torchvision has this head")
    require("network.backbone.fc7.weight" in state, "pytorch-fcn layout: its tower is vgg16-fcn, with fc6 and fc7")
    stages = {int(k.split(".")[3]) for k in state if k.startswith("network.backbone.stages.")}
    depths = [
        len([k for k in state if k.startswith(f"network.backbone.stages.{s}.") and k.endswith(".conv.weight")])
        for s in sorted(stages)
    ]
    require(depths == [2, 2, 3, 3, 3], f"pytorch-fcn layout: its tower is VGG-16; this one has stages of {depths}")
    learned = config.learn_upsampling
    name = "fcn-atonce.safetensors" if config.at_once else "model.safetensors"
    return Files(name, KeyMap(rules({"depths": depths}, stride, classes, learned)).from_ours(state))


def _layout(stride: int) -> ModelLayout:
    def recognises(raw: Raw) -> bool:
        return stride_of(raw) == stride

    def written(state: Mapping[str, Tensor], config: Any, categories: Sequence[tuple[int | str, str]]) -> Files:
        return write(state, stride, config, len(categories))

    recognised: Callable[[Raw], bool] = recognises
    return ModelLayout("pytorch-fcn", f"fcn-{stride}s", recognised, plan, written)


MODEL = tuple(_layout(stride) for stride in (32, 16, 8))
