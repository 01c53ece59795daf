"""Pictures with objects as training batches: the options, the data set, and how pictures become a batch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64, Real, UInt8
from torch import Tensor

from odonata.data.image_text import divide
from odonata.data.images import MAX_PIXELS
from odonata.data.item import Item
from odonata.data.keys import keyed_generator
from odonata.data.loader import Key
from odonata.data.objects import ObjectImage, ObjectSource
from odonata.data.pictures import chosen_indices
from odonata.data.transforms import Transform
from odonata.errors import DataError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ObjectData:
    """Pictures with boxes or masks: where they are and how they are fed."""

    path: str = "objects:n=1500"
    """COCO json or its folder, VOC folder, YOLO folder or data.yaml, folder of pictures and instance maps; or the
    embedded set "objects" (digits of many sizes on textured grounds)."""
    images: str = ""
    """Folder that the picture names of a COCO json are relative to, where it is not found by itself."""
    split: str | None = None
    """Split to train on; by default "train" if the set has one, else everything but the part held back."""
    on_error: Literal["raise", "skip"] = "raise"
    """What to do about a bad annotation or picture: stop with a message, or leave it out and count it."""
    batch_size: int = 8
    """Pictures in a step, all processes together."""
    workers: int = 0
    """Processes that prepare batches beside each training process."""
    augment: Literal["none", "flip", "standard", "ssd", "mosaic"] = "standard"
    """`flip`; `standard` also colours, scale and crop; `ssd`: the paper's crops by overlap and zoom-out; `mosaic`: four
    pictures in one, with mixup."""
    copy_paste: float = 0.0
    """Probability of pasting objects of another picture (needs masks)."""
    limit: int = 0
    """Train on so many pictures only, always the same choice at random (0 = all)."""
    one_class: str = ""
    """Count the objects of all classes as one of this name, for detectors of one class (MTCNN: face)."""


@dataclass
class ObjectBatch:
    """A batch of pictures with objects, padded right and below to one size."""

    images: UInt8[Tensor, "batch 3 height width"] | Float[Tensor, "batch 3 height width"]
    """Values from 0 to 255."""
    sizes: Int64[Tensor, "batch 2"]
    """(height, width) of each picture within the frame."""
    boxes: list[Float[Tensor, "objects 4"]]
    """xyxy in pixels of the frame."""
    labels: list[Int64[Tensor, " objects"]]
    """Place of each object's category in the table."""
    ignore: list[Bool[Tensor, " objects"]]
    """Objects that are neither positives nor negatives: crowds, and those outside a scale policy's range."""
    scales: Float[Tensor, " batch"]
    """Pixels of the frame for one of the picture: ranges of object size count in the picture's own pixels."""
    indices: Int64[Tensor, " batch"]
    """Number of each picture in its source."""
    masks: list[Bool[Tensor, "objects height width"]] | None = None
    """Pixels of each object in the frame."""
    points: list[Float[Tensor, "objects points 2"]] | None = None
    """Landmarks (x, y) of each object in pixels of the frame, NaN where they are not known."""

    def __len__(self) -> int:
        return self.images.shape[0]

    def trained(self, picture: int) -> tuple[Float[Tensor, "objects 4"], Int64[Tensor, " objects"]]:
        """Boxes and labels of one picture that are to be found."""
        wanted = ~self.ignore[picture]
        return self.boxes[picture][wanted], self.labels[picture][wanted]


class Mix(Protocol):
    """Makes one picture of several: mosaic, mixup, copy-paste."""

    @property
    def others(self) -> int:
        """How many pictures it takes besides the one asked for."""
        ...

    def __call__(self, items: Sequence[Item], generator: torch.Generator, /) -> Item: ...


@dataclass(frozen=True, eq=False)
class ObjectItem:
    """What one key gives."""

    item: Item
    index: int


class ObjectDataset:
    """A source as `Batches` reads it: item (epoch, index) is a pure function of the key and the seed.

    Args:
        source: the pictures.
        transform: of one picture with its objects, to the frame of the detector.
        seed: of the augmentation.
        mixes: applied in turn before `transform`.
        masks: whether masks are wanted.
        on_error: what to do about a picture that cannot be decoded: "raise", or "skip" to the next with a warning.
        max_pixels: limit on a picture's size.
    """

    def __init__(
        self,
        source: ObjectSource,
        transform: Transform,
        seed: int = 0,
        *,
        mixes: Sequence[Mix] = (),
        masks: bool = False,
        on_error: Literal["raise", "skip"] = "raise",
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        if len(source) == 0:
            raise DataError(f"{source.origin}: no pictures to train on")
        self.source, self.transform, self.seed, self.mixes = source, transform, seed, tuple(mixes)
        self.masks, self.on_error, self.max_pixels = masks, on_error, max_pixels
        self.skipped: set[str] = set()

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: Key) -> ObjectItem:
        epoch, wanted = key
        generator = keyed_generator(self.seed, epoch, wanted)
        item, index = self._readable(wanted)
        for mix in self.mixes:
            chosen = torch.randint(len(self.source), (mix.others,), generator=generator).tolist()
            item = mix([item, *(self._readable(other)[0] for other in chosen)], generator)
        return ObjectItem(self.transform(item, generator), index)

    def _readable(self, wanted: int) -> tuple[Item, int]:
        """The first picture from this one on that can be decoded."""
        for attempt in range(len(self.source)):
            index = (wanted + attempt) % len(self.source)
            sample = self.source[index]
            try:
                return read_item(sample, self.masks, self.max_pixels), index
            except DataError as error:
                if self.on_error == "raise":
                    raise
                if sample.image.name not in self.skipped:
                    self.skipped.add(sample.image.name)
                    log.warning("skipped a picture (%d so far in this process): %s", len(self.skipped), error)
        raise DataError(f"{self.source.origin}: none of its {len(self.source)} pictures can be decoded")


