"""Stacked hourglasses under CornerNet's names, which CenterNet's hourglass has as well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from odonata.errors import WeightsError
from odonata.weights.layout import require, shape_of
from odonata.weights.maps import Rule, depth_of, pair, rename
from odonata.weights.read import Raw
from odonata.weights.resnet_torchvision import norm

SIGN = "kps.0.up1.0.conv1.weight"
"""A tensor that every hourglass of this family has."""


class Shape(NamedTuple):
    """What tells one tower of hourglasses from another; see `odonata.backbones.hourglass.HourglassConfig`."""

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    stacks: int
    stem_width: int
    out_width: int


TOWERS = {
    "hourglass104": Shape((256, 256, 384, 384, 384, 512), (2, 2, 2, 2, 2, 4), 2, 128, 256),
    "hourglass-small": Shape((32, 32, 48, 64), (1, 1, 1, 1), 2, 16, 32),
}
"""Towers by the names that `--backbone` knows them by."""


def tower_name(raw: Raw) -> str:
    """Returns the tower's name for `--backbone`.

    Raises:
        WeightsError: no tower that has a name is made like this.
    """
    state, where = raw.state, raw.path
    widths: list[int] = []
    depths: list[int] = []
    at = "kps.0."
    while f"{at}up1.0.conv1.weight" in state:
        widths.append(shape_of(state, f"{at}up1.0.conv1.weight", where)[0])
        depths.append(depth_of(state, f"{at}up1."))
        at = f"{at}low2."
    widths.append(shape_of(state, f"{at}0.conv1.weight", where)[0])
    depths.append(depth_of(state, at))
    stem = shape_of(state, "pre.0.conv.weight", where)[0]
    out = shape_of(state, "cnvs.0.conv.weight", where)[0]
    made = Shape(tuple(widths), tuple(depths), depth_of(state, "kps."), stem, out)
    for name, shape in TOWERS.items():
        if shape == made:
            return name
    raise WeightsError(f"{where}: {made.stacks} hourglasses of widths {widths} and depths {depths} have no name")


def tower_shape(name: str, layout: str) -> Shape:
    """Returns what a tower that is to be written is made of.

    Raises:
        WeightsError: it is no stack of hourglasses with batch normalisation.
    """
    plain, _, options = name.partition(":")
    require(plain in TOWERS, f"{layout} layout: {name} is no tower of hourglasses")
    require(options in ("", "norm=batch"), f"{layout} layout: its hourglasses have batch normalisation and no options")
    return TOWERS[plain]


def tower_rules(config: Shape, ours: str) -> list[Rule]:
    """Returns the rules of a tower.

    Args:
        config: what it is made of.
        ours: prefix of ours.
    """
    rules = conv_norm("pre.0.conv", "pre.0.bn", f"{ours}stem.conv") + _block("pre.1", f"{ours}stem.block", True)
    for stack in range(config.stacks):
        stage = f"{ours}stages.{stack}"
        rules += _hourglass(f"kps.{stack}", f"{stage}.hourglass", config.widths, config.depths)
        rules += conv_norm(f"cnvs.{stack}.conv", f"cnvs.{stack}.bn", f"{stage}.output")
    for stack in range(config.stacks - 1):
        merge = f"{ours}merges.{stack}"
        rules += conv_norm(f"inters_.{stack}.0", f"inters_.{stack}.1", f"{merge}.skip")
        rules += conv_norm(f"cnvs_.{stack}.0", f"cnvs_.{stack}.1", f"{merge}.output")
        rules += _block(f"inters.{stack}", f"{merge}.block", False)
    return rules


def conv_norm(conv: str, bn: str, ours: str) -> list[Rule]:
    """Returns the rules of a convolution and its normalisation."""
    return [rename(f"{conv}.weight", f"{ours}.conv.weight"), *norm(bn, f"{ours}.norm")]


def branch(theirs: str, ours: str) -> list[Rule]:
    """Returns the rules of an output: a convolution with a bias, and a 1 × 1."""
    return pair(f"{theirs}.0.conv", f"{ours}.0") + pair(f"{theirs}.1", f"{ours}.2")


def counted(rules: Sequence[Rule], state: Mapping[str, Tensor]) -> list[Rule]:
    """Returns the rules without counters of batches where the file, an old one, has none."""
    if any(name.endswith("num_batches_tracked") for name in state):
        return list(rules)
    return [rule for rule in rules if not rule.theirs[0].endswith("num_batches_tracked")]


def _block(theirs: str, ours: str, shortcut: bool) -> list[Rule]:
    rules: list[Rule] = []
    for number in (1, 2):
        rules.append(rename(f"{theirs}.conv{number}.weight", f"{ours}.conv{number}.weight"))
        rules += norm(f"{theirs}.bn{number}", f"{ours}.norm{number}")
    return rules + (conv_norm(f"{theirs}.skip.0", f"{theirs}.skip.1", f"{ours}.shortcut") if shortcut else [])


def _hourglass(theirs: str, ours: str, widths: Sequence[int], depths: Sequence[int]) -> list[Rule]:
    rules: list[Rule] = []
    for i in range(depths[0]):
        changes = widths[0] != widths[1] and i == depths[0] - 1
        rules += _block(f"{theirs}.up1.{i}", f"{ours}.beside.layers.{i}", False)
        rules += _block(f"{theirs}.low1.{i}", f"{ours}.down.layers.{i}", i == 0)
        rules += _block(f"{theirs}.low3.{i}", f"{ours}.up.layers.{i}", changes)
    if len(widths) > 2:
        return rules + _hourglass(f"{theirs}.low2", f"{ours}.inner", widths[1:], depths[1:])
    for i in range(depths[1]):
        rules += _block(f"{theirs}.low2.{i}", f"{ours}.inner.layers.{i}", False)
    return rules
