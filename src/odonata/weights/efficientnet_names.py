"""What EfficientNet's published layouts have in common: one network under four sets of names.

Notable: widths, depths and kernels are read from shapes. Where they are those of B0 … B7, the native resolution and
dropout follow; strides cannot be seen, and the authors' are taken.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from odonata.nn.efficientnet_sizes import CONVENTIONS, REPEATS, SIZES, STRIDES, WIDTHS, round_channels, round_repeats
from odonata.weights.layout import Plain, require, shape_of
from odonata.weights.maps import KeyMap, Rule, pair, rename

IMAGENET: Plain = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


@dataclass(frozen=True)
class Names:
    """How a layout calls the parts of a network.

    Args:
        stem: its convolution and its normalisation.
        top: the same of the 1 × 1 above the stages.
        head: the classifier.
        pattern: how the names of a block's tensors begin; its numbers as groups.
        block: that beginning, from (stage, number within it, number among all).
        parts: our name of a part → theirs, in a block that expands.
        plain_parts: the same in a block that does not.
        expands: a part that only blocks that expand have.
    """

    stem: tuple[str, str]
    top: tuple[str, str]
    head: str
    pattern: str
    block: Callable[[int, int, int], str]
    parts: dict[str, str]
    plain_parts: dict[str, str]
    expands: str


def key_map(names: Names, config: Plain, classes: int, counted: bool = True) -> KeyMap:
    """Returns the map of a layout for a plain `EfficientNetConfig`.

    Args:
        names: the layout's.
        config: the tower.
        classes: rows of the classifier; 0: there is none.
        counted: whether the file counts batches; old ones do not.
    """
    rules = _conv_norm(*names.stem, "stem") + _conv_norm(*names.top, "top")
    before = 0
    for stage, count in enumerate(config["repeats"]):
        repeats, expands = round_repeats(count, config["depth"]), config["expansions"][stage] != 1
        parts = names.parts if expands else names.plain_parts
        for number in range(repeats):
            theirs, ours = names.block(stage, number, before + number), f"stages.{stage}.layers.{number}"
            for part in ("expand", "depthwise", "project") if expands else ("depthwise", "project"):
                rules += _conv_norm(theirs + parts[part], f"{theirs}{parts[part + '_norm']}", f"{ours}.{part}")
            for part in ("reduce", "expand"):
                rules += pair(f"{theirs}{parts['squeeze_' + part]}", f"{ours}.squeeze.{part}")
        before += repeats
    if classes:
        rules += pair(names.head, "head")
    return KeyMap([rule for rule in rules if counted or not rule.theirs[0].endswith("num_batches_tracked")])


def _conv_norm(conv: str, norm: str, ours: str) -> list[Rule]:
    stats = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    return [
        rename(f"{conv}.weight", f"{ours}.conv.weight"),
        *(rename(f"{norm}.{stat}", f"{ours}.norm.{stat}") for stat in stats),
    ]


def is_counted(state: Mapping[str, Tensor]) -> bool:
    """Whether a file counts batches."""
    return any(name.endswith("num_batches_tracked") for name in state)


def classes_of(state: Mapping[str, Tensor], names: Names) -> int:
    """Rows of the classifier; 0: there is none."""
    weight = state.get(f"{names.head}.weight")
    return 0 if weight is None else int(weight.shape[0])


def infer(state: Mapping[str, Tensor], names: Names, where: object) -> Plain:
    """Returns the configuration that names and shapes tell, without the convention.

    Raises:
        WeightsError: tensors are missing, or it is no EfficientNet with seven stages.
    """
    stem, top = (shape_of(state, f"{part[0]}.weight", where) for part in (names.stem, names.top))
    stages: list[list[int]] = []  # [width, kernel, expansion, blocks]
    for theirs in _blocks(state, names):
        expands = f"{theirs}{names.expands}.weight" in state
        parts = names.parts if expands else names.plain_parts
        inner, _, kernel, _ = shape_of(state, f"{theirs}{parts['depthwise']}.weight", where)
        out = shape_of(state, f"{theirs}{parts['project']}.weight", where)[0]
        narrow = shape_of(state, f"{theirs}{parts['expand']}.weight", where)[1] if expands else inner
        require(
            f"{theirs}{parts['squeeze_reduce']}.weight" in state, f"{where}: {theirs} has no squeeze-and-excitation"
        )
        block = [out, kernel, inner // narrow]
        if stages and narrow == out and block == stages[-1][:3]:
            stages[-1][3] += 1
        else:
            stages.append([*block, 1])
    require(len(stages) == 7, f"{where}: an EfficientNet has 7 stages, this has {len(stages)}")
    widths, kernels, expansions, repeats = (list(values) for values in zip(*stages, strict=True))
    config: Plain = {"family": "efficientnet", "channels": stem[1], "kernels": kernels, "expansions": expansions}
    for width, depth, resolution, dropout in SIZES.values():
        same_widths = widths == [round_channels(w * width) for w in WIDTHS]
        if same_widths and repeats == [round_repeats(r, depth) for r in REPEATS]:
            sizes = {"width": width, "depth": depth, "resolution": resolution, "dropout": dropout}
            return config | sizes | {"widths": list(WIDTHS), "repeats": list(REPEATS)}
    own = {"width": 1.0, "depth": 1.0, "widths": widths, "repeats": repeats, "stem_width": stem[0], "top_width": top[0]}
    return config | own


def _blocks(state: Mapping[str, Tensor], names: Names) -> list[str]:
    """Beginnings of the names of all blocks, in their order."""
    found = {match[0]: [int(n) for n in match.groups()] for name in state if (match := re.match(names.pattern, name))}
    return sorted(found, key=lambda name: found[name])


def size_of(config: Plain) -> str | None:
    """Returns which of B0 … B7 it is; None: none of them."""
    for size, (width, depth, _, _) in SIZES.items():
        if (config["width"], config["depth"]) == (width, depth) and tuple(config["widths"]) == WIDTHS:
            return size
    return None


def convention_of(config: Plain) -> str | None:
    """Returns the convention of a tower; None: neither, or a mixture."""
    for name, fields in CONVENTIONS.items():
        if all(config[key] == fields[key] for key in ("padding", "norm_eps")):
            return name
    return None


def require_strides(config: Plain, layout: str) -> None:
    """Raises WeightsError where the layout's reader would build another network from the same weights."""
    usual = tuple(config["strides"]) == STRIDES and config["stem_stride"] == 2
    require(usual, f"{layout} layout: it does not say strides, and this tower's are not the published networks'")
    require(
        config["squeeze"] == 0.25, f"{layout} layout: squeeze is {config['squeeze']}, the published networks' is 0.25"
    )
