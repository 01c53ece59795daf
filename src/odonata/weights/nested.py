"""Networks inside training checkpoints: which entry and which prefix holds the tower.

Notable: where a file holds two networks, the usual one is the one that is evaluated: DINO's and iBOT's teacher, MoCo's
`encoder_q` and `base_encoder`, MoBY's online `encoder`. What stands beside the tower, such as a head, is kept apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from odonata.errors import WeightsError

if TYPE_CHECKING:
    from odonata.weights.read import Raw

ENTRIES = ("state_dict", "model_state_dict", "model", "teacher", "student", "model_ema", "classy_state_dict")
"""Entries of a training checkpoint that may hold weights. The first that is there is the usual one."""
_PREFIXES = {
    "encoder": ("module.encoder.", "encoder."),
    "encoder_q": ("module.encoder_q.", "encoder_q."),
    "encoder_k": ("module.encoder_k.", "encoder_k."),
    "base_encoder": ("module.base_encoder.", "base_encoder."),
    "momentum_encoder": ("module.momentum_encoder.", "momentum_encoder."),
    "backbone": ("module.backbone.", "backbone."),
}
"""Part → how its tensors' names begin. The first part that is there is the usual one."""
_SIGNS = {"encoder": "patch_embed.proj.weight"}
"""Part → a tensor that it must have: MoBY's `encoder` is a network, that of transformers' towers is a piece of one."""


def choose_entry(content: Mapping[str, Any], part: str | None = None) -> tuple[Mapping[str, Any], str | None]:
    """Returns the entry of a training checkpoint that holds weights, and its name; the content itself and None else.

    Args:
        content: what the file holds.
        part: the entry's name; None, or a name that no entry has, takes the usual one.
    """
    there = [name for name in ENTRIES if isinstance(content.get(name), Mapping)]
    if not there:
        return content, None
    name = part if part in there else there[0]
    chosen = content[name]
    if name == "classy_state_dict":  # VISSL nests its network
        for step in ("base_model", "model", "trunk"):
            chosen = chosen[step] if isinstance(chosen.get(step), Mapping) else chosen
    return chosen, name


def unwrap(raw: Raw, part: str | None = None) -> Raw:
    """Returns the checkpoint of one network out of a training checkpoint, or the checkpoint itself.

    Args:
        raw: what was read.
        part: the network's name; None takes the usual one. An entry that was already taken counts as found.

    Raises:
        WeightsError: there is no such part.
    """
    there = {name: prefix for name, prefixes in _PREFIXES.items() for prefix in prefixes
             if any(key.startswith(prefix + _SIGNS.get(name, "")) for key in raw.state)}  # fmt: skip
    if part is not None and part == raw.entry:
        part = None
    if part is not None and part not in there:
        entry = [f"{raw.entry} (taken)"] if raw.entry else []
        raise WeightsError(f"{raw.path}: no part {part!r}; there are {', '.join([*there, *entry]) or 'none'}")
    if not there:
        return raw
    chosen = part or next(iter(there))
    prefix = there[chosen]
    state = {key[len(prefix) :]: value for key, value in raw.state.items() if key.startswith(prefix)}
    beside = {key: value for key, value in raw.state.items() if not key.startswith(prefix)}
    note = f"part {chosen!r} of a training checkpoint: {len(state)} of {len(raw.state)} tensors"
    return replace(raw, state=state, beside=beside, part=chosen, notes=[*raw.notes, note])
