"""What a detector could find at best: objects that its anchors or points can be assigned to, before any training.

Best possible recall as in Tian et al. 2019 (FCOS, 1904.01355), table 1: the share of objects that at least one anchor,
or one point, is trained to find. Objects that none is trained for stay unseen however long the training.

For anchors on a grid, the best overlap of each shape is found without trying every cell: overlaps along x and y are
independent and fall with the distance of the centres, so that the nearest cell is the best.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from odonata.data.framing import Framing
from odonata.data.objects import ObjectSource
from odonata.data.pictures import chosen_indices
from odonata.ops.grids import base_anchors, retinanet_sizes

STRIDES = (8, 16, 32, 64, 128)
RATIOS = (0.5, 1.0, 2.0)
RANGES = ((-1.0, 64.0), (64.0, 128.0), (128.0, 256.0), (256.0, 512.0), (512.0, float("inf")))
"""FCOS: least and most of the farthest side, both included, of each level."""
MOST_PICTURES = 2000


@dataclass(frozen=True)
class Coverage:
    """Best possible recall of a set at one size of the frame.

    Args:
        size: `size` of the framing.
        pictures: how many were looked at.
        objects: how many they hold, crowds not counted.
        anchors: share of objects that one of RetinaNet's anchors overlaps by half or more.
        anchors_low: the same at an overlap of 0.4, below which an anchor is background.
        points: share of objects that one of FCOS's points is assigned to.
        levels: objects that fall to each FCOS level by their longer half side, P3 to P7.
        missed: √area in pixels of the frame of the objects that RetinaNet misses: least, median, most.
    """

    size: int
    pictures: int
    objects: int
    anchors: float
    anchors_low: float
    points: float
    levels: tuple[int, ...]
    missed: tuple[float, float, float] | None


def coverage(source: ObjectSource, framing: Framing | None = None) -> Coverage | None:
    """Best possible recall of RetinaNet and FCOS on a set; None where it has no object.

    Args:
        source: pictures with objects; of more than 2,000 pictures, so many at random.
        framing: how pictures come into the frame; the shortest side at 800 where None.
    """
    framing = framing or Framing()
    chosen = chosen_indices(len(source), MOST_PICTURES)
    best: list[np.ndarray] = []
    found: list[np.ndarray] = []
    sides: list[np.ndarray] = []
    for index in chosen:
        sample = source[index]
        place = framing.place(*sample.size)
        boxes = sample.boxes[~sample.crowd].astype(np.float64) * np.tile(place.scale, 2) + np.tile(place.offset, 2)
        if len(boxes) == 0:
            continue
        # A letterbox fills its frame; otherwise the frame is the picture, padded right and below.
        frame = (framing.size, framing.size) if framing.resize == "letterbox" else framing.scaled_size(*sample.size)
        height, width = (-(-side // framing.divisor) * framing.divisor for side in frame)
        best.append(best_anchor_iou(boxes, (height, width)))
        found.append(assigned_points(boxes, (height, width)))
        sides.append(boxes[:, 2:] - boxes[:, :2])
    if not best:
        return None
    overlap, seen, extent = np.concatenate(best), np.concatenate(found), np.concatenate(sides)
    roots = np.sqrt(extent.prod(1))[overlap < 0.5]
    level = np.searchsorted([high for _, high in RANGES[:-1]], extent.max(1) / 2)
    return Coverage(
        size=framing.size,
        pictures=len(chosen),
        objects=len(overlap),
        anchors=float((overlap >= 0.5).mean()),
        anchors_low=float((overlap >= 0.4).mean()),
        points=float(seen.mean()),
        levels=tuple(np.bincount(level, minlength=len(RANGES)).tolist()),
        missed=(float(roots.min()), float(np.median(roots)), float(roots.max())) if len(roots) else None,
    )


def best_anchor_iou(
    boxes: Float[np.ndarray, "objects 4"],
    frame: tuple[int, int],
    *,
    strides: Sequence[int] = STRIDES,
    sizes: Sequence[Sequence[float]] | None = None,
    ratios: Sequence[float] = RATIOS,
    offset: float = 0.0,
) -> Float[np.ndarray, " objects"]:
    """The largest IoU of each box with any anchor of a pyramid.

    Args:
        boxes: xyxy in pixels of the frame.
        frame: (height, width) in pixels.
        strides: of the levels.
        sizes: of the anchors at each level; RetinaNet's, int(x · 2^(k/3)) for x = 32 … 512, where None.
        ratios: height by width.
        offset: share of a stride from a cell's corner to its anchors' centre (torchvision: 0).
    """
    best = np.zeros(len(boxes))
    centres, extent = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    for stride, level in zip(strides, sizes or retinanet_sizes(32, len(strides)), strict=True):
        cells = np.array([-(-frame[1] // stride), -(-frame[0] // stride)])
        nearest = np.clip(np.rint(centres / stride - offset), 0, cells - 1)
        points = (nearest + offset) * stride
        for base in base_anchors(level, ratios).double().numpy():
            low = np.maximum(points + base[:2], boxes[:, :2])
            high = np.minimum(points + base[2:], boxes[:, 2:])
            shared = (high - low).clip(min=0).prod(1)
            best = np.maximum(best, shared / (extent.prod(1) + (base[2:] - base[:2]).prod() - shared))
    return best


def assigned_points(
    boxes: Float[np.ndarray, "objects 4"],
    frame: tuple[int, int],
    *,
    strides: Sequence[int] = STRIDES,
    ranges: Sequence[tuple[float, float]] = RANGES,
    radius: float = 0.0,
    offset: float = 0.5,
) -> Bool[np.ndarray, " objects"]:
    """Whether a point of any level is assigned to each box, by FCOS's rule: inside the box, the farthest side within
    the level's range, and of several such boxes the smallest.

    Args:
        boxes: xyxy in pixels of the frame.
        frame: (height, width) in pixels.
        strides: of the levels.
        ranges: of the levels.
        radius: points must lie within so many strides of the box's centre (0: anywhere inside).
        offset: share of a stride from a cell's corner to its point.
    """
    found = np.zeros(len(boxes), dtype=bool)
    largest_first = np.argsort(-(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]), kind="stable")
    for stride, (least, most) in zip(strides, ranges, strict=True):
        xs = (np.arange(-(-frame[1] // stride)) + offset) * stride
        ys = (np.arange(-(-frame[0] // stride)) + offset) * stride
        owner = np.full((len(ys), len(xs)), -1)
        for number in largest_first.tolist():
            x1, y1, x2, y2 = boxes[number].tolist()
            reach = radius * stride if radius else float("inf")
            columns, x = _inside(xs, x1, x2, reach)
            rows, y = _inside(ys, y1, y2, reach)
            across, down = np.maximum(x - x1, x2 - x), np.maximum(y - y1, y2 - y)
            farthest = np.maximum(across[None, :], down[:, None])
            # Painted from the largest to the smallest, so that the smallest stays.
            owner[rows, columns][(farthest >= least) & (farthest <= most)] = number
        found[np.unique(owner[owner >= 0])] = True
    return found


def _inside(
    values: Float[np.ndarray, " cells"], low: float, high: float, reach: float
) -> tuple[slice, Float[np.ndarray, " inner"]]:
    """The cells strictly between two sides and within reach of their middle."""
    middle = (low + high) / 2
    start = int(np.searchsorted(values, max(low, middle - reach), side="right"))
    stop = int(np.searchsorted(values, min(high, middle + reach), side="left"))
    return slice(start, max(start, stop)), values[start : max(start, stop)]
