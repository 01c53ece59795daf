"""What a published layout is: how it is recognised, what its tensors mean, and how it is written."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from odonata.errors import WeightsError
from odonata.weights.maps import KeyMap
from odonata.weights.read import Raw

Plain = dict[str, Any]
"""A configuration in plain values, with the field names of `odonata.align.dual_encoder.DualEncoderConfig`."""


@dataclass(frozen=True)
class ReadOptions:
    """What a checkpoint may leave open, said by the caller."""

    quick_gelu: bool | None = None
    """Whether a bare open_clip file was trained with QuickGELU: its weights do not tell."""


@dataclass
class Plan:
    """How one checkpoint is to be read."""

    config: Plain
    key_map: KeyMap
    preprocess: Plain | None = None
    tokenizer: Plain | None = None
    notes: list[str] = field(default_factory=list[str])


@dataclass
class Files:
    """What a layout writes: the weights and small text files."""

    weights_name: str
    """Where it holds `{}`, every network has a file: what stands there is a tensor's name up to the first dot."""
    state: dict[str, Tensor]
    texts: Mapping[str, Plain | str] = field(default_factory=dict[str, Plain | str])
    """Written as JSON; a string as it is."""
    entry: str | None = None
    """Entry of a PyTorch file that holds the weights; None: they are the whole of it."""
    shard_bytes: int = 0
    """Divide weights that are larger into files of at most so many bytes, with an index (0 = never)."""


@dataclass(frozen=True)
class Layout:
    """One published layout.

    Args:
        name: how users call it.
        recognises: whether a checkpoint is of this layout.
        plan: how to read it.
        write: turns (our state, configuration, content of the preprocessing file) into files.
    """

    name: str
    recognises: Callable[[Raw], bool]
    plan: Callable[[Raw, ReadOptions], Plan]
    write: Callable[[Mapping[str, Tensor], Plain, Plain | None], Files]


def shape_of(state: Mapping[str, Tensor], name: str, where: object) -> tuple[int, ...]:
    """Returns the shape of a tensor that an architecture is inferred from; WeightsError if it is absent."""
    if name not in state:
        held = ", ".join(sorted(state)[:4])
        raise WeightsError(f"{where}: {name} is missing, so this is another architecture; it holds {held} …")
    return tuple(state[name].shape)


def square_side(tokens: int, name: str, where: object) -> int:
    """Returns the side of a square grid of so many tokens; WeightsError if it is none."""
    side = round(tokens**0.5)
    if side * side != tokens:
        raise WeightsError(
            f"{where}: {name} has {tokens} grid positions, which is not a square; give the layout's config"
        )
    return side


def require(condition: bool, message: str) -> None:
    """Raises WeightsError with the message unless the condition holds."""
    if not condition:
        raise WeightsError(message)
