"""The residual network of a published DETR: its name for `--backbone`, and back to what a layout must say of it.

Notable: DETR's towers have frozen batch normalisation, which counts no batches; files that count them all the same are
read without the counters. That DC5 dilates leaves no trace in names or shapes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor

from odonata.errors import WeightsError
from odonata.weights.detectors import within
from odonata.weights.layout import Plain, require
from odonata.weights.maps import KeyMap, Rule
from odonata.weights.torchvision_pyramid import resnet_fields

OURS = "backbone."
COUNTERS = "*.num_batches_tracked"
_IMAGENET = (64, 128, 256, 512)
_NARROW = (16, 32, 64, 128)
_NAMES: dict[tuple[str, tuple[int, ...], tuple[int, ...], int], str] = {
    ("basic", (2, 2, 2, 2), _IMAGENET, 64): "resnet18",
    ("basic", (3, 4, 6, 3), _IMAGENET, 64): "resnet34",
    ("bottleneck", (3, 4, 6, 3), _IMAGENET, 64): "resnet50",
    ("bottleneck", (3, 4, 23, 3), _IMAGENET, 64): "resnet101",
    ("bottleneck", (3, 8, 36, 3), _IMAGENET, 64): "resnet152",
    ("basic", (1, 1, 1, 1), _NARROW, 16): "resnet10-small",
    ("bottleneck", (1, 1, 1, 1), _NARROW, 16): "resnet14-small",
}
"""Block, depths, widths and width of the stem → the tower's name."""


@dataclass(frozen=True)
class Tower:
    """What a layout says of the tower besides its weights."""

    fields: Plain
    """Of the residual network: block, depths, widths, stem_width, shortcut."""
    dilates: bool
    """DC5."""
    stride_in: str = "3x3"
    """Which convolution of a bottleneck has the stride."""

    def name(self, where: object) -> str:
        """Returns the tower's name for `--backbone`.

        Raises:
            WeightsError: no tower of these depths and widths has a name.
        """
        said = self.fields
        key = (said["block"], tuple(said["depths"]), tuple(said["widths"]), said["stem_width"])
        if key not in _NAMES:
            raise WeightsError(f"{where}: a residual network of depths {key[1]} and widths {key[2]} has no name")
        options = ["norm=frozen_batch"]
        if self.dilates:
            options.append("output_stride=16")
        if self.stride_in != "3x3":
            options.append(f"stride_in={self.stride_in}")
        return f"{_NAMES[key]}:{','.join(options)}"


def tower_of(state: Mapping[str, Tensor], name: str, layout: str) -> Tower:
    """Returns what there is to say of a tower of ours.

    Args:
        state: of the whole model, in our names.
        name: of the tower, with its options.
        layout: for messages.

    Raises:
        WeightsError: DETR's layouts have no such tower.
    """
    tensors = {key[len(OURS) :] for key in state if key.startswith(OURS)}
    require(
        "stem.norms.0.running_mean" in tensors and "stem.convs.1.weight" not in tensors,
        f"{layout} layout: its towers are plain residual networks with batch normalisation, and {name} is none",
    )
    options = dict(part.split("=", 1) for part in name.partition(":")[2].split(",") if part)
    stride = options.get("output_stride", "32")
    require(stride in ("16", "32"), f"{layout} layout: its towers stop at stride 32 or 16 (DC5), not {stride}")
    return Tower(resnet_fields(state, name, OURS), stride == "16", options.get("stride_in", "3x3"))


def tower_rules(key_map: KeyMap, theirs: str) -> list[Rule]:
    """Returns the rules of a residual network under their prefix, without counters of batches."""
    kept = [rule for rule in key_map.rules if not fnmatchcase(rule.theirs[0], COUNTERS)]
    return within(kept, theirs, OURS)


def without_counters(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns a state of ours without the counters of batches, which change no answer."""
    return {name: value for name, value in state.items() if not fnmatchcase(name, COUNTERS)}


def check_form(config: Any, layout: str) -> None:
    """Refuses what neither published layout can say.

    Raises:
        WeightsError: the transformer reads another map than the tower's last, or positions at its input.
    """
    where = f"{layout} layout: its transformer"
    require(config.layer in (-1, 3), f"{where} reads the tower's last map, not that of stage {config.layer}")
    require(
        config.positions_at == "attention",
        f"{where} adds no positions at its input; train with --positions-at attention",
    )
