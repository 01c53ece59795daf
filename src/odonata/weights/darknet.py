"""Darknet's `.weights`: a header, and the floats of all layers one after another. Its `.cfg` says whose they are.

Notable:
- The header is three 32-bit numbers (major, minor, revision) and the number of pictures seen in training: 64 bits from
  version 0.2 on, 32 before. A major or minor above 1000 says that connected layers are stored the other way round.
- A convolution has its bias, then scale, mean and variance if it is normalised, then its weights. A connected layer has
  its weights in second place. In a normalised layer the bias is that of the normalisation.
- Darknet reads a file that is too short, or too long, without a word. Here both are errors.
- `darknet53.conv.74` is the first 74 layers of a network: pass `layers=74`.

Source: pjreddie/darknet `src/parser.c` (`load_weights_upto`, `save_weights_upto`).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from odonata.errors import WeightsError
from odonata.weights.darknet_cfg import DarknetCfg, read_cfg
from odonata.weights.darknet_plan import Layer, Stored, plan_layers, stored_tensors


@dataclass(frozen=True)
class Header:
    """What stands before the floats."""

    major: int = 0
    minor: int = 2
    revision: int = 0
    """The version of the format."""
    seen: int = 0
    """Pictures that the network was trained on, repeated ones counted again."""

    @property
    def wide(self) -> bool:
        """Whether `seen` has 64 bits."""
        return self.major * 10 + self.minor >= 2 and self.major < 1000 and self.minor < 1000

    @property
    def transposed(self) -> bool:
        """Whether connected layers are stored with the inputs along the first axis."""
        return self.major > 1000 or self.minor > 1000

    def to_bytes(self) -> bytes:
        """Returns it as it lies in the file."""
        return struct.pack("<3iQ" if self.wide else "<3iI", self.major, self.minor, self.revision, self.seen)


@dataclass
class DarknetWeights:
    """A `.weights` file, read."""

    header: Header
    state: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    """Tensors under the names of `odonata.backbones.darknet_network.DarknetNetwork`."""


def cfg_beside(path: str | Path) -> tuple[Path, int | None]:
    """Returns the `.cfg` that belongs to a `.weights` file, and how many of its layers the file has.

    Args:
        path: `name.weights`, whose cfg is `name.cfg`; or `name.conv.74`, which has the first 74 layers of `name.cfg`.

    Returns:
        The cfg and the number of layers; None: all.

    Raises:
        WeightsError: it is not there.
    """
    path = Path(path)
    part = re.fullmatch(r"(.+)\.conv\.(\d+)", path.name)
    cfg = path.with_name(f"{part[1]}.cfg") if part else path.with_suffix(".cfg")
    if not cfg.is_file():
        raise WeightsError(f"{path} says nothing about its layers: put the network's cfg beside it, as {cfg.name}")
    return cfg, int(part[2]) if part else None


def is_darknet(path: str | Path) -> bool:
    """Whether a file is darknet's by its name: `name.weights` or `name.conv.74`."""
    return re.search(r"\.(weights|conv\.\d+)$", Path(path).name, re.IGNORECASE) is not None


def read_weights(
    path: str | Path, cfg: DarknetCfg | str | Path | None = None, layers: int | None = None
) -> DarknetWeights:
    """Reads a `.weights` file.

    Args:
        path: the file.
        cfg: what it belongs to; None takes the one beside it.
        layers: how many layers the file has, where it is the first part of a network; None: all.

    Returns:
        Header and float32 tensors.

    Raises:
        WeightsError: unreadable, or shorter or longer than the cfg wants; names the layer at which it ends.
    """
    path = Path(path)
    if cfg is None:
        cfg, beside = cfg_beside(path)
        layers = beside if layers is None else layers
    if not isinstance(cfg, DarknetCfg):
        cfg = read_cfg(cfg)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror})") from error
    header, begin = _read_header(content, path)
    plan = plan_layers(cfg)[:layers]
    if (len(content) - begin) % 4:
        raise WeightsError(f"{path}: {len(content)} bytes are no whole number of floats; it was cut off or is damaged")
    floats = np.frombuffer(content, "<f4", offset=begin)
    _check_length(path, cfg, plan, len(floats))
    made = DarknetWeights(header)
    at = 0
    for stored in _stored(plan, header):
        made.state[stored.name] = _to_tensor(floats[at : at + stored.size], stored)
        at += stored.size
    return made


