"""Resizing, cropping and letterboxing of uint8 pictures, exactly as published preprocessing does it.

Parity with published weights needs Pillow's two-pass resize on bytes. Training may use torch's antialiased resize:
within 1 grey level of Pillow for bilinear, up to a dozen at edges for bicubic, and about 1.5 times as fast.
"""

import math
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
Backend = Literal["pillow", "torch"]
CropRounding = Literal["torchvision", "hf"]

_PILLOW = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def resize(
    image: UInt8[Tensor, "3 height width"],
    size: tuple[int, int],
    interpolation: Interpolation = "bilinear",
    backend: Backend = "pillow",
    *,
    antialias: bool = True,
) -> UInt8[Tensor, "3 new_height new_width"]:
    """Resize a picture to (height, width).

    Args:
        image: uint8 pixels.
        size: (height, width) wanted, in pixels.
        interpolation: the filter; Lanczos is Pillow's alone.
        backend: "pillow" (the published numbers) or "torch" (faster).
        antialias: False only reproduces big_vision's `tf.image.resize(antialias=False)`: torch backend, linear
            interpolation between the nearest pixels in floating point, truncated to bytes.

    Raises:
        ValueError: a filter that the backend lacks, or a size below 1.
    """
    if min(size) < 1:
        raise ValueError(f"resize to {size}: both sides must be at least 1")
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    if backend == "pillow":
        if not antialias and interpolation != "nearest":
            raise ValueError("Pillow always antialiases; use backend='torch' for antialias=False")
        picture = Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy()))
        resized = picture.resize((size[1], size[0]), resample=_PILLOW[interpolation])
        return torch.from_numpy(np.array(resized)).permute(2, 0, 1)
    if interpolation == "lanczos":
        raise ValueError("torch has no Lanczos filter; use backend='pillow'")
    if interpolation == "nearest":
        return F.interpolate(image[None], size, mode="nearest-exact")[0]
    if antialias:
        return F.interpolate(image[None], size, mode=interpolation, antialias=True, align_corners=False)[0]
    smooth = F.interpolate(image[None].float(), size, mode=interpolation, antialias=False, align_corners=False)[0]
    return smooth.clamp(0, 255).to(torch.uint8)


def shortest_side_size(height: int, width: int, size: int) -> tuple[int, int]:
    """(height, width) whose shorter side is `size`; the longer is truncated, as torchvision and transformers do."""
    if width <= height:
        return int(size * height / width), size
    return size, int(size * width / height)


def center_crop(
    image: UInt8[Tensor, "3 height width"], size: tuple[int, int], rounding: CropRounding = "torchvision"
) -> UInt8[Tensor, "3 crop_height crop_width"]:
    """Cut (height, width) out of the middle; where the picture is smaller it is padded with zeros.

    The two conventions differ by one pixel when the margin is 3 modulo 4 (about 15 % of photographs): torchvision
    rounds half the margin to even, transformers ("hf") rounds it down.
    """
    height, width = image.shape[-2:]
    top, left = (_crop_start(length, want, rounding) for length, want in zip((height, width), size, strict=True))
    if top >= 0 and left >= 0 and height >= size[0] and width >= size[1]:
        return image[:, top : top + size[0], left : left + size[1]]
    canvas = image.new_zeros((image.shape[0], *size))
    y0, x0, source_y, source_x = max(0, -top), max(0, -left), max(0, top), max(0, left)
    h, w = min(height, size[0]), min(width, size[1])
    canvas[:, y0 : y0 + h, x0 : x0 + w] = image[:, source_y : source_y + h, source_x : source_x + w]
    return canvas


def _crop_start(length: int, want: int, rounding: CropRounding) -> int:
    """First row or column of the crop; negative: so many rows of padding before the picture."""
    if length >= want:
        margin = length - want
        return round(margin / 2.0) if rounding == "torchvision" else margin // 2
    # What is missing goes half before and half after; torchvision rounds the half before down, transformers up.
    missing = want - length
    return -(missing // 2) if rounding == "torchvision" else -math.ceil(missing / 2)


def letterbox(
    image: UInt8[Tensor, "3 height width"],
    size: tuple[int, int],
    fill: int = 114,
    interpolation: Interpolation = "bilinear",
    backend: Backend = "pillow",
) -> tuple[UInt8[Tensor, "3 new_height new_width"], float, tuple[int, int]]:
    """Fit a picture into (height, width), aspect kept, and pad both sides with `fill`.

    Returns:
        The picture, the scale applied, and (left, top): a point p lands at p · scale + (left, top).
    """
    height, width = image.shape[-2:]
    scale = min(size[0] / height, size[1] / width)
    new = min(size[0], max(1, round(height * scale))), min(size[1], max(1, round(width * scale)))
    top, left = (size[0] - new[0]) // 2, (size[1] - new[1]) // 2
    canvas = torch.full((image.shape[0], *size), fill, dtype=torch.uint8)
    canvas[:, top : top + new[0], left : left + new[1]] = resize(image, new, interpolation, backend)
    return canvas, scale, (left, top)
