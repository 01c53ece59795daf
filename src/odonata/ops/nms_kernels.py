"""Compiled loops of suppression on the CPU. Importing this takes numba's time: `odonata.ops.nms` does it at first use.

Notable: boxes are copied once into five rows (x1, y1, x2, y2, area) in the order in which they are visited. The inner
loop then has neither a branch nor a negative index, and the compiler makes vector instructions of it; comparing a box
with all that follow costs less than asking which of them are still there. There is no fastmath: the operations and
their order are those of `odonata.ops.boxes`, so that a comparison with the threshold comes out the same to the last
bit.
"""

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from odonata.ops.boxes import SMALLEST_AREA

Floats = NDArray[np.floating[Any]]


@njit(cache=True, nogil=True, error_model="numpy")
def falling_order(scores: Floats, bits: NDArray[np.unsignedinteger[Any]]) -> NDArray[np.int64]:
    """Return the indices of scores by falling score, the earlier of equal ones first; NaN counts as highest.

    A radix sort, byte by byte: a comparing sort of a few hundred scores takes as long as their suppression.

    Args:
        scores: [n], float32 or float64.
        bits: the same memory as unsigned integers of that size.
    """
    count, keys = len(scores), np.empty_like(bits)
    sign = bits.dtype.type(1) << bits.dtype.type(8 * bits.itemsize - 1)
    for i in range(count):
        if scores[i] > 0:
            keys[i] = sign - bits[i]
        elif scores[i] < 0:
            keys[i] = bits[i]  # of negative numbers the lower one has the higher bits
        else:
            keys[i] = sign if scores[i] == 0 else 0  # 0 and -0 are equal
    order, moved_order, moved_keys = np.arange(count), np.empty(count, np.int64), np.empty_like(keys)
    for byte in range(bits.itemsize):
        shift, mask = bits.dtype.type(8 * byte), bits.dtype.type(255)
        places = np.zeros(257, np.int64)
        for i in range(count):
            places[((keys[i] >> shift) & mask) + 1] += 1
        for value in range(256):
            places[value + 1] += places[value]
        for i in range(count):
            value = (keys[i] >> shift) & mask
            moved_keys[places[value]], moved_order[places[value]] = keys[i], order[i]
            places[value] += 1
        keys, moved_keys, order, moved_order = moved_keys, keys, moved_order, order
    return order


@njit(cache=True, nogil=True, error_model="numpy")
def _rows(boxes: Floats, slots: NDArray[np.int64]) -> Floats:
    """Return x1, y1, x2, y2 and area of the boxes in slots, as rows of an array [5, n]."""
    rows = np.empty((5, len(slots)), boxes.dtype)
    for slot in range(len(slots)):
        x1, y1, x2, y2 = boxes[slots[slot]]
        rows[0, slot], rows[1, slot], rows[2, slot], rows[3, slot] = x1, y1, x2, y2
        rows[4, slot] = (x2 - x1) * (y2 - y1)
    return rows


@njit(cache=True, nogil=True, error_model="numpy")
def _overlap(rows: Floats, slot: int, first: int, smaller: bool, overlaps: Floats) -> None:
    """Fill `overlaps` with the IoU (or intersection over the smaller area) of one slot with those from `first` on."""
    left, top, right, bottom, area = rows[0, slot], rows[1, slot], rows[2, slot], rows[3, slot], rows[4, slot]
    # Row by row: a slice of the whole array would not be contiguous for the compiler.
    x1, y1, x2, y2 = rows[0, first:], rows[1, first:], rows[2, first:], rows[3, first:]
    areas, zero, least = rows[4, first:], rows.dtype.type(0), rows.dtype.type(SMALLEST_AREA)
    for i in range(len(overlaps)):
        width = max(min(x2[i], right) - max(x1[i], left), zero)
        height = max(min(y2[i], bottom) - max(y1[i], top), zero)
        intersection = width * height
        whole = min(area, areas[i]) if smaller else area + areas[i] - intersection
        overlaps[i] = intersection / max(whole, least)


@njit(cache=True, nogil=True, error_model="numpy")
def kept_slots(
    boxes: Floats, slots: NDArray[np.int64], starts: NDArray[np.int64], limit: np.floating[Any], smaller: bool
) -> NDArray[np.bool_]:
    """Return which slots survive greedy suppression within their segment.

    Args:
        boxes: [n, 4], float32 or float64.
        slots: [n] the box in each slot: segment by segment, by falling score in each.
        starts: [segments + 1] the first slot of each segment, and n.
        limit: of the boxes' type: an overlap above it suppresses.
        smaller: overlap is intersection over the smaller area, not over the union.
    """
    rows, kept = _rows(boxes, slots), np.ones(len(slots), np.bool_)
    overlaps = np.empty(len(slots), boxes.dtype)
    for segment in range(len(starts) - 1):
        stop = starts[segment + 1]
        for slot in range(starts[segment], stop):
            if kept[slot]:
                after, found = kept[slot + 1 : stop], overlaps[slot + 1 : stop]
                _overlap(rows, slot, slot + 1, smaller, found)
                for i in range(len(found)):
                    after[i] &= not found[i] > limit
    return kept


@njit(cache=True, nogil=True, error_model="numpy")
def softened_scores(
    boxes: Floats,
    scores: Floats,
    slots: NDArray[np.int64],
    starts: NDArray[np.int64],
    gaussian: bool,
    parameter: float,
    minimum: float,
) -> tuple[Floats, NDArray[np.bool_]]:
    """Return the decayed score of each slot, and which slots were visited before the rest fell below the minimum.

    Args:
        boxes: [n, 4], float32 or float64.
        scores: [n] of the slots, any float type; overwritten.
        slots: [n] the box in each slot, segment by segment; of equal scores the earlier slot is visited first.
        starts: [segments + 1] the first slot of each segment, and n.
        gaussian: whether scores fall by exp(-IoU² / parameter), or by 1 - IoU where the IoU is above the parameter.
        parameter: sigma or threshold.
        minimum: lowest score that is visited.
    """
    rows, visited = _rows(boxes, slots), np.zeros(len(slots), np.bool_)
    overlaps = np.empty(len(slots), boxes.dtype)
    for segment in range(len(starts) - 1):
        start, stop = starts[segment], starts[segment + 1]
        found = overlaps[start:stop]
        for _ in range(stop - start):
            best = -1
            for slot in range(start, stop):
                if not visited[slot] and (best < 0 or scores[slot] > scores[best]):
                    best = slot
            if scores[best] < minimum:
                break
            visited[best] = True
            _overlap(rows, best, start, False, found)
            for slot in range(start, stop):
                overlap = overlaps[slot]
                if visited[slot]:
                    continue
                if gaussian:
                    scores[slot] *= np.exp(-overlap * overlap / parameter)
                elif overlap > parameter:
                    scores[slot] *= 1 - overlap
    return scores, visited
