"""Residual networks under torchvision's names, which timm, MoCo v1 and v2, SwAV and RepDistiller use as well.

Notable: the depth is read from the names, the widths and the stem from the shapes. Whether a bottleneck strides in its
3 × 3 (v1.5) or its 1 × 1 (v1) cannot be seen: v1.5 is taken, and said.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from odonata.weights.layout import Files, Plain, require, shape_of
from odonata.weights.maps import KeyMap, Rule, depth_of, pair, rename
from odonata.weights.read import Raw
from odonata.weights.towers import Hints, TowerLayout, TowerPlan

IMAGENET: Plain = {
    "size": 224,
    "resize_size": 256,
    "interpolation": "bilinear",
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
}
"""Preprocessing of torchvision's first weights, and of MoCo's and SwAV's."""
# A projector of MoCo or SwAV is called `fc` or `projection_head`; as MLP its names have a further number.
_LEFT_OUT = ("fc.[0-9].*", "projection_head.*", "prototypes.*")


def norm(theirs: str, ours: str) -> list[Rule]:
    """A batch normalisation with its statistics."""
    names = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    return [rename(f"{theirs}.{name}", f"{ours}.{name}") for name in names]


def recognises(raw: Raw) -> bool:
    """`layer1.0.conv1` beside a stem, and no configuration of transformers."""
    return "layer1.0.conv1.weight" in raw.state and "conv1.weight" in raw.state and "linear.weight" not in raw.state


def key_map(config: Plain, classes: int, num_batches: bool = True) -> KeyMap:
    """Returns the map for a plain `ResNetConfig`.

    Args:
        config: the tower.
        classes: whether there is a classifier `fc`.
        num_batches: whether the file counts batches; old ones do not.
    """
    rules = [rename("conv1.weight", "stem.convs.0.weight"), *norm("bn1", "stem.norms.0")]
    width = config["stem_width"]
    for stage, (depth, planes) in enumerate(zip(config["depths"], config["widths"], strict=True)):
        out = planes * (4 if config["block"] == "bottleneck" else 1)
        for block in range(depth):
            theirs, ours = f"layer{stage + 1}.{block}", f"stages.{stage}.layers.{block}"
            for number in range(1, 4 if config["block"] == "bottleneck" else 3):
                rules.append(rename(f"{theirs}.conv{number}.weight", f"{ours}.conv{number}.weight"))
                rules += norm(f"{theirs}.bn{number}", f"{ours}.norm{number}")
            if block == 0 and (stage > 0 or width != out) and config["shortcut"] == "conv":
                rules.append(rename(f"{theirs}.downsample.0.weight", f"{ours}.shortcut.conv.weight"))
                rules += norm(f"{theirs}.downsample.1", f"{ours}.shortcut.norm")
    if classes:
        rules += pair("fc", "head")
    if not num_batches:
        rules = [rule for rule in rules if not rule.theirs[0].endswith("num_batches_tracked")]
    return KeyMap(rules)


def infer(raw: Raw) -> Plain:
    """Returns the configuration that names and shapes tell.

    Raises:
        WeightsError: tensors are missing, or it is no plain residual network.
    """
    state, where = raw.state, raw.path
    stem = shape_of(state, "conv1.weight", where)
    count = depth_of(state, "layer")
    bottleneck = "layer1.0.conv3.weight" in state
    last = "conv3" if bottleneck else "conv2"
    widths = [
        shape_of(state, f"layer{s + 1}.0.{last}.weight", where)[0] // (4 if bottleneck else 1) for s in range(count)
    ]
    inner = shape_of(state, "layer1.0.conv2.weight", where)
    groups = inner[0] // inner[1] if bottleneck else 1
    require(
        not any("attn" in name or ".se." in name for name in state),
        f"{where}: a residual network with further parts than convolutions",
    )
    return {
        "family": "resnet",
        "block": "bottleneck" if bottleneck else "basic",
        "depths": [depth_of(state, f"layer{s + 1}.") for s in range(count)],
        "widths": widths,
        "stem": "cifar" if stem[2] == 3 else "imagenet",
        "stem_width": stem[0],
        "shortcut": "conv",
        "groups": groups,
        "width_per_group": inner[0] * 64 // (widths[0] * groups) if bottleneck else 64,
        "channels": stem[1],
    }


def plan(raw: Raw, hints: Hints) -> TowerPlan:
    """Returns how to read the checkpoint."""
    config = infer(raw)
    weight = raw.state.get("fc.weight")
    features = config["widths"][-1] * (4 if config["block"] == "bottleneck" else 1)
    projector = next((note for note in raw.notes if note.startswith("part 'encoder_") or "base_encoder" in note), None)
    # In MoCo v1's training checkpoints the projector to 128 dimensions has the classifier's name.
    classes = 0 if weight is None or projector or weight.shape[1] != features else weight.shape[0]
    notes: list[str] = []
    if config["block"] == "bottleneck":
        notes.append("stride in the 3 × 3 (v1.5), as torchvision, timm, MoCo and SwAV have it; shapes do not tell")
    left_out = _LEFT_OUT + (("fc.*",) if weight is not None and not classes else ())
    counted = any(name.endswith("num_batches_tracked") for name in raw.state)
    source = "CIFAR ResNet (RepDistiller's names)" if config["stem"] == "cifar" else "torchvision ResNet"
    preprocess = None if config["stem"] == "cifar" else IMAGENET
    return TowerPlan(config, key_map(config, classes, counted), source, classes, preprocess, left_out, notes)


def write(state: Mapping[str, Tensor], config: Plain, classes: int, preprocess: Plain | None) -> Files:
    """Returns the file that torchvision's `resnet…().load_state_dict` reads."""
    require(config["stem"] != "deep", "torchvision layout: torchvision's residual networks have no deep stem")
    require(config["shortcut"] == "conv", "torchvision layout: shortcuts without weights are not torchvision's")
    require(config["norm"] == "batch", f"torchvision layout: normalisation {config['norm']!r} is not torchvision's")
    require(config["stride_in"] == "3x3", "torchvision layout: torchvision strides in the 3 × 3 (v1.5)")
    return Files("model.safetensors", key_map(config, classes).from_ours(state))


TOWER = TowerLayout("torchvision", "resnet", recognises, plan, write)
