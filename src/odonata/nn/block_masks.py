"""Which patches are hidden: rectangles of random shape, or patches here and there.

Reference: BEiT, Bao et al. 2021, arXiv:2106.08254, alg. 1 (rectangles); iBOT, Zhou et al. 2021, arXiv:2111.07832, sec.
3 and app. E, and DINOv2's `data/masking.py` and `data/collate.py` (which pictures of a batch, and how many patches).
Difference: where no rectangle fits, single patches are hidden, so that a mask has exactly the number asked for.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from jaxtyping import Bool
from torch import Tensor


def block_mask(
    grid: tuple[int, int], count: int, smallest: int = 4, aspect: float = 0.3
) -> Bool[Tensor, "rows columns"]:
    """Returns a mask with `count` hidden patches (True), made of rectangles, from torch's global generator.

    Args:
        grid: rows and columns of patches.
        count: patches to hide.
        smallest: area that a rectangle is drawn from at least, in patches.
        aspect: of a rectangle, between this and its inverse, even on a logarithmic scale.
    """
    mask = torch.zeros(grid, dtype=torch.bool)
    hidden = 0
    while hidden < count:
        added = _add_rectangle(mask, count - hidden, smallest, aspect)
        if not added:
            break
        hidden += added
    free = (~mask).flatten().nonzero()[:, 0]
    mask.view(-1)[free[torch.randperm(len(free))[: count - hidden]]] = True
    return mask


def _add_rectangle(mask: Tensor, most: int, smallest: int, aspect: float, tries: int = 10) -> int:
    """Hide one rectangle that adds at most so many patches; return how many it added."""
    rows, columns = mask.shape
    for draw in torch.rand(tries, 4).tolist():
        area = smallest + draw[0] * max(0, most - smallest)
        ratio = math.exp((2 * draw[1] - 1) * -math.log(aspect))
        height, width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if not (0 < height < rows and 0 < width < columns):
            continue
        top, left = int(draw[2] * (rows - height + 1)), int(draw[3] * (columns - width + 1))
        part = mask[top : top + height, left : left + width]
        added = height * width - int(part.sum())
        if 0 < added <= most:
            part.fill_(True)
            return added
    return 0


def masks_for_batch(
    pictures: int, grid: tuple[int, int], probability: float, ratio: tuple[float, float], blocks: bool = True
) -> Bool[Tensor, "pictures patches"]:
    """Returns which patches of which pictures are hidden, on the CPU; at least one patch of one picture is.

    Args:
        pictures: in the batch.
        grid: rows and columns of their patches.
        probability: share of the pictures of which something is hidden.
        ratio: least and greatest share of hidden patches; the pictures are spread evenly between.
        blocks: rectangles, or single patches.
    """
    chosen = max(1, int(pictures * probability))
    edges = torch.linspace(*ratio, chosen + 1).tolist()
    patches = grid[0] * grid[1]
    masks = torch.zeros(pictures, patches, dtype=torch.bool)
    rows, draws = torch.randperm(pictures)[:chosen].tolist(), torch.rand(chosen).tolist()
    for row, (low, high), draw in zip(rows, pairwise(edges), draws, strict=True):
        count = max(1, int(patches * (low + draw * (high - low))))
        if blocks:
            masks[row] = block_mask(grid, count).flatten()
        else:
            masks[row, torch.randperm(patches)[:count]] = True
    return masks
