"""Drawings for people: boxes, masks and points of detections, and maps of classes, painted onto the picture by Pillow.

Lines and letters grow with the picture, so that a drawing of 4000 pixels reads as one of 400. The colour of a class
depends on its number alone: it is the same in every picture and every run.
"""

from __future__ import annotations

import colorsys
import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageDraw, ImageFont

from odonata.data.detections import Detections

Colour = tuple[int, int, int]

_HUES = 12
_SHADES = ((0.85, 0.95), (0.75, 0.62), (0.45, 1.0), (1.0, 0.4))
"""Saturation and value of each round of the colour circle."""


def colour_of(label: int) -> Colour:
    """The colour of a class, RGB from 0 to 255; the first 48 differ clearly, neighbours in number most."""
    # Seven of twelve steps at a time visit every hue, far apart each time.
    hue = (label * 7 % _HUES + 0.5 * (label // _HUES % 2)) / _HUES
    saturation, value = _SHADES[label // _HUES % len(_SHADES)]
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_objects(image: Image.Image, detections: Detections, *, opacity: float = 0.45) -> Image.Image:
    """Paint detections onto a copy of the picture, the surest on top.

    No label covers another: one that finds no room beside those of surer objects loses its score first, then itself.

    Args:
        image: the picture that was looked at.
        detections: what was found, boxes in pixels of the picture.
        opacity: of the masks, 0 to 1.

    Returns:
        an RGB picture of the same size.
    """
    canvas = image.convert("RGB")
    order = detections.scores.argsort(descending=True, stable=True).flip(0).cpu()
    shown = [number for number in order.tolist() if bool(detections.boxes[number].isfinite().all())]
    if detections.masks is not None:
        masks = [detections.masks[number].cpu().numpy() for number in shown]
        colours = [colour_of(int(detections.labels[number])) for number in shown]
        canvas = _with_masks(canvas, masks, colours, opacity)
    pen, line = ImageDraw.Draw(canvas), line_width(image.size)
    for number in shown:
        x1, y1, x2, y2 = _inside(detections.boxes[number].tolist(), image.size)
        colour = colour_of(int(detections.labels[number]))
        pen.rectangle((x1, y1, x2, y2), outline=colour, width=line)
        if detections.points is not None:
            _dots(pen, detections.points[number].tolist(), colour, line)
    # All labels after all boxes: no line runs through a word.
    taken: list[tuple[int, int, int, int]] = []
    for number in reversed(shown):
        label = int(detections.labels[number])
        box = _inside(detections.boxes[number].tolist(), image.size)
        name, score = detections.name_of(label), f"{float(detections.scores[number]):.2f}"
        plate = _tag(pen, [f"{name} {score}", name], box, colour_of(label), image.size, taken)
        if plate is not None:
            taken.append(plate)
    return canvas


def draw_class_map(
    image: Image.Image,
    classes_map: UInt8[np.ndarray, "height width"],
    palette: Sequence[Colour] | None = None,
    classes: Sequence[str] | None = None,
    *,
    opacity: float = 0.6,
) -> Image.Image:
    """Paint a map of classes onto a copy of the picture; where nothing is said (255) the picture stays as it is.

    Args:
        image: the picture.
        classes_map: class of every pixel; scaled to the picture by nearest pixel where its size differs.
        palette: colour of each class; `colour_of` where None.
        classes: names of the classes, for a legend of those that occur, on a strip at the right; None for no legend.
        opacity: of the colours, 0 to 1.

    Raises:
        ValueError: the palette has no colour for a class that occurs.
    """
    canvas = image.convert("RGB")
    flat = Image.fromarray(np.ascontiguousarray(classes_map, dtype=np.uint8))
    values = np.asarray(flat.resize(canvas.size, Image.Resampling.NEAREST))
    present = [int(label) for label in np.unique(values) if label != 255]
    if palette is not None and present and present[-1] >= len(palette):
        raise ValueError(f"the map has class {present[-1]}, and the palette {len(palette)} colours")
    table = np.zeros((256, 3), dtype=np.float32)
    for label in present:
        table[label] = colour_of(label) if palette is None else palette[label]
    pixels = np.asarray(canvas, dtype=np.float32)
    share = np.where(values == 255, 0.0, opacity).astype(np.float32)[..., None]
    painted = Image.fromarray((pixels * (1 - share) + table[values] * share).round().astype(np.uint8))
    if classes is None:
        return painted
    rows = [(classes[label] if label < len(classes) else f"class {label}", table[label]) for label in present]
    return _with_legend(painted, [(name, (int(c[0]), int(c[1]), int(c[2]))) for name, c in rows])


def line_width(size: tuple[int, int]) -> int:
    """Width of a line in pixels for a picture of this (width, height)."""
    return max(1, round(max(size) / 320))


def letter_size(size: tuple[int, int]) -> int:
    """Height of letters in pixels for a picture of this (width, height)."""
    return max(11, round(max(size) / 45))


@functools.lru_cache(maxsize=32)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _ink(colour: Colour) -> Colour:
    """Black or white, whichever reads better on a colour."""
    luminance = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
    return (0, 0, 0) if luminance > 140 else (255, 255, 255)


def _inside(box: Sequence[float], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The first and last pixels of a box, within the picture."""
    width, height = size
    x1, y1 = min(max(round(box[0]), 0), width - 1), min(max(round(box[1]), 0), height - 1)
    return x1, y1, min(max(round(box[2]) - 1, x1), width - 1), min(max(round(box[3]) - 1, y1), height - 1)


def _tag(
    pen: ImageDraw.ImageDraw,
    texts: Sequence[str],
    box: tuple[int, int, int, int],
    colour: Colour,
    size: tuple[int, int],
    taken: Sequence[tuple[int, int, int, int]],
) -> tuple[int, int, int, int] | None:
    """Write the first text that finds room on a plate above the box, in it or below it; returns where it stands."""
    font = _font(letter_size(size))
    margin = max(1, letter_size(size) // 6)
    for text in texts:
        left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
        wide, high = round(right - left) + 2 * margin, round(bottom - top) + 2 * margin
        x = min(box[0], size[0] - wide)
        for y in (box[1] - high, box[1], box[3] - high + 1, box[3] + 1):
            plate = (x, y, x + wide, y + high)
            if x < 0 or y < 0 or y + high > size[1] or any(_overlap(plate, other) for other in taken):
                continue
            pen.rectangle((x, y, x + wide - 1, y + high - 1), fill=colour)
            pen.text((x + margin - left, y + margin - top), text, font=font, fill=_ink(colour))
            return plate
    return None


def _overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _dots(pen: ImageDraw.ImageDraw, points: Sequence[Sequence[float]], colour: Colour, line: int) -> None:
    radius = 1.5 * line
    for x, y in points:
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour, outline=_ink(colour))


def _with_masks(
    image: Image.Image, masks: Sequence[Bool[np.ndarray, "height width"]], colours: Sequence[Colour], opacity: float
) -> Image.Image:
    """Masks in translucent colour, each with an edge, so that neighbours of one class are told apart."""
    pixels = np.array(image, dtype=np.float32)
    for mask, colour in zip(masks, colours, strict=True):
        paint = np.array(colour, dtype=np.float32)
        pixels[mask] = pixels[mask] * (1 - opacity) + paint * opacity
        pixels[_edge(mask, line_width(image.size))] = paint
    return Image.fromarray(pixels.round().astype(np.uint8))


def _edge(mask: Bool[np.ndarray, "height width"], width: int) -> Bool[np.ndarray, "height width"]:
    """Pixels of a mask that have a pixel outside it within this distance along a row or a column."""
    inner = mask
    for _ in range(width):
        padded = np.pad(inner, 1)
        inner = inner & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inner


def _with_legend(image: Image.Image, rows: Sequence[tuple[str, Colour]]) -> Image.Image:
    """The picture with a strip of swatches and names at its right; letters shrink where the rows are many."""
    if not rows:
        return image
    high = max(8, min(round(1.6 * letter_size(image.size)), image.height // len(rows)))
    font = _font(max(6, round(high * 0.7)))
    measure = ImageDraw.Draw(image)
    wide = max(round(measure.textlength(name, font=font)) for name, _ in rows)
    canvas = Image.new("RGB", (image.width + wide + round(2.4 * high), max(image.height, high * len(rows))), "white")
    canvas.paste(image, (0, 0))
    pen = ImageDraw.Draw(canvas)
    for number, (name, colour) in enumerate(rows):
        x, y = image.width + round(0.4 * high), number * high
        pen.rectangle((x, y + high // 5, x + high, y + high - high // 5), fill=colour, outline=(90, 90, 90))
        pen.text((x + round(1.4 * high), y + high / 2), name, font=font, fill=(20, 20, 20), anchor="lm")
    return canvas
