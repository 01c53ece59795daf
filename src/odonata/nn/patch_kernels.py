"""Patch projections for another size of patch, without training (FlexiViT).

Source: Beyer et al. 2022, FlexiViT: One Model for All Patch Sizes, arXiv:2212.08013, sec. 3.4.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def resample_patch_kernel(
    kernel: Float[Tensor, "dim channels height width"], size: tuple[int, int]
) -> Float[Tensor, "dim channels new_height new_width"]:
    """Resizes the kernel of a patch projection by the pseudo-inverse of the resizing of patches (FlexiViT, eq. 3).

    A patch enlarged bilinearly then has exactly the embedding that the small patch had with the old kernel; plain
    resizing of the kernel would change the size of all embeddings. Where patches shrink, it is the best fit over
    patches of white noise. Differentiable in the kernel.

    Args:
        kernel: weights of the convolution.
        size: height and width of the new patches in pixels.

    Returns:
        The new weights, or the very same tensor if the size is its own.
    """
    old = (kernel.shape[2], kernel.shape[3])
    if old == size:
        return kernel
    matrix = _pseudo_inverse(old, size).to(device=kernel.device, dtype=kernel.dtype)
    return (kernel.flatten(2) @ matrix).unflatten(2, size)


@lru_cache(maxsize=64)
def _pseudo_inverse(old: tuple[int, int], new: tuple[int, int]) -> Float[Tensor, "old_pixels new_pixels"]:
    """The pseudo-inverse of the matrix B with `large = B @ small`; in float64, for B is badly conditioned."""
    count = old[0] * old[1]
    basis = torch.eye(count, dtype=torch.float64).reshape(count, 1, *old)
    resized = F.interpolate(basis, new, mode="bilinear", antialias=True)
    return torch.linalg.pinv(resized.flatten(1).T)
