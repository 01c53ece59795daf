"""SwAV's projector and prototypes in published checkpoints: `projection_head.N` and `prototypes.weight`.

Source: facebookresearch/swav `src/resnet50.py`; the tower's own names are torchvision's (`resnet_torchvision`).
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from odonata.weights.maps import KeyMap, pair, rename

_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
HEAD = KeyMap(
    [
        *pair("projection_head.0", "projector.0"),
        *(rename(f"projection_head.1.{name}", f"projector.1.{name}") for name in _NORM),
        *pair("projection_head.3", "projector.3"),
        rename("prototypes.weight", "prototypes.weight"),
    ]
)
"""Two layers with batch normalisation between them, and the prototypes."""


def read_head(method: nn.Module, rest: Mapping[str, Tensor]) -> list[str]:
    """Fills a method's projector and prototypes from the tensors beside a published tower; returns notes.

    Args:
        method: with `projector` and `prototypes`.
        rest: under the published names, with or without `module.` before them.
    """
    names = {name for rule in HEAD.rules for name in rule.theirs}
    found = {name.removeprefix("module."): value for name, value in rest.items()}
    found = {name: value for name, value in found.items() if name in names}
    if not found:
        return ["head: none in the file; projector and prototypes start anew"]
    ours, _ = HEAD.to_ours(found, "the checkpoint's head")
    own = method.state_dict()
    wrong = [name for name, value in ours.items() if own[name].shape != value.shape]
    if wrong:
        hidden, dim, count = (*ours["projector.3.weight"].shape[::-1], len(ours["prototypes.weight"]))
        return [
            f"head: the file's {wrong[0]} is {list(ours[wrong[0]].shape)}, not {list(own[wrong[0]].shape)}, so it "
            f"starts anew; --hidden {hidden} --dim {dim} --prototypes {count} takes the file's"
        ]
    method.load_state_dict(ours, strict=False)
    return [f"head: projector and {len(ours['prototypes.weight'])} prototypes of the file"]


def write_head(method: nn.Module) -> dict[str, Tensor]:
    """Returns projector and prototypes under the published names."""
    own = method.state_dict()
    return HEAD.from_ours({name: own[name] for rule in HEAD.rules for name in rule.ours})
