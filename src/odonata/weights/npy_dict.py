"""`.npy` files that hold a dictionary of arrays, as MTCNN's original weights do, read without running what they hold.

NumPy stores such a dictionary as a pickle, and a pickle may name any function to be called. The reader here knows three
names, those of arrays and their types, and puts stand-ins of its own in their place, so that not even NumPy's code for
pickles runs; any other name is refused and told. Files of Python 2 are read as well: their bytes come as text.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from odonata.errors import WeightsError

_TYPES = ("f2", "f4", "f8", "i4", "i8", "u1")


class _Dtype:
    """What a pickle says of an array's type."""

    def __init__(self, code: str, *_: Any) -> None:
        self.code, self.order = str(code).lstrip("<>|="), "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = ">" if state[1] in (">", b">") else "<"


class _Array:
    """An array while it is read: its numbers, or, of type object, a list."""

    def __init__(self, *_: Any) -> None:
        self.value: Any = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, data = state
        if dtype.code.startswith("O"):
            self.value = list(data)
            return
        if dtype.code not in _TYPES:
            raise pickle.UnpicklingError(f"an array of type {dtype.code}")
        content = data.encode("latin1") if isinstance(data, str) else data
        numbers = np.frombuffer(content, dtype.order + dtype.code)
        self.value = numbers.reshape(shape, order="F" if fortran else "C").astype(dtype.code)


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return _Array
        if module == "numpy" and name in ("ndarray", "dtype"):
            return _Array if name == "ndarray" else _Dtype
        raise pickle.UnpicklingError(f"{module}.{name} is no array and was not loaded")


def read_npy_dict(file: Path) -> dict[str, Tensor]:
    """Reads a dictionary of arrays, or of dictionaries of arrays; names of the latter are joined by a dot.

    Raises:
        WeightsError: damaged, something else, or a file that holds more than arrays, which could run code.
    """
    try:
        with file.open("rb") as stream:
            is_object = _header(stream)
            content: Any = _Reader(stream, encoding="latin1").load() if is_object else None
    except Exception as error:  # bytes of unknown origin make the unpickler fail in any way
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise WeightsError(f"{file} is damaged, or holds more than arrays: {said[0][:200]}") from error
    held = content.value if isinstance(content, _Array) else None
    if not isinstance(held, list) or len(held) != 1 or not isinstance(held[0], dict):
        raise WeightsError(f"{file} holds no dictionary of arrays")
    state: dict[str, Tensor] = {}
    for name, value in _flat(held[0]):
        if not isinstance(value, _Array) or not isinstance(value.value, np.ndarray):
            raise WeightsError(f"{file}: {name} is no array of numbers")
        state[name] = torch.from_numpy(value.value)
    return state


def _header(stream: BinaryIO) -> bool:
    """Reads up to the content; whether that is a pickle."""
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return bool(read(stream)[2].hasobject)


def _flat(content: Mapping[Any, Any], before: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in content.items():
        found += _flat(value, f"{before}{name}.") if isinstance(value, dict) else [(f"{before}{name}", value)]
    return found


def write_npy_dict(file: Path, state: Mapping[str, Tensor]) -> None:
    """Writes what `np.load(file, allow_pickle=True).item()` gives back as {layer: {part: array}}.

    Args:
        file: where to.
        state: tensors by `layer.part`.
    """
    content: dict[str, dict[str, Any]] = {}
    for name, value in state.items():
        layer, _, part = name.rpartition(".")
        content.setdefault(layer, {})[part] = value.numpy()
    holder = np.empty((), dtype=object)
    holder[()] = content
    np.save(file, holder, allow_pickle=True)
