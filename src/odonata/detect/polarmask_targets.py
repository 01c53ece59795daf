"""What every point of PolarMask is to say of its object: the class, the rays to the outline, the sides of the box."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from odonata.data.object_batches import ObjectBatch
from odonata.ops.matching import centre_sampling, ignore_overlap
from odonata.ops.polar import NO_CROSSING, largest_part, mask_outline, mass_centre, rays


@dataclass
class PolarTargets:
    """Rows of all levels, one after the other."""

    labels: Int64[Tensor, "batch points"]
    """−1: background, −2: not counted."""
    rays: Float[Tensor, "batch points rays"]
    """In pixels; 1e-6 where there is no object."""
    sides: Float[Tensor, "batch points 4"]
    """In pixels; zeros where there is no object."""


def polar_targets(
    batch: ObjectBatch,
    points: Float[Tensor, "points 2"],
    strides: Float[Tensor, " points"],
    ranges: Float[Tensor, "points 2"],
    *,
    count: int,
    radius: float | None,
    centre: Literal["mass", "box"],
    min_side: float,
) -> PolarTargets:
    """Give every point the smallest object whose centre it is near to and whose size belongs to its level.

    Args:
        batch: with masks. An object without a pixel in its mask is ignored.
        points: (x, y) in pixels, of all levels one after the other.
        strides: of the level of each.
        ranges: least and largest distance to a side of the box that each is for.
        count: rays of an outline.
        radius: of the centre region, in strides; None: the whole box.
        centre: of the mask's largest part, or of the box.
        min_side: objects with a shorter side are ignored.

    Source: Xie et al. 2020, sec. 3.2, "Center Sample" and "Distance Regression".
    """
    assert batch.masks is not None
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for number in range(len(batch)):
        boxes, masks = batch.boxes[number], batch.masks[number]
        wanted = ~batch.ignore[number] & masks.flatten(1).any(1)
        wanted &= (boxes[:, 2:] - boxes[:, :2]).amin(1) >= min_side
        parts = [largest_part(mask) for mask in masks[wanted]]
        middles = (boxes[wanted, :2] + boxes[wanted, 2:]) / 2
        if centre == "mass" and parts:
            middles = torch.stack([mass_centre(part) for part in parts]).to(boxes)
        owner, sides = centre_sampling(points, strides, ranges, boxes[wanted], radius, middles)
        classes = batch.labels[number][wanted]
        labels = torch.where(owner >= 0, classes[owner.clamp(min=0)], -1) if len(classes) else owner
        labels = _not_on(boxes[~wanted], points, labels)
        found.append((labels, _rays_of(parts, owner, points, count), sides))
    return PolarTargets(*(torch.stack(column) for column in zip(*found, strict=True)))


def _not_on(
    ignored: Float[Tensor, "ignored 4"], points: Float[Tensor, "points 2"], labels: Int64[Tensor, " points"]
) -> Int64[Tensor, " points"]:
    """Labels in which background on ignored objects is not counted."""
    here = torch.cat([points - 0.5, points + 0.5], 1)
    return torch.where((labels < 0) & ignore_overlap(here, ignored, 0.5), -2, labels)


def _rays_of(
    parts: list[Bool[Tensor, "height width"]],
    owner: Int64[Tensor, " points"],
    points: Float[Tensor, "points 2"],
    count: int,
) -> Float[Tensor, "points rays"]:
    """Rays from every point to the outline of the object that it has."""
    found = points.new_full((len(points), count), NO_CROSSING)
    for number, part in enumerate(parts):
        mine = (owner == number).nonzero().squeeze(1)
        if len(mine):
            found[mine] = rays(mask_outline(part), points[mine], count).to(found)
    return found
