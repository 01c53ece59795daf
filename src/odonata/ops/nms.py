"""Suppression of boxes that say the same: exact NMS, by class, soft, and merging.

Notable: boxes are visited by falling score, the earlier of equal ones first, and one suppresses those that overlap it
by strictly more than the threshold: torchvision's rules, and its indices. On the CPU compiled loops do it
(`nms_kernels.py`, imported at first use); elsewhere a fixpoint of whole-tensor operations with the same result.

Deliberate differences: classes are segments of one sorted array, where torchvision below a thousand boxes moves the
classes apart by an offset, whose rounding may flip a comparison. Box sides are not counted one pixel longer, as the
original code of soft-NMS and of MTCNN does. Boxes in half precision are compared in float32.
"""

import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Num
from numpy.typing import NDArray
from torch import Tensor

from odonata.errors import DataError, RecipeError
from odonata.ops.boxes import Metric, overlap_matrix

BLOCK = 2048
"""Boxes that the fixpoint compares at a time: 16 MiB of overlaps with themselves."""


def nms(
    boxes: Float[Tensor, "boxes 4"], scores: Float[Tensor, "boxes"], threshold: float, metric: Metric = "iou"
) -> Int[Tensor, "kept"]:
    """Returns the indices of the boxes that no better box suppresses, by falling score.

    Args:
        boxes: xyxy.
        scores: one for each.
        threshold: overlap within [0, 1] above which the box of lower score goes.
        metric: "iou", or "iom" for intersection over the smaller area: a box within a better one then goes too.

    Raises:
        RecipeError: the threshold is outside [0, 1], or the metric is unknown.
        DataError: shapes do not fit, or scores or boxes are NaN.
    """
    return _suppress(boxes, scores, None, threshold, metric)


def batched_nms(
    boxes: Float[Tensor, "boxes 4"],
    scores: Float[Tensor, "boxes"],
    groups: Int[Tensor, "boxes"],
    threshold: float,
    metric: Metric = "iou",
) -> Int[Tensor, "kept"]:
    """Returns the indices of the boxes that no better box of the same group suppresses, by falling score.

    Args:
        boxes: xyxy.
        scores: one for each.
        groups: the class, level or picture of each; any integers.
        threshold: as for `nms`.
        metric: as for `nms`.

    Raises:
        RecipeError: the threshold is outside [0, 1], or the metric is unknown.
        DataError: shapes do not fit, or scores or boxes are NaN.
    """
    return _suppress(boxes, scores, groups, threshold, metric)


def nms_by_fixpoint(
    boxes: Float[Tensor, "boxes 4"],
    scores: Float[Tensor, "boxes"],
    threshold: float,
    groups: Int[Tensor, "boxes"] | None = None,
    metric: Metric = "iou",
    block: int = BLOCK,
) -> Int[Tensor, "kept"]:
    """Returns what `nms` or `batched_nms` returns, by operations on whole tensors: for GPUs.

    Of the boxes of a block that no earlier block suppresses, "kept" is what no better kept box overlaps. Starting with
    all of them, that rule is applied until nothing changes; each round settles at least one more box, mostly very many.

    Args:
        boxes: xyxy, on any device.
        scores: one for each.
        threshold: as for `nms`.
        groups: as for `batched_nms`; None for one group.
        metric: as for `nms`.
        block: boxes compared at a time; it bounds the memory and does not change the result.

    Raises:
        RecipeError: the threshold is outside [0, 1], or the metric is unknown.
        DataError: shapes do not fit, or scores or boxes are NaN.
    """
    _check(boxes, scores, groups, threshold, metric)
    boxes = _comparable(boxes)
    _refuse_nan(boxes, scores)
    order = scores.argsort(descending=True, stable=True)
    overlapping = _overlapping(boxes, groups, threshold, metric)
    kept = order[:0]
    for ranked in order.split(block):
        free = ranked[~overlapping(kept, ranked).any(0)]
        later = overlapping(free, free).triu(1)
        alive, before = torch.ones_like(free, dtype=torch.bool), None
        while before is None or not torch.equal(alive, before):
            alive, before = ~(later & alive[:, None]).any(0), alive
        kept = torch.cat([kept, free[alive]])
    return kept