def to_bytes(
    cfg: DarknetCfg, state: Mapping[str, Tensor], header: Header = Header(), layers: int | None = None
) -> bytes:
    """Returns the content of a `.weights` file.

    Args:
        cfg: the network.
        state: its tensors; others, such as counters of batches, are passed over.
        header: what to write first; that of the file that was read gives the same bytes again.
        layers: how many layers to write; None: all.

    Raises:
        WeightsError: a tensor is missing or has another shape.
    """
    parts = [header.to_bytes()]
    for stored in _stored(plan_layers(cfg)[:layers], header):
        tensor = state.get(stored.name)
        if tensor is None:
            raise WeightsError(f"{cfg.source}: {stored.name} is missing from the weights")
        if tuple(tensor.shape) != stored.shape:
            raise WeightsError(f"{cfg.source}: {stored.name} is {list(tensor.shape)}, not {list(stored.shape)}")
        matrix = tensor.detach().to("cpu", torch.float32)
        matrix = matrix.flatten(1).T if stored.transposed else matrix
        parts.append(matrix.contiguous().numpy().astype("<f4", copy=False).tobytes())
    return b"".join(parts)


def header_in(state: Mapping[str, Tensor]) -> Header:
    """Returns the header that a state carries as four numbers under `header`, or a new one."""
    if "header" not in state:
        return Header()
    major, minor, revision, seen = (int(number) for number in state["header"].tolist())
    return Header(major, minor, revision, seen)


def write_weights(path: str | Path, cfg: DarknetCfg, state: Mapping[str, Tensor], header: Header = Header()) -> None:
    """Writes a `.weights` file, and the text of its cfg beside it; see `to_bytes`."""
    path = Path(path)
    for target, content in ((path, to_bytes(cfg, state, header)), (path.with_suffix(".cfg"), cfg.text.encode())):
        staged = target.with_name(f".{target.name}.new")
        staged.write_bytes(content)
        staged.replace(target)


def count_floats(cfg: DarknetCfg, layers: int | None = None) -> int:
    """Returns how many floats the `.weights` of a network has, running means and variances among them."""
    return sum(stored.size for stored in _stored(plan_layers(cfg)[:layers], Header()))


def _read_header(content: bytes, path: Path) -> tuple[Header, int]:
    if len(content) < 16:
        raise WeightsError(
            f"{path}: {len(content)} bytes are less than a header; it was cut off or is no .weights file"
        )
    if content.startswith(b"version https://git-lfs"):
        raise WeightsError(f"{path} is a Git LFS pointer, not the weights; run `git lfs pull`")
    major, minor, revision = struct.unpack_from("<3i", content)
    if min(major, minor, revision) < 0 or max(major, minor) > 100_000:
        raise WeightsError(f"{path}: begins with {major}, {minor}, {revision}, which is no version of darknet's")
    header = Header(major, minor, revision)
    form = "<Q" if header.wide else "<I"
    if len(content) < 12 + struct.calcsize(form):
        raise WeightsError(f"{path}: {len(content)} bytes are less than a header; it was cut off")
    (seen,) = struct.unpack_from(form, content, 12)
    return Header(major, minor, revision, seen), 12 + struct.calcsize(form)


def _stored(plan: Sequence[Layer], header: Header) -> list[Stored]:
    return [stored for layer in plan for stored in stored_tensors(layer, header.transposed)]


def _to_tensor(floats: np.ndarray, stored: Stored) -> Tensor:
    # A copy: the buffer that was read cannot be written to, and its floats are little-endian on every machine.
    tensor = torch.from_numpy(floats.astype(np.float32))
    if not stored.transposed:
        return tensor.reshape(stored.shape)
    return tensor.reshape(-1, stored.shape[0]).T.reshape(stored.shape).contiguous()


def _check_length(path: Path, cfg: DarknetCfg, plan: Sequence[Layer], found: int) -> None:
    ends = [0]
    for layer in plan:
        ends.append(ends[-1] + sum(stored.size for stored in stored_tensors(layer)))
    wanted = ends[-1]
    if found == wanted:
        return
    counts = f"{path}: {cfg.source} wants {wanted:,} floats and the file holds {found:,}"
    if found > wanted:
        last = [layer for layer in plan if any(stored_tensors(layer))][-1:]
        where = f"its last layer with weights is {_name(last[0])}" if last else "it has no layer with weights"
        raise WeightsError(
            f"{counts}: {found - wanted:,} are left over; {where}; take the cfg that it was trained with"
        )
    for layer, (start, end) in zip(plan, pairwise(ends), strict=True):
        if found < end:
            raise WeightsError(
                f"{counts}: it ends in {_name(layer)}, after {found - start:,} of {end - start:,} floats; it was cut "
                "off, or take the cfg that it was trained with"
            )


def _name(layer: Layer) -> str:
    return f"layer {layer.index} [{layer.section.kind}] (line {layer.section.line} of the cfg)"
