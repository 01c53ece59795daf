"""Random transforms of a picture together with its boxes, masks and points.

Each transform is a value (a frozen dataclass) and draws only from the generator that it is given. With
`keyed_generator(seed, epoch, index)` an item looks the same whatever worker makes it and whenever: that is what makes a
resumed run exact.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from odonata.data import color
from odonata.data.item import Item, center_crop_item, crop_item, flip_item, letterbox_item, resize_item, shift_item
from odonata.data.keys import keyed_generator, mix
from odonata.data.resize import Backend, Interpolation, shortest_side_size

__all__ = [
    "CenterCrop",
    "ColorJitter",
    "Compose",
    "GaussianBlur",
    "Grayscale",
    "HorizontalFlip",
    "Item",
    "Letterbox",
    "PaddedCrop",
    "RandomCrop",
    "RandomResizedCrop",
    "Resize",
    "Solarize",
    "Transform",
    "keyed_generator",
    "mix",
]


_ADJUSTMENTS: tuple[color.Adjustment, ...] = ("brightness", "contrast", "saturation", "hue")


class Transform(Protocol):
    """What changes an item, with chance from the generator alone."""

    def __call__(self, item: Item, generator: torch.Generator, /) -> Item: ...


def draw(generator: torch.Generator, count: int) -> list[float]:
    """Uniform numbers from 0 to 1."""
    return torch.rand(count, generator=generator).tolist()


def between(share: float, low: float, high: float) -> float:
    """The number at this share of the way from low to high."""
    return low + share * (high - low)


def as_pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a size given as one side or both."""
    return (size, size) if isinstance(size, int) else size


@dataclass(frozen=True)
class Compose:
    """One transform after another."""

    transforms: Sequence[Transform]

    def __call__(self, item: Item, generator: torch.Generator) -> Item:
        for transform in self.transforms:
            item = transform(item, generator)
        return item


@dataclass(frozen=True)
class RandomResizedCrop:
    """Cut a window of random area and aspect, and scale it to the size (Inception's augmentation).

    Args:
        size: side or (height, width) of the result.
        scale: share of the picture's area, least and most.
        ratio: width / height, least and most; drawn evenly on the logarithm.
        interpolation, backend: of the resize.
        min_visible: objects with at most this share of their box left are dropped.
    """

    size: int | tuple[int, int]
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: Interpolation = "bilinear"
    backend: Backend = "torch"
    min_visible: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] <= 1 or not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"want 0 < scale <= 1 and 0 < ratio, each (least, most); got {self.scale}, {self.ratio}")

    def window(self, height: int, width: int, generator: torch.Generator) -> tuple[int, int, int, int]:
        """(top, left, height, width) of a window. Ten tries, then the largest centred one, as torchvision does."""
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        # All draws at once, so that the number of draws does not depend on the picture.
        numbers = draw(generator, 22)
        for attempt in range(10):
            area = height * width * between(numbers[2 * attempt], *self.scale)
            aspect = math.exp(between(numbers[2 * attempt + 1], low, high))
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                return int(numbers[20] * (height - h + 1)), int(numbers[21] * (width - w + 1)), h, w
        aspect = min(max(width / height, self.ratio[0]), self.ratio[1])
        w, h = min(width, max(1, round(height * aspect))), min(height, max(1, round(width / aspect)))
        return (height - h) // 2, (width - w) // 2, h, w

    def __call__(self, item: Item, generator: torch.Generator) -> Item:
        window = self.window(*item.height_width, generator)
        return resize_item(
            crop_item(item, *window, self.min_visible), as_pair(self.size), self.interpolation, self.backend
        )


@dataclass(frozen=True)
class RandomCrop:
    """Cut a window of this size at a random place; a smaller picture is first scaled up to cover it."""

    size: int | tuple[int, int]
    min_visible: float = 0.0

    def __call__(self, item: Item, generator: torch.Generator) -> Item:
        want_height, want_width = as_pair(self.size)
        height, width = item.height_width
        if height < want_height or width < want_width:
            factor = max(want_height / height, want_width / width)
            item = resize_item(item, (math.ceil(height * factor - 1e-6), math.ceil(width * factor - 1e-6)))
            height, width = item.height_width
        down, across = draw(generator, 2)
        top, left = int(down * (height - want_height + 1)), int(across * (width - want_width + 1))
        return crop_item(item, top, left, want_height, want_width, self.min_visible)


