"""Masks as COCO writes them: run lengths, polygons, and soft masks pasted into a picture.

A run-length encoding counts pixels down the columns, in turn outside and inside of the mask, beginning with outside.
Uncompressed, `counts` is that list; compressed, a text in which every count is the difference to the one two before it,
five bits to a character. Both are read; `encode` writes text.

Texts and lists come from files that others wrote, so they are checked here before compiled code sees them. Drawing
polygons and comparing masks is done by faster-coco-eval, whose results are COCO's bit for bit; it is imported on use.

Deliberate difference: `paste` samples at the middle of pixels, as Detectron2; torchvision's first rounds the boxes.
"""

from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from numpy.typing import NDArray
from torch import Tensor

from odonata.errors import DataError


class Rle(TypedDict):
    """A mask by its run lengths: size is (height, width)."""

    size: Sequence[int]
    counts: str | bytes | Sequence[int]


def encode(mask: Bool[Tensor, "height width"]) -> Rle:
    """Return the compressed run-length encoding of a mask, ready for JSON.

    Source: the COCO API, `rleEncode` and `rleToString` of `maskApi.c`.
    """
    return {"size": list(mask.shape), "counts": write_counts(run_lengths(mask))}


def run_lengths(mask: Bool[Tensor, "height width"]) -> list[int]:
    """Return the uncompressed counts of a mask: pixels outside, inside, outside, … down the columns."""
    flat = mask.cpu().numpy().astype(np.bool_).ravel(order="F")
    if not flat.size:
        return []
    borders = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    counts = np.diff(borders, prepend=0, append=flat.size).tolist()
    return [0, *counts] if flat[0] else counts


def decode(rle: Rle) -> Bool[Tensor, "height width"]:
    """Return the mask of a run-length encoding, compressed or not.

    Raises:
        DataError: the encoding is broken, or its runs do not fill the picture.

    Source: the COCO API, `rleDecode` of `maskApi.c`.
    """
    height, width, counts = _checked(rle)
    inside = np.arange(len(counts)) % 2 == 1
    return torch.from_numpy(np.repeat(inside, counts).reshape(width, height).T.copy())


def read_counts(text: str | bytes) -> list[int]:
    """Return the counts that a compressed text holds.

    Raises:
        DataError: a character is impossible, or the text ends amid a number.

    Source: the COCO API, `rleFrString` of `maskApi.c`.
    """
    data = text.encode("utf-8") if isinstance(text, str) else text
    bits = np.frombuffer(data, dtype=np.uint8).astype(np.int64) - 48
    if not len(bits):
        return []
    if bits.min() < 0 or bits.max() > 63:
        place = int(np.flatnonzero((bits < 0) | (bits > 63))[0])
        raise DataError(
            f"a compressed run-length text has the impossible character {data[place : place + 1]!r} at {place}"
        )
    more = (bits & 32) > 0
    if more[-1]:
        raise DataError("a compressed run-length text ends amid a number: it was cut off")
    ends = np.flatnonzero(~more)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 8:
        raise DataError("a compressed run-length text has a number of more than 40 bits")
    shifts = 5 * (np.arange(len(bits)) - np.repeat(starts, lengths))
    values = np.add.reduceat((bits & 31) << shifts, starts)
    values -= np.where(bits[ends] & 16, np.int64(1) << (5 * lengths), 0)  # the last bit is the sign
    # from the fourth on, numbers are differences to the one two before: sums over every other one, without the first
    values[1::2] = values[1::2].cumsum()
    values[2::2] = values[2::2].cumsum()
    return values.tolist()


def write_counts(counts: Sequence[int]) -> str:
    """Return the compressed text of counts.

    Source: the COCO API, `rleToString` of `maskApi.c`.
    """
    characters: list[str] = []
    for index, count in enumerate(counts):
        number = count - counts[index - 2] if index > 2 else count
        while True:
            bits, number = number & 31, number >> 5
            ends = number == (-1 if bits & 16 else 0)
            characters.append(chr(48 + bits + (0 if ends else 32)))
            if ends:
                break
    return "".join(characters)


def _checked(rle: Rle) -> tuple[int, int, list[int]]:
    if len(rle["size"]) != 2 or min(rle["size"]) < 0:
        raise DataError(f"a run-length encoding has the size {rle['size']}: height and width are needed")
    height, width = (int(side) for side in rle["size"])
    raw = rle["counts"]
    counts = read_counts(raw) if isinstance(raw, str | bytes) else [int(count) for count in raw]
    if any(count < 0 for count in counts):
        raise DataError(f"a run-length encoding has a negative run ({min(counts)})")
    if sum(counts) != height * width:
        raise DataError(
            f"the runs of a mask of {height} × {width} pixels cover {sum(counts)} pixels, not {height * width}"
        )
    return height, width, counts


