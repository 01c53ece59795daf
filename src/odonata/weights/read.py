"""Reading checkpoints of unknown origin without running anything that they hold.

A pickle can run code when it is read, and so can, to a lesser degree, a TorchScript archive. Pickles are therefore read
by PyTorch's restricted unpickler only, and archives only when the caller says so.
"""

import argparse
import json
import pickle
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from odonata.errors import WeightsError
from odonata.weights.darknet import cfg_beside, is_darknet, read_weights
from odonata.weights.darknet_cfg import read_cfg
from odonata.weights.nested import choose_entry
from odonata.weights.npy_dict import read_npy_dict

_TORCH_SUFFIXES = (".pt", ".pth", ".th", ".bin", ".ckpt", ".pkl")
# The weights of a folder, in the order in which they are looked for.
_WEIGHT_FILES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)
# Several networks of one model, a file each: their tensors are read together, the file's name before theirs.
_FILES_OF_NETS = (("pnet.pt", "rnet.pt", "onet.pt"), ("det1.npy", "det2.npy", "det3.npy"))
_CONFIG_FILES = ("open_clip_config.json", "config.json")


@dataclass
class Raw:
    """A checkpoint as it lies on disk."""

    path: Path
    """What was asked for."""
    state: dict[str, Tensor]
    """Its tensors, on the CPU, under their own names."""
    config: dict[str, Any] | None = None
    """The configuration file beside them, if there is one."""
    config_name: str | None = None
    """Name of that file."""
    files: list[Path] = field(default_factory=list[Path])
    """All files that were read."""
    kind: str = "torch"
    """`safetensors`, `torch`, `torchscript`, `npz`, `npy` or `darknet`."""
    notes: list[str] = field(default_factory=list[str])
    """What was unwrapped or stripped on the way."""
    entry: str | None = None
    """The entry of a training checkpoint that the tensors were taken from."""
    beside: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    """What stood beside that network: heads, other networks, queues."""
    part: str | None = None
    """The network of a training checkpoint that the tensors belong to; see `odonata.weights.nested`."""


def read_state(path: str | Path, *, allow_torchscript: bool = False, part: str | None = None) -> Raw:
    """Reads a checkpoint file or folder.

    Args:
        path: `.safetensors`, `.pt`, `.pth`, `.bin`, `.ckpt`, `.pkl` or `.npz`; darknet's `.weights`, its cfg beside it;
            or a folder with weights and a configuration as transformers, open_clip or Odonata write it, sharded or
            not, or with the three networks of MTCNN.
        allow_torchscript: read TorchScript archives (OpenAI's CLIP files). Their code is loaded, so trust the source.
        part: which entry of a training checkpoint, such as `teacher`; the usual one if there is none of this name.

    Returns:
        Tensors and configuration.

    Raises:
        WeightsError: nothing there, a format that is not known, a damaged file, or one that would run code.
    """
    path = Path(path)
    if not path.exists():
        raise WeightsError(f"{path} does not exist")
    if path.is_dir() and (names := _nets_in(path)):
        return _read_nets(path, names, part)
    folder = path if path.is_dir() else path.parent
    weights = _find_weights(path) if path.is_dir() else path
    raw = Raw(path, {}, files=[weights])
    if weights.name.endswith(".index.json"):
        raw.state, raw.files, raw.kind = _read_shards(weights, allow_torchscript)
    else:
        raw.state, raw.kind = _read_file(weights, allow_torchscript, raw, part)
    _strip_prefix(raw)
    _read_config(raw, folder, weights)
    if not raw.state:
        raise WeightsError(f"{weights} holds no tensors")
    return raw


def describe(raw: Raw) -> str:
    """Returns what a checkpoint of no known layout looks like, for messages."""
    kind = f"model_type {raw.config.get('model_type')!r}" if raw.config else "no configuration beside it"
    held = ", ".join(f"{name} {list(raw.state[name].shape)}" for name in sorted(raw.state)[:4])
    return f"{kind}; it holds {held} …"


def _find_weights(folder: Path) -> Path:
    for name in _WEIGHT_FILES:
        if (folder / name).is_file():
            return folder / name
    raise WeightsError(f"{folder} holds no weights: looked for {', '.join(_WEIGHT_FILES)}")


def _nets_in(folder: Path) -> tuple[str, ...]:
    """The files of a model that lies as one network a file; nothing if the folder holds none of them."""
    for names in _FILES_OF_NETS:
        lacking = [name for name in names if not (folder / name).is_file()]
        if not lacking:
            return names
        if len(lacking) < len(names):
            raise WeightsError(f"{folder} lacks {', '.join(lacking)}: the model's networks are {', '.join(names)}")
    return ()


def _read_nets(folder: Path, names: tuple[str, ...], part: str | None) -> Raw:
    raw = Raw(folder, {}, files=[folder / name for name in names])
    for file in raw.files:
        state, raw.kind = _read_file(file, False, raw, part)
        raw.state |= {f"{file.stem}.{name}": value for name, value in state.items()}
    return raw


def _read_config(raw: Raw, folder: Path, weights: Path) -> None:
    for name in _CONFIG_FILES:
        file = folder / name
        if raw.config is None and file.is_file():
            raw.config, raw.config_name = read_json(file), name
            raw.files.append(file)
            if raw.path.is_file():
                raw.notes.append(f"configuration taken from {name} beside {weights.name}")
            return