@dataclass(frozen=True)
class PaddedCrop:
    """Pad all sides with black and cut a window of the picture's own size at a random place (He et al. 2015, sec. 4.2).

    Args:
        padding: pixels a side; CIFAR's is 4 for 32.
    """

    padding: int

    def __call__(self, item: Item, generator: torch.Generator) -> Item:
        down, across = draw(generator, 2)
        top, left = (int(share * (2 * self.padding + 1)) - self.padding for share in (down, across))
        return shift_item(item, -top, -left)


@dataclass(frozen=True)
class HorizontalFlip:
    """Mirror left and right with probability p."""

    p: float = 0.5

    def __call__(self, item: Item, generator: torch.Generator) -> Item:
        return flip_item(item) if draw(generator, 1)[0] < self.p else item


@dataclass(frozen=True)
class Resize:
    """Scale to a size: one number is the shorter side (aspect kept), two are (height, width)."""

    size: int | tuple[int, int]
    interpolation: Interpolation = "bilinear"
    backend: Backend = "torch"

    def __call__(self, item: Item, generator: torch.Generator) -> Item:
        size = self.size if isinstance(self.size, tuple) else shortest_side_size(*item.height_width, self.size)
        return resize_item(item, size, self.interpolation, self.backend)


@dataclass(frozen=True)
class CenterCrop:
    """Cut the middle; zeros where the picture is smaller."""

    size: int | tuple[int, int]

    def __call__(self, item: Item, generator: torch.Generator) -> Item:
        return center_crop_item(item, as_pair(self.size))


@dataclass(frozen=True)
class Letterbox:
    """Fit into a size with the aspect kept, margins filled with a grey level."""

    size: int | tuple[int, int]
    fill: int = 114

    def __call__(self, item: Item, generator: torch.Generator) -> Item:
        return letterbox_item(item, as_pair(self.size), self.fill)


@dataclass(frozen=True)
class ColorJitter:
    """Change brightness, contrast, saturation and hue in random order.

    Args:
        brightness, contrast, saturation: the factor is drawn from 1 - value (at least 0) to 1 + value.
        hue: the turn is drawn from -value to value, at most 0.5.
        p: probability that anything is changed.
    """

    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    p: float = 1.0

    def __call__(self, item: Item, generator: torch.Generator) -> Item:
        numbers = draw(generator, 5)
        order: list[int] = torch.randperm(4, generator=generator).tolist()
        if numbers[0] >= self.p:
            return item
        changes: list[tuple[color.Adjustment, float]] = []
        for number in order:
            strength = (self.brightness, self.contrast, self.saturation, self.hue)[number]
            least = -strength if number == 3 else max(0.0, 1 - strength)
            most = strength if number == 3 else 1 + strength
            if strength > 0:
                changes.append((_ADJUSTMENTS[number], between(numbers[1 + number], least, most)))
        return item.with_image(color.jitter(item.image, changes))


@dataclass(frozen=True)
class Grayscale:
    """Take the colour away with probability p."""

    p: float = 0.2

    def __call__(self, item: Item, generator: torch.Generator) -> Item:
        return item.with_image(color.grayscale(item.image)) if draw(generator, 1)[0] < self.p else item


@dataclass(frozen=True)
class GaussianBlur:
    """Blur with probability p by a standard deviation drawn from the range, in pixels."""

    sigma: tuple[float, float] = (0.1, 2.0)
    p: float = 0.5

    def __call__(self, item: Item, generator: torch.Generator) -> Item:
        chance, share = draw(generator, 2)
        return (
            item.with_image(color.gaussian_blur(item.image, between(share, *self.sigma))) if chance < self.p else item
        )


@dataclass(frozen=True)
class Solarize:
    """Invert values at or above the threshold with probability p (BYOL)."""

    threshold: int = 128
    p: float = 0.2

    def __call__(self, item: Item, generator: torch.Generator) -> Item:
        return item.with_image(color.solarize(item.image, self.threshold)) if draw(generator, 1)[0] < self.p else item
