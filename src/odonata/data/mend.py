"""From annotations as a format gives them to samples that a detector can learn from: what every format has in common.

Readers of formats make `RawPicture`s; here boxes and outlines are checked against their picture, and what is wrong is
reported with the place it stands at. A box that reaches at most two pixels over the edge (rounding, or counting from
one) is cut and noted; anything worse stops the reading, or with on_error="skip" is cut or left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

from odonata.data.images import image_size
from odonata.data.objects import Category, ObjectImage, ObjectSource, Outline
from odonata.data.rows import Problems
from odonata.data.sample import ImageRef
from odonata.errors import DataError

SLIGHT = 2.0
"""Pixels that a box may reach over the edge and merely be cut."""
ROUNDING = 0.1
"""Pixels over the edge that are not worth a note: COCO's coordinates are rounded so."""
_HEADER_BYTES = 1 << 17


@dataclass(frozen=True, eq=False)
class RawPicture:
    """One picture as a format gives it.

    Args:
        image: where the pixels are.
        size: (height, width).
        boxes: xyxy in pixels, not checked yet.
        labels: place of each object's category in the table.
        places: where each object stands in the file, for messages.
        crowd: of each object; none where empty.
        outlines: of each object (None: it has none), or None where the whole set has boxes only.
        areas: of each object in pixels (None: the box's).
        id, split: of the picture.
        surely_pixels: whether the format leaves no doubt that boxes are in pixels. A box within the first pixel of the
            picture otherwise passes for a normalised one.
    """

    image: ImageRef
    size: tuple[int, int]
    boxes: Sequence[Sequence[float]]
    labels: Sequence[int]
    places: Sequence[str]
    crowd: Sequence[bool] = ()
    outlines: Sequence[Outline | None] | None = None
    areas: Sequence[float | None] | None = None
    id: int | str = ""
    split: str | None = None
    surely_pixels: bool = False


def source_from_pictures(
    pictures: Iterable[RawPicture],
    categories: tuple[Category, ...],
    problems: Problems,
    *,
    origin: str,
    kind: str,
) -> ObjectSource:
    """Check the annotations of every picture and gather the pictures; those without objects are kept.

    Raises:
        DataError: a bad annotation (unless they are skipped), or no picture at all.
    """
    samples: list[ObjectImage] = []
    unoutlined = 0
    for picture in pictures:
        samples.append(mend_picture(picture, problems))
        unoutlined += sum(outline is None for outline in picture.outlines or ())
    if unoutlined:
        problems.note(origin, f"{unoutlined} objects have no outline, and their boxes stand for it")
    if not samples:
        reason = f" ({len(problems.found)} problems, first: {problems.found[0]})" if problems.found else ""
        raise DataError(f"{origin}: no usable pictures were found{reason}")
    return ObjectSource(samples, categories, origin, tuple(problems.found), kind)


def mend_picture(raw: RawPicture, problems: Problems) -> ObjectImage:
    """Check one picture's annotations; what cannot be mended is reported and left out."""
    boxes, keep = mend_boxes(raw.boxes, raw.size, raw.places, problems, raw.surely_pixels)
    outlines: tuple[Outline, ...] | None = None
    if raw.outlines is not None:
        mended: list[Outline] = []
        for number in np.flatnonzero(keep).tolist():
            outline = _mend_outline(raw.outlines[number], raw.size, raw.places[number], problems)
            mended.append(box_outline(boxes[number]) if outline is None else outline)
        outlines = tuple(mended)
    areas = (boxes[:, 2] - boxes[:, 0]).astype(np.float64) * (boxes[:, 3] - boxes[:, 1])
    if raw.areas is not None:
        given = np.array([np.nan if area is None else area for area in raw.areas], dtype=np.float64)
        areas = np.where(np.isfinite(given) & (given > 0), given, areas)
    crowd = np.array(raw.crowd, dtype=bool) if len(raw.crowd) else np.zeros(len(boxes), dtype=bool)
    return ObjectImage(
        image=raw.image,
        size=raw.size,
        boxes=boxes[keep],
        labels=np.array(raw.labels, dtype=np.int64).reshape(-1)[keep],
        crowd=crowd[keep],
        outlines=outlines,
        areas=areas[keep],
        id=raw.id,
        split=raw.split,
    )


def mend_boxes(
    boxes: Sequence[Sequence[float]],
    size: tuple[int, int],
    places: Sequence[str],
    problems: Problems,
    surely_pixels: bool = False,
) -> tuple[Float[np.ndarray, "objects 4"], Bool[np.ndarray, " objects"]]:
    """Cut boxes at the picture's edge, and say which can be kept.

    Args:
        boxes: xyxy in pixels.
        size: (height, width) of the picture.
        places: where each box stands.
        problems: what happens to bad boxes.
        surely_pixels: as in `RawPicture`.
    """
    raw = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    limit = np.array([size[1], size[0], size[1], size[0]], dtype=np.float64)
    with np.errstate(invalid="ignore"):
        outside = np.maximum(-raw, raw - limit).max(axis=1, initial=0.0)
        clipped = np.clip(raw, 0, limit).astype(np.float32)
        # Not-a-number compares as false, so that it is never fine.
        sized = surely_pixels | (raw[:, 2:] > 1).any(1)
        fine = (clipped[:, 2:] > clipped[:, :2]).all(1) & (outside <= ROUNDING) & sized
    keep = np.ones(len(raw), dtype=bool)
    for number in np.flatnonzero(~fine).tolist():
        keep[number] = _judge(raw[number].tolist(), float(outside[number]), size, places[number], problems)
    return clipped, keep


