"""Compiled loops of cutting and shrinking on the CPU. Importing this takes numba's time: `area_crops.py` does it at
first use.

Notable: pixels of a mean are those that torch's adaptive pooling takes, and the two divisions stand in its order, so
that the results are equal to the last bit wherever the pixels are whole numbers.
"""

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray


@njit(cache=True, nogil=True, error_model="numpy")
def running_sums(image: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Return sums over all rows above and columns left of each corner, [height + 1, width + 1, channels].

    Args:
        image: [channels, height, width].
    """
    channels, height, width = image.shape
    table = np.zeros((height + 1, width + 1, channels))
    for channel in range(channels):
        for row in range(height):
            along = 0.0
            for column in range(width):
                along += image[channel, row, column]
                table[row + 1, column + 1, channel] = table[row, column + 1, channel] + along
    return table


@njit(cache=True, nogil=True, error_model="numpy")
def window_means(
    table: NDArray[np.float64], windows: NDArray[np.int64], height: int, width: int
) -> NDArray[np.float32]:
    """Return each window shrunk to [windows, height, width, channels] by means over its parts.

    Args:
        table: of `running_sums`.
        windows: [n, 4], (top, bottom, left, right), the ends excluded; none is empty or reaches outside.
        height, width: of the results.
    """
    channels = table.shape[2]
    out = np.empty((len(windows), height, width, channels), np.float32)
    first, last = np.empty(width, np.int64), np.empty(width, np.int64)
    for number in range(len(windows)):
        top, bottom, left, right = windows[number]
        high, wide = bottom - top, right - left
        for column in range(width):
            first[column] = left + (column * wide) // width
            last[column] = left + -((-(column + 1) * wide) // width)
        for row in range(height):
            start, stop = top + (row * high) // height, top + -((-(row + 1) * high) // height)
            rows = np.float32(stop - start)
            for column in range(width):
                a, b = first[column], last[column]
                columns = np.float32(b - a)
                for channel in range(channels):
                    total = table[stop, b, channel] - table[start, b, channel]
                    total -= table[stop, a, channel] - table[start, a, channel]
                    out[number, row, column, channel] = np.float32(total) / rows / columns
    return out
