"""What published segmenters on dilated residual networks share: the tower's name, and the rules of a head."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from odonata.weights.layout import Plain, require
from odonata.weights.maps import Rule, depth_of, pair, rename
from odonata.weights.resnet_torchvision import norm

_DEPTHS = {(3, 4, 6, 3): 50, (3, 4, 23, 3): 101, (3, 8, 36, 3): 152}
_WIDTHS = [64, 128, 256, 512]


def tower_name(config: Plain, options: str, where: object) -> str:
    """Returns the tower's name for `--backbone`.

    Args:
        config: with the `depths` and `widths` that the file tells.
        options: further options of the name.
        where: for messages.

    Raises:
        WeightsError: no published residual network of bottlenecks has these depths.
    """
    depths = tuple(config["depths"])
    require(
        depths in _DEPTHS and config["block"] == "bottleneck",
        f"{where}: a residual network of depths {depths} and {config['block']} blocks has no name",
    )
    narrow = "" if list(config["widths"]) == _WIDTHS else f"widths={config['widths']},".replace(" ", "")
    return f"resnet{_DEPTHS[depths]}:{narrow}{options}"


def head_rules(theirs: str, ours: str) -> list[Rule]:
    """Rules of a head: convolution, norm and scores stand at 0, 1 and 4 of a sequence on the other side."""
    conv = rename(f"{theirs}.0.weight", f"{ours}.conv.weight")
    return [conv, *norm(f"{theirs}.1", f"{ours}.norm"), *pair(f"{theirs}.4", f"{ours}.logits")]


def tower_fields(state: Mapping[str, Tensor], layout: str, prefix: str = "network.backbone.") -> Plain:
    """Returns the plain fields of a residual network of ours that its tensors' names and shapes tell.

    Raises:
        WeightsError: it is no residual network of bottlenecks with batch normalisation.
    """
    own = {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}
    require(
        "stages.0.layers.0.conv3.weight" in own, f"{layout} layout: its towers are residual networks of bottlenecks"
    )
    require("stem.norms.0.running_mean" in own, f"{layout} layout: its towers have batch normalisation")
    count = depth_of(own, "stages.")
    stem = depth_of(own, "stem.convs.") - 1
    return {
        "block": "bottleneck",
        "depths": [depth_of(own, f"stages.{stage}.layers.") for stage in range(count)],
        "widths": [own[f"stages.{stage}.layers.0.conv3.weight"].shape[0] // 4 for stage in range(count)],
        "stem_width": own[f"stem.convs.{stem}.weight"].shape[0],
        "stem": "deep" if stem else "imagenet",
        "shortcut": "conv",
    }


def uncounted(rules: list[Rule], state: Mapping[str, Tensor]) -> list[Rule]:
    """The rules without counters of batches, where a file has none."""
    if any(name.endswith("num_batches_tracked") for name in state):
        return rules
    return [rule for rule in rules if not rule.theirs[0].endswith("num_batches_tracked")]
