"""Pictures with or without classes for training: the options, what is held back, and several views of each picture."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import UInt8
from torch import Tensor

from odonata.data.image_text import divide
from odonata.data.images import MAX_PIXELS
from odonata.data.item import Item
from odonata.data.keys import keyed_generator
from odonata.data.loader import ClassBalanced, Key, Sampler, Shuffled, labels_of
from odonata.data.rows import IMAGE_SUFFIXES
from odonata.data.sample import ImageRef, ImageText, ImageTextSource
from odonata.data.sources import open_image_text
from odonata.data.transforms import Transform
from odonata.errors import DataError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PictureData:
    """Pictures: where they are and how they are fed."""

    path: str = "digits:n=4000,size=32"
    """Folder of pictures, or of class folders (with train and val inside, or not), manifest, IDX, tar shards; or an
    embedded set: "digits" or, on textured grounds, "scenes-digits" (10 classes), "scenes-classes" (80)."""
    split: str | None = None
    """Split to train on; by default "train" if the set has one, else everything but the part held back."""
    on_error: Literal["raise", "skip"] = "raise"
    """What to do about a picture that cannot be read: stop with a message, or leave it out and count it."""
    batch_size: int = 128
    """Pictures in a step, all processes together."""
    workers: int = 0
    """Processes that prepare batches beside each training process."""
    sampling: Literal["shuffled", "balanced"] = "shuffled"
    """Each picture once an epoch, or every class equally often."""
    limit: int = 0
    """Train on so many pictures only, always the same choice at random (0 = all)."""


def open_pictures(path: str | Path, on_error: Literal["raise", "skip"] = "raise", **columns: Any) -> ImageTextSource:
    """Open a set of pictures; captions and classes may be absent.

    Args:
        path: what `open_image_text` takes, or a folder with pictures at any depth and nothing said about them.
        on_error: "raise" at the first bad row, or "skip" it.
        columns: `images`, `image_column` and `caption_column` of `open_image_text`.

    Raises:
        DataError: nothing there, or no picture in it.
    """
    folder = Path(path).expanduser()
    if folder.is_dir() and (own := _bare_pictures(folder)):
        samples = [ImageText(ImageRef(file), (), id=file.relative_to(folder).as_posix()) for file in own]
        return ImageTextSource(samples, None, str(path), kind="pictures")
    return open_image_text(path, on_error=on_error, **columns)


def _bare_pictures(folder: Path) -> list[Path]:
    """The pictures of a folder that holds some itself, where no captions lie beside them; empty otherwise."""
    direct = [item for item in folder.iterdir() if item.suffix.lower() in IMAGE_SUFFIXES]
    described = any(item.suffix.lower() in (".txt", ".jsonl", ".csv", ".tsv", ".json") for item in folder.iterdir())
    if not direct or described:
        return []
    return sorted(item for item in folder.rglob("*") if item.suffix.lower() in IMAGE_SUFFIXES and item.name[0] != ".")


def train_and_heldout_pictures(data: PictureData) -> tuple[ImageTextSource, ImageTextSource | None]:
    """Open the data and divide it into what is trained on and what is held back, as `image_text.divide` does.

    Raises:
        DataError: the set cannot be read, or holds a single picture.
    """
    source = open_pictures(data.path, data.on_error)
    if len(source) < 2:
        raise DataError(f"{source.origin}: one picture only: nothing can be learned from it; add others")
    train, heldout = divide(source, data.split)
    if data.limit and data.limit < len(train):
        train = train.subset(chosen_indices(len(train), data.limit))
    return train, heldout


def chosen_indices(count: int, most: int) -> list[int]:
    """At most so many of `count` indices, ascending: always the same choice at random, since sets are often sorted."""
    if count <= most:
        return list(range(count))
    return sorted(torch.randperm(count, generator=torch.Generator().manual_seed(0))[:most].tolist())


@dataclass(frozen=True)
class View:
    """One way to look at a picture, and how many such looks a step takes."""

    transform: Transform
    count: int = 1


@dataclass
class ViewBatch:
    """Several views of each picture of a batch: bytes, normalised on the device by the method."""

    views: list[UInt8[Tensor, "batch 3 height width"]]
    """One entry a view, large ones first; sizes may differ between views."""
    labels: Tensor
    """Classes, -1 where there is none."""
    indices: Tensor
    """Number of each picture in its source."""


@dataclass(frozen=True, eq=False)
class ViewItem:
    """What one key gives."""

    views: list[UInt8[Tensor, "3 height width"]]
    label: int
    index: int


class ViewDataset:
    """A source as `Batches` reads it: the views of (epoch, index) are a pure function of the key and the seed.

    Args:
        source: the pictures.
        views: what is taken of each.
        seed: of the augmentation.
        on_error: what to do about a picture that cannot be decoded: "raise", or "skip" to the next with a warning.
        max_pixels: limit on a picture's size.
    """

    def __init__(
        self,
        source: ImageTextSource,
        views: Sequence[View],
        seed: int = 0,
        *,
        on_error: Literal["raise", "skip"] = "raise",
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        if len(source) == 0:
            raise DataError(f"{source.origin}: no pictures to train on")
        self.source, self.views, self.seed = source, tuple(views), seed
        self.on_error, self.max_pixels = on_error, max_pixels
        self.skipped: set[str] = set()

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: Key) -> ViewItem:
        epoch, wanted = key
        for attempt in range(len(self.source)):
            index = (wanted + attempt) % len(self.source)
            sample = self.source[index]
            try:
                item = Item(sample.image.tensor(max_pixels=self.max_pixels))
            except DataError as error:
                if self.on_error == "raise":
                    raise
                if sample.image.name not in self.skipped:
                    self.skipped.add(sample.image.name)
                    log.warning("skipped a picture (%d so far in this process): %s", len(self.skipped), error)
                continue
            generator = keyed_generator(self.seed, epoch, wanted)
            taken = [view.transform(item, generator).image for view in self.views for _ in range(view.count)]
            return ViewItem(taken, -1 if sample.label is None else sample.label, index)
        raise DataError(f"{self.source.origin}: none of its {len(self.source)} pictures can be decoded")


def collate_views(items: list[ViewItem]) -> ViewBatch:
    """Make a batch of items."""
    views = [torch.stack([item.views[i] for item in items]) for i in range(len(items[0].views))]
    return ViewBatch(views, torch.tensor([item.label for item in items]), torch.tensor([item.index for item in items]))


def picture_sampler(source: ImageTextSource, data: PictureData, seed: int) -> Sampler:
    """The sampler that the options ask for. Raises DataError where it does not fit the set."""
    if data.sampling == "shuffled":
        return Shuffled(len(source), data.batch_size, seed)
    labels = labels_of(source.samples)
    if max(labels) < 0:
        raise DataError(f"{source.origin}: sampling 'balanced' needs classes, and the set has none")
    return ClassBalanced(labels, data.batch_size, seed)


def with_classes_of(source: ImageTextSource, classes: tuple[str, ...]) -> ImageTextSource:
    """The source with labels numbered by another list of class names.

    Raises:
        DataError: it has no classes, or one that is not in the list.
    """
    if source.classes is None:
        raise DataError(f"{source.origin}: the pictures have no classes; want path/class/*.jpg")
    unknown = [name for name in source.classes if name not in classes]
    if unknown:
        raise DataError(f"{source.origin}: class {unknown[0]!r} is not among the model's {len(classes)} classes")
    if source.classes == classes:
        return source
    number = {index: classes.index(name) for index, name in enumerate(source.classes)}
    samples = [replace(s, label=None if s.label is None else number[s.label]) for s in source]
    return replace(source, samples=samples, classes=classes)
