"""Gaussian targets of key point detectors: how wide they are, how they are drawn, and how peaks are read back.

A wrong corner (or centre) near the right one still gives a box that overlaps the object well. Its penalty is therefore
reduced by a Gaussian whose radius is the distance at which the overlap falls to a minimum. Three cases limit it: both
corners move the same way, both move inwards, both move outwards.

Two published radii differ on purpose. CornerNet's is the root of those quadratic equations. CenterNet took over an
earlier state of that code, which adds where it must subtract and divides by 2 instead of 2a; its weights were trained
with the larger Gaussians that follow from it. A radius must therefore be chosen with the weights.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

RadiusKind = Literal["corner", "centernet"]


def gaussian_radius(
    heights: Float[Tensor, "objects"],
    widths: Float[Tensor, "objects"],
    min_overlap: float,
    kind: RadiusKind = "corner",
) -> Float[Tensor, "objects"]:
    """Return how far key points may be off, in cells; both originals then cut it to a whole number, at least 0.

    Args:
        heights, widths: of the objects, in cells of the heat map.
        min_overlap: IoU that a box with its corners so far off still has, in (0, 1]; 0.3 in CornerNet's code and in
            its paper, 0.7 in CenterNet.
        kind: "corner" solves the equations; "centernet" keeps the slip described above.

    Raises:
        ValueError: the kind or the overlap is impossible.

    Source: Law and Deng 2018 (CornerNet), sec. 3.2, and `sample/utils.py` of its code; Zhou et al. 2019 (Objects as
        Points), `utils/image.py` of its code.
    """
    if kind not in ("corner", "centernet") or not 0 < min_overlap <= 1:
        raise ValueError(f'kind = {kind!r}, min_overlap = {min_overlap}: "corner" or "centernet", and within (0, 1]')
    side, area = heights + widths, heights * widths
    equations = (
        (1.0, -side, area * (1 - min_overlap) / (1 + min_overlap)),  # both the same way: (h - r)(w - r) is shared
        (4.0, -2 * side, area * (1 - min_overlap)),  # inwards: (h - 2r)(w - 2r)
        (4 * min_overlap, 2 * min_overlap * side, area * (min_overlap - 1)),  # outwards: (h + 2r)(w + 2r)
    )
    roots: list[Tensor] = []
    for number, (a, b, c) in enumerate(equations):
        root = (b * b - 4 * a * c).clamp(min=0).sqrt()
        if kind == "centernet":
            roots.append((-b + root) / 2)
        else:
            roots.append((-b + root if number == 2 else -b - root) / (2 * a))
    return torch.stack(roots).amin(0)


def draw_gaussian(
    heatmaps: Float[Tensor, "classes height width"],
    centres: Int64[Tensor, "objects 2"],
    labels: Int64[Tensor, "objects"],
    radii: Int64[Tensor, "objects"],
) -> None:
    """Draw a Gaussian per object into the map of its class, in place; where two meet, the greater value stays.

    Args:
        heatmaps: what is drawn on.
        centres: cells (x, y); what lies outside of the map is cut off.
        labels: class of each object.
        radii: whole cells; the Gaussian is 2r + 1 cells wide, and its sigma a sixth of that.

    Raises:
        ValueError: a radius is negative.

    Source: Law and Deng 2018 (CornerNet), sec. 3.2; the sigma is that of its code (the paper says a third of r).
    """
    height, width = heatmaps.shape[1:]
    for (x, y), label, radius in zip(centres.tolist(), labels.tolist(), radii.tolist(), strict=True):
        if radius < 0:
            raise ValueError(f"a radius is {radius}: at least 0 is needed")
        left, right = max(x - radius, 0), min(x + radius + 1, width)
        top, bottom = max(y - radius, 0), min(y + radius + 1, height)
        if left >= right or top >= bottom:
            continue
        sigma = (2 * radius + 1) / 6
        across = torch.arange(left, right, device=heatmaps.device, dtype=torch.float64) - x
        down = torch.arange(top, bottom, device=heatmaps.device, dtype=torch.float64) - y
        bell = torch.exp(-(across.square()[None] + down.square()[:, None]) / (2 * sigma**2))
        window = heatmaps[label, top:bottom, left:right]
        torch.maximum(window, bell.to(window.dtype), out=window)


def local_maxima(
    heatmaps: Float[Tensor, "batch classes height width"], kernel: int = 3
) -> Float[Tensor, "batch classes height width"]:
    """Keep what no neighbour exceeds, and set the rest to 0: the non-maximum suppression of key point detectors.

    Args:
        heatmaps: scores, at least 0.
        kernel: side of the neighbourhood, odd.

    Raises:
        ValueError: the side is even.

    Source: Zhou et al. 2019 (Objects as Points), sec. 4.1; Law and Deng 2018 (CornerNet), sec. 3.6.
    """
    if kernel % 2 == 0:
        raise ValueError(f"kernel = {kernel}: an odd number is needed")
    greatest = F.max_pool2d(heatmaps, kernel, stride=1, padding=kernel // 2)
    return heatmaps * (heatmaps == greatest)


def top_peaks(
    heatmaps: Float[Tensor, "batch classes height width"], count: int
) -> tuple[Float[Tensor, "batch peaks"], Int64[Tensor, "batch peaks"], Int64[Tensor, "batch peaks 2"]]:
    """Return the greatest values of every picture over all classes and cells: scores, classes, and cells (x, y).

    Args:
        heatmaps: scores, as `local_maxima` leaves them.
        count: at most so many; fewer where the maps have fewer cells.

    Source: Zhou et al. 2019 (Objects as Points), sec. 4.1.
    """
    _, _, height, width = heatmaps.shape
    flat = heatmaps.flatten(1)
    scores, index = flat.topk(min(count, flat.shape[1]), dim=1)
    labels = index // (height * width)
    cells = index - labels * (height * width)  # not %: ONNX takes no remainder by a size that varies
    y = cells // width
    return scores, labels, torch.stack([cells - y * width, y], 2)
