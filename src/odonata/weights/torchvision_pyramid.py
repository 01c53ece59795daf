"""The trunk of torchvision's detectors: a residual network and a feature pyramid, under their names and ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from odonata.errors import WeightsError
from odonata.weights.detectors import within
from odonata.weights.layout import Plain, require, shape_of
from odonata.weights.maps import Rule, depth_of, pair, rename
from odonata.weights.read import Raw
from odonata.weights.resnet_torchvision import infer, key_map, norm

_DEPTHS = {(2, 2, 2, 2): 18, (3, 4, 6, 3): 50, (3, 4, 23, 3): 101, (3, 8, 36, 3): 152}
BODY, PYRAMID = "backbone.body.", "backbone.fpn."


def has_trunk(raw: Raw) -> bool:
    """Whether a checkpoint holds a torchvision pyramid on a residual network."""
    return f"{BODY}conv1.weight" in raw.state and any(name.startswith(PYRAMID) for name in raw.state)


def tower_name(config: Plain, counted: bool, where: object) -> str:
    """Returns the tower's name for `--backbone`.

    Args:
        config: as `resnet_torchvision.infer` gives it.
        counted: whether the file counts batches: then its normalisation is a live one, else it is frozen.
        where: for messages.

    Raises:
        WeightsError: no published residual network has these depths.
    """
    depths = tuple(config["depths"])
    if depths not in _DEPTHS or tuple(config["widths"]) != (64, 128, 256, 512):
        raise WeightsError(f"{where}: a residual network of depths {depths} and widths {config['widths']} has no name")
    depth = 34 if depths == (3, 4, 6, 3) and config["block"] == "basic" else _DEPTHS[depths]
    # torchvision's FrozenBatchNorm2d: epsilon 1e-5, or 0 in its first weights, which then say so by their numbers only.
    return f"resnet{depth}" if counted else f"resnet{depth}:norm=frozen_batch"


def trunk(raw: Raw, ours: str = "trunk.") -> tuple[list[Rule], Plain]:
    """Returns the rules of the trunk, and the fields of a configuration that it tells: `backbone`, `fpn`, `layers`.

    Raises:
        WeightsError: the trunk is another than torchvision's.
    """
    body = replace(raw, state={k[len(BODY) :]: v for k, v in raw.state.items() if k.startswith(BODY)})
    counted = any(name.endswith("num_batches_tracked") for name in body.state)
    config = infer(body)
    levels = depth_of(raw.state, f"{PYRAMID}inner_blocks.")
    nested, normed = (f"{PYRAMID}inner_blocks.0.{part}.weight" in raw.state for part in (0, 1))
    lateral = f"{PYRAMID}inner_blocks.0.{'0.' if nested else ''}weight"
    p6 = raw.state.get(f"{PYRAMID}extra_blocks.p6.weight")
    c5 = config["widths"][-1] * (4 if config["block"] == "bottleneck" else 1)
    extra = "pool" if p6 is None else "p6p7-c5" if p6.shape[1] == c5 else "p6p7-p5"
    fpn: Plain = {
        "channels": shape_of(raw.state, lateral, raw.path)[0],
        "extra": extra,
        "norm": "batch" if normed else "none",
    }
    fields: Plain = {
        "backbone": tower_name(config, counted, raw.path),
        "fpn": fpn,
        "layers": list(range(4 - levels, 4)),
    }
    return trunk_rules(config, counted, levels, nested, normed, p6 is not None, ours), fields


def trunk_rules(
    config: Plain, counted: bool, levels: int, nested: bool, normed: bool, extra: bool, ours: str = "trunk."
) -> list[Rule]:
    """Returns the rules of a trunk.

    Args:
        config: plain fields of the residual network.
        counted: whether batches are counted.
        levels: maps of the tower that the pyramid stands on.
        nested: whether a convolution lies in a block of its own (torchvision 0.14 and later).
        normed: whether the pyramid is normalised.
        extra: whether there are P6 and P7.
        ours: prefix of ours.
    """
    rules = within(key_map(config, 0, counted).rules, BODY, f"{ours}backbone.")
    for level in range(levels):
        for theirs, mine in (("inner_blocks", "laterals"), ("layer_blocks", "outputs")):
            name, to = f"{PYRAMID}{theirs}.{level}", f"{ours}fpn.{mine}.{level}"
            conv = f"{name}.0" if nested else name
            if normed:
                rules += [rename(f"{conv}.weight", f"{to}.conv.weight"), *norm(f"{name}.1", f"{to}.norm")]
            else:
                rules += pair(conv, f"{to}.conv")
    if extra:
        rules += pair(f"{PYRAMID}extra_blocks.p6", f"{ours}fpn.p6") + pair(f"{PYRAMID}extra_blocks.p7", f"{ours}fpn.p7")
    return rules


def written_trunk(state: Mapping[str, Tensor], config: Any, ours: str = "trunk.") -> list[Rule]:
    """Returns the rules by which a trunk of ours becomes torchvision's, in its newest names.

    Args:
        state: of the whole model, in our names.
        config: of the method: its `backbone`, `fpn` and `layers` are read.
        ours: prefix of the trunk.

    Raises:
        WeightsError: torchvision has no such trunk.
    """
    tower = resnet_fields(state, config.backbone, f"{ours}backbone.")
    require(config.fpn.top_down, "torchvision layout: its pyramids have the path from the top")
    require(config.fpn.norm in ("none", "batch"), "torchvision layout: its pyramids have batch normalisation or none")
    counted = any(k.startswith(f"{ours}backbone.") and k.endswith("num_batches_tracked") for k in state)
    return trunk_rules(
        tower, counted, len(config.layers), True, config.fpn.norm == "batch", config.fpn.extra_levels == 2, ours
    )


def resnet_fields(state: Mapping[str, Tensor], name: str, prefix: str) -> Plain:
    """Returns the plain fields of a residual network of ours that its tensors' names and shapes tell.

    Raises:
        WeightsError: it is no residual network that torchvision has.
    """
    own = {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}
    require("stages.0.layers.0.conv1.weight" in own, f"torchvision layout: {name} is no residual network")
    require("stem.convs.1.weight" not in own, "torchvision layout: its residual networks have no deep stem")
    bottleneck = "stages.0.layers.0.conv3.weight" in own
    count = depth_of(own, "stages.")
    depths = [depth_of(own, f"stages.{stage}.layers.") for stage in range(count)]
    last = "conv3" if bottleneck else "conv2"
    widths = [
        own[f"stages.{stage}.layers.0.{last}.weight"].shape[0] // (4 if bottleneck else 1) for stage in range(count)
    ]
    require("stem.norms.0.running_mean" in own, f"torchvision layout: {name} has no batch normalisation")
    return {
        "block": "bottleneck" if bottleneck else "basic",
        "depths": depths,
        "widths": widths,
        "stem_width": own["stem.convs.0.weight"].shape[0],
        "shortcut": "conv",
    }
