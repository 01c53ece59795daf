"""DINO's head in published checkpoints: `mlp.N` and `last_layer`, under the network's prefix.

Full training checkpoints hold two networks, `student` and `teacher`, each with `backbone.` and `head.` (DINOv2:
`dino_head.` and, where patches have one of their own, `ibot_head.`). The last layer is weight-normed: `weight_g` and
`weight_v` in files of older PyTorch, `parametrizations.weight.original0` and `original1` in newer ones.

Source: facebookresearch/dino `main_dino.py`, `vision_transformer.py`; facebookresearch/dinov2 `ssl_meta_arch.py`.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

CLASS_HEADS = ("head.", "dino_head.")
PATCH_HEADS = ("ibot_head.",)
_RENAMED = {
    "last_layer.parametrizations.weight.original0": "last_layer.weight_g",
    "last_layer.parametrizations.weight.original1": "last_layer.weight_v",
}


def find_head(rest: Mapping[str, Tensor], prefixes: tuple[str, ...] = CLASS_HEADS) -> dict[str, Tensor]:
    """Returns a head's tensors under our names; empty where there is none.

    Args:
        rest: what a file holds beside the tower, with `module.` or `backbone.`-like prefixes of one network or none.
        prefixes: what the head is called.
    """
    for prefix in prefixes:
        found: dict[str, Tensor] = {}
        for name, value in rest.items():
            bare = name.removeprefix("module.").removeprefix(prefix)
            if bare != name.removeprefix("module.") and bare.startswith(("mlp.", "last_layer.")):
                found[_RENAMED.get(bare, bare)] = value
        if found:
            return found
    return {}


def fill_head(heads: tuple[nn.Module, ...], found: Mapping[str, Tensor], options: str) -> list[str]:
    """Fills heads that are alike from a published one where it fits; returns notes.

    Args:
        heads: such as the student's and the teacher's.
        found: what `find_head` returned.
        options: what to call the head in the notes.
    """
    if not found:
        return [f"{options}: none in the file; it starts anew"]
    own = heads[0].state_dict()
    wrong = sorted(own.keys() ^ found.keys()) or [k for k in own if own[k].shape != found[k].shape]
    if wrong:
        have = list(found[wrong[0]].shape) if wrong[0] in found else "absent"
        want = list(own[wrong[0]].shape) if wrong[0] in own else "absent"
        return [
            f"{options}: {wrong[0]} is {have} in the file and {want} here, so it starts anew; --prototypes, "
            "--head-layers, --head-hidden, --head-dim and --head-norm say what the head is"
        ]
    for head in heads:
        head.load_state_dict(dict(found))
    return [f"{options}: {len(found['last_layer.weight_v'])} prototypes of the file"]


def write_head(head: nn.Module, prefix: str = "head.", parametrized: bool = False) -> dict[str, Tensor]:
    """Returns a head under the published names, those of newer PyTorch if `parametrized`."""
    theirs = {ours: name for name, ours in _RENAMED.items()} if parametrized else {}
    return {prefix + theirs.get(name, name): value for name, value in head.state_dict().items()}
