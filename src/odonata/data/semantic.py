"""Pictures whose every pixel has a class, in one form in memory.

A map on disk may hold numbers, indices of a palette, or colours; the table of classes says which value is which class,
and 255 stands for pixels about which nothing is said, whatever value the file has for them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, overload

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from odonata.data.sample import ImageRef, Problem, split_names
from odonata.errors import DataError

VOID = 255
"""Class of pixels about which nothing is said."""
Colour = tuple[int, int, int]


def voc_palette(count: int) -> tuple[Colour, ...]:
    """Colours of the first `count` classes as Pascal VOC's devkit makes them: the bits of the number, dealt to the
    channels in turn, the highest places first."""
    colours: list[Colour] = []
    for number in range(count):
        channels = [0, 0, 0]
        for place in range(8):
            for channel in range(3):
                channels[channel] |= (number >> (3 * place + channel) & 1) << (7 - place)
        colours.append((channels[0], channels[1], channels[2]))
    return tuple(colours)


@dataclass(frozen=True)
class ClassTable:
    """Which value of a map is which class.

    Args:
        names: of the classes, in the order of the labels.
        palette: a colour for each class.
        values: the number that stands for each class in the files.
        void: numbers that stand for no class; 255 does always, unless a class has it.
        void_colours: colours that stand for no class.
    """

    names: tuple[str, ...]
    palette: tuple[Colour, ...]
    values: tuple[int, ...]
    void: tuple[int, ...] = ()
    void_colours: tuple[Colour, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < len(self.names) < VOID:
            raise DataError(f"{len(self.names)} classes; want 1 to {VOID - 1}")
        if not len(self.names) == len(self.palette) == len(self.values):
            raise ValueError(f"{len(self.names)} names, {len(self.palette)} colours, {len(self.values)} values")

    @cached_property
    def lookup(self) -> np.ndarray:
        """Label of each value from 0 to 65535: 255 for void, -1 for a value that is no class's."""
        table = np.full(1 << 16, -1, dtype=np.int16)
        table[[VOID, *self.void]] = VOID
        table[list(self.values)] = np.arange(len(self.values))
        return table

    def from_colours(self, pixels: UInt8[np.ndarray, "height width 3"]) -> np.ndarray:
        """Labels of a map of colours: 255 for void, -1 for a colour that is no class's."""
        packed = pixels.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], dtype=np.int32)
        known = {(r << 16) + (g << 8) + b: VOID for r, g, b in self.void_colours}
        known |= {(r << 16) + (g << 8) + b: label for label, (r, g, b) in enumerate(self.palette)}
        keys = np.array(sorted(known), dtype=np.int32)
        labels = np.array([known[key] for key in keys.tolist()], dtype=np.int16)
        place = np.searchsorted(keys, packed).clip(max=len(keys) - 1)
        return np.where(keys[place] == packed, labels[place], np.int16(-1))


@dataclass(frozen=True, eq=False)
class MapRef:
    """Where one map of classes is: a file, or a picklable function that paints it.

    Args:
        path: PNG or another lossless picture.
        table: how its values are read.
        paint: in place of a file; returns labels, 255 for void.
        unknown: what to do about a value that is no class's: "raise", or take it for "void".
    """

    path: Path | None = None
    table: ClassTable | None = None
    paint: Callable[[], UInt8[np.ndarray, "height width"]] | None = None
    unknown: Literal["raise", "void"] = "raise"

    @property
    def name(self) -> str:
        """What messages call this map."""
        return str(self.path) if self.path is not None else "<map>"

    def strictly(self) -> MapRef:
        """The same map, whose unknown values are errors."""
        return replace(self, unknown="raise")

    def read(self) -> UInt8[np.ndarray, "height width"]:
        """Labels of the pixels, 255 where nothing is said.

        Raises:
            DataError: the file is damaged, or a value or colour is no class's.
        """
        if self.paint is not None:
            return self.paint()
        assert self.path is not None and self.table is not None
        raw = raw_map(self.path)
        labels = self.table.from_colours(raw) if raw.ndim == 3 else self.table.lookup[raw]
        if self.unknown == "raise" and (labels < 0).any():
            row, column = np.argwhere(labels < 0)[0].tolist()
            value = raw[row, column]
            shown = f"colour {tuple(value.tolist())}" if raw.ndim == 3 else f"value {int(value)}"
            raise DataError(
                f"{self.path}: {shown} at row {row}, column {column} is no class's; the table has "
                f"{len(self.table.names)} classes ({', '.join(self.table.names[:6])}"
                f"{', …' if len(self.table.names) > 6 else ''})"
            )
        return np.where(labels < 0, VOID, labels).astype(np.uint8)


