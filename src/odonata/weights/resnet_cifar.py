"""CIFAR-10's residual networks as akamaster/pytorch_resnet_cifar10 publishes them: shortcuts without weights."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from odonata.weights.layout import Files, Plain, require
from odonata.weights.maps import KeyMap, Rule
from odonata.weights.read import Raw
from odonata.weights.resnet_torchvision import infer, key_map
from odonata.weights.towers import Hints, TowerLayout, TowerPlan

PREPROCESS: Plain = {
    "size": 32,
    "resize": "squash",
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
}
"""Trained with ImageNet's statistics, not CIFAR's: its `trainer.py`."""


def recognises(raw: Raw) -> bool:
    """A CIFAR stem, three stages, and a classifier named `linear`."""
    return {"conv1.weight", "linear.weight", "layer3.0.conv1.weight"} <= raw.state.keys()


def _key_map(config: Plain, num_batches: bool) -> KeyMap:
    rules = key_map(config, 1, num_batches).rules
    named = {"fc.weight": "linear.weight", "fc.bias": "linear.bias"}
    return KeyMap([Rule(tuple(named.get(n, n) for n in r.theirs), r.ours, r.to_ours, r.from_ours) for r in rules])


def plan(raw: Raw, hints: Hints) -> TowerPlan:
    """Returns how to read the checkpoint."""
    config: Plain = infer(raw) | {"shortcut": "pad"}
    counted = any(name.endswith("num_batches_tracked") for name in raw.state)
    depth = 2 * sum(list(config["depths"])) + 2
    notes = [
        "shortcuts pad with zero channels (option A)",
        "normalised with ImageNet's statistics, as its trainer does",
    ]
    classes = raw.state["linear.weight"].shape[0]
    source = f"CIFAR ResNet-{depth} (akamaster)"
    return TowerPlan(config, _key_map(config, counted), source, classes, PREPROCESS, (), notes)


def write(state: Mapping[str, Tensor], config: Plain, classes: int, preprocess: Plain | None) -> Files:
    """Returns the file that its `resnet.py` reads."""
    require(config["stem"] == "cifar" and config["shortcut"] == "pad", "cifar layout: only He's CIFAR networks")
    require(classes > 0, "cifar layout: it always has a classifier; this tower has none")
    return Files("model.safetensors", _key_map(config, True).from_ours(state))


TOWER = TowerLayout("cifar", "resnet", recognises, plan, write)