def read_json(file: Path) -> dict[str, Any]:
    """Reads a JSON file that holds one object; WeightsError names the file and line otherwise."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        line = getattr(error, "lineno", 1)
        raise WeightsError(f"{file}:{line}: not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{file}: wants one JSON object, holds a {type(content).__name__}")
    return content


def _read_shards(index: Path, allow_torchscript: bool) -> tuple[dict[str, Tensor], list[Path], str]:
    where = read_json(index).get("weight_map")
    if not isinstance(where, dict):
        raise WeightsError(f"{index}: has no weight_map")
    state: dict[str, Tensor] = {}
    files, kind = [index], "torch"
    for name in sorted({str(shard) for shard in where.values()}):
        shard = index.parent / name
        if Path(name).name != name:
            raise WeightsError(f"{index}: shard {name!r} lies outside the folder")
        if not shard.is_file():
            raise WeightsError(f"{index}: shard {name} is missing; download it too")
        held, kind = _read_file(shard, allow_torchscript, Raw(shard, {}))
        state.update(held)
        files.append(shard)
    lacking = sorted(set(where) - state.keys())
    if lacking:
        raise WeightsError(f"{index}: {len(lacking)} tensors are in no shard: {', '.join(lacking[:8])}")
    return state, files, kind


def _read_file(file: Path, allow_torchscript: bool, raw: Raw, part: str | None = None) -> tuple[dict[str, Tensor], str]:
    size = file.stat().st_size
    if size == 0:
        raise WeightsError(f"{file} is empty; download it again")
    with file.open("rb") as stream:
        if stream.read(24).startswith(b"version https://git-lfs"):
            raise WeightsError(f"{file} is a Git LFS pointer, not the weights; run `git lfs pull`")
    suffix = file.suffix.lower()
    if is_darknet(file):
        return _read_darknet(file, raw), "darknet"
    if suffix == ".safetensors":
        return _read_safetensors(file), "safetensors"
    if suffix == ".npz":
        return _read_npz(file), "npz"
    if suffix == ".npy":
        return read_npy_dict(file), "npy"
    if suffix in _TORCH_SUFFIXES or file.name.lower().endswith(".pth.tar"):  # MoCo, SwAV: no archive in spite of it
        if is_torchscript(file):
            return _read_torchscript(file, allow_torchscript), "torchscript"
        return _read_pickle(file, raw, part), "torch"
    known = ", ".join((".safetensors", ".npz", ".npy", ".weights", *_TORCH_SUFFIXES))
    raise WeightsError(f"{file}: files of type {suffix or '(none)'} are not known; known are {known}")


def _read_darknet(file: Path, raw: Raw) -> dict[str, Tensor]:
    cfg, layers = cfg_beside(file)
    parsed = read_cfg(cfg)
    read = read_weights(file, parsed, layers)
    header = [read.header.major, read.header.minor, read.header.revision, read.header.seen]
    raw.config = {"model_type": "darknet", "cfg": parsed.text, "layers": layers, "header": header}
    raw.config_name = cfg.name
    raw.files.append(cfg)
    return read.state


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(file)
    except (safetensors.SafetensorError, ValueError) as error:
        raise WeightsError(f"{file} is damaged or not a safetensors file ({error}); download it again") from error


def _read_npz(file: Path) -> dict[str, Tensor]:
    try:
        with np.load(file, allow_pickle=False) as archive:
            return {name: _from_numpy(archive[name]) for name in archive.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, KeyError) as error:
        raise WeightsError(
            f"{file} is damaged, or holds Python objects, which are not read ({error}); download it again"
        ) from error


def _from_numpy(array: "np.ndarray[Any, Any]") -> Tensor:
    if (
        array.dtype.kind == "V" and array.dtype.itemsize == 2
    ):  # NumPy has no bfloat16; ml_dtypes' is stored as raw bytes
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(np.ascontiguousarray(array).reshape(array.shape))


def is_torchscript(file: Path) -> bool:
    """Whether a file is a TorchScript archive, which carries code."""
    if not file.is_file() or not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        return any(name.count("/") == 1 and name.endswith("/constants.pkl") for name in archive.namelist())


def _read_torchscript(file: Path, allow: bool) -> dict[str, Tensor]:
    if not allow:
        raise WeightsError(
            f"{file} is a TorchScript archive, which carries code (OpenAI publishes CLIP so). If you trust its source, "
            "pass --allow-torchscript (in Python allow_torchscript=True); or convert it once and keep the safetensors"
        )
    try:
        module = torch.jit.load(str(file), map_location="cpu")
    except (RuntimeError, ValueError) as error:
        raise WeightsError(f"{file}: the TorchScript archive cannot be read ({_first_line(error)})") from error
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def _read_pickle(file: Path, raw: Raw, part: str | None) -> dict[str, Tensor]:
    try:
        # Training files hold the arguments of their script; a Namespace has attributes and runs nothing.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content: Any = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{file} holds Python objects other than tensors, which could run code when read, or it is damaged; "
            f"it was not loaded ({_first_line(error)}). Ask for a safetensors file"
        ) from error
    except Exception as error:  # bytes of unknown origin make the unpickler fail in any way
        raise WeightsError(f"{file} is truncated or not a PyTorch file ({_first_line(error)})") from error
    if isinstance(content, dict):
        content, raw.entry = choose_entry(content, part)
        if raw.entry is not None:
            raw.notes.append(f"weights taken from the entry {raw.entry!r} of {file.name}")
    if not isinstance(content, dict):
        raise WeightsError(f"{file} holds a {type(content).__name__}, not a dictionary of tensors")
    others = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
    if others:
        raise WeightsError(f"{file} holds entries that are not tensors: {', '.join(others[:8])}")
    return {str(key): value for key, value in content.items()}


def _strip_prefix(raw: Raw) -> None:
    for prefix in ("module.", "_orig_mod.", "_feature_blocks."):
        if raw.state and all(key.startswith(prefix) for key in raw.state):
            raw.state = {key[len(prefix) :]: value for key, value in raw.state.items()}
            raw.notes.append(f"prefix {prefix!r} stripped from all names")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
