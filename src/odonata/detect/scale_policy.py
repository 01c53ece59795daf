"""How a detector meets objects of many sizes: multi-scale training, image pyramids, SNIP, tiles; for every method.

SNIP trains each size of the picture on the objects that are then of a size that the network knows well, and ignores the
others: they are neither positives nor negatives. In prediction each size answers for its range only, a wider one, and
the answers are merged by soft-NMS. Ranges count √area in the picture's own pixels.

Sources: Singh and Davis 2018 (1711.08189), sec. 5; Singh, Najibi and Davis 2018 (SNIPER, 1805.09300), whose code's test
ranges are wider than its training ranges ([0, 80] → [0, 90], [32, 150] → [32, 180], [120, ∞) → [75, ∞)).

Differences: the papers' ranges are for COCO. Where none are given they come from quantiles of the training set's
objects, overlapping as the papers' do. Whole pictures are scaled; SNIPER's chips are what `tiles` does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from odonata.data.framing import Framing
from odonata.data.item import Item
from odonata.data.object_batches import Mix, ObjectData, ignoring_all_but
from odonata.data.object_transforms import TileCrop
from odonata.data.objects import ObjectSource
from odonata.data.transforms import Compose, Transform
from odonata.detect.detector import DetectorOptions
from odonata.errors import RecipeError

INFINITE = 1e8
Range = tuple[float, float]


@dataclass(frozen=True)
class InRange:
    """Marks objects as ignored whose √area, in pixels of the picture as it lay on disk, is outside a range.

    Args:
        least, largest: both still count.
    """

    least: float
    largest: float

    def __call__(self, item: Item, generator: torch.Generator) -> Item:
        if item.boxes is None:
            return item
        return ignoring_all_but(item, in_range(item.boxes, item.scale, (self.least, self.largest)))


def in_range(boxes: Tensor, scale: float | Tensor, range_: Range) -> Tensor:
    """Which boxes of a frame have a √area within a range of the picture's own pixels.

    Args:
        boxes: xyxy in pixels of the frame.
        scale: pixels of the frame for one of the picture.
        range_: least and largest, both included.
    """
    side = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).clamp(min=0).sqrt() / scale
    return (side >= range_[0]) & (side <= range_[1])


@dataclass(frozen=True)
class OneOf:
    """Applies one of several transforms, each as likely as the others."""

    choices: tuple[Transform, ...]

    def __call__(self, item: Item, generator: torch.Generator) -> Item:
        chosen = int(torch.randint(len(self.choices), (1,), generator=generator))
        return self.choices[chosen](item, generator)


def resolved_policy(config: DetectorOptions, train: ObjectSource) -> DetectorOptions:
    """The options with sizes and ranges filled in.

    Raises:
        RecipeError: there are not as many ranges as sizes.
    """
    if config.scale_policy in ("single", "tiles"):
        return replace(config, tile=config.tile or config.framing.size) if config.scale_policy == "tiles" else config
    sizes = config.scale_sizes or tuple(round(config.framing.size * factor) for factor in (0.75, 1.0, 1.5))
    ranges, test_ranges = config.scale_ranges, config.scale_test_ranges
    if config.scale_policy == "snip" and not ranges:
        ranges = ranges_from(train, len(sizes))
    if ranges and not test_ranges:
        test_ranges = tuple((low * 0.75, min(high * 1.2, INFINITE)) for low, high in ranges)
    for name, values in (("scale-ranges", ranges), ("scale-test-ranges", test_ranges)):
        if values and len(values) != len(sizes):
            raise RecipeError(f"--{name} has {len(values)} ranges for {len(sizes)} sizes {sizes}")
    return replace(config, scale_sizes=sizes, scale_ranges=ranges, scale_test_ranges=test_ranges)


def ranges_from(train: ObjectSource, count: int) -> tuple[Range, ...]:
    """Overlapping ranges of √area, the largest objects for the smallest size.

    With three sizes: from the 0.4 quantile on, the 0.2 to the 0.8, and up to the 0.6.
    """
    boxes = np.concatenate([sample.boxes[~sample.crowd] for sample in train])
    sides = np.sqrt(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1))
    if count == 1:
        return ((0.0, INFINITE),)
    step, width = 0.4 / (count - 1), 0.6
    found: list[Range] = []
    for number in range(count):
        low = 0.4 - number * step
        least = 0.0 if number == count - 1 else float(np.quantile(sides, low))
        largest = INFINITE if number == 0 else float(np.quantile(sides, low + width))
        found.append((round(least, 2), round(largest, 2)))
    return tuple(found)


def training_pipeline(config: DetectorOptions, data: ObjectData) -> tuple[Transform, tuple[Mix, ...]]:
    """The transform of one picture, and what mixes several, for a resolved policy."""
    from odonata.data.object_mixes import standard_augmentation

    framing = config.framing
    if config.scale_policy == "snip":
        parts: list[Transform] = []
        mixes: tuple[Mix, ...] = ()
        for size, (least, largest) in zip(config.scale_sizes, config.scale_ranges, strict=True):
            mixes, transform = standard_augmentation(data.augment, framing.with_size(size), copy_paste=data.copy_paste)
            parts.append(Compose((transform, InRange(least, largest))))
        return OneOf(tuple(parts)), mixes
    sizes = config.scale_sizes if config.scale_policy in ("multi-scale", "pyramid") else ()
    mixes, transform = standard_augmentation(data.augment, framing, copy_paste=data.copy_paste, sizes=sizes)
    if config.scale_policy == "tiles":
        return Compose((TileCrop(config.tile, min_visible=config.tile_min_visible), transform)), mixes
    return transform, mixes


@dataclass(frozen=True)
class Look:
    """One way to look at a picture in prediction: a framing, and the range of objects that it answers for."""

    framing: Framing
    range: Range | None = None


def looks(config: DetectorOptions) -> list[Look]:
    """How a resolved policy looks at a picture: once, or at every size of the pyramid."""
    if config.scale_policy not in ("pyramid", "snip"):
        return [Look(config.framing)]
    ranges: Sequence[Range | None] = config.scale_test_ranges or [None] * len(config.scale_sizes)
    return [
        Look(config.framing.with_size(size), range_) for size, range_ in zip(config.scale_sizes, ranges, strict=True)
    ]


def windows(height: int, width: int, tile: int, overlap: float) -> list[tuple[int, int, int, int]]:
    """The windows (top, left, height, width) that cover a picture, evenly spread; one where a tile holds all of it.

    Args:
        height, width: of the picture in pixels.
        tile: side of a window.
        overlap: share of a window that the next repeats at least.
    """

    def starts(length: int) -> list[int]:
        if length <= tile:
            return [0]
        count = -(-(length - tile) // max(1, round(tile * (1 - overlap)))) + 1
        return [round(i * (length - tile) / (count - 1)) for i in range(count)]

    return [(top, left, min(tile, height), min(tile, width)) for top in starts(height) for left in starts(width)]


def at_single_scale(config: DetectorOptions) -> DetectorOptions:
    """The options without any policy: each picture is looked at once, whole."""
    return dataclasses.replace(config, scale_policy="single")