def polygons_to_mask(polygons: Sequence[Sequence[float]], height: int, width: int) -> Bool[Tensor, "height width"]:
    """Return the union of polygons as COCO draws them.

    Args:
        polygons: each x1, y1, x2, y2, … in pixels; what lies outside of the picture is cut off.
        height: of the picture.
        width: of the picture.

    Raises:
        DataError: a polygon has fewer than three points, an odd number of coordinates, or one that is not finite.

    Source: the COCO API, `rleFrPoly` of `maskApi.c`.
    """
    from faster_coco_eval.core import mask as coco

    checked: list[list[float]] = []
    for number, polygon in enumerate(polygons):
        values = [float(value) for value in polygon]
        if len(values) < 6 or len(values) % 2:
            raise DataError(
                f"polygon {number} has {len(values)} coordinates: pairs of x and y of 3 points or more are needed"
            )
        if not np.isfinite(values).all():
            raise DataError(f"polygon {number} has a coordinate that is not finite")
        # COCO's code draws every border pixel before it cuts; far away points would only cost time and memory
        checked.append(np.clip(values, -width - height, 2 * (width + height)).tolist())
    if not checked or not height or not width:
        return torch.zeros(height, width, dtype=torch.bool)
    drawn: Any = coco.decode(coco.merge(coco.frPyObjects(checked, height, width)))  # pyright: ignore[reportArgumentType]
    return torch.from_numpy(drawn.astype(np.bool_))


def mask_area(rles: Sequence[Rle]) -> Int64[Tensor, "objects"]:
    """Return how many pixels every mask has."""
    return torch.tensor([sum(_checked(rle)[2][1::2]) for rle in rles], dtype=torch.int64)


def mask_boxes(rles: Sequence[Rle]) -> Float[Tensor, "objects 4"]:
    """Return the smallest box around every mask: xyxy in pixels, such that a single pixel has the area 1.

    An empty mask has the box 0, 0, 0, 0. (COCO's `rleToBbox` spans all rows where a run goes on to the next column, as
    here, because such a run reaches the bottom and the top.)
    """
    boxes = torch.zeros(len(rles), 4)
    for index, rle in enumerate(rles):
        mask = decode(rle)
        rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
        if len(rows):
            corners = [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]
            boxes[index] = torch.tensor(corners)
    return boxes


def mask_iou(
    first: Sequence[Rle], second: Sequence[Rle], crowd: Sequence[bool] | None = None
) -> Float[Tensor, "first second"]:
    """Return the overlap of every mask with every other.

    Args:
        first: detections.
        second: objects, of the same picture.
        crowd: which objects are crowds: the area of the detection divides then, instead of the union.

    Returns:
        Overlaps in [0, 1], in float64.

    Raises:
        DataError: an encoding is broken, or sizes differ.

    Source: the COCO API, `rleIou` of `maskApi.c`.
    """
    from faster_coco_eval.core import mask as coco

    if not first or not second:
        return torch.zeros(len(first), len(second), dtype=torch.float64)
    sizes = {tuple(rle["size"]) for rle in (*first, *second)}
    if len(sizes) > 1:
        raise DataError(f"masks of different sizes cannot overlap: {sorted(sizes)}")
    flags = [int(flag) for flag in crowd] if crowd is not None else [0] * len(second)
    if len(flags) != len(second):
        raise DataError(f"{len(flags)} crowd flags for {len(second)} objects")
    overlaps: NDArray[np.float64] = np.asarray(coco.iou(_compressed(first), _compressed(second), flags))
    return torch.from_numpy(overlaps.reshape(len(first), len(second)))


def _compressed(rles: Sequence[Rle]) -> list[dict[str, Any]]:
    """Return encodings that compiled code can be given: checked, and written by ourselves."""
    found: list[dict[str, Any]] = []
    for rle in rles:
        height, width, counts = _checked(rle)
        found.append({"size": [height, width], "counts": write_counts(counts).encode()})
    return found


def paste(
    masks: Float[Tensor, "objects mask_height mask_width"],
    boxes: Float[Tensor, "objects 4"],
    size: tuple[int, int],
    threshold: float = 0.5,
) -> Bool[Tensor, "objects height width"]:
    """Stretch masks that fill their boxes into the picture.

    Args:
        masks: probabilities in [0, 1].
        boxes: xyxy in pixels; they may reach out of the picture.
        size: height and width of the picture.
        threshold: a pixel belongs to an object from here on.

    Returns:
        One mask of the whole picture per object. A box without area, or one that is not finite, gives an empty one.

    Source: He et al. 2017 (Mask R-CNN), sec. 3.1, "Inference"; sampled as by Detectron2's `paste_masks_in_image`.
    """
    height, width = size
    pasted = torch.zeros(len(masks), height, width, dtype=torch.bool, device=masks.device)
    for index, (left, top, right, bottom) in enumerate(boxes.double().tolist()):
        if not (np.isfinite([left, top, right, bottom]).all() and right > left and bottom > top):
            continue
        x = _pixels(left, right, width, masks)
        y = _pixels(top, bottom, height, masks)
        if not len(x) or not len(y):
            continue
        across = (x + 0.5 - left) / (right - left) * 2 - 1
        down = (y + 0.5 - top) / (bottom - top) * 2 - 1
        grid = torch.stack([across.expand(len(y), -1), down[:, None].expand(-1, len(x))], 2)[None].float()
        found = F.grid_sample(masks[index, None, None].float(), grid, align_corners=False)[0, 0]
        rows, columns = int(y[0]), int(x[0])
        pasted[index, rows : rows + len(y), columns : columns + len(x)] = found >= threshold
    return pasted


def _pixels(low: float, high: float, length: int, like: Tensor) -> Float[Tensor, "pixels"]:
    """Return the pixels whose middle is inside of a box along one axis."""
    first, last = max(int(np.ceil(low - 0.5)), 0), min(int(np.floor(high - 0.5)), length - 1)
    return torch.arange(first, max(last + 1, first), device=like.device, dtype=torch.float64)
