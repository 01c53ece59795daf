"""What a region of interest sees of a feature map: RoIAlign, RoIPool, and the level of a pyramid that it looks at.

Notable here:
- RoIAlign is one weighted sum of rows. The map is laid out with its channels last, so that a cell is a row of numbers;
  a bin is then a bag of cells with weights, and `F.embedding_bag` sums all bags. The weights of a bin are the outer
  product of those along y and along x; neighbouring samples that fall on the same cell are merged before the product.
- The gradient is the same sum turned around: every cell is a bag of the bins that read it. Sorting the cells once makes
  it another `embedding_bag`, several times faster than the scattered additions of that operation's own backward.
- The result has its channels last in memory (its shape is as usual). Maps with channels last are not copied.
- float16 and bfloat16 maps are pooled in float32, and the result is rounded once.
- RoIPool is the same with the greatest cell of a bag instead of the weighted sum; it is there for parity, not speed.

Deliberate differences from torchvision: RoIs that reach nothing of the map give zeros even where their corners are not
finite; no gradient reaches the RoIs, as there.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int32, Int64
from torch import Tensor

_TAPS_AT_ONCE = 1 << 20
"""Cells × bins that are looked at together while the bags are made: some 20 MB."""


@dataclass(frozen=True)
class _Bags:
    """Which cells every bin sums, with which weights; `rois` says which RoIs the bins belong to (None: all)."""

    cells: Int32[Tensor, "taps"]
    weights: Float[Tensor, "taps"]
    counts: Int64[Tensor, "bins"]
    rois: Int64[Tensor, "rois"] | None = None


def roi_align(
    features: Float[Tensor, "batch channels height width"],
    rois: Float[Tensor, "rois 5"],
    output_size: int | tuple[int, int],
    *,
    spatial_scale: float = 1.0,
    sampling_ratio: int = 0,
    aligned: bool = True,
) -> Float[Tensor, "rois channels bins_y bins_x"]:
    """Average bilinear samples of a feature map in the bins of every region.

    Args:
        features: the map.
        rois: index in the batch, then xyxy in pixels of the picture; there may be none.
        output_size: bins (down, across), or one number for both.
        spatial_scale: cells per pixel: 1 / stride.
        sampling_ratio: samples per bin and direction; 0 takes as many as the bin has cells, rounded up.
        aligned: whether pixels are areas, so that coordinates move by half a cell (Detectron2). False is the first
            version: no half cell, and regions are at least one cell large (torchvision's detectors).

    Returns:
        The bins of every region, in the dtype of the map; channels are last in memory.

    Raises:
        ValueError: a shape is wrong, or a RoI names a picture that is not in the batch.

    Source: He et al. 2017 (Mask R-CNN), sec. 3; the half cell is Detectron2's `ROIAlign`.
    """
    bins = _pair(output_size)
    _check(rois, len(features))
    bags = _bags(rois, features, bins, spatial_scale, sampling_ratio, aligned)
    return _pool([features], [bags], len(rois), bins)


def roi_pool(
    features: Float[Tensor, "batch channels height width"],
    rois: Float[Tensor, "rois 5"],
    output_size: int | tuple[int, int],
    *,
    spatial_scale: float = 1.0,
) -> Float[Tensor, "rois channels bins_y bins_x"]:
    """Return the greatest cell in the bins of every region; the gradient goes to that cell (the first of equal ones).

    Args:
        features: the map.
        rois: index in the batch, then xyxy in pixels of the picture; there may be none.
        output_size: bins (down, across), or one number for both.
        spatial_scale: cells per pixel: 1 / stride.

    Returns:
        The bins of every region; a bin without cells is 0. Corners are rounded to whole cells (halves away from zero),
        the cell of the second corner belongs to the region, and bins may share cells: as in the original.

    Raises:
        ValueError: a shape is wrong, or a RoI names a picture that is not in the batch.

    Source: Girshick 2015 (Fast R-CNN), sec. 2.1; `roi_pooling_layer.cpp` of its code.
    """
    bins = _pair(output_size)
    _check(rois, len(features))
    rows = _rows(features)
    if not len(rois):
        return _no_regions([features], bins)
    with torch.no_grad():
        source, reached = _greatest(rows, rois.detach().to(features.device), features.shape[2:], bins, spatial_scale)
    pooled = rows.gather(0, source).where(reached[:, None], 0)
    return pooled.view(len(rois), *bins, -1).permute(0, 3, 1, 2).to(features.dtype)


def _greatest(
    rows: Tensor, rois: Tensor, size: torch.Size, bins: tuple[int, int], scale: float
) -> tuple[Int64[Tensor, "bins channels"], Bool[Tensor, "bins"]]:
    """Return the row of the greatest cell per bin and channel, and which bins have any."""
    rois = rois.to(torch.promote_types(torch.float32, rois.dtype))
    corners = (rois[:, 1:] * scale).nan_to_num(0)
    whole = corners.trunc()
    corners = whole + corners.sign() * ((corners - whole).abs() >= 0.5)  # torch.round would round halves to even
    x, wide = _ranges(corners[:, 0], corners[:, 2], bins[1], size[1])
    y, high = _ranges(corners[:, 1], corners[:, 3], bins[0], size[0])
    counts = high[:, :, None] * wide[:, None, :]
    first = rois[:, 0].long()[:, None, None] * (size[0] * size[1]) + y[:, :, None] * size[1] + x[:, None, :]
    per_bin = torch.stack([counts, first, wide[:, None, :].expand_as(counts)]).flatten(2)
    found: list[Tensor] = []
    for part in _parts(counts.flatten(1).sum(1).tolist()):
        number, begin, width = per_bin[:, part].flatten(1)
        offsets = number.cumsum(0) - number
        within = torch.arange(int(number.sum()), device=rois.device) - offsets.repeat_interleave(number)
        width = width.repeat_interleave(number)
        cells = begin.repeat_interleave(number) + within // width * size[1] + within % width
        found.append(torch.embedding_bag(rows, cells, offsets, mode=2)[3])  # 2: the greatest, and [3]: where it is
    return torch.cat(found), counts.flatten() > 0


def _ranges(start: Tensor, end: Tensor, bins: int, length: int) -> tuple[Tensor, Tensor]:
    """Return the first cell and the number of cells of every bin along one axis, inside of the map."""
    per_bin = (end - start + 1).clamp(min=1)[:, None] / bins
    step = torch.arange(bins, device=start.device)
    low = ((step * per_bin).floor() + start[:, None]).clamp(0, length).long()
    high = (((step + 1) * per_bin).ceil() + start[:, None]).clamp(0, length).long()
    return low, (high - low).clamp(min=0)


def assign_levels(
    boxes: Float[Tensor, "boxes 4"],
    lowest: int,
    highest: int,
    *,
    canonical_size: float = 224.0,
    canonical_level: int = 4,
) -> Int64[Tensor, "boxes"]:
    """Return the level of the pyramid that every box is pooled from: ⌊4 + log2(√area / 224) + 1e-6⌋, within the given.

    Args:
        boxes: xyxy in pixels.
        lowest: first level there is (2 has stride 4).
        highest: last level there is.
        canonical_size: side in pixels of the box that belongs to `canonical_level`.
        canonical_level: its level.

    Returns:
        Levels from `lowest` to `highest`; boxes without area go to `lowest`.

    Source: Lin et al. 2017 (FPN), eq. 1; the 1e-6 is Detectron's.
    """
    side = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
    level = (canonical_level + (side / canonical_size).log2() + 1e-6).floor()
    return level.nan_to_num(nan=lowest).clamp(lowest, highest).long()


def multi_level_roi_align(
    features: Sequence[Float[Tensor, "batch channels _ _"]],
    rois: Float[Tensor, "rois 5"],
    output_size: int | tuple[int, int],
    scales: Sequence[float],
    *,
    sampling_ratio: int = 2,
    aligned: bool = False,
    canonical_size: float = 224.0,
    canonical_level: int = 4,
) -> Float[Tensor, "rois channels bins_y bins_x"]:
    """Pool every region from the level of a pyramid that fits its size.

    Args:
        features: maps from fine to coarse, each half as fine as the one before.
        rois: index in the batch, then xyxy in pixels of the picture.
        output_size: bins (down, across), or one number for both.
        scales: cells per pixel of every map: 1/4, 1/8, …
        sampling_ratio, aligned: as for `roi_align`; the defaults are those of torchvision's detectors.
        canonical_size, canonical_level: as for `assign_levels`.

    Returns:
        The bins of every region, in the order of `rois`.

    Raises:
        ValueError: the numbers of maps and scales differ, or a shape is wrong.

    Source: Lin et al. 2017 (FPN), sec. 4.2; torchvision's `MultiScaleRoIAlign`.
    """
    if not features or len(features) != len(scales):
        raise ValueError(f"{len(features)} feature maps for {len(scales)} scales: one scale per map is needed")
    bins = _pair(output_size)
    _check(rois, len(features[0]))
    lowest, highest = (round(-math.log2(scale)) for scale in (scales[0], scales[-1]))
    levels = assign_levels(rois[:, 1:], lowest, highest, canonical_size=canonical_size, canonical_level=canonical_level)
    bags: list[_Bags] = []
    for level, (feature, scale) in enumerate(zip(features, scales, strict=True), start=lowest):
        index = (levels == level).nonzero()[:, 0]
        found = _bags(rois[index], feature, bins, scale, sampling_ratio, aligned)
        bags.append(_Bags(found.cells, found.weights, found.counts, index))
    return _pool(features, bags, len(rois), bins)


def _pool(
    features: Sequence[Tensor], bags: list[_Bags], rois: int, bins: tuple[int, int]
) -> Float[Tensor, "rois channels bins_y bins_x"]:
    rows = [_rows(feature) for feature in features]
    if not rois:
        return _no_regions(features, bins)
    pooled: Tensor = _SumBags.apply(bags, rois * bins[0] * bins[1], *rows)  # pyright: ignore
    return pooled.view(rois, *bins, -1).permute(0, 3, 1, 2).to(features[0].dtype)


def _no_regions(features: Sequence[Tensor], bins: tuple[int, int]) -> Float[Tensor, "0 channels bins_y bins_x"]:
    """Return nothing, but attached to the maps: a step without regions then still has a gradient, of zeros."""
    attached = torch.stack([feature[:0].sum() for feature in features]).sum()
    return features[0].new_zeros(0, features[0].shape[1], *bins) + attached


def _rows(features: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "cells channels"]:
    rows = features.permute(0, 2, 3, 1).reshape(-1, features.shape[1])
    return rows if rows.dtype == torch.float64 else rows.float()


class _SumBags(torch.autograd.Function):
    """Weighted sums of rows, from several tables into one, with the transposed sum as gradient."""

    @staticmethod
    def forward(ctx: Any, bags: list[_Bags], bins: int, *rows: Tensor) -> Tensor:
        ctx.bags, ctx.lengths = bags, [len(table) for table in rows]
        if len(rows) == 1:
            return _sum_bags(rows[0], bags[0].cells, bags[0].weights, bags[0].counts)
        out = rows[0].new_empty(bins, rows[0].shape[1])
        for table, bag in zip(rows, bags, strict=True):
            assert bag.rois is not None
            if len(bag.rois):
                found = _sum_bags(table, bag.cells, bag.weights, bag.counts)
                per_roi = len(bag.counts) // len(bag.rois)
                out.view(-1, per_roi * out.shape[1])[bag.rois] = found.view(len(bag.rois), -1)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        grad = grad.contiguous()
        found: list[Tensor | None] = [None, None]
        for needed, bag, length in zip(ctx.needs_input_grad[2:], ctx.bags, ctx.lengths, strict=True):
            found.append(_spread(grad, bag, length) if needed else None)
        return tuple(found)


def _sum_bags(table: Tensor, index: Tensor, weights: Tensor, counts: Tensor) -> Tensor:
    offsets = (counts.cumsum(0) - counts).to(index.dtype)
    # detached: inside of an autograd function, and the forward-only kernel is chosen by this
    return F.embedding_bag(index, table.detach(), offsets, mode="sum", per_sample_weights=weights)


def _spread(grad: Float[Tensor, "all_bins channels"], bag: _Bags, cells: int) -> Float[Tensor, "cells channels"]:
    """Sum for every cell the gradients of the bins that read it."""
    bins = torch.arange(len(bag.counts), dtype=torch.int32, device=grad.device)
    if bag.rois is not None and len(bag.rois):
        per_roi = len(bag.counts) // len(bag.rois)
        bins = (bag.rois.int()[:, None] * per_roi + bins[:per_roi]).flatten()
    order = bag.cells.argsort(stable=True)
    counts = torch.bincount(bag.cells, minlength=cells)
    reading = bins.repeat_interleave(bag.counts)[order]
    offsets = (counts.cumsum(0) - counts).int()
    return F.embedding_bag(reading, grad, offsets, mode="sum", per_sample_weights=bag.weights[order])


@torch.no_grad()
def _bags(
    rois: Tensor, features: Tensor, bins: tuple[int, int], scale: float, sampling_ratio: int, aligned: bool
) -> _Bags:
    """Return the cells and weights of every bin; in parts, as bins with many samples need much room."""
    height, width = features.shape[2:]
    dtype = torch.float64 if features.dtype == torch.float64 else torch.float32
    rois = rois.detach().to(features.device, torch.promote_types(dtype, rois.dtype))
    corners = rois[:, 1:] * scale - (0.5 if aligned else 0.0)
    start, size = corners[:, :2], corners[:, 2:] - corners[:, :2]
    if not aligned:
        size = size.clamp(min=1)
    per_bin = size / size.new_tensor((bins[1], bins[0]))
    samples = per_bin.ceil().nan_to_num(0, 0, 0).clamp(min=0).long()
    if sampling_ratio > 0:
        samples = torch.full_like(samples, sampling_ratio)
    # merged, the samples of a bin read at most one cell more than they are where they are as dense as cells
    taps = (2 * samples if sampling_ratio > 0 else samples + 1).prod(1) * (bins[0] * bins[1])
    first = rois[:, 0].int() * (height * width)
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for part in _parts(taps.tolist()):
        x = _axis(start[part, 0], per_bin[part, 0], samples[part, 0], bins[1], width)
        y = _axis(start[part, 1], per_bin[part, 1], samples[part, 1], bins[0], height)
        cells = first[part, None, None, None, None] + (y[0] * width)[:, :, None, :, None] + x[0][:, None, :, None, :]
        weights = (y[1][:, :, None, :, None] * x[1][:, None, :, None, :]).to(dtype)
        read_y, read_x = y[1] != 0, x[1] != 0
        read = (read_y[:, :, None, :, None] & read_x[:, None, :, None, :]).flatten().nonzero()[:, 0]
        counts = read_y.sum(2)[:, :, None] * read_x.sum(2)[:, None, :]
        parts.append((cells.flatten()[read], weights.flatten()[read], counts.flatten()))
    cells, weights, counts = (torch.cat(found) for found in zip(*parts, strict=True))
    return _Bags(cells, weights, counts)


def _parts(taps: list[int]) -> list[slice]:
    """Cut the RoIs into runs that look at some `_TAPS_AT_ONCE` cells at most (or are one RoI)."""
    parts, begin, most = list[slice](), 0, 0
    for index, tap in enumerate(taps):
        most = max(most, tap)
        if index > begin and most * (index + 1 - begin) > _TAPS_AT_ONCE:
            parts.append(slice(begin, index))
            begin, most = index, tap
    return [*parts, slice(begin, len(taps))]


def _axis(
    start: Float[Tensor, "rois"], per_bin: Float[Tensor, "rois"], samples: Int64[Tensor, "rois"], bins: int, length: int
) -> tuple[Int32[Tensor, "rois bins taps"], Float[Tensor, "rois bins taps"]]:
    """Return the cells along one axis that every bin reads, and their weights (0 where there is none).

    Samples outside of [-1, length] count as zeros, and those in the outermost half cells take the border: the original.
    """
    most = max(int(samples.max()), 1) if len(samples) else 1
    step = torch.arange(most, device=start.device)
    number = torch.minimum(step, (samples[:, None] - 1).clamp(min=0))
    backwards = (samples[:, None] - 1 - number).clamp(min=0)
    number = torch.where(per_bin[:, None] < 0, backwards, number)  # positions must not fall: cells are merged in order
    inside = (number + 0.5) * per_bin[:, None] / samples[:, None].clamp(min=1)
    position = (start[:, None] + torch.arange(bins, device=start.device) * per_bin[:, None])[:, :, None]
    position = position + inside[:, None, :]
    used = (step < samples[:, None])[:, None, :] & (position >= -1) & (position <= length)
    position = position.nan_to_num(0).clamp(0, length - 1)
    low = position.floor()
    share = position - low
    low = low.long()
    # A sample reads the cells low and low + 1. It moves on by a slot where low moved by 1, by two where by more.
    moved = low.diff(dim=2, prepend=low[:, :, :1]).clamp(max=2)
    slot = moved.cumsum(2)
    taps = int(slot.max()) + 2 if slot.numel() else 2
    cells = torch.zeros(*slot.shape[:2], taps, dtype=torch.int32, device=start.device)
    cells.scatter_(2, slot + 1, (low + 1).clamp(max=length - 1).int()).scatter_(2, slot, low.int())
    weights = torch.zeros(cells.shape, dtype=start.dtype, device=start.device)
    scale = used.to(start.dtype) / samples[:, None, None].clamp(min=1)  # of integers torch would divide in float32
    weights.scatter_add_(2, slot, (1 - share) * scale).scatter_add_(2, slot + 1, share * scale)
    return cells, weights


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _check(rois: Tensor, batch: int) -> None:
    if rois.ndim != 2 or rois.shape[1] != 5:
        raise ValueError(f"RoIs have the shape {tuple(rois.shape)}: [rois, 5] is needed, index in the batch and xyxy")
    if len(rois) and not bool(((rois[:, 0] >= 0) & (rois[:, 0] < batch)).all()):
        raise ValueError(f"RoIs name the pictures {rois[:, 0].unique().tolist()} of a batch of {batch}")
