"""Which prediction learns which object: by cost, by overlap, or by where it stands.

Every function is pure: tensors in, indices out. An index of -1 means background, -2 means that a prediction learns
nothing. Without objects everything is background; nothing raises.

Deliberate differences:
- Ties are settled everywhere: the first object wins where areas or overlaps are equal, and where two objects share
  their best anchor in `match_ssd`, the last one has it (what torchvision's assignment comes to on a CPU).
- torchvision's `Matcher` refuses a picture without objects, and its detectors catch that case one by one.
- FCOS counts areas as (x2 - x1 + 1)(y2 - y1 + 1); here they are in the plain coordinates of the library.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from odonata.errors import RunError
from odonata.ops.boxes import CELLS_AT_ONCE, iou_matrix

BACKGROUND = -1
BETWEEN = -2


def hungarian(cost: Float[Tensor, "queries objects"]) -> tuple[Int64[Tensor, "pairs"], Int64[Tensor, "pairs"]]:
    """Pair rows with columns one to one so that the sum of costs is the least.

    Args:
        cost: of every pair; +inf forbids one.

    Returns:
        Rows in rising order, and the column of each; as many pairs as the smaller side has members.

    Raises:
        RunError: a cost is NaN or -inf (a model that diverged), or forbidden pairs leave no solution.

    Source: scipy's `linear_sum_assignment` (Crouse 2016); as used by DETR (Carion et al. 2020), eq. 1.
    """
    from scipy.optimize import linear_sum_assignment

    table = cost.detach().double().cpu()
    broken = table.isnan() | table.isneginf()
    if bool(broken.any()):
        row, column = broken.nonzero()[0].tolist()
        raise RunError(
            f"{int(broken.sum())} of the {table.shape[0]} × {table.shape[1]} matching costs are NaN or -inf, the first "
            f"at row {row}, column {column}: the predictions are no longer finite; lower the learning rate or clip"
        )
    try:
        rows, columns = linear_sum_assignment(table.numpy())
    except ValueError as error:
        raise RunError(f"no matching of {table.shape[0]} × {table.shape[1]} has a finite cost: {error}") from error
    return torch.as_tensor(rows).to(cost.device), torch.as_tensor(columns).to(cost.device)


def match_by_iou(
    iou: Float[Tensor, "objects anchors"], high: float, low: float, allow_low_quality: bool = False
) -> Int64[Tensor, "anchors"]:
    """Give every anchor the object that it overlaps most, where the overlap suffices.

    Args:
        iou: overlaps, in [0, 1].
        high: from here on an anchor has its object.
        low: below it an anchor is background; in between it learns nothing.
        allow_low_quality: whether every anchor that some object overlaps most of all anchors (ties included) has an
            object too: the one that this anchor overlaps most, which need not be the same.

    Returns:
        For every anchor the index of its object, -1 (below `low`) or -2 (between).

    Raises:
        ValueError: `low` is above `high`.

    Source: Ren et al. 2015 (Faster R-CNN), sec. 3.1.2; torchvision's `Matcher`.
    """
    if low > high:
        raise ValueError(f"low = {low} is above high = {high}")
    objects, anchors = iou.shape
    if not objects or not anchors:
        return torch.full((anchors,), BACKGROUND, dtype=torch.int64, device=iou.device)
    overlap, best = iou.max(0)
    matches = torch.where(overlap < low, BACKGROUND, torch.where(overlap < high, BETWEEN, best))
    if not allow_low_quality:
        return matches
    is_best = (iou == iou.amax(1, keepdim=True)).any(0)
    return torch.where(is_best, best, matches)


def match_ssd(iou: Float[Tensor, "objects anchors"], threshold: float = 0.5) -> Int64[Tensor, "anchors"]:
    """Give every anchor the object that it overlaps by `threshold` or more, and every object its best anchor.

    Returns:
        For every anchor the index of its object or -1.

    Source: Liu et al. 2016 (SSD), sec. 2.2; torchvision's `SSDMatcher`.
    """
    matches = match_by_iou(iou, threshold, threshold)
    objects, anchors = iou.shape
    if not objects or not anchors:
        return matches
    order = torch.arange(objects, device=iou.device)
    return matches.scatter_reduce(0, iou.argmax(1), order, "amax", include_self=False)


def centre_sampling(
    points: Float[Tensor, "points 2"],
    strides: Float[Tensor, "points"],
    ranges: Float[Tensor, "points 2"],
    boxes: Float[Tensor, "objects 4"],
    radius: float | None = 1.5,
    centres: Float[Tensor, "objects 2"] | None = None,
) -> tuple[Int64[Tensor, "points"], Float[Tensor, "points 4"]]:
    """Give every point the smallest object that it stands in (the middle of) and whose size belongs to its level.

    Args:
        points: xy in pixels, of all levels one after the other.
        strides: of the level of every point, in pixels.
        ranges: least and greatest distance from a point of this level to the farthest side of its box, both inclusive.
        boxes: xyxy in pixels.
        radius: a point must be nearer than `radius · stride` to the centre of the box along both axes, and inside the
            box; None asks for the latter only (the first version of FCOS).
        centres: (x, y) of each object to be near to; the middles of the boxes where None.

    Returns:
        For every point the index of its object or -1, and the distances to its left, top, right and bottom sides
        (zeros where there is none).

    Source: Tian et al. 2019 (FCOS), sec. 3.1 and 3.2; the centre region is that of the authors' improved recipe.
    """
    if not len(boxes) or not len(points):
        none = torch.full((len(points),), BACKGROUND, dtype=torch.int64, device=points.device)
        return none, points.new_zeros(len(points), 4)
    order = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).argsort(stable=True)
    centres = ((boxes[:, :2] + boxes[:, 2:]) / 2 if centres is None else centres)[order]
    # On a CPU part by part, so that what is known of all pairs fits into the cache.
    count = max(1, CELLS_AT_ONCE // len(boxes)) if points.device.type == "cpu" else len(points)
    given = (points.split(count), strides.split(count), ranges.split(count))
    parts = [_smallest_around(*part, boxes[order], centres, radius) for part in zip(*given, strict=True)]
    first, distances = (torch.cat(found) for found in zip(*parts, strict=True))
    return torch.where(first < len(boxes), order[first.clamp(max=len(boxes) - 1)], BACKGROUND), distances


def _smallest_around(
    points: Float[Tensor, "points 2"],
    strides: Float[Tensor, "points"],
    ranges: Float[Tensor, "points 2"],
    boxes: Float[Tensor, "objects 4"],
    centres: Float[Tensor, "objects 2"],
    radius: float | None,
) -> tuple[Int64[Tensor, "points"], Float[Tensor, "points 4"]]:
    """Return `centre_sampling` for boxes in the order of their areas; the index is their number where there is none."""
    x, y = points[:, :1], points[:, 1:]
    left, top, right, bottom = x - boxes[:, 0], y - boxes[:, 1], boxes[:, 2] - x, boxes[:, 3] - y
    allowed = torch.minimum(torch.minimum(left, right), torch.minimum(top, bottom)) > 0
    if radius is not None:
        away = torch.maximum((x - centres[:, 0]).abs(), (y - centres[:, 1]).abs())
        allowed &= away < radius * strides[:, None]
    farthest = torch.maximum(torch.maximum(left, right), torch.maximum(top, bottom))
    allowed &= (farthest >= ranges[:, :1]) & (farthest <= ranges[:, 1:])
    rank = torch.arange(len(boxes), device=boxes.device)
    first = torch.where(allowed, rank, len(boxes)).amin(1)
    its = boxes[first.clamp(max=len(boxes) - 1)]
    distances = torch.cat([points - its[:, :2], its[:, 2:] - points], 1)
    return first, distances * (first < len(boxes))[:, None]


def ignore_overlap(
    boxes: Float[Tensor, "anchors 4"],
    ignored_boxes: Float[Tensor, "ignored 4"],
    threshold: float,
    measure: Literal["own_area", "iou"] = "own_area",
) -> Bool[Tensor, "anchors"]:
    """Return which boxes lie on something that must not be learned as background: a crowd, or an object out of range.

    Args:
        boxes: anchors or proposals, xyxy.
        ignored_boxes: the regions, xyxy.
        threshold: overlaps above it count.
        measure: "own_area" divides the intersection by the area of the box itself, as COCO does for crowds, which are
            larger than what stands in them; "iou" by the union, as SNIP does (0.3).

    Raises:
        ValueError: the measure is unknown.

    Source: COCO's evaluation (`iscrowd`); Singh and Davis 2018 (SNIP), sec. 5.1.
    """
    if measure not in ("own_area", "iou"):
        raise ValueError(f'measure = {measure!r}: it is "own_area" or "iou"')
    if not len(boxes) or not len(ignored_boxes):
        return torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    if measure == "iou":
        return iou_matrix(boxes, ignored_boxes).amax(1) > threshold
    low = torch.maximum(boxes[:, None, :2], ignored_boxes[:, :2])
    high = torch.minimum(boxes[:, None, 2:], ignored_boxes[:, 2:])
    shared = (high - low).clamp(min=0).prod(2).amax(1)
    area = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(1)
    return shared > threshold * area