def raw_map(path: Path) -> np.ndarray:
    """A map as the file holds it: numbers [height, width] (of a palette, its indices) or colours [height, width, 3].

    Raises:
        DataError: the file is missing, damaged, or holds neither.
    """
    try:
        with Image.open(path) as image:
            if image.mode in ("1", "L", "P", "I", "I;16", "I;16B"):
                array = np.array(image).astype(np.int32)
                if array.min(initial=0) < 0 or array.max(initial=0) >= 1 << 16:
                    raise DataError(f"{path}: values reach {array.min()} and {array.max()}; want 0 to 65535")
                return array
            if image.mode in ("RGB", "RGBA"):
                return np.array(image.convert("RGB"))
            raise DataError(f"{path}: the map has mode {image.mode}; want numbers, a palette or colours")
    except FileNotFoundError:
        raise DataError(f"{path}: the map does not exist") from None
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: cannot read the map: {error}") from error


@dataclass(frozen=True, eq=False)
class SemanticImage:
    """One picture with its map of classes.

    Args:
        image: where the pixels are.
        map: where their classes are.
        size: (height, width) in pixels.
        id: of the picture.
        split: "train", "val", "test" or another name.
    """

    image: ImageRef
    map: MapRef
    size: tuple[int, int]
    id: str = ""
    split: str | None = None


@dataclass(frozen=True, eq=False)
class SemanticSource(Sequence[SemanticImage]):
    """A set of pictures with maps of classes.

    Args:
        samples: in the order of the files.
        classes: names, in the order of the labels.
        palette: a colour for each class.
        ignore_index: label of pixels about which nothing is said.
        origin: the path that it was read from.
        problems: what was left out.
        kind: the layout that was read: camvid, voc, folders, objects.
    """

    samples: Sequence[SemanticImage]
    classes: tuple[str, ...]
    palette: tuple[Colour, ...]
    ignore_index: int = VOID
    origin: str = ""
    problems: tuple[Problem, ...] = ()
    kind: str = ""

    @overload
    def __getitem__(self, index: int) -> SemanticImage: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[SemanticImage]: ...
    def __getitem__(self, index: int | slice) -> SemanticImage | Sequence[SemanticImage]:
        return self.samples[index]

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def names(self) -> tuple[str, ...]:
        """The classes, as `ObjectSource` calls them."""
        return self.classes

    @cached_property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits that the pictures carry, in order of appearance."""
        return tuple(dict.fromkeys(sample.split for sample in self.samples if sample.split is not None))

    def split(self, name: str) -> SemanticSource:
        """The pictures of one split. Raises DataError naming those there are."""
        names = split_names(name)
        chosen = [sample for sample in self.samples if sample.split in names]
        if not chosen:
            known = ", ".join(self.splits) or "none"
            raise DataError(f"{self.origin}: no pictures of split {name!r}; splits found: {known}")
        return replace(self, samples=chosen)

    def has_split(self, name: str) -> bool:
        """Whether any picture belongs to the split."""
        return any(split in split_names(name) for split in self.splits)

    def subset(self, indices: Iterable[int]) -> SemanticSource:
        """The pictures at these indices, in this order."""
        return replace(self, samples=[self.samples[index] for index in indices])

    def fingerprint(self) -> str:
        """SHA-256 over classes, ids, and names and sizes on disk of pictures and maps (not pixels)."""
        digest = hashlib.sha256(repr((self.classes, self.palette)).encode())
        for sample in self.samples:
            name = sample.image.path.name if sample.image.path is not None else sample.image.label
            row = (sample.id, name, sample.image.num_bytes, sample.size)
            if sample.map.path is not None:
                row = (*row, sample.map.path.name, ImageRef(sample.map.path).num_bytes)
            digest.update(repr(row).encode())
        return digest.hexdigest()
