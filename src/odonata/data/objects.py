"""Pictures with objects in them, in one form in memory, whatever format they came from.

A sample holds boxes in pixels, classes by their place in an explicit table of categories, and outlines where there are
any; pixels and masks are made only when a batch needs them. The table keeps the ids of the file (COCO's have gaps), so
that predictions go back out under the very ids that came in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast, overload

import numpy as np
from jaxtyping import Bool, Float, Int64

from odonata.data.sample import ImageRef, Problem, split_names
from odonata.errors import DataError

Outline = list[list[float]] | dict[str, Any] | Callable[[], np.ndarray]
"""One object's pixels: polygons [[x1, y1, x2, y2, …], …], COCO's RLE {"size", "counts"}, or a picklable function that
returns the mask, bool [height, width]."""


@dataclass(frozen=True)
class Category:
    """One row of the table of categories: the place in the table is the label that a model learns.

    Args:
        id: as the file has it (COCO's numbers; a name where the format has names only).
        name: for people.
    """

    id: int | str
    name: str


@dataclass(frozen=True, eq=False)
class ObjectImage:
    """One picture with its objects.

    Args:
        image: where the pixels are.
        size: (height, width) in pixels, upright.
        boxes: xyxy in absolute pixels.
        labels: place of each object's category in the table.
        crowd: regions that are neither to be found nor to be punished: COCO's crowds, VOC's difficult objects.
        outlines: of each object, or None where the set has boxes only.
        areas: of each object in pixels, as COCO's size classes count them; the box's area where the file says none.
        id: of the picture, as the file has it.
        split: "train", "val", "test" or another name.
    """

    image: ImageRef
    size: tuple[int, int]
    boxes: Float[np.ndarray, "objects 4"]
    labels: Int64[np.ndarray, " objects"]
    crowd: Bool[np.ndarray, " objects"]
    outlines: tuple[Outline, ...] | None = None
    areas: Float[np.ndarray, " objects"] | None = None
    id: int | str = ""
    split: str | None = None

    def masks(self) -> Bool[np.ndarray, "objects height width"]:
        """Paint the outlines.

        Raises:
            DataError: there are none, or one does not fit the picture.
        """
        from odonata.ops.masks import Rle, decode, polygons_to_mask

        if self.outlines is None:
            raise DataError(f"{self.image.name}: the objects have boxes only, and masks are wanted")
        painted = np.zeros((len(self.outlines), *self.size), dtype=bool)
        for number, outline in enumerate(self.outlines):
            if callable(outline):
                mask = outline()
            elif isinstance(outline, dict):
                mask = decode(cast(Rle, outline)).numpy()
            else:
                mask = polygons_to_mask(outline, *self.size).numpy()
            if mask.shape != self.size:
                raise DataError(f"{self.image.name}: mask {number} is {mask.shape}, and the picture is {self.size}")
            painted[number] = mask
        return painted


@dataclass(frozen=True, eq=False)
class ObjectSource(Sequence[ObjectImage]):
    """A set of pictures with objects.

    Args:
        samples: in the order of the file.
        categories: the table.
        origin: the path that it was read from.
        problems: what was left out or mended, each with its place.
        kind: the format that was read: coco, voc, yolo, masks, objects.
    """

    samples: Sequence[ObjectImage]
    categories: tuple[Category, ...]
    origin: str = ""
    problems: tuple[Problem, ...] = ()
    kind: str = ""

    @overload
    def __getitem__(self, index: int) -> ObjectImage: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[ObjectImage]: ...
    def __getitem__(self, index: int | slice) -> ObjectImage | Sequence[ObjectImage]:
        return self.samples[index]

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the categories in the order of the labels."""
        return tuple(category.name for category in self.categories)

    @property
    def num_objects(self) -> int:
        """Objects in the whole set, crowds not counted."""
        return sum(int((~sample.crowd).sum()) for sample in self.samples)

    @cached_property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits that the pictures carry, in order of appearance."""
        return tuple(dict.fromkeys(sample.split for sample in self.samples if sample.split is not None))

    def split(self, name: str) -> ObjectSource:
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

    def subset(self, indices: Iterable[int]) -> ObjectSource:
        """The pictures at these indices, in this order."""
        return replace(self, samples=[self.samples[index] for index in indices])

    def with_categories(self, categories: tuple[Category, ...]) -> ObjectSource:
        """The same objects with labels counted by another table, by name.

        Raises:
            DataError: a category is not in the table.
        """
        if tuple(c.name for c in categories) == self.names:
            return replace(self, categories=categories)
        place = {category.name: index for index, category in enumerate(categories)}
        unknown = [name for name in self.names if name not in place]
        used = {self.names[label] for sample in self.samples for label in sample.labels.tolist()}
        if lost := [name for name in unknown if name in used]:
            raise DataError(
                f"{self.origin}: class {lost[0]!r} is not among the model's {len(categories)} classes "
                f"({', '.join(list(place)[:8])}{', …' if len(place) > 8 else ''})"
            )
        table = np.array([place.get(name, -1) for name in self.names], dtype=np.int64)
        samples = [replace(sample, labels=table[sample.labels]) for sample in self.samples]
        return replace(self, samples=samples, categories=categories)

    def as_one_class(self, name: str) -> ObjectSource:
        """The same objects, all of one class of this name."""
        samples = [replace(sample, labels=np.zeros_like(sample.labels)) for sample in self.samples]
        return replace(self, samples=samples, categories=(Category(1, name),))

    def fingerprint(self) -> str:
        """SHA-256 over categories, ids, boxes, labels, and picture names (not pixels: it must be quick)."""
        digest = hashlib.sha256(repr(self.categories).encode())
        for sample in self.samples:
            name = sample.image.path.name if sample.image.path is not None else sample.image.label
            digest.update(repr((sample.id, name, sample.image.offset, sample.image.num_bytes)).encode())
            for array in (sample.boxes, sample.labels, sample.crowd):
                digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()