def soft_nms(
    boxes: Float[Tensor, "boxes 4"],
    scores: Float[Tensor, "boxes"],
    groups: Int[Tensor, "boxes"] | None = None,
    *,
    method: Literal["gaussian", "linear"] = "gaussian",
    sigma: float = 0.5,
    threshold: float = 0.3,
    minimum_score: float = 0.001,
) -> tuple[Int[Tensor, "kept"], Float[Tensor, "kept"]]:
    """Lets scores fall by the overlap with better boxes in place of removing boxes.

    The visits depend on each other, so that it runs on the CPU wherever the tensors are.

    Args:
        boxes: xyxy.
        scores: one for each, within [0, 1].
        groups: boxes of different groups (classes) do not meet; None for one group.
        method: "gaussian" multiplies by exp(-IoU² / sigma), "linear" by 1 - IoU where the IoU is above the threshold.
        sigma: of "gaussian", above 0.
        threshold: of "linear", within [0, 1].
        minimum_score: boxes whose score falls below it are left out.

    Returns:
        Indices of the boxes that are left, by falling new score, and these scores.

    Raises:
        RecipeError: the threshold or sigma is out of range, or the method is unknown.
        DataError: shapes do not fit, or scores or boxes are NaN.

    Source: Bodla et al. 2017, arXiv:1704.04503, eq. 1 and 3.
    """
    if method not in ("gaussian", "linear"):
        raise RecipeError(f'method of soft-NMS must be "gaussian" or "linear", not {method!r}')
    if not sigma > 0:
        raise RecipeError(f"sigma of soft-NMS must be above 0, not {sigma}")
    _check(boxes, scores, groups, threshold, "iou")
    from odonata.ops.nms_kernels import softened_scores

    values, numbers = _comparable(boxes).cpu().numpy(), _comparable(scores).cpu()
    order = _falling(values, numbers)
    by_group, starts = _segments(order, groups)
    slots, gaussian = order[by_group], method == "gaussian"
    new, visited = softened_scores(
        values, numbers.numpy()[slots], slots, starts, gaussian, sigma if gaussian else threshold, minimum_score
    )
    left, best = torch.from_numpy(new[visited]).sort(descending=True, stable=True)
    return torch.from_numpy(slots[visited])[best].to(boxes.device), left.to(scores)


def nmm(
    boxes: Float[Tensor, "boxes 4"],
    scores: Float[Tensor, "boxes"],
    threshold: float,
    groups: Int[Tensor, "boxes"] | None = None,
    metric: Metric = "iom",
) -> tuple[Int[Tensor, "kept"], Float[Tensor, "kept 4"]]:
    """Merges boxes that overlap into one that encloses them: for objects that tiles have cut.

    A kept box grows over all that it suppresses; grown boxes are compared again until no two of a group overlap by more
    than the threshold, so that an object cut by three tiles becomes whole too.

    Args:
        boxes: xyxy.
        scores: one for each; a merged box has that of its best part.
        threshold: overlap within [0, 1] above which two boxes are parts of one.
        groups: as for `batched_nms`; None for one group.
        metric: "iom" (intersection over the smaller area) for parts of objects, or "iou".

    Returns:
        Indices of the best part of each merged box, by falling score, and the merged boxes.

    Raises:
        RecipeError: the threshold is outside [0, 1], or the metric is unknown.
        DataError: shapes do not fit, or scores or boxes are NaN.

    Source: the idea is that of SAHI's greedy non-maximum merging (arXiv:2202.06934); it compares with the kept box only
    once, before it grows.
    """
    indices, merged = torch.arange(len(boxes), device=boxes.device), boxes.detach()
    while True:
        own = None if groups is None else groups[indices]
        kept = _suppress(merged, scores[indices], own, threshold, metric)
        if len(kept) == len(indices):
            return indices[kept], merged[kept]
        merged = _grown(merged, kept, _overlapping(_comparable(merged), own, threshold, metric))
        indices = indices[kept]


def _suppress(
    boxes: Float[Tensor, "boxes 4"],
    scores: Float[Tensor, "boxes"],
    groups: Int[Tensor, "boxes"] | None,
    threshold: float,
    metric: Metric,
) -> Int[Tensor, "kept"]:
    if boxes.device.type != "cpu":
        return nms_by_fixpoint(boxes, scores, threshold, groups, metric)
    _check(boxes, scores, groups, threshold, metric)
    from odonata.ops.nms_kernels import kept_slots

    values, smaller = _comparable(boxes).numpy(), metric == "iom"
    limit, order = _limit(threshold, values.dtype), _falling(values, scores)
    if groups is None:
        return torch.from_numpy(order[kept_slots(values, order, np.array([0, len(order)]), limit, smaller)])
    by_group, starts = _segments(order, groups)
    kept = np.empty(len(order), np.bool_)
    kept[by_group] = kept_slots(values, order[by_group], starts, limit, smaller)
    return torch.from_numpy(order[kept])


