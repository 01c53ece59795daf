"""The loss of segmenters: cross-entropy over the pixels of which something is said."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from odonata.data.semantic import VOID
from odonata.nn.ranks import mean_over_ranks

Over = Literal["pixels", "pictures"]
"""What a sum over pixels is divided by: the pixels that count, or the pictures (Caffe's unnormalised loss)."""


def pixel_cross_entropy(
    logits: Float[Tensor, "batch classes height width"],
    maps: Int64[Tensor, "batch height width"],
    over: Over = "pixels",
) -> Float[Tensor, ""]:
    """Cross-entropy of every pixel with a class.

    Args:
        logits: of every class.
        maps: the right class, 255 where nothing is said.
        over: what the sum is divided by. `pixels`: those that count, over all ranks. `pictures`: FCN's own, whose rate
            is 1e-10 for that reason; a large picture then counts more than a small one.

    Returns:
        a scalar in float32; 0 where nothing is said of any pixel.

    Source: Long et al. 2014 (1411.4038), sec. 4; `normalize: false` of Caffe's `SoftmaxWithLoss` in
    `voc-fcn32s/train.prototxt`.
    """
    total = F.cross_entropy(logits.float(), maps, ignore_index=VOID, reduction="sum")
    if over == "pictures":
        return total / len(maps)
    return total / mean_over_ranks((maps != VOID).sum(), total)
