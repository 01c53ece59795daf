"""Pictures made of several: mosaic, mixup, copy-paste; and the augmentations by name.

A mix works on whole items: boxes, labels, masks, points, ignored objects and class maps are those of all pictures. The
`scale` of the result is the geometric mean of theirs, for it has room for one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Bool
from torch import Tensor

from odonata.data.framing import Framing
from odonata.data.item import (
    NOTHING_SAID,
    Item,
    clip_boxes,
    crop_item,
    flip_item,
    letterbox_item,
    resize_item,
    tighten_boxes,
    window_item,
)
from odonata.data.object_transforms import (
    GREY,
    FrameItem,
    IoUCrop,
    RandomAffine,
    RandomScaleCrop,
    ZoomOut,
    drop_thin,
    own_generator,
)
from odonata.data.transforms import ColorJitter, Compose, HorizontalFlip, Transform, as_pair, between, draw

if TYPE_CHECKING:
    from odonata.data.object_batches import Mix

Augmentation = Literal["none", "flip", "standard", "ssd", "mosaic"]


def join_objects(canvas: Item, items: Sequence[Item]) -> Item:
    """The canvas's pixels with the objects of several items of its size.

    Masks, or points of each object, stay only if every item that has objects has them.
    """
    full = [item for item in items if item.boxes is not None and len(item.boxes) > 0]
    parts = full or list(items[:1])
    joined: dict[str, Any] = {}
    for name in ("boxes", "labels", "masks", "points"):
        values: list[Tensor | None] = [getattr(item, name) for item in parts]
        there = [value for value in values if value is not None]
        joined[name] = torch.cat(there) if len(there) == len(values) else None
    if joined["boxes"] is not None:
        joined["ignore"] = torch.cat([_ignored(item) for item in parts])
    scale = math.exp(sum(math.log(item.scale) for item in items) / len(items))
    return replace(canvas, scale=scale, **joined)


def _ignored(item: Item) -> Bool[Tensor, " objects"]:
    if item.ignore is not None:
        return item.ignore
    return torch.zeros(0 if item.boxes is None else len(item.boxes), dtype=torch.bool)


@dataclass(frozen=True)
class Mosaic:
    """Four pictures in one (YOLOv4; Bochkovskiy et al., arXiv:2004.10934, section 3.3), with probability p.

    Each is fitted into the size with its aspect kept and laid against a random centre of a canvas of twice the size;
    the middle of it is cut out, turned and scaled at random where `affine` is given.

    Args:
        size: side or (height, width) of the result.
        p: probability; otherwise the first picture alone is returned as it is.
        affine: of the canvas, with `size` set by the mosaic; None cuts the middle.
        min_visible: objects with at most this share of their box left are dropped.
        fill: grey level where no picture lies.
    """

    size: int | tuple[int, int]
    p: float = 1.0
    affine: RandomAffine | None = field(default_factory=RandomAffine)
    min_visible: float = 0.1
    fill: int = GREY
    others: int = 3

    def __call__(self, items: Sequence[Item], generator: torch.Generator) -> Item:
        chance, down, across = draw(generator, 3)
        height, width = as_pair(self.size)
        own = own_generator(generator)
        if chance >= self.p:
            return items[0]
        centre = round(between(down, 0.5, 1.5) * height), round(between(across, 0.5, 1.5) * width)
        canvas = self._canvas(items, centre)
        if self.affine is None:
            return drop_thin(
                tighten_boxes(crop_item(canvas, height // 2, width // 2, height, width, self.min_visible)), 1
            )
        return replace(self.affine, size=(height, width), min_visible=self.min_visible, fill=self.fill)(canvas, own)

    def _canvas(self, items: Sequence[Item], centre: tuple[int, int]) -> Item:
        """The four pictures about the centre of a canvas of twice the size."""
        height, width = as_pair(self.size)
        placed: list[Item] = []
        for number, item in enumerate(items[:4]):
            factor = min(height / item.height_width[0], width / item.height_width[1])
            small = resize_item(item, (_side(item.height_width[0], factor), _side(item.height_width[1], factor)))
            # Above or below the centre, left or right of it.
            top = centre[0] - small.height_width[0] * (number < 2)
            left = centre[1] - small.height_width[1] * (number % 2 == 0)
            wide = window_item(small, -top, -left, 2 * height, 2 * width, self.fill)
            placed.append(clip_boxes(wide, self.min_visible))
        image, classes = placed[0].image.clone(), _classes(placed[0])
        for number, item in enumerate(placed[1:], start=1):
            rows = slice(0, centre[0]) if number < 2 else slice(centre[0], None)
            columns = slice(0, centre[1]) if number % 2 == 0 else slice(centre[1], None)
            image[:, rows, columns] = item.image[:, rows, columns]
            classes[rows, columns] = _classes(item)[rows, columns]
        said = any(item.classes is not None for item in placed)
        return join_objects(replace(placed[0], image=image, classes=classes if said else None), placed)


def _side(side: int, factor: float) -> int:
    return max(1, round(side * factor))


def _classes(item: Item) -> Tensor:
    if item.classes is not None:
        return item.classes.clone()
    return torch.full(item.height_width, NOTHING_SAID, dtype=torch.uint8)


@dataclass(frozen=True)
class MixUp:
    """Two pictures shining through each other, with the boxes of both (Zhang et al., arXiv:1902.04103, section 3.1).

    The second is fitted into the first's size. Of a class map that of the heavier picture stays.

    Args:
        p: probability; otherwise the first picture alone is returned as it is.
        alpha: the weight of the first is drawn from Beta(alpha, alpha); the paper's 1.5 lies between 1 and 2.
        fill: grey level of the margins.
    """

    p: float = 1.0
    alpha: int = 8
    fill: int = GREY
    others: int = 1

    def __post_init__(self) -> None:
        if self.alpha < 1:
            raise ValueError(f"alpha must be a whole number of at least 1, not {self.alpha}")

    def __call__(self, items: Sequence[Item], generator: torch.Generator) -> Item:
        chance = draw(generator, 1)[0]
        # The median of 2n - 1 even draws is distributed as Beta(n, n).
        weight = float(torch.rand(2 * self.alpha - 1, generator=generator).median())
        if chance >= self.p:
            return items[0]
        first, second = items[0], letterbox_item(items[1], items[0].height_width, self.fill)
        image = (first.image.float() * weight + second.image.float() * (1 - weight)).round_().to(torch.uint8)
        classes = first.classes if weight >= 0.5 else second.classes
        return join_objects(replace(first, image=image, classes=classes), [first, second])


@dataclass(frozen=True)
class CopyPaste:
    """Paste objects of a second picture by their masks (Ghiasi et al., arXiv:2012.07177, section 3).

    What they hide is taken from the masks of the first picture, and boxes are those of what stays visible. Edges are
    not blended: the paper found that it does as well without.

    Args:
        p: probability; otherwise the first picture alone is returned as it is.
        share: probability that an object is pasted.
        min_visible: objects of which at most this share of their pixels stays visible are dropped.
    """

    p: float = 1.0
    share: float = 0.5
    min_visible: float = 0.1
    others: int = 1

    def __call__(self, items: Sequence[Item], generator: torch.Generator) -> Item:
        chance, mirror = draw(generator, 2)
        own = own_generator(generator)
        first, second = items[0], items[1]
        second_boxes = second.boxes
        if chance >= self.p or second_boxes is None or len(second_boxes) == 0:
            return first
        if second.masks is None or (first.masks is None and first.boxes is not None and len(first.boxes) > 0):
            raise ValueError("copy-paste needs masks of all objects; these pictures have boxes only")
        second = letterbox_item(flip_item(second) if mirror < 0.5 else second, first.height_width, GREY)
        chosen = torch.rand(len(second_boxes), generator=own) < self.share
        # A crowd or a difficult object would bring its doubt along.
        pasted = tighten_boxes(second.keep(chosen & ~_ignored(second)))
        if pasted.boxes is None or pasted.masks is None or len(pasted.boxes) == 0:
            return first
        return _paste(first, pasted, self.min_visible)


def _paste(first: Item, second: Item, min_visible: float) -> Item:
    """The second's objects over the first's picture."""
    assert second.masks is not None
    over = second.masks.any(0)
    classes = first.classes
    if classes is not None:
        classes = torch.where(over, _classes(second), classes)
    below = replace(first, image=torch.where(over, second.image, first.image), classes=classes)
    if below.masks is not None and len(below.masks) > 0:
        seen = below.masks & ~over
        before, after = below.masks.sum((1, 2)), seen.sum((1, 2))
        hidden = replace(below, masks=seen)
        tight = _boxes_of_hidden(hidden, before != after)
        below = tight.keep(after > min_visible * before)
    return join_objects(below, [below, second])


def _boxes_of_hidden(item: Item, hidden: Bool[Tensor, " objects"]) -> Item:
    """Boxes read from the masks for objects that are hidden in part; the others keep theirs."""
    assert item.boxes is not None and item.masks is not None
    boxes = item.boxes.clone()
    some = hidden & item.masks.any(2).any(1)
    tight = tighten_boxes(item.keep(some))
    if tight.boxes is not None:
        boxes[some] = tight.boxes
    return replace(item, boxes=boxes)


def standard_augmentation(
    augment: Augmentation, framing: Framing, *, copy_paste: float = 0.0, sizes: tuple[int, ...] = ()
) -> tuple[tuple[Mix, ...], Transform]:
    """The mixes and the transform of an augmentation by its name.

    Args:
        augment: "none"; "flip"; "standard": colours, scale from 0.8 to 1.25 with crop or padding, flip; "ssd":
            stronger colours, zoom-out, crops by overlap, flip; "mosaic": half of the pictures are four in one, scaled
            from 0.5 to 1.5, a tenth mixed with another, colours, flip.
        framing: of the detector, which every one of them ends with.
        copy_paste: probability of pasting objects of another picture; needs masks.
        sizes: of the frame, one at random for each picture (multi-scale training); empty for the framing's own.

    Returns:
        what `ObjectDataset` takes as `mixes` and as `transform`.
    """
    frame, flip = FrameItem(framing, sizes), HorizontalFlip()
    mixes: tuple[Mix, ...] = (CopyPaste(copy_paste),) if copy_paste > 0 else ()
    colours = ColorJitter(0.2, 0.2, 0.3, 0.03, p=0.8)
    match augment:
        case "none":
            return mixes, frame
        case "flip":
            return mixes, Compose((flip, frame))
        case "standard":
            return mixes, Compose((colours, RandomScaleCrop((0.8, 1.25), min_visible=0.25), flip, frame))
        case "ssd":
            strong = ColorJitter(0.125, 0.5, 0.5, 0.05, p=0.8)
            return mixes, Compose((strong, ZoomOut(), IoUCrop(), flip, frame))
        case "mosaic":
            return (*mixes, Mosaic(framing.size, p=0.5), MixUp(p=0.1)), Compose((colours, flip, frame))
