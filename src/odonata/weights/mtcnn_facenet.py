"""MTCNN's three networks as they are published: facenet-pytorch's `.pt` files, and the `.npy` files before them.

Both are a folder of three files. The `.npy` files (davidsandberg/facenet, from the original's Caffe models) hold
kernels as [across, down, inputs, outputs], for the original turns pictures on their side, and dense layers as `x @ W`.
The numbers are the same. Neither says how pixels are counted; both are used with the first one numbered 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from odonata.weights.detectors import ModelLayout, ModelPlan
from odonata.weights.layout import Files, require
from odonata.weights.maps import KeyMap, Rule, pair, permute, rename
from odonata.weights.read import Raw

_BLOCKS = {"pnet": 3, "rnet": 3, "onet": 4}
_OUTPUTS = {"pnet": ("face", "box"), "rnet": ("face", "box"), "onet": ("face", "box", "points")}


def facenet_rules() -> list[Rule]:
    """The rules of facenet-pytorch's three files, the file's name before a tensor's."""
    rules: list[Rule] = []
    for net, blocks in _BLOCKS.items():
        for i in range(blocks):
            rules += pair(f"{net}.conv{i + 1}", f"{net}.trunk.{i}.conv")
            rules.append(rename(f"{net}.prelu{i + 1}.weight", f"{net}.trunk.{i}.prelu.weight"))
        last, layer = blocks + 1, "conv" if net == "pnet" else "dense"
        if net != "pnet":
            rules += pair(f"{net}.dense{last}", f"{net}.hidden")
            rules.append(rename(f"{net}.prelu{last}.weight", f"{net}.prelu.weight"))
            last += 1
        for number, name in enumerate(_OUTPUTS[net], start=1):
            rules += pair(f"{net}.{layer}{last}_{number}", f"{net}.{name}")
    return rules


def original_rules() -> list[Rule]:
    """The rules of the `.npy` files: `det1`, `det2` and `det3`."""
    rules: list[Rule] = []

    def layer(theirs: str, ours: str, dense: bool) -> None:
        rules.append(permute(f"{theirs}.weights", f"{ours}.weight", (1, 0) if dense else (3, 2, 1, 0)))
        rules.append(rename(f"{theirs}.biases", f"{ours}.bias"))

    for file, (net, blocks) in enumerate(_BLOCKS.items(), start=1):
        slopes = "PReLU" if net == "pnet" else "prelu"
        for i in range(blocks):
            layer(f"det{file}.conv{i + 1}", f"{net}.trunk.{i}.conv", dense=False)
            rules.append(rename(f"det{file}.{slopes}{i + 1}.alpha", f"{net}.trunk.{i}.prelu.weight"))
        last = blocks + 1
        if net != "pnet":
            layer(f"det{file}.conv{last}", f"{net}.hidden", dense=True)
            rules.append(rename(f"det{file}.{slopes}{last}.alpha", f"{net}.prelu.weight"))
            last += 1
        for number, name in enumerate(_OUTPUTS[net], start=1):
            layer(f"det{file}.conv{last}-{number}", f"{net}.{name}", dense=net != "pnet")
    return rules


def _layout(name: str, source: str, sign: str, file: str, rules: list[Rule]) -> ModelLayout:
    note = (
        "pixels are counted from 1, as in the original's Matlab; thresholds 0.6, 0.7, 0.7; faces of 20 pixels and more"
    )

    def recognises(raw: Raw) -> bool:
        return sign in raw.state

    def plan(raw: Raw) -> ModelPlan:
        return ModelPlan({"origin": 1}, KeyMap(rules), source, 1, [(1, "face")], notes=[note])

    def write(state: Mapping[str, Tensor], config: Any, categories: Sequence[tuple[int | str, str]]) -> Files:
        require(config.origin == 1, f"{name} layout: it is read with pixels counted from 1; train with --origin 1")
        return Files(file, KeyMap(rules).from_ours(state))

    return ModelLayout(name, "mtcnn", recognises, plan, write)


MODEL = (
    _layout("facenet-pytorch", "facenet-pytorch MTCNN", "onet.dense6_3.weight", "{}.pt", facenet_rules()),
    _layout("original", "original MTCNN (det1, det2, det3)", "det3.conv6-3.weights", "{}.npy", original_rules()),
)
