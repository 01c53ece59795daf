"""Instances as polygons of rays: the distances from a centre to the outline in equally spaced directions.

Ray number i points to angle i · 360° / count, measured from straight down towards the right: (x, y) = (sin, cos), as
PolarMask takes angles as atan2(x, y). Where a ray crosses the outline several times the farthest crossing counts; where
it never does (the centre is outside), the distance is 1e-6.

Deliberate differences from the authors' code:
- Crossings are computed on the outline itself. The code takes the farthest contour pixel within 3° of the ray, in whole
  degrees, which limits it to 36 rays or so.
- Coordinates are areas, as everywhere in the library: pixel i reaches from i to i + 1, an outline runs along the edges
  of pixels, and the middle of a pixel is at i + 0.5.

Source: Xie et al. 2020 (PolarMask), sec. 3.2 to 3.4.
"""

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from odonata.errors import DataError

NO_CROSSING = 1e-6
"""Distance along a ray that never meets the outline (PolarMask's code)."""

_CROSSINGS_AT_ONCE = 1 << 21


def largest_part(mask: Bool[Tensor, "height width"]) -> Bool[Tensor, "height width"]:
    """Return the largest connected part of a mask (diagonal neighbours are connected); an empty mask stays empty.

    Source: Xie et al. 2020, sec. 3.2: an instance in several pieces is learned by its largest.
    """
    from scipy import ndimage

    found: Any = ndimage.label(mask.cpu().numpy(), structure=np.ones((3, 3), dtype=np.int8))
    labels, count = found
    if count < 2:
        return mask.clone()
    areas = np.bincount(labels.ravel())
    areas[0] = 0
    return torch.from_numpy(labels == areas.argmax()).to(mask.device)


def mass_centre(mask: Bool[Tensor, "height width"]) -> Float[Tensor, "2"]:
    """Return the mean (x, y) of the pixels of a mask, in float64.

    Raises:
        DataError: the mask is empty.

    Source: Xie et al. 2020, sec. 3.2, "Mass Center".
    """
    cells = mask.nonzero()
    if not len(cells):
        raise DataError(f"a mask of {mask.shape[0]} × {mask.shape[1]} pixels is empty: it has no centre")
    return cells.double().mean(0).flip(0) + 0.5


def mask_outline(mask: Bool[Tensor, "height width"]) -> Float[Tensor, "edges 2 2"]:
    """Return the edges between the pixels of a mask and all others, in no order: start and end (x, y), in float64."""
    height, width = mask.shape
    padded = torch.zeros(height + 2, width + 2, dtype=torch.bool, device=mask.device)
    padded[1:-1, 1:-1] = mask
    across = (padded[1:] != padded[:-1])[:, 1:-1].nonzero().double().flip(1)  # an edge above row y, from x to x + 1
    down = (padded[:, 1:] != padded[:, :-1])[1:-1].nonzero().double().flip(1)
    right, below = across.new_tensor((1.0, 0.0)), across.new_tensor((0.0, 1.0))
    return torch.cat([torch.stack([across, across + right], 1), torch.stack([down, down + below], 1)])


def polygon_outline(polygon: Float[Tensor, "points 2"]) -> Float[Tensor, "edges 2 2"]:
    """Return the edges of a polygon, the last point joined to the first.

    Raises:
        DataError: there are fewer than three points.
    """
    if len(polygon) < 3:
        raise DataError(f"a polygon has {len(polygon)} points: at least 3 are needed")
    return torch.stack([polygon, polygon.roll(-1, 0)], 1).double()


def ray_directions(count: int, like: Tensor) -> Float[Tensor, "rays 2"]:
    """Return the unit vectors (x, y) of the rays, in dtype and on device of `like`.

    Raises:
        ValueError: there are fewer than three rays.
    """
    if count < 3:
        raise ValueError(f"{count} rays: a polygon needs at least 3")
    angles = torch.arange(count, dtype=torch.float64) * (2 * math.pi / count)
    return torch.stack([angles.sin(), angles.cos()], 1).to(like)


def rays(
    outline: Float[Tensor, "edges 2 2"], centres: Float[Tensor, "centres 2"], count: int = 36
) -> Float[Tensor, "centres rays"]:
    """Return the distances from centres to the farthest crossing of every ray with an outline.

    Args:
        outline: what `mask_outline` (of the `largest_part`) or `polygon_outline` returns.
        centres: (x, y) in pixels.
        count: rays per centre.

    Returns:
        Distances in pixels, in float64; at least 1e-6.

    Raises:
        ValueError: there are fewer than three rays.

    Source: Xie et al. 2020, sec. 3.2, "Distance Regression".
    """
    centres, outline = centres.double(), outline.double()
    directions = ray_directions(count, centres)
    if not len(outline) or not len(centres):
        return centres.new_full((len(centres), count), NO_CROSSING)
    at_once = max(1, _CROSSINGS_AT_ONCE // (len(outline) * count))
    return torch.cat([_farthest(outline, part, directions) for part in centres.split(at_once)])


def _farthest(outline: Tensor, centres: Tensor, directions: Tensor) -> Float[Tensor, "centres rays"]:
    ends = outline[None] - centres[:, None, None]  # centres edges 2 2
    along = ends @ directions.T  # centres edges 2 rays
    beside = ends[..., :1] * directions[:, 1] - ends[..., 1:] * directions[:, 0]
    left = beside > 0  # half-open: a ray through a corner crosses one of the two edges that meet there
    crosses = left[:, :, 0] != left[:, :, 1]
    apart = beside[:, :, 0] - beside[:, :, 1]
    share = beside[:, :, 0] / apart.where(crosses, torch.ones_like(apart))
    distance = along[:, :, 0] + share * (along[:, :, 1] - along[:, :, 0])
    return distance.where(crosses, torch.zeros_like(distance)).amax(1).clamp(min=NO_CROSSING)


def polar_polygons(
    centres: Float[Tensor, "*batch 2"],
    distances: Float[Tensor, "*batch rays"],
    size: tuple[int, int] | None = None,
) -> Float[Tensor, "*batch rays 2"]:
    """Return the polygons that distances describe.

    Args:
        centres: (x, y) in pixels.
        distances: along the rays, in pixels.
        size: height and width of the picture, to which the points are clipped; None clips nothing.

    Returns:
        Points (x, y), one per ray.

    Source: Xie et al. 2020, sec. 3.2, eq. 1 and 2.
    """
    points = centres[..., None, :] + distances[..., None] * ray_directions(distances.shape[-1], distances)
    if size is None:
        return points
    return torch.minimum(points.clamp(min=0), points.new_tensor((size[1], size[0])))


def polar_iou(predicted: Float[Tensor, "*batch rays"], target: Float[Tensor, "*batch rays"]) -> Float[Tensor, "*batch"]:
    """Return the sum of the smaller over the sum of the greater distances, in (0, 1] for distances above 0.

    Source: Xie et al. 2020, sec. 3.4, eq. 7; the loss is minus its logarithm (eq. 8).
    """
    return torch.minimum(predicted, target).sum(-1) / torch.maximum(predicted, target).sum(-1)


def polar_centerness(distances: Float[Tensor, "*batch rays"]) -> Float[Tensor, "*batch"]:
    """Return the root of the smallest over the greatest distance, in [0, 1].

    Source: Xie et al. 2020, sec. 3.3, eq. 3.
    """
    return (distances.amin(-1) / distances.amax(-1).clamp(min=NO_CROSSING)).sqrt()
