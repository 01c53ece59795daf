"""What one item of a data set is before it is decoded: a reference to its picture, and what is said about it.

A source holds such items for a whole data set in memory (a few hundred bytes each); pixels are read only when a batch
needs them. Whatever lies on disk (folders, manifests, shards, arrays) is normalised to this one form, so that samplers,
transforms and reports know nothing of file formats.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from odonata.data.images import MAX_PIXELS, decode, to_tensor
from odonata.errors import DataError

Pixels = np.ndarray | Callable[[], np.ndarray]


@dataclass(frozen=True, eq=False)
class ImageRef:
    """Where the pixels of one picture are: a file, a span of a file (a member of a tar shard), or an array.

    Args:
        path: the file, or the shard that the span lies in.
        offset: first byte of the span; None for a whole file.
        length: number of bytes of the span.
        pixels: uint8 array [height, width, 3] (or [height, width], grey), or a picklable function that returns one.
        label: what messages call the picture; the path where it is empty.
    """

    path: Path | None = None
    offset: int | None = None
    length: int | None = None
    pixels: Pixels | None = None
    label: str = ""

    def __post_init__(self) -> None:
        if (self.path is None) == (self.pixels is None):
            raise ValueError("ImageRef takes either path or pixels")
        if (self.offset is None) != (self.length is None):
            raise ValueError("ImageRef takes offset and length together")

    @property
    def name(self) -> str:
        """What messages call this picture."""
        return self.label or (str(self.path) if self.path is not None else "<array>")

    @property
    def num_bytes(self) -> int:
        """Size on disk in bytes (0 for an array, -1 for a file that is missing)."""
        if self.length is not None:
            return self.length
        if self.path is None:
            return 0
        try:
            return self.path.stat().st_size
        except OSError:
            return -1

    def read_bytes(self, limit: int | None = None) -> bytes:
        """The encoded file, or its first `limit` bytes; for an array, its raw pixels.

        Raises:
            DataError: the file cannot be read; the message names it.
        """
        if self.path is None:
            return self.read_array().tobytes()[:limit]
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset or 0)
                wanted = [count for count in (self.length, limit) if count is not None]
                return file.read(min(wanted) if wanted else -1)
        except OSError as error:
            raise DataError(f"{self.name}: cannot read the picture: {error.strerror or error}") from error

    def read_array(self) -> UInt8[np.ndarray, "height width 3"]:
        """The pixels of an in-memory picture as RGB."""
        array = self.pixels() if callable(self.pixels) else self.pixels
        if array is None:
            raise ValueError(f"{self.name} is a file, not an array")
        if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3)):
            raise DataError(
                f"{self.name}: want uint8 pixels [height, width, 3], got {array.dtype} of shape {array.shape}"
            )
        if array.ndim == 2:
            array = array[:, :, None]
        return np.ascontiguousarray(np.broadcast_to(array, (*array.shape[:2], 3)))

    def open(self, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
        """The picture as a loaded RGB image, EXIF rotation applied. Raises DataError that names the file."""
        if self.pixels is not None:
            return Image.fromarray(self.read_array())
        return decode(self.read_bytes(), self.name, max_pixels=max_pixels)

    def tensor(self, *, max_pixels: int = MAX_PIXELS, min_side: int | None = None) -> UInt8[Tensor, "3 height width"]:
        """The picture as a tensor; `min_side` as in `odonata.data.images.to_tensor`."""
        if self.pixels is not None:
            return to_tensor(Image.fromarray(self.read_array()), self.name)
        return to_tensor(self.read_bytes(), self.name, max_pixels=max_pixels, min_side=min_side)


@dataclass(frozen=True, eq=False)
class ImageText:
    """One picture with the captions that describe it.

    Args:
        image: where the pixels are.
        captions: one caption or more; none in a set of pictures without words.
        label: class index, where the set has classes.
        id: the set's own name of the item; unique within a source.
        split: "train", "val", "test" or another name that the set gives.
        extra: what only some sets have (the embedded scenes: boxes, masks, relations).
    """

    image: ImageRef
    captions: tuple[str, ...]
    label: int | None = None
    id: str = ""
    split: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class Problem:
    """A row, caption or picture that was left out: where it stands and what is wrong with it.

    Args:
        where: its place, "file:line" or the like.
        what: is wrong.
        mended: whether it was kept, after a change so small that training need not stop for it.
    """

    where: str
    what: str
    mended: bool = False

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


@dataclass(frozen=True, eq=False)
class ImageTextSource(Sequence[ImageText]):
    """A data set of pictures with captions, normalised to one form in memory.

    Args:
        samples: the items in the order of the file.
        classes: class names, where the items have labels.
        origin: the path that it was read from.
        problems: what was left out (with on_error="skip").
        kind: the format that was read.
    """

    samples: Sequence[ImageText]
    classes: tuple[str, ...] | None = None
    origin: str = ""
    problems: tuple[Problem, ...] = ()
    kind: str = ""

    @overload
    def __getitem__(self, index: int) -> ImageText: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[ImageText]: ...
    def __getitem__(self, index: int | slice) -> ImageText | Sequence[ImageText]:
        return self.samples[index]

    def __len__(self) -> int:
        return len(self.samples)

    @cached_property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits that the items carry, in order of appearance."""
        return tuple(dict.fromkeys(sample.split for sample in self.samples if sample.split is not None))

    def split(self, name: str) -> "ImageTextSource":
        """The items of one split; "train" takes Karpathy's "restval" too. Raises DataError naming those there are."""
        names = split_names(name)
        chosen = [sample for sample in self.samples if sample.split in names]
        if not chosen:
            known = ", ".join(self.splits) or "none"
            raise DataError(f"{self.origin}: no items of split {name!r}; splits found: {known}")
        return replace(self, samples=chosen)

    def has_split(self, name: str) -> bool:
        """Whether any item belongs to the split."""
        return any(split in split_names(name) for split in self.splits)

    def subset(self, indices: Iterable[int]) -> "ImageTextSource":
        """The items at these indices, in this order."""
        return replace(self, samples=[self.samples[index] for index in indices])

    def fingerprint(self) -> str:
        """SHA-256 over ids, captions, labels, and picture names and sizes on disk (not pixels: it must be quick)."""
        digest = hashlib.sha256()
        digest.update(repr(self.classes).encode())
        for sample in self.samples:
            # Names without folders: a set that was moved is still the same set.
            name = sample.image.path.name if sample.image.path is not None else Path(sample.image.label).name
            row = (sample.id, sample.captions, sample.label, name, sample.image.offset, sample.image.num_bytes)
            digest.update(repr(row).encode())
        return digest.hexdigest()


def split_names(name: str) -> tuple[str, ...]:
    aliases = {
        "train": ("train", "training", "restval"),
        "val": ("val", "validation", "valid", "dev"),
        "test": ("test", "testing"),
    }
    return next(
        (group for key, group in aliases.items() if name == key or (name in group and name != "restval")), (name,)
    )
