"""Batches are dataclasses of tensors: move them, cut them, and count their rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


def move(batch: Any, device: torch.device) -> Any:
    """Return the batch with its tensors on `device`; other fields are handed through."""
    if isinstance(batch, Tensor):
        return batch if batch.device == device else batch.to(device, non_blocking=True)
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        fields = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
        moved = {name: move(value, device) for name, value in fields.items()}
        stays = all(moved[name] is value for name, value in fields.items())
        return batch if stays else dataclasses.replace(batch, **moved)
    if isinstance(batch, (list, tuple)):
        return type(batch)(move(item, device) for item in batch)  # pyright: ignore[reportCallIssue]
    if isinstance(batch, dict):
        return {key: move(item, device) for key, item in batch.items()}
    return batch


def rows(batch: Any) -> int:
    """Return the number of samples: the first axis of the first tensor.

    Raises:
        TypeError: the batch holds no tensor.
    """
    for tensor in _tensors(batch):
        return tensor.shape[0]
    raise TypeError(f"{type(batch).__name__} holds no tensor, so its rows cannot be counted")


def split(batch: Any, parts: int) -> list[Any]:
    """Return the batch cut along its first axis into `parts` nearly equal pieces (fewer where rows are fewer)."""
    count = rows(batch)
    size = -(-count // parts)
    return [_cut(batch, start, min(start + size, count), count) for start in range(0, count, size)]


def _cut(batch: Any, start: int, stop: int, count: int) -> Any:
    if isinstance(batch, Tensor):
        return batch[start:stop] if batch.ndim and batch.shape[0] == count else batch
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        return dataclasses.replace(
            batch, **{f.name: _cut(getattr(batch, f.name), start, stop, count) for f in dataclasses.fields(batch)}
        )
    if isinstance(batch, (list, tuple)):
        if len(batch) == count:
            return batch[start:stop]
        return type(batch)(_cut(item, start, stop, count) for item in batch)  # pyright: ignore[reportCallIssue]
    if isinstance(batch, dict):
        return {key: _cut(item, start, stop, count) for key, item in batch.items()}
    return batch


def _tensors(batch: Any) -> Iterator[Tensor]:
    if isinstance(batch, Tensor):
        yield batch
    elif dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        for f in dataclasses.fields(batch):
            yield from _tensors(getattr(batch, f.name))
    elif isinstance(batch, (list, tuple)):
        for item in batch:
            yield from _tensors(item)
    elif isinstance(batch, dict):
        for item in batch.values():
            yield from _tensors(item)
