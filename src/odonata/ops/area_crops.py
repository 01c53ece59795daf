"""Windows cut out of a picture and scaled to one size by means over areas, all of them at once.

Notable: sums over rectangles come from one table of running sums, so that a window costs the same however large it is.
Values are those of `F.interpolate(…, mode="area")` on the cut window, equal to the last bit for pixels that are whole
numbers (sums below 2^24; a result of a single pixel is divided once there and twice here). On the CPU compiled loops do
it (`area_kernels.py`, imported at first use); elsewhere one gather for all windows.

Source: Viola and Jones 2001, sec. 2.1 (the table of running sums).
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Int64, Real
from torch import Tensor

from odonata.errors import DataError


def running_sums(image: Real[Tensor, "channels height width"]) -> Float64[Tensor, "rows columns channels"]:
    """Sums over all pixels above and left of each corner; one row and column more than the picture.

    Args:
        image: pixels of any type; on the same device as the result.
    """
    if image.device.type == "cpu":
        from odonata.ops import area_kernels

        return torch.from_numpy(area_kernels.running_sums(image.float().contiguous().numpy()))
    summed = image.double().cumsum(1).cumsum(2)
    return F.pad(summed, (1, 0, 1, 0)).permute(1, 2, 0).contiguous()


def area_crops(
    table: Float64[Tensor, "rows columns channels"], windows: Int64[Tensor, "crops 4"], size: tuple[int, int]
) -> Float[Tensor, "crops channels height width"]:
    """Cut windows out of a picture and scale each to one size; every pixel is the mean of the pixels that it covers.

    Args:
        table: `running_sums` of the picture.
        windows: (top, bottom, left, right) of each in pixels, the ends excluded.
        size: (height, width) of the results.

    Returns:
        Float32, in memory with the channels last.

    Raises:
        DataError: a window is empty or reaches outside the picture.
    """
    height, width = table.shape[0] - 1, table.shape[1] - 1
    top, bottom, left, right = windows.unbind(1)
    bad = (top < 0) | (left < 0) | (bottom > height) | (right > width) | (bottom <= top) | (right <= left)
    if bad.any():
        number = int(bad.nonzero()[0, 0])
        raise DataError(
            f"window {number} (top, bottom, left, right) = {windows[number].tolist()} is empty or reaches outside the "
            f"picture of {width} × {height} px"
        )
    if table.device.type == "cpu":
        from odonata.ops import area_kernels

        means = area_kernels.window_means(table.numpy(), windows.contiguous().numpy(), *size)
        return torch.from_numpy(means).permute(0, 3, 1, 2)
    return _gathered(table, windows, size)


def _gathered(table: Tensor, windows: Tensor, size: tuple[int, int]) -> Tensor:
    """What `area_crops` returns, by operations on whole tensors: for GPUs."""
    top, bottom, left, right = windows.unbind(1)
    start, stop = _bounds(top, bottom, size[0])
    first, last = _bounds(left, right, size[1])

    def corner(rows: Tensor, columns: Tensor) -> Tensor:
        return table[rows[:, :, None], columns[:, None, :]]

    totals = (corner(stop, last) - corner(start, last)) - (corner(stop, first) - corner(start, first))
    means = totals.float() / (stop - start)[:, :, None, None] / (last - first)[:, None, :, None]
    return means.permute(0, 3, 1, 2)


def _bounds(low: Tensor, high: Tensor, parts: int) -> tuple[Tensor, Tensor]:
    """First and last + 1 pixel of each part along one axis: parts share a pixel where they do not divide evenly."""
    number, length = torch.arange(parts, device=low.device), (high - low)[:, None]
    return low[:, None] + number * length // parts, low[:, None] - (-(number + 1) * length).div(
        parts, rounding_mode="floor"
    )