def read_item(sample: ObjectImage, masks: bool = False, max_pixels: int = MAX_PIXELS) -> Item:
    """Decode a picture with its objects.

    Raises:
        DataError: it cannot be decoded, or its size is not the one its annotation was made for.
    """
    image = sample.image.tensor(max_pixels=max_pixels)
    if tuple(image.shape[-2:]) != sample.size:
        raise DataError(
            f"{sample.image.name}: the picture is {image.shape[-1]} × {image.shape[-2]} px, and its annotation was "
            f"made for {sample.size[1]} × {sample.size[0]}"
        )
    return Item(
        image,
        boxes=torch.from_numpy(sample.boxes).float(),
        labels=torch.from_numpy(sample.labels),
        masks=torch.from_numpy(sample.masks()) if masks else None,
        ignore=torch.from_numpy(sample.crowd),
    )


def collate_objects(divisor: int) -> Callable[[list[ObjectItem]], ObjectBatch]:
    """The function that pads items to one size, a multiple of `divisor`, and stacks them."""

    def collate(items: list[ObjectItem]) -> ObjectBatch:
        return to_batch([item.item for item in items], divisor, [item.index for item in items])

    return collate


def to_batch(items: Sequence[Item], divisor: int, indices: Sequence[int] | None = None) -> ObjectBatch:
    """Pad items right and below to one size, a multiple of `divisor`, and stack them."""
    sizes = torch.tensor([item.height_width for item in items])
    height, width = (-(-int(side) // divisor) * divisor for side in sizes.amax(0))

    def padded(pixels: Real[Tensor, "channels h w"]) -> Real[Tensor, "channels height width"]:
        return F.pad(pixels, (0, width - pixels.shape[-1], 0, height - pixels.shape[-2]))

    nothing = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.bool)
    labels = [nothing[1] if item.labels is None else item.labels for item in items]
    with_masks = all(item.masks is not None for item in items)
    return ObjectBatch(
        images=torch.stack([padded(item.image) for item in items]),
        sizes=sizes,
        boxes=[nothing[0] if item.boxes is None else item.boxes.float() for item in items],
        labels=labels,
        ignore=[
            torch.zeros_like(label, dtype=torch.bool) if item.ignore is None else item.ignore
            for item, label in zip(items, labels, strict=True)
        ],
        scales=torch.tensor([item.scale for item in items]),
        indices=torch.tensor(list(range(len(items))) if indices is None else list(indices)),
        masks=[padded(item.masks) for item in items if item.masks is not None] if with_masks else None,
        points=_points(items),
    )


def _points(items: Sequence[Item]) -> list[Float[Tensor, "objects points 2"]] | None:
    """Landmarks of the objects of each picture, where every picture has them."""
    found = [item.points for item in items if item.points is not None and item.points.ndim == 3]
    return found if len(found) == len(items) else None


def train_and_heldout_objects(data: ObjectData) -> tuple[ObjectSource, ObjectSource | None]:
    """Open the data and divide it into what is trained on and what is held back, as `image_text.divide` does.

    Raises:
        DataError: the set cannot be read, holds a single picture, or no object in all of its pictures.
    """
    from odonata.data.open_objects import open_objects

    source = open_objects(data.path, images=data.images or None, on_error=data.on_error)
    if data.one_class:
        source = source.as_one_class(data.one_class)
    if len(source) < 2:
        raise DataError(f"{source.origin}: one picture only: nothing can be learned from it; add others")
    train, heldout = divide(source, data.split)
    if data.limit and data.limit < len(train):
        train = train.subset(chosen_indices(len(train), data.limit))
    if train.num_objects == 0:
        raise DataError(f"{source.origin}: {len(train)} pictures and no object in any: there is nothing to learn")
    if heldout is not None:
        heldout = heldout.with_categories(train.categories)
    return train, heldout


def ignoring_all_but(item: Item, keep: Bool[Tensor, " objects"]) -> Item:
    """The item with objects that are not kept marked as ignored."""
    ignore = torch.zeros_like(keep) if item.ignore is None else item.ignore
    return replace(item, ignore=ignore | ~keep)
