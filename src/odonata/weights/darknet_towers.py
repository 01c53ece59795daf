"""Darknet-19 and Darknet-53 as darknet keeps them: the `.weights` and `.cfg` of a classifier, or the trunk of one.

Notable: a classifier's cfg, cut after the last convolution of its trunk or not, and the `name.conv.74` with which
detectors begin, are read alike; a detector's own files are not taken for a tower.
Source: pjreddie/darknet `cfg/darknet19.cfg`, `cfg/darknet53.cfg`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from odonata.errors import WeightsError
from odonata.weights.darknet_cfg import parse_cfg
from odonata.weights.darknet_options import AvgPool, Convolutional, Idle, MaxPool, Shortcut
from odonata.weights.darknet_plan import Layer, plan_layers
from odonata.weights.layout import Files, Plain, require
from odonata.weights.maps import KeyMap, Rule, rename, reshape
from odonata.weights.read import Raw
from odonata.weights.towers import Hints, TowerLayout, TowerPlan

_NORM = ("weight", "bias", "running_mean", "running_var")


def recognises(raw: Raw) -> bool:
    """A cfg whose layers are those of a trunk, and of nothing else."""
    if raw.kind != "darknet" or raw.config is None:
        return False
    try:
        _config(_layers(raw))
    except WeightsError:
        return False
    return True


def plan(raw: Raw, hints: Hints) -> TowerPlan:
    """Returns how to read the checkpoint."""
    layers = _layers(raw)
    config = _config(layers)
    classifiers = [layer for layer in layers if _is_classifier(layer)]
    classes = classifiers[0].shape[0] if classifiers else 0
    net = parse_cfg(str((raw.config or {})["cfg"]), str(raw.path)).net
    # Darknet resizes the shorter side to that of the network and cuts out the centre; values are from 0 to 1.
    preprocess: Plain = {"size": net.integer("width", 256), "resize_size": net.integer("width", 256)}
    preprocess |= {"interpolation": "bilinear", "antialias": False, "mean": [0.0] * 3, "std": [1.0] * 3}
    number = 19 if config["block"] == "plain" else 53
    return TowerPlan(config, key_map(layers, config), f"darknet (Darknet-{number}'s form)", classes, preprocess)


def key_map(layers: Sequence[Layer], config: Plain) -> KeyMap:
    """Returns the map from the numbers of a cfg's layers to the names of `odonata.backbones.darknet.Darknet`."""
    rules: list[Rule] = []
    convolutions = [layer for layer in layers if isinstance(layer.settings, Convolutional)]
    names = _names(config)
    for layer, name in zip([layer for layer in convolutions if not _is_classifier(layer)], names, strict=True):
        theirs = f"layers.{layer.index}"
        rules.append(rename(f"{theirs}.conv.weight", f"{name}.conv.weight"))
        rules += [rename(f"{theirs}.norm.{part}", f"{name}.norm.{part}") for part in _NORM]
    for layer in convolutions:
        if _is_classifier(layer):
            weight, classes = f"layers.{layer.index}.conv.weight", layer.shape[0]
            rules.append(reshape(weight, "head.weight", (classes, -1, 1, 1), (classes, -1)))
            rules.append(rename(f"layers.{layer.index}.conv.bias", "head.bias"))
    return KeyMap(rules)


def write(state: Mapping[str, Tensor], config: Plain, classes: int, preprocess: Plain | None) -> Files:
    """Returns the files that darknet reads."""
    require(config["norm_eps"] == 1e-5, "darknet layout: its norm_eps is 1e-5, and a cfg cannot say another")
    size = (preprocess or {}).get("size", 256)
    height, width = (size, size) if isinstance(size, int) else size
    text = _cfg(config, classes, int(height), int(width))
    layers = plan_layers(parse_cfg(text))
    held = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    theirs = key_map(layers, config).from_ours(held)
    return Files("model.weights", theirs, {"model.cfg": text})