def _check(
    boxes: Float[Tensor, "boxes 4"],
    scores: Float[Tensor, "boxes"],
    groups: Int[Tensor, "boxes"] | None,
    threshold: float,
    metric: str,
) -> None:
    if not 0 <= threshold <= 1:
        raise RecipeError(f"threshold of overlap must be within [0, 1], not {threshold}")
    if metric not in ("iou", "iom"):
        raise RecipeError(f'metric of overlap must be "iou" or "iom", not {metric!r}')
    if boxes.shape != (scores.numel(), 4) or scores.ndim != 1 or (groups is not None and groups.shape != scores.shape):
        of_groups = "" if groups is None else f", groups {list(groups.shape)}"
        raise DataError(
            f"suppression needs boxes [n, 4] with a score (and a group) each: boxes {list(boxes.shape)}, "
            f"scores {list(scores.shape)}{of_groups}"
        )


def _refuse_nan(boxes: Float[Tensor, "boxes 4"], scores: Float[Tensor, "boxes"]) -> None:
    for name, rows in (("score", scores[:, None]), ("box", boxes)):
        bad = rows.isnan().any(1).nonzero()[:, 0].tolist()
        if bad:
            value = rows[bad[0]].tolist()
            raise DataError(
                f"{name} {bad[0]} of {len(rows)} is NaN: {value}; the network that predicts it has diverged"
            )


def _falling(values: NDArray[np.floating[Any]], scores: Float[Tensor, "boxes"]) -> NDArray[np.int64]:
    """Returns the indices of boxes by falling score, on the CPU; refuses NaN in either."""
    from odonata.ops.nms_kernels import falling_order

    numbers = _comparable(scores).numpy()
    order = falling_order(numbers, numbers.view(f"u{numbers.itemsize}"))
    # NaN counts as highest, and a sum is NaN if a part of it is: twice as fast as asking each number.
    if len(order) and (math.isnan(numbers[order[0]]) or math.isnan(values.sum())):
        _refuse_nan(torch.from_numpy(values), scores)
    return order


def _comparable(numbers: Num[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    return numbers.detach().to(torch.promote_types(numbers.dtype, torch.float32)).contiguous()


def _limit(threshold: float, dtype: np.dtype[Any]) -> np.floating[Any]:
    """The largest number of this type up to the threshold: an overlap is above the one if it is above the other.

    0.3 in float32 is a little more than 0.3. An overlap of exactly that is above 0.3, and torchvision, which compares
    with the float64, suppresses it; a comparison with the rounded threshold would not.
    """
    limit = dtype.type(threshold)
    return limit if float(limit) <= threshold else np.nextafter(limit, dtype.type(-1))


def _segments(
    order: NDArray[np.int64], groups: Int[Tensor, "boxes"] | None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns the ranks group by group, in order within each, and where each group starts (and the last one ends)."""
    if groups is None:
        return np.arange(len(order)), np.array([0, len(order)])
    keys = groups.cpu().numpy()[order]
    if len(keys) and keys.min() >= -(2**15) and keys.max() < 2**15:
        keys = keys.astype(np.int16)  # which NumPy sorts by radix: several times as fast
    by_group = keys.argsort(kind="stable")
    keys = keys[by_group]
    changes = np.flatnonzero(keys[1:] != keys[:-1]) + 1
    return by_group, np.concatenate([[0], changes, [len(keys)]])


def _overlapping(
    boxes: Float[Tensor, "boxes 4"], groups: Int[Tensor, "boxes"] | None, threshold: float, metric: Metric
) -> Callable[[Int[Tensor, "better"], Int[Tensor, "worse"]], Bool[Tensor, "better worse"]]:
    """Returns the function that tells which of some boxes overlap which others of their group too much."""
    limit = float(_limit(threshold, np.dtype(str(boxes.dtype).removeprefix("torch."))))

    def overlapping(better: Int[Tensor, "better"], worse: Int[Tensor, "worse"]) -> Bool[Tensor, "better worse"]:
        found = overlap_matrix(boxes[better], boxes[worse], metric) > limit
        return found if groups is None else found & (groups[better][:, None] == groups[worse][None])

    return overlapping


def _grown(
    boxes: Float[Tensor, "boxes 4"],
    kept: Int[Tensor, "kept"],
    overlapping: Callable[[Tensor, Tensor], Bool[Tensor, "kept boxes"]],
) -> Float[Tensor, "kept 4"]:
    """Returns the kept boxes, each enclosing those of which it is the best that overlaps them."""
    everything = torch.arange(len(boxes), device=boxes.device)
    owners = [overlapping(kept, part).to(torch.uint8).argmax(0) for part in everything.split(BLOCK)]
    owner = torch.cat(owners)  # argmax: the first of equal ones, and the kept stand by falling score
    owner[kept] = torch.arange(len(kept), device=boxes.device)
    columns = owner[:, None].expand(-1, 2)
    low = boxes[kept, :2].scatter_reduce(0, columns, boxes[:, :2], "amin")
    high = boxes[kept, 2:].scatter_reduce(0, columns, boxes[:, 2:], "amax")
    return torch.cat([low, high], -1)
