"""A picture with everything that must move with it: boxes, labels, masks, points. And the geometry that moves them."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from odonata.data.resize import Backend, Interpolation, resize

NOTHING_SAID = 255
"""In a map of classes: pixels of which nothing is said."""


@dataclass(frozen=True, eq=False)
class Item:
    """One picture on its way through the transforms.

    Args:
        image: uint8 pixels.
        boxes: xyxy in absolute pixels.
        labels: class of each box.
        masks: of each object, as large as the picture.
        points: (x, y) in absolute pixels: free points [points, 2], or those of each object [objects, points, 2].
        ignore: objects that are neither to be found nor to be punished.
        classes: class of every pixel, 255 where nothing is said.
        scale: pixels of this picture for one of the picture as it lay on disk.
    """

    image: UInt8[Tensor, "3 height width"]
    boxes: Float[Tensor, "objects 4"] | None = None
    labels: Int64[Tensor, " objects"] | None = None
    masks: Bool[Tensor, "objects height width"] | None = None
    points: Float[Tensor, "*points 2"] | None = None
    ignore: Bool[Tensor, " objects"] | None = None
    classes: UInt8[Tensor, "height width"] | None = None
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.image.dtype != torch.uint8 or self.image.ndim != 3 or self.image.shape[0] != 3:
            raise ValueError(f"want uint8 pixels [3, height, width], got {self.image.dtype} {tuple(self.image.shape)}")
        if self.masks is not None and self.masks.shape[-2:] != self.image.shape[-2:]:
            raise ValueError(f"masks {tuple(self.masks.shape)} do not fit the picture {tuple(self.image.shape)}")
        if self.classes is not None and self.classes.shape != self.image.shape[-2:]:
            raise ValueError(f"classes {tuple(self.classes.shape)} do not fit the picture {tuple(self.image.shape)}")

    @property
    def height_width(self) -> tuple[int, int]:
        """Size of the picture in pixels."""
        return self.image.shape[-2], self.image.shape[-1]

    def with_image(self, image: UInt8[Tensor, "3 height width"]) -> "Item":
        """The same objects on other pixels of the same size."""
        return replace(self, image=image)

    def keep(self, chosen: Bool[Tensor, " objects"]) -> "Item":
        """Only the chosen objects; free points stay."""
        count, changes = chosen.shape[0], dict[str, Any]()
        for name in ("boxes", "labels", "masks", "points", "ignore"):
            value: Tensor | None = getattr(self, name)
            per_object = value is not None and (name != "points" or value.ndim == 3) and value.shape[0] == count
            if value is not None and per_object:
                changes[name] = value[chosen]
        return replace(self, **changes)


def flip_item(item: Item) -> Item:
    """Mirror left and right."""
    width = item.image.shape[-1]
    boxes, points = item.boxes, item.points
    if boxes is not None:
        boxes = torch.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], dim=1)
    if points is not None:
        points = torch.stack([width - points[..., 0], points[..., 1]], dim=-1)
    moved = _with_pixels(item, lambda pixels, fill: pixels.flip(-1), item.image.flip(-1))
    return replace(moved, boxes=boxes, points=points)


def resize_item(
    item: Item, size: tuple[int, int], interpolation: Interpolation = "bilinear", backend: Backend = "torch"
) -> Item:
    """Scale to (height, width); masks and classes by nearest pixel."""
    return scaled_item(item, size, resize(item.image, size, interpolation, backend))


def scaled_item(item: Item, size: tuple[int, int], image: UInt8[Tensor, "3 new_height new_width"]) -> Item:
    """The objects of an item scaled to (height, width), on a picture that was scaled already."""
    height, width = item.height_width
    # Multiplied, then divided: what lies on the old border lies exactly on the new one.
    new, old = torch.tensor([size[1], size[0]]), torch.tensor([width, height])
    return replace(
        _with_pixels(item, lambda pixels, fill: _nearest(pixels, size), image),
        boxes=None if item.boxes is None else item.boxes * new.repeat(2) / old.repeat(2),
        points=None if item.points is None else item.points * new / old,
        scale=item.scale * math.sqrt(size[0] / height * size[1] / width),
    )


def window_item(item: Item, top: int, left: int, height: int, width: int, fill: int = 0) -> Item:
    """What a window shows that may reach beyond the picture; there the image has the grey level `fill`.

    Objects that it does not show are kept, with boxes as they are; `clip_boxes` and others decide about them.
    """

    def shown(pixels: Tensor, value: int) -> Tensor:
        return _window(pixels, (top, left, height, width), value)

    shift = torch.tensor([left, top])
    return replace(
        _with_pixels(item, shown, shown(item.image, fill)),
        boxes=None if item.boxes is None else item.boxes - shift.repeat(2).to(item.boxes),
        points=None if item.points is None else item.points - shift.to(item.points),
    )


def crop_item(item: Item, top: int, left: int, height: int, width: int, min_visible: float = 0.0) -> Item:
    """Cut a window out of the picture; objects with at most `min_visible` of their box's area left are dropped."""
    return clip_boxes(window_item(item, top, left, height, width), min_visible)


