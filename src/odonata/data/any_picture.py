"""A picture as people hand it over: a path, a PIL image, a reference, or a tensor of bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from odonata.data.images import to_tensor
from odonata.data.sample import ImageRef
from odonata.errors import DataError

Picture = str | Path | Image.Image | ImageRef | UInt8[Tensor, "3 height width"]


def is_one(pictures: Picture | Iterable[Picture]) -> bool:
    """Whether this is one picture."""
    if isinstance(pictures, Tensor):
        return pictures.ndim == 3
    return isinstance(pictures, (str, Path, Image.Image, ImageRef))


def several(pictures: Picture | Iterable[Picture]) -> list[Picture]:
    """Return one picture or several as a list."""
    return [cast(Picture, pictures)] if is_one(pictures) else list(cast(Iterable[Picture], pictures))


def parts_of(items: Sequence[Any], size: int) -> Iterator[list[Any]]:
    """Yield the items, `size` at a time."""
    for start in range(0, len(items), size):
        yield list(items[start : start + size])


def as_tensor(picture: Picture) -> UInt8[Tensor, "3 height width"]:
    """Return the pixels of a picture in any of its forms.

    Raises:
        DataError: it cannot be read, or is a tensor of another shape or type.
    """
    if isinstance(picture, Tensor):
        if picture.dtype != torch.uint8 or picture.ndim != 3 or picture.shape[0] != 3:
            raise DataError(f"a picture tensor is uint8 [3, height, width], not {picture.dtype} {list(picture.shape)}")
        return picture
    if isinstance(picture, ImageRef):
        return picture.tensor()
    if isinstance(picture, Image.Image):
        return to_tensor(picture)
    return ImageRef(Path(picture)).tensor()


def name_of(picture: Picture, number: int) -> str:
    """Return what to call a picture: its path where it has one."""
    if isinstance(picture, (str, Path)):
        return str(picture)
    return picture.name if isinstance(picture, ImageRef) else f"picture {number}"
