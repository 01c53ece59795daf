"""Pictures with captions for training: the options, the keyed data set, and which part is held back."""

import hashlib
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, Protocol, Self, TypeVar

import torch
from jaxtyping import UInt8
from torch import Tensor

from odonata.data.images import MAX_PIXELS
from odonata.data.item import Item
from odonata.data.keys import keyed_generator, mix
from odonata.data.loader import ClassBalanced, Key, Sampler, Shuffled, labels_of
from odonata.data.randaugment import RandAugment
from odonata.data.resize import Interpolation
from odonata.data.sample import ImageRef, ImageTextSource
from odonata.data.sources import open_image_text
from odonata.data.transforms import (
    ColorJitter,
    Compose,
    Grayscale,
    HorizontalFlip,
    RandomResizedCrop,
    Resize,
    Transform,
)
from odonata.errors import DataError

log = logging.getLogger(__name__)

Augment = Literal["none", "flip", "crop", "strong"]
HELD_BACK = 0.1


class Pictured(Protocol):
    """Anything with a picture."""

    @property
    def image(self) -> ImageRef: ...


class Divisible(Protocol):
    """A source that can be divided: of pictures with captions, with objects, with maps."""

    @property
    def origin(self) -> str: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Pictured: ...
    def split(self, name: str, /) -> Self: ...
    def has_split(self, name: str, /) -> bool: ...
    def subset(self, indices: Iterable[int], /) -> Self: ...


Source = TypeVar("Source", bound=Divisible)


@dataclass(frozen=True)
class ImageTextData:
    """Pictures with captions: where they are and how they are fed."""

    path: str = "scenes"
    """Manifest (.csv .tsv .jsonl), Karpathy or COCO .json, folder of classes, tar shards, IDX, or "scenes"."""
    images: str | None = None
    """Folder that picture names are relative to, where it is not found by itself."""
    split: str | None = None
    """Split to train on; by default "train" if the set has one, else everything but the part held back."""
    image_column: str | None = None
    """Column of a manifest with the pictures, where its name is unusual."""
    caption_column: str | None = None
    """Column of a manifest with the captions, where its name is unusual."""
    on_error: Literal["raise", "skip"] = "raise"
    """What to do about a bad row or picture: stop with a message, or leave it out and count it."""
    batch_size: int = 64
    """Pictures in a step, all processes together."""
    workers: int = 0
    """Processes that prepare batches beside each training process."""
    sampling: Literal["shuffled", "balanced"] = "shuffled"
    """Each item once an epoch, or every class equally often."""
    augment: Augment = "crop"
    """none: resize only; flip; crop: random crop; strong: crop, flip, colour and RandAugment. Flips and colour changes
    make captions such as "left of" or "red" untrue."""
    crop_scale: tuple[float, float] = (0.9, 1.0)
    """Least and most share of the picture's area that a random crop keeps."""
    captions: Literal["random", "first"] = "random"
    """Which of a picture's captions a step uses."""
    template: str = "a photo of a {}"
    """Makes the caption where the set has class names only."""


@dataclass(frozen=True, eq=False)
class ImageTextItem:
    """What one key gives.

    Args:
        image: augmented pixels.
        caption: one of the captions.
        index: of the sample in its source (of its replacement, where a bad picture was skipped).
        label: class, -1 where there is none.
        group: hash of the picture's name, equal for equal pictures: two captions of one picture are no negatives.
    """

    image: UInt8[Tensor, "3 height width"]
    caption: str
    index: int
    label: int
    group: int


class ImageTextDataset:
    """A source as `Batches` reads it: item (epoch, index) is a pure function of its key and the seed.

    Args:
        source: the samples.
        transform: of the picture; see `augmentation`.
        seed: of augmentation and choice of caption.
        captions: "random" draws one of the captions by the key, "first" takes the first.
        on_error: what to do about a picture that cannot be decoded: "raise", or "skip" to the next with a warning.
        max_pixels: limit on a picture's size.
    """

    def __init__(
        self,
        source: ImageTextSource,
        transform: Transform,
        seed: int = 0,
        *,
        captions: Literal["random", "first"] = "random",
        on_error: Literal["raise", "skip"] = "raise",
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        if len(source) == 0:
            raise DataError(f"{source.origin}: no pictures to train on")
        self.source, self.transform, self.seed = source, transform, seed
        self.captions, self.on_error, self.max_pixels = captions, on_error, max_pixels
        self.skipped: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: Key) -> ImageTextItem:
        epoch, wanted = key
        for attempt in range(len(self.source)):
            index = (wanted + attempt) % len(self.source)
            sample = self.source[index]
            try:
                image = sample.image.tensor(max_pixels=self.max_pixels)
            except DataError as error:
                if self.on_error == "raise":
                    raise
                self._note(sample.image.name, str(error))
                continue
            generator = keyed_generator(self.seed, epoch, wanted)
            caption = sample.captions[0]
            if self.captions == "random":
                caption = sample.captions[int(torch.randint(len(sample.captions), (1,), generator=generator))]
            augmented = self.transform(Item(image), generator).image
            label = -1 if sample.label is None else sample.label
            return ImageTextItem(augmented, caption, index, label, group_of(sample.image.name))
        raise DataError(f"{self.source.origin}: none of its {len(self.source)} pictures can be decoded")

    def _note(self, name: str, reason: str) -> None:
        # Counted per process: a worker tells of its own pictures, once each.
        if name not in self.skipped:
            self.skipped[name] = reason
            log.warning("skipped a picture (%d so far in this process): %s", len(self.skipped), reason)


