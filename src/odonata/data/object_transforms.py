"""Random transforms for pictures with objects: to the detector's frame, crops that look at boxes, zoom, turns, tiles.

Masks and class maps move with the boxes in all of them. Where a cut or a turn leaves a part of an object and there are
masks, its box becomes that of the part that is left (Detectron2's `recompute_boxes`); without masks it is the visible
part of the old box.

Each transform draws a fixed number of values from the generator, whatever the picture; those that need more make a
generator of their own from one of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from odonata.data.framing import Framing
from odonata.data.item import (
    Item,
    affine_item,
    clip_boxes,
    crop_item,
    resize_item,
    rotation,
    scaled_item,
    tighten_boxes,
    visible_boxes,
    window_item,
)
from odonata.data.transforms import as_pair, between, draw

GREY = 114
"""Level of what lies outside a picture, as in a letterbox."""


def own_generator(generator: torch.Generator) -> torch.Generator:
    """A generator seeded by one draw of another: what is drawn from it does not move what the other gives next."""
    seed = int(torch.randint(2**62, (1,), generator=generator))
    return torch.Generator().manual_seed(seed)


def frame_item(item: Item, framing: Framing) -> Item:
    """A picture in its frame as `Framing.frame` makes it, in bytes, with its objects that have any area."""
    item = clip_boxes(item, 0.0)
    height, width = item.height_width
    new, place = framing.scaled_size(height, width), framing.place(height, width)
    if new == (height, width) and framing.resize != "letterbox":
        return item
    pixels, _ = framing.frame(item.image)
    image = pixels.round_().clamp_(0, 255).to(torch.uint8)
    left, top = int(place.offset[0]), int(place.offset[1])
    small = scaled_item(item, new, image[:, top : top + new[0], left : left + new[1]])
    if framing.resize != "letterbox":
        return small
    return window_item(small, -top, -left, framing.size, framing.size, round(framing.fill))


@dataclass(frozen=True)
class FrameItem:
    """Bring a picture into the frame that the detector sees.

    Args:
        framing: how the detector wants its pictures.
        sizes: several values of `framing.size`, of which each picture gets one at random (multi-scale training);
            empty for the one of the framing.
    """

    framing: Framing
    sizes: tuple[int, ...] = ()

    def __call__(self, item: Item, generator: torch.Generator) -> Item:
        share = draw(generator, 1)[0]
        if not self.sizes:
            return frame_item(item, self.framing)
        return frame_item(item, self.framing.with_size(self.sizes[int(share * len(self.sizes))]))


@dataclass(frozen=True)
class RandomScaleCrop:
    """Scale at random, then cut or pad to a size (large-scale jitter; Ghiasi et al., arXiv:2012.07177, section 3).

    Without a size nothing is resampled here: the window is cut from the picture as it is, and the frame that follows
    scales it. Padding goes to a random side, where the original pads right and below.

    Args:
        scale: factor to what just fits into the size, least and most; the paper's jitter is (0.1, 2) for large and
            (0.8, 1.25) for standard.
        size: side or (height, width) of the result; None for a window of the picture's own shape.
        min_visible: objects with at most this share of their box left are dropped.
        fill: grey level of the padding.
    """

    scale: tuple[float, float] = (0.1, 2.0)
    size: int | tuple[int, int] | None = None
    min_visible: float = 0.1
    fill: int = GREY

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"want 0 < scale, (least, most); got {self.scale}")

    def __call__(self, item: Item, generator: torch.Generator) -> Item:
        share, down, across = draw(generator, 3)
        factor = between(share, *self.scale)
        height, width = item.height_width
        if self.size is None:
            target = max(1, round(height / factor)), max(1, round(width / factor))
        else:
            want = as_pair(self.size)
            factor *= min(want[0] / height, want[1] / width)
            # What the result shows, in pixels of the picture: cut first, so that no more is scaled than needed.
            shown = min(height, max(1, round(want[0] / factor))), min(width, max(1, round(want[1] / factor)))
            item = window_item(item, int(down * (height - shown[0] + 1)), int(across * (width - shown[1] + 1)), *shown)
            small = [max(1, min(side, round(part * factor))) for side, part in zip(want, shown, strict=True)]
            item, target = resize_item(clip_boxes(item, self.min_visible), (small[0], small[1])), want
            height, width = item.height_width
        top, left = (
            math.floor(chance * (abs(have - side) + 1)) * (1 if have >= side else -1)
            for chance, have, side in ((down, height, target[0]), (across, width, target[1]))
        )
        return tighten_boxes(clip_boxes(window_item(item, top, left, *target, self.fill), self.min_visible))


@dataclass(frozen=True)
class IoUCrop:
    """SSD's crop: a window that overlaps some object by a chosen IoU (Liu et al., arXiv:1512.02325, section 2.2).

    Objects whose centre lies in the window stay. As in the original's released code a window is tried 50 times for an
    overlap, then another overlap is chosen; 1 keeps the picture whole.

    Args:
        overlaps: least IoU of the window with one of the objects, chosen at random.
        scale: side of the window by the picture's, least and most.
        ratio: width / height of the window, least and most.
        trials: windows tried for each overlap chosen.
    """

    overlaps: tuple[float, ...] = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
    scale: tuple[float, float] = (0.3, 1.0)
    ratio: tuple[float, float] = (0.5, 2.0)
    trials: int = 50

    def __call__(self, item: Item, generator: torch.Generator) -> Item:
        own = own_generator(generator)
        if item.boxes is None or len(item.boxes) == 0:
            return item
        wanted = item.boxes if item.ignore is None else item.boxes[~item.ignore]
        if len(wanted) == 0:
            return item
        # Twenty overlaps and none fits is rare (a picture of one row): then it stays whole.
        for _ in range(20):
            overlap = self.overlaps[int(draw(own, 1)[0] * len(self.overlaps))]
            if overlap >= 1:
                return item
            for shares in torch.rand(self.trials, 4, generator=own).tolist():
                window = self._window(item.height_width, shares)
                if window is not None and self._fits(window, wanted, overlap):
                    return _crop_by_centre(item, window)
        return item

    def _window(self, size: tuple[int, int], shares: list[float]) -> tuple[int, int, int, int] | None:
        """(top, left, height, width) of a window, None where its shape is not among those wanted."""
        height, width = (int(side * between(share, *self.scale)) for side, share in zip(size, shares[:2], strict=True))
        if height < 1 or width < 1 or not self.ratio[0] <= width / height <= self.ratio[1]:
            return None
        return int(shares[2] * (size[0] - height + 1)), int(shares[3] * (size[1] - width + 1)), height, width

    def _fits(self, window: tuple[int, int, int, int], boxes: Float[Tensor, "objects 4"], overlap: float) -> bool:
        inside = _centres_inside(boxes, window)
        if not inside.any():
            return False
        top, left, height, width = window
        frame = boxes.new_tensor([left, top, left + width, top + height])
        size = (torch.minimum(boxes[:, 2:], frame[2:]) - torch.maximum(boxes[:, :2], frame[:2])).clamp(min=0)
        shared = size.prod(1)
        union = (boxes[:, 2:] - boxes[:, :2]).prod(1) + height * width - shared
        return float((shared / union)[inside].max()) >= overlap


def _centres_inside(boxes: Float[Tensor, "objects 4"], window: tuple[int, int, int, int]) -> Bool[Tensor, " objects"]:
    top, left, height, width = window
    x, y = (boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2
    return (x > left) & (x < left + width) & (y > top) & (y < top + height)


def _crop_by_centre(item: Item, window: tuple[int, int, int, int]) -> Item:
    assert item.boxes is not None
    return tighten_boxes(crop_item(item.keep(_centres_inside(item.boxes, window)), *window))


@dataclass(frozen=True)
class ZoomOut:
    """Put the picture somewhere on a larger plain canvas with probability p: small objects (SSD, section 3.6).

    Args:
        side: side of the canvas by the picture's, least and most.
        fill: colour of the canvas; SSD's is the mean of ImageNet.
        p: probability.
    """

    side: tuple[float, float] = (1.0, 4.0)
    fill: tuple[int, int, int] = (123, 117, 104)
    p: float = 0.5

    def __post_init__(self) -> None:
        if not 1 <= self.side[0] <= self.side[1]:
            raise ValueError(f"want sides of 1 or more, (least, most); got {self.side}")

    def __call__(self, item: Item, generator: torch.Generator) -> Item:
        chance, share, down, across = draw(generator, 4)
        if chance >= self.p:
            return item
        factor = between(share, *self.side)
        height, width = item.height_width
        new = int(height * factor), int(width * factor)
        top, left = int(down * (new[0] - height + 1)), int(across * (new[1] - width + 1))
        moved = window_item(item, -top, -left, *new)
        padding = (left, new[1] - width - left, top, new[0] - height - top)
        planes = [F.pad(plane, padding, value=level) for plane, level in zip(item.image, self.fill, strict=True)]
        return clip_boxes(moved.with_image(torch.stack(planes)), 0.0)


@dataclass(frozen=True)
class RandomAffine:
    """Turn, scale, shear and move at random (the augmentation of the YOLO family since v3's reimplementations).

    Args:
        degrees: the angle is drawn from -value to value.
        scale: the factor is drawn from 1 - value to 1 + value.
        shear: angle in degrees, drawn from -value to value for each axis.
        translate: move of the centre by the result's sides, drawn from -value to value.
        size: side or (height, width) of the result; the picture's own where None.
        min_visible: objects with at most this share of their moved box left are dropped.
        min_side: objects with a shorter side than this, in pixels, are dropped.
        fill: grey level outside the picture.
    """

    degrees: float = 0.0
    scale: float = 0.5
    shear: float = 0.0
    translate: float = 0.1
    size: int | tuple[int, int] | None = None
    min_visible: float = 0.1
    min_side: float = 2.0
    fill: int = GREY

    def __post_init__(self) -> None:
        if not 0 <= self.scale < 1:
            raise ValueError(f"scale must lie between 0 and 1, not {self.scale}")

    def __call__(self, item: Item, generator: torch.Generator) -> Item:
        turn, zoom, shear_x, shear_y, right, down = (2 * share - 1 for share in draw(generator, 6))
        size = item.height_width if self.size is None else as_pair(self.size)
        factor = 1 + zoom * self.scale
        slopes = [math.tan(math.radians(self.shear * share)) for share in (shear_x, shear_y)]
        (a, b), (c, d) = rotation(turn * self.degrees)
        matrix = (
            (factor * (a + slopes[0] * c), factor * (b + slopes[0] * d)),
            (factor * (c + slopes[1] * a), factor * (d + slopes[1] * b)),
        )
        shift = right * self.translate * size[1], down * self.translate * size[0]
        return drop_thin(
            tighten_boxes(affine_item(item, matrix, shift, size, self.fill, self.min_visible)), self.min_side
        )


def drop_thin(item: Item, min_side: float) -> Item:
    """Without the objects that have a side shorter than this, in pixels."""
    if item.boxes is None:
        return item
    return item.keep(((item.boxes[:, 2:] - item.boxes[:, :2]) >= min_side).all(1))


@dataclass(frozen=True)
class TileCrop:
    """Cut a tile of a fixed size out of a picture, all of it where it is smaller: training on tiles.

    An object of which little is left is neither to be found nor to be punished: it stays, marked as ignored.

    Args:
        size: side or (height, width) of a tile in pixels.
        min_visible: objects with at least this share of their box in the tile are to be found.
        near_object: probability that the tile shows the centre of a random object, so that few tiles are empty.
    """

    size: int | tuple[int, int]
    min_visible: float = 0.3
    near_object: float = 0.5

    def __call__(self, item: Item, generator: torch.Generator) -> Item:
        chance, which, down, across = draw(generator, 4)
        sides = [min(want, have) for want, have in zip(as_pair(self.size), item.height_width, strict=True)]
        room = [have - side for have, side in zip(item.height_width, sides, strict=True)]
        low, high = [0, 0], room
        if item.boxes is not None and len(item.boxes) > 0 and chance < self.near_object:
            x1, y1, x2, y2 = item.boxes[int(which * len(item.boxes))].tolist()
            centre = (y1 + y2) / 2, (x1 + x2) / 2
            low = [min(most, max(0, math.ceil(c - side))) for c, side, most in zip(centre, sides, room, strict=True)]
            high = [max(least, min(most, math.floor(c))) for c, least, most in zip(centre, low, room, strict=True)]
        top, left = (
            least + int(share * (most - least + 1))
            for share, least, most in zip((down, across), low, high, strict=True)
        )
        return cut_tile(item, (top, left, sides[0], sides[1]), self.min_visible)


def cut_tile(item: Item, window: tuple[int, int, int, int], min_visible: float) -> Item:
    """The part of a picture in a window (top, left, height, width).

    Objects with less than `min_visible` of their box in it are marked as ignored, those out of sight are dropped.
    """
    moved = window_item(item, *window)
    if moved.boxes is None:
        return moved
    boxes, visible = visible_boxes(moved)
    ignore = torch.zeros_like(visible, dtype=torch.bool) if moved.ignore is None else moved.ignore
    marked = replace(moved, boxes=boxes, ignore=ignore | (visible < min_visible))
    return tighten_boxes(marked.keep(visible > 0))