def _layers(raw: Raw) -> list[Layer]:
    config = raw.config or {}
    layers = plan_layers(parse_cfg(str(config["cfg"]), str(raw.path)))[: config.get("layers")]
    return [layer for layer in layers if not isinstance(layer.settings, Idle)]


def _is_classifier(layer: Layer) -> bool:
    kind = layer.settings
    return isinstance(kind, Convolutional) and kind.size == 1 and not kind.normalized and kind.activation == "linear"


def _names(config: Plain) -> list[str]:
    names = ["stem"]
    for stage, depth in enumerate(config["depths"]):
        names.append(f"stages.{stage}.widen")
        names += [f"stages.{stage}.layers.{i}.{part}" for i in range(depth) for part in ("narrow", "wide")]
    return names


def _config(layers: Sequence[Layer]) -> Plain:
    """Returns the tower's configuration; WeightsError if these are not the layers of one."""
    residual = any(isinstance(layer.settings, Shortcut) for layer in layers)
    depths: list[int] = []
    widths: list[int] = []
    opened = False
    for layer in layers[1:]:
        kind = layer.settings
        if isinstance(kind, MaxPool):
            opened = True
        elif isinstance(kind, Convolutional) and kind.normalized:
            if opened or kind.stride == 2:
                widths.append(kind.filters)
                depths.append(0)
                opened = False
            elif kind.size == 1 and depths:
                depths[-1] += 1
    stem = layers[0].settings if layers else None
    require(isinstance(stem, Convolutional) and bool(widths), "not a Darknet")
    assert isinstance(stem, Convolutional)
    config: Plain = {
        "family": "darknet",
        "block": "residual" if residual else "plain",
        "depths": depths,
        "widths": widths,
        "stem_width": stem.filters,
        "channels": layers[0].before[0],
    }
    _require_same(layers, plan_layers(parse_cfg(_cfg(config, 0, layers[0].before[1], layers[0].before[2]))))
    return config


def _require_same(layers: Sequence[Layer], trunk: Sequence[Layer]) -> None:
    """Raises WeightsError unless the layers are those of the trunk, with a mean and a classifier after it or not."""
    same = [(layer.settings, layer.inputs) for layer in layers[: len(trunk)]]
    wanted = [(layer.settings, layer.inputs) for layer in trunk]
    rest = layers[len(trunk) :]
    ends = all(isinstance(layer.settings, AvgPool) or _is_classifier(layer) for layer in rest)
    require(same == wanted and ends and len(rest) <= 2, "not a Darknet")


def _cfg(config: Plain, classes: int, height: int, width: int) -> str:
    """Returns the text of a tower's cfg."""
    parts = [f"[net]\nheight={height}\nwidth={width}\nchannels={config['channels']}"]
    residual = config["block"] == "residual"

    def conv(filters: int, size: int, stride: int = 1) -> None:
        shape = f"filters={filters}\nsize={size}\nstride={stride}\npad=1"
        parts.append(f"[convolutional]\nbatch_normalize=1\n{shape}\nactivation=leaky")

    conv(config["stem_width"], 3)
    for filters, depth in zip(config["widths"], config["depths"], strict=True):
        if not residual:
            parts.append("[maxpool]\nsize=2\nstride=2")
        conv(filters, 3, 2 if residual else 1)
        for _ in range(depth):
            conv(filters // 2, 1)
            conv(filters, 3)
            if residual:
                parts.append("[shortcut]\nfrom=-3\nactivation=linear")
    if classes:
        head = f"[convolutional]\nfilters={classes}\nsize=1\nstride=1\npad=1\nactivation=linear"
        parts += ["[avgpool]", head] if residual else [head, "[avgpool]"]
        parts.append("[softmax]\ngroups=1")
    return "\n\n".join(parts) + "\n"


TOWER = TowerLayout("darknet", "darknet", recognises, plan, write)