def _judge(box: list[float], outside: float, size: tuple[int, int], where: str, problems: Problems) -> bool:
    """Report what is wrong with a box; whether it is kept, cut at the edge."""
    text, (height, width) = f"box {shown(box)}", size
    x1, y1, x2, y2 = box
    frame = f"the picture of {width} × {height} px"
    if not all(map(math.isfinite, box)):
        problems.report(where, f"{text} is not finite")
    elif x2 < x1 or y2 < y1:
        problems.report(where, f"{text} has {'x2 < x1' if x2 < x1 else 'y2 < y1'}; want [x1, y1, x2, y2]")
    elif x2 == x1 or y2 == y1:
        problems.report(where, f"{text} has no {'width' if x2 == x1 else 'height'}")
    elif max(x2, y2) <= 1 and min(x1, y1) >= 0 and max(size) > 2:
        problems.report(where, f"{text} looks normalised (values from 0 to 1), and pixels of {frame} are expected")
    elif x1 >= width or y1 >= height or x2 <= 0 or y2 <= 0:
        problems.report(where, f"{text} lies outside {frame}")
    elif outside > SLIGHT:
        problems.report(where, f"{text} reaches {outside:g} px over the edge of {frame}; it can be cut there")
        return True
    elif outside > ROUNDING:
        problems.note(where, f"{text} reaches {outside:g} px over the edge of {frame} and was cut there")
        return True
    elif min(x2 - x1, y2 - y1) < 1e-3:
        problems.report(where, f"{text} has no area")
    else:
        return True
    return False


def shown(values: Iterable[float]) -> str:
    """Numbers as messages print them."""
    return f"[{', '.join(f'{value:.6g}' for value in values)}]"


def box_outline(box: Float[np.ndarray, "4"]) -> list[list[float]]:
    """A box as a polygon."""
    x1, y1, x2, y2 = (float(value) for value in box)
    return [[x1, y1, x2, y1, x2, y2, x1, y2]]


def _mend_outline(outline: Outline | None, size: tuple[int, int], where: str, problems: Problems) -> Outline | None:
    """Check one outline; None where the box must stand for it."""
    if outline is None or callable(outline):
        return outline
    if isinstance(outline, dict):
        if fault := _rle_fault(outline, size):
            problems.report(where, fault)
            return None
        return outline
    good: list[list[float]] = []
    for polygon in outline:
        if len(polygon) < 6 or len(polygon) % 2:
            problems.report(where, f"a polygon has {len(polygon)} numbers; want three points or more, six numbers")
        elif not all(map(math.isfinite, polygon)):
            problems.report(where, f"a polygon is not finite: {shown(polygon[:8])}")
        elif max(polygon) <= 1 and min(polygon) >= 0 and max(size) > 2:
            problems.report(where, f"the polygon {shown(polygon[:8])} looks normalised; pixels are expected")
        else:
            good.append(polygon)
    return good or None


def _rle_fault(outline: dict[str, object], size: tuple[int, int]) -> str | None:
    given = outline.get("size")
    if not isinstance(given, Sequence) or "counts" not in outline:
        return f"the outline has keys {sorted(outline)}; COCO's run lengths have counts and size"
    if tuple(given) != size:
        return f"the mask is {list(given)} (height, width), and the picture is {list(size)}"
    counts = outline["counts"]
    if isinstance(counts, list) and sum(counts) != size[0] * size[1]:
        return f"the run lengths cover {sum(counts)} pixels, and the picture has {size[0] * size[1]}"
    return None


def header_size(image: ImageRef) -> tuple[int, int]:
    """(height, width) of a picture from the first bytes of its file, upright.

    Raises:
        DataError: it cannot be read.
    """
    if image.path is None:
        height, width = image.read_array().shape[:2]
        return height, width
    try:
        return image_size(image.read_bytes(limit=_HEADER_BYTES), image.name)
    except DataError:
        return image_size(image.read_bytes(), image.name)


def declared_size(height: object, width: object) -> tuple[int, int] | None:
    """(height, width) as a file states them, or None where it does not."""
    try:
        size = int(float(str(height))), int(float(str(width)))
    except (ValueError, OverflowError):
        return None
    return size if min(size) > 0 else None


def pictures_by_stem(folder: Path, suffixes: frozenset[str]) -> dict[str, Path]:
    """The pictures of a folder by their names without suffix."""
    return {item.stem: item for item in sorted(folder.iterdir()) if item.suffix.lower() in suffixes}