def group_of(name: str) -> int:
    """A non-negative 63-bit number for a picture's name."""
    return int.from_bytes(hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=8).digest(), "big") >> 1


def augmentation(
    size: int | tuple[int, int],
    augment: Augment = "crop",
    crop_scale: tuple[float, float] = (0.9, 1.0),
    interpolation: Interpolation = "bicubic",
    *,
    final: Callable[[Item], Item] | None = None,
) -> Transform:
    """The training transform to pictures of this size.

    Args:
        size: side or (height, width).
        augment: "none" squashes to the size; "flip" also mirrors; "crop" cuts at random; "strong" does all, with
            colour changes and RandAugment.
        crop_scale: of the random crop.
        interpolation: of the resize.
        final: a deterministic step to end with.
    """
    pair = (size, size) if isinstance(size, int) else size
    whole, crop = Resize(pair, interpolation), RandomResizedCrop(pair, crop_scale, interpolation=interpolation)
    steps: dict[str, list[Transform]] = {
        "none": [whole],
        "flip": [whole, HorizontalFlip()],
        "crop": [crop],
        "strong": [crop, HorizontalFlip(), ColorJitter(p=0.8), Grayscale(0.1), RandAugment(2, 5)],
    }
    if augment not in steps:
        raise ValueError(f"augment {augment!r} is unknown; known: {', '.join(steps)}")
    last: list[Transform] = [lambda item, generator: final(item)] if final is not None else []
    return Compose((*steps[augment], *last))


def make_sampler(source: ImageTextSource, config: ImageTextData, seed: int) -> Sampler:
    """The sampler that the options ask for. Raises DataError where it does not fit the set."""
    if config.sampling == "shuffled":
        return Shuffled(len(source), config.batch_size, seed)
    labels = labels_of(source.samples)
    if max(labels) < 0:
        raise DataError(f"{source.origin}: sampling 'balanced' needs classes, and the set has none")
    return ClassBalanced(labels, config.batch_size, seed)


def train_and_heldout(config: ImageTextData) -> tuple[ImageTextSource, ImageTextSource | None]:
    """Open the data and divide it into what is trained on and what is held back.

    The held-back part is the set's own val or test split. A set without one gives a tenth of its pictures, chosen by a
    hash of their bytes: the choice does not depend on the order, and equal pictures never fall on both sides. None
    where a split was named and the set has no other.
    """
    source = open_image_text(
        config.path,
        images=config.images,
        image_column=config.image_column,
        caption_column=config.caption_column,
        on_error=config.on_error,
        class_template=config.template,
    )
    _refuse_sameness(source)
    return divide(source, config.split)


def divide(source: Source, split: str | None = None) -> tuple[Source, Source | None]:
    """Divide a source into what is trained on and what is held back; see `train_and_heldout`.

    Args:
        source: the whole set.
        split: what to train on; None takes "train", or all but the part held back.
    """
    held = next((name for name in ("val", "test") if name != split and source.has_split(name)), None)
    if split is not None:
        return source.split(split), source.split(held) if held else None
    if held and source.has_split("train"):
        return source.split("train"), source.split(held)
    return hold_back(source)


def _refuse_sameness(source: ImageTextSource) -> None:
    first = source[0].captions[0]
    if len(source) > 1 and all(caption == first for sample in source for caption in sample.captions):
        classes = "there is one class only" if source.classes else "every caption is the same"
        raise DataError(f"{source.origin}: {classes} ({first!r}): nothing can be told apart; add pictures of others")


def hold_back(source: Source, share: float = HELD_BACK) -> tuple[Source, Source | None]:
    """Divide a source by a hash of each picture's bytes; (everything, None) where either part would be empty."""
    chosen = [_content_share(source, index) < share for index in range(len(source))]
    train = [index for index, held in enumerate(chosen) if not held]
    heldout = [index for index, held in enumerate(chosen) if held]
    if not train or not heldout:
        log.warning("%s: too few pictures (%d) to hold any back", source.origin, len(source))
        return source, None
    log.info("%s: held back %d of %d pictures, chosen by hash", source.origin, len(heldout), len(source))
    return source.subset(train), source.subset(heldout)


def _content_share(source: Divisible, index: int) -> float:
    """A number from 0 to 1 that depends on the picture's size and first bytes, so equal pictures have equal ones."""
    image = source[index].image
    try:
        content = image.read_bytes(limit=16384)
    except DataError:
        content = image.name.encode(errors="surrogateescape")
    digest = hashlib.blake2b(content, digest_size=7).digest()
    return mix(int.from_bytes(digest, "big"), image.num_bytes) / 2**64