def center_crop_item(item: Item, size: tuple[int, int]) -> Item:
    """Cut (height, width) out of the middle, zeros where the picture is smaller (torchvision's rounding)."""
    height, width = item.height_width
    top, left = (
        round((have - want) / 2.0) if have >= want else -((want - have) // 2)
        for have, want in zip((height, width), size, strict=True)
    )
    return crop_item(item, top, left, *size)


def shift_item(item: Item, down: int, right: int) -> Item:
    """Move the picture's content by whole pixels inside its frame, black where nothing is; boxes end at the edge."""
    return crop_item(item, -down, -right, *item.height_width)


def letterbox_item(item: Item, size: tuple[int, int], fill: int, interpolation: Interpolation = "bilinear") -> Item:
    """Fit into (height, width), aspect kept, margins filled."""
    height, width = item.height_width
    scale = min(size[0] / height, size[1] / width)
    new = min(size[0], max(1, round(height * scale))), min(size[1], max(1, round(width * scale)))
    top, left = (size[0] - new[0]) // 2, (size[1] - new[1]) // 2
    return window_item(resize_item(item, new, interpolation), -top, -left, *size, fill)


def clip_boxes(item: Item, min_visible: float) -> Item:
    """Cut boxes at the picture's edge and drop objects with at most `min_visible` of their box's area left."""
    if item.boxes is None:
        return item
    clipped, visible = visible_boxes(item)
    return replace(item, boxes=clipped).keep(visible > min_visible)


def visible_boxes(item: Item) -> tuple[Float[Tensor, "objects 4"], Float[Tensor, " objects"]]:
    """Boxes cut at the picture's edge, and which share of each one's area is left (0 for a box without area)."""
    boxes = torch.zeros(0, 4) if item.boxes is None else item.boxes
    height, width = item.height_width
    limit = torch.tensor([width, height, width, height]).to(boxes)
    clipped = torch.minimum(boxes.clamp(min=0), limit)
    area = _area(boxes)
    return clipped, torch.where(area > 0, _area(clipped) / area.clamp(min=1e-12), 0.0)


def tighten_boxes(item: Item) -> Item:
    """Make boxes those of the masks, where there are masks; objects without a pixel are dropped.

    After a cut or a turn the box of what is left of an object is smaller than what is left of its box.
    """
    if item.boxes is None or item.masks is None or len(item.masks) == 0:
        return item
    rows, columns = item.masks.any(2), item.masks.any(1)
    edges = [_first(columns), _first(rows), columns.shape[1] - _first(columns.flip(1))]
    boxes = torch.stack([*edges, rows.shape[1] - _first(rows.flip(1))], dim=1).to(item.boxes)
    return replace(item, boxes=boxes).keep(rows.any(1))


def affine_item(
    item: Item,
    matrix: tuple[tuple[float, float], tuple[float, float]],
    shift: tuple[float, float],
    size: tuple[int, int] | None = None,
    fill: int = 0,
    min_visible: float = 0.0,
) -> Item:
    """Apply p → matrix · (p - centre) + new centre + shift to the picture (bilinear) and its objects.

    A box becomes the upright box around its four moved corners.

    Args:
        item: the picture with its objects.
        matrix: of the turn, stretch and shear, on (x, y).
        shift: (right, down) in pixels.
        size: (height, width) of the result; as it was where None.
        fill: grey level outside the picture.
        min_visible: objects with at most this share of their moved box inside the result are dropped.
    """
    height, width = size or item.height_width
    old = torch.tensor([item.image.shape[-1], item.image.shape[-2]], dtype=torch.float64)
    new = torch.tensor([width, height], dtype=torch.float64)
    forward = torch.tensor(matrix, dtype=torch.float64)
    offset = torch.tensor(shift, dtype=torch.float64)

    def move(points: Tensor) -> Tensor:
        return ((points.double() - old / 2) @ forward.T + new / 2 + offset).to(points.dtype)

    boxes = item.boxes
    if boxes is not None:
        corners = move(torch.stack([boxes[:, [0, 1]], boxes[:, [2, 1]], boxes[:, [2, 3]], boxes[:, [0, 3]]], dim=1))
        boxes = torch.cat([corners.amin(1), corners.amax(1)], dim=1)
    # grid_sample asks where each pixel comes from, in coordinates from -1 to 1 across the picture.
    backward = torch.linalg.inv(forward)
    theta = torch.cat([backward * new[None, :] / old[:, None], (-2 * (backward @ offset) / old)[:, None]], dim=1)
    grid = F.affine_grid(theta[None].float(), [1, 1, height, width], align_corners=False)
    # What lies outside is sampled as zero, so the grey is zero for the while.
    pixels = F.grid_sample(item.image[None].float() - fill, grid, mode="bilinear", align_corners=False)[0] + fill

    def nearest(layers: Tensor, value: int) -> Tensor:
        if layers.shape[0] == 0:
            return layers.new_zeros((0, height, width))
        levels = layers[None].float() - value
        return (F.grid_sample(levels, grid, mode="nearest", align_corners=False)[0] + value).to(layers.dtype)

    moved = replace(
        _with_pixels(item, nearest, pixels.round_().clamp_(0, 255).to(torch.uint8)),
        boxes=boxes,
        points=None if item.points is None else move(item.points),
        scale=item.scale * math.sqrt(abs(float(torch.linalg.det(forward)))),
    )
    return clip_boxes(moved, min_visible)


def rotation(degrees: float) -> tuple[tuple[float, float], tuple[float, float]]:
    """The matrix that turns counter-clockwise as one sees it (y points down)."""
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return (cosine, sine), (-sine, cosine)


def _area(boxes: Float[Tensor, "objects 4"]) -> Float[Tensor, " objects"]:
    return (boxes[:, 2] - boxes[:, 0]).clamp(min=0) * (boxes[:, 3] - boxes[:, 1]).clamp(min=0)


def _first(flags: Bool[Tensor, "objects places"]) -> Int64[Tensor, " objects"]:
    """The first place that is set."""
    return flags.to(torch.uint8).argmax(1)


def _with_pixels(
    item: Item, move: Callable[[Tensor, int], Tensor], image: UInt8[Tensor, "3 new_height new_width"]
) -> Item:
    """The item with another image, and with masks and classes moved: `move` gets layers of pixels and their filling."""
    masks, classes = item.masks, item.classes
    return replace(
        item,
        image=image,
        masks=None if masks is None else move(masks, 0),
        classes=None if classes is None else move(classes[None], NOTHING_SAID)[0],
    )


def _window(pixels: Tensor, window: tuple[int, int, int, int], fill: int) -> Tensor:
    (top, left, height, width), (have_height, have_width) = window, pixels.shape[-2:]
    if top >= 0 and left >= 0 and top + height <= have_height and left + width <= have_width:
        return pixels[:, top : top + height, left : left + width]
    # Negative padding cuts.
    padding = (-left, left + width - have_width, -top, top + height - have_height)
    value = bool(fill) if pixels.dtype == torch.bool else fill
    if top >= have_height or left >= have_width or top + height <= 0 or left + width <= 0:
        return pixels.new_full((pixels.shape[0], height, width), value)
    return F.pad(pixels, padding, value=value)


def _nearest(layers: Tensor, size: tuple[int, int]) -> Tensor:
    if layers.shape[0] == 0:
        return layers.new_zeros((0, *size))
    return F.interpolate(layers[None].to(torch.uint8), size, mode="nearest-exact")[0].to(layers.dtype)
