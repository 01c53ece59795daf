"""Pictures with maps of classes as training batches: the options, and how pictures become a batch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from odonata.data.image_text import divide
from odonata.data.images import MAX_PIXELS
from odonata.data.item import Item
from odonata.data.keys import keyed_generator
from odonata.data.loader import Key
from odonata.data.pictures import chosen_indices
from odonata.data.semantic import VOID, SemanticImage, SemanticSource
from odonata.data.transforms import Transform
from odonata.errors import DataError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SemanticData:
    """Pictures with maps of classes: where they are and how they are fed."""

    path: str = "objects:n=1500"
    """CamVid's or VOC's folder, or one with images/ and masks/ and a classes.txt; or the embedded set "objects" (digits
    of many sizes on textured grounds)."""
    images: str = ""
    """Folder of the pictures, where it is not found by itself."""
    split: str | None = None
    """Split to train on; by default "train" if the set has one, else everything but the part held back."""
    on_error: Literal["raise", "skip"] = "raise"
    """What to do about a bad picture or map: stop with a message, or leave it out; a value that is no class's then
    counts as void."""
    batch_size: int = 8
    """Pictures in a step, all processes together."""
    workers: int = 0
    """Processes that prepare batches beside each training process."""
    augment: Literal["none", "flip", "standard"] = "standard"
    """`flip`; `standard` also scales and crops."""
    limit: int = 0
    """Train on so many pictures only, always the same choice at random (0 = all)."""


@dataclass
class SemanticBatch:
    """A batch of pictures with maps, padded right and below to one size."""

    images: UInt8[Tensor, "batch 3 height width"]
    maps: Int64[Tensor, "batch height width"]
    """Class of every pixel; 255 where nothing is said, and outside the picture."""
    sizes: Int64[Tensor, "batch 2"]
    """(height, width) of each picture within the frame."""
    indices: Int64[Tensor, " batch"]
    """Number of each picture in its source."""

    def __len__(self) -> int:
        return self.images.shape[0]


@dataclass(frozen=True, eq=False)
class SemanticItem:
    """What one key gives."""

    item: Item
    index: int


class SemanticDataset:
    """A source as `Batches` reads it: item (epoch, index) is a pure function of the key and the seed.

    Args:
        source: the pictures.
        transform: of one picture with its map.
        seed: of the augmentation.
        on_error: what to do about a picture or map that cannot be read: "raise", or "skip" to the next with a warning.
        max_pixels: limit on a picture's size.
    """

    def __init__(
        self,
        source: SemanticSource,
        transform: Transform,
        seed: int = 0,
        *,
        on_error: Literal["raise", "skip"] = "raise",
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        if len(source) == 0:
            raise DataError(f"{source.origin}: no pictures to train on")
        self.source, self.transform, self.seed = source, transform, seed
        self.on_error, self.max_pixels = on_error, max_pixels
        self.skipped: set[str] = set()

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: Key) -> SemanticItem:
        epoch, wanted = key
        for attempt in range(len(self.source)):
            index = (wanted + attempt) % len(self.source)
            try:
                item = read_semantic(self.source[index], self.max_pixels)
            except DataError as error:
                if self.on_error == "raise":
                    raise
                if (name := self.source[index].image.name) not in self.skipped:
                    self.skipped.add(name)
                    log.warning("skipped a picture (%d so far in this process): %s", len(self.skipped), error)
                continue
            return SemanticItem(self.transform(item, keyed_generator(self.seed, epoch, wanted)), index)
        raise DataError(f"{self.source.origin}: none of its {len(self.source)} pictures can be read")


def read_semantic(sample: SemanticImage, max_pixels: int = MAX_PIXELS) -> Item:
    """Decode a picture with its map.

    Raises:
        DataError: either cannot be read, or they differ in size.
    """
    image, labels = sample.image.tensor(max_pixels=max_pixels), sample.map.read()
    if image.shape[-2:] != labels.shape:
        raise DataError(
            f"{sample.map.name}: the map is {labels.shape[1]} × {labels.shape[0]} px, and its picture "
            f"{image.shape[-1]} × {image.shape[-2]}"
        )
    return Item(image, classes=torch.from_numpy(labels))


def collate_semantic(divisor: int) -> Callable[[list[SemanticItem]], SemanticBatch]:
    """The function that pads items to one size, a multiple of `divisor`, and stacks them."""

    def collate(items: list[SemanticItem]) -> SemanticBatch:
        return to_semantic_batch([item.item for item in items], divisor, [item.index for item in items])

    return collate


def to_semantic_batch(items: Sequence[Item], divisor: int, indices: Sequence[int] | None = None) -> SemanticBatch:
    """Pad items right and below to one size, a multiple of `divisor`, and stack them; items without a map are void."""
    sizes = torch.tensor([item.height_width for item in items])
    height, width = (-(-int(side) // divisor) * divisor for side in sizes.amax(0))
    images = torch.zeros((len(items), 3, height, width), dtype=torch.uint8)
    maps = torch.full((len(items), height, width), VOID, dtype=torch.int64)
    for number, item in enumerate(items):
        h, w = item.height_width
        images[number, :, :h, :w] = item.image
        if item.classes is not None:
            maps[number, :h, :w] = item.classes
    numbers = list(range(len(items))) if indices is None else list(indices)
    return SemanticBatch(images, maps, sizes, torch.tensor(numbers))


def train_and_heldout_semantic(data: SemanticData) -> tuple[SemanticSource, SemanticSource | None]:
    """Open the data and divide it into what is trained on and what is held back, as `image_text.divide` does.

    Raises:
        DataError: the set cannot be read, or holds a single picture.
    """
    from odonata.data.open_semantic import open_semantic

    source = open_semantic(data.path, images=data.images or None, on_error=data.on_error)
    if len(source) < 2:
        raise DataError(f"{source.origin}: one picture only: nothing can be learned from it; add others")
    train, heldout = divide(source, data.split)
    if data.limit and data.limit < len(train):
        train = train.subset(chosen_indices(len(train), data.limit))
    return train, heldout
