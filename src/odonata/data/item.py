"""A picture with everything that must move with it: boxes, labels, masks, points. And the geometry that moves them."""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from odonata.data.resize import Backend, Interpolation, center_crop, resize


@dataclass(frozen=True, eq=False)
class Item:
    """One picture on its way through the transforms.

    Args:
        image: uint8 pixels.
        boxes: xyxy in absolute pixels.
        labels: class of each box.
        masks: of each object, as large as the picture.
        points: (x, y) in absolute pixels: free points [points, 2], or those of each object [objects, points, 2].
    """

    image: UInt8[Tensor, "3 height width"]
    boxes: Float[Tensor, "objects 4"] | None = None
    labels: Int64[Tensor, " objects"] | None = None
    masks: Bool[Tensor, "objects height width"] | None = None
    points: Float[Tensor, "*points 2"] | None = None

    def __post_init__(self) -> None:
        if self.image.dtype != torch.uint8 or self.image.ndim != 3 or self.image.shape[0] != 3:
            raise ValueError(f"want uint8 pixels [3, height, width], got {self.image.dtype} {tuple(self.image.shape)}")
        if self.masks is not None and self.masks.shape[-2:] != self.image.shape[-2:]:
            raise ValueError(f"masks {tuple(self.masks.shape)} do not fit the picture {tuple(self.image.shape)}")

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
        for name in ("boxes", "labels", "masks", "points"):
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
    masks = None if item.masks is None else item.masks.flip(-1)
    return replace(item, image=item.image.flip(-1), boxes=boxes, masks=masks, points=points)


def resize_item(
    item: Item, size: tuple[int, int], interpolation: Interpolation = "bilinear", backend: Backend = "torch"
) -> Item:
    """Scale to (height, width); masks by nearest pixel."""
    height, width = item.height_width
    # Multiplied, then divided: what lies on the old border lies exactly on the new one.
    new, old = torch.tensor([size[1], size[0]]), torch.tensor([width, height])
    return replace(
        item,
        image=resize(item.image, size, interpolation, backend),
        boxes=None if item.boxes is None else item.boxes * new.repeat(2) / old.repeat(2),
        points=None if item.points is None else item.points * new / old,
        masks=None if item.masks is None else _resize_masks(item.masks, size),
    )


def crop_item(item: Item, top: int, left: int, height: int, width: int, min_visible: float = 0.0) -> Item:
    """Cut a window out of the picture; objects with at most `min_visible` of their box's area left are dropped."""
    shift = torch.tensor([left, top])
    moved = replace(
        item,
        image=item.image[:, top : top + height, left : left + width],
        boxes=None if item.boxes is None else item.boxes - shift.repeat(2).to(item.boxes),
        points=None if item.points is None else item.points - shift.to(item.points),
        masks=None if item.masks is None else item.masks[:, top : top + height, left : left + width],
    )
    return clip_boxes(moved, min_visible)


def center_crop_item(item: Item, size: tuple[int, int]) -> Item:
    """Cut (height, width) out of the middle, zeros where the picture is smaller (torchvision's rounding)."""
    height, width = item.height_width
    top, left = (
        round((have - want) / 2.0) if have >= want else -((want - have) // 2)
        for have, want in zip((height, width), size, strict=True)
    )
    shift = torch.tensor([left, top])
    moved = replace(
        item,
        image=center_crop(item.image, size),
        boxes=None if item.boxes is None else item.boxes - shift.repeat(2).to(item.boxes),
        points=None if item.points is None else item.points - shift.to(item.points),
        masks=None if item.masks is None else center_crop(item.masks, size),
    )
    return clip_boxes(moved, 0.0)


def shift_item(item: Item, down: int, right: int) -> Item:
    """Move the picture's content by whole pixels inside its frame, black where nothing is; boxes end at the edge."""
    height, width = item.height_width
    padding = (max(0, right), max(0, -right), max(0, down), max(0, -down))
    top, left = max(0, -down), max(0, -right)

    def moved(pixels: Tensor) -> Tensor:
        return F.pad(pixels, padding)[..., top : top + height, left : left + width]

    shift = torch.tensor([right, down])
    return clip_boxes(
        replace(
            item,
            image=moved(item.image),
            boxes=None if item.boxes is None else item.boxes + shift.repeat(2).to(item.boxes),
            points=None if item.points is None else item.points + shift.to(item.points),
            masks=None if item.masks is None else moved(item.masks),
        ),
        0.0,
    )


def letterbox_item(item: Item, size: tuple[int, int], fill: int, interpolation: Interpolation = "bilinear") -> Item:
    """Fit into (height, width), aspect kept, margins filled."""
    height, width = item.height_width
    scale = min(size[0] / height, size[1] / width)
    new = min(size[0], max(1, round(height * scale))), min(size[1], max(1, round(width * scale)))
    top, left = (size[0] - new[0]) // 2, (size[1] - new[1]) // 2
    small = resize_item(item, new, interpolation)
    padding = (left, size[1] - new[1] - left, top, size[0] - new[0] - top)
    shift = torch.tensor([left, top])
    return replace(
        small,
        image=F.pad(small.image, padding, value=fill),
        boxes=None if small.boxes is None else small.boxes + shift.repeat(2).to(small.boxes),
        points=None if small.points is None else small.points + shift.to(small.points),
        masks=None if small.masks is None else F.pad(small.masks, padding, value=False),
    )


def clip_boxes(item: Item, min_visible: float) -> Item:
    """Cut boxes at the picture's edge and drop objects with at most `min_visible` of their box's area left."""
    if item.boxes is None:
        return item
    height, width = item.height_width
    limit = torch.tensor([width, height, width, height]).to(item.boxes)
    clipped = torch.minimum(item.boxes.clamp(min=0), limit)
    area = _area(item.boxes)
    visible = _area(clipped) > min_visible * area
    return replace(item, boxes=clipped).keep(visible & (area > 0))


def affine_item(
    item: Item, matrix: tuple[tuple[float, float], tuple[float, float]], shift: tuple[float, float]
) -> Item:
    """Apply p → matrix · (p - centre) + centre + shift to the picture (bilinear, black outside) and its objects.

    A box becomes the upright box around its four moved corners.
    """
    height, width = item.height_width
    forward = torch.tensor(matrix, dtype=torch.float64)
    centre = torch.tensor([width / 2, height / 2], dtype=torch.float64)
    offset = torch.tensor(shift, dtype=torch.float64)

    def move(points: Tensor) -> Tensor:
        return ((points.double() - centre) @ forward.T + centre + offset).to(points.dtype)

    boxes = item.boxes
    if boxes is not None:
        corners = move(torch.stack([boxes[:, [0, 1]], boxes[:, [2, 1]], boxes[:, [2, 3]], boxes[:, [0, 3]]], dim=1))
        boxes = torch.cat([corners.amin(1), corners.amax(1)], dim=1)
    # grid_sample asks where each pixel comes from, in coordinates from -1 to 1 across the picture.
    backward = torch.linalg.inv(forward)
    half = centre
    theta = torch.cat([backward * half[None, :] / half[:, None], (-(backward @ offset) / half)[:, None]], dim=1)
    grid = F.affine_grid(theta[None].float(), [1, 1, height, width], align_corners=False)
    pixels = F.grid_sample(item.image[None].float(), grid, mode="bilinear", align_corners=False)[0]
    masks = item.masks
    if masks is not None:
        masks = F.grid_sample(masks[None].float(), grid, mode="nearest", align_corners=False)[0] > 0.5
    moved = replace(
        item,
        image=pixels.round_().clamp_(0, 255).to(torch.uint8),
        boxes=boxes,
        masks=masks,
        points=None if item.points is None else move(item.points),
    )
    return clip_boxes(moved, 0.0)


def rotation(degrees: float) -> tuple[tuple[float, float], tuple[float, float]]:
    """The matrix that turns counter-clockwise as one sees it (y points down)."""
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return (cosine, sine), (-sine, cosine)


def _area(boxes: Float[Tensor, "objects 4"]) -> Float[Tensor, " objects"]:
    return (boxes[:, 2] - boxes[:, 0]).clamp(min=0) * (boxes[:, 3] - boxes[:, 1]).clamp(min=0)


def _resize_masks(
    masks: Bool[Tensor, "objects height width"], size: tuple[int, int]
) -> Bool[Tensor, "objects new_height new_width"]:
    if masks.shape[0] == 0:
        return masks.new_zeros((0, *size))
    return F.interpolate(masks[None].to(torch.uint8), size, mode="nearest-exact")[0].to(masks.dtype)
