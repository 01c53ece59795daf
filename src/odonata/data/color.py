"""Changes of colour on uint8 pictures, with Pillow's arithmetic where Pillow has the operation.

Brightness, contrast, saturation, sharpness, solarize, posterize, autocontrast, equalize and grey agree with Pillow's
`ImageEnhance` and `ImageOps` within one level. The hue turns in the YIQ plane (one 3×3 matrix), not in HSV: the same
circle of colours at a tenth of the price, with luminance kept.
"""

import functools
import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

Picture = UInt8[Tensor, "3 height width"]

# ITU-R 601 luma with 16 fractional bits, as Pillow's convert("L"). Sums stay below 2^24: exact in float32.
_LUMA = (19595.0, 38470.0, 7471.0)
_YIQ = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))
Adjustment = Literal["brightness", "contrast", "saturation", "hue"]


def _flat(image: Picture) -> Float[Tensor, "3 pixels"]:
    # Planes first, then floats: the other order costs twice as much on the decoder's interleaved memory.
    return image.contiguous().float().view(3, -1)


def _bytes(pixels: Float[Tensor, "3 pixels"], like: Picture) -> Picture:
    return pixels.to(torch.uint8).view(like.shape)


def luma(image: Picture) -> UInt8[Tensor, "1 height width"]:
    """The grey value of each pixel, bit for bit Pillow's `convert("L")`."""
    grey = (torch.tensor(_LUMA) @ _flat(image)).add_(0x8000).mul_(1 / 65536)
    return grey.to(torch.uint8).view(1, *image.shape[1:])


def grayscale(image: Picture) -> Picture:
    """Grey in all three channels."""
    return luma(image).expand(3, -1, -1)


def blend(base: Float[Tensor, "#channels height width"] | float, image: Picture, factor: float) -> Picture:
    """base + factor · (image - base), cut off at 0 and 255 and truncated, as Pillow's `Image.blend`."""
    pixels = image.float()
    if isinstance(base, float):
        return pixels.mul_(factor).add_(base * (1 - factor)).clamp_(0, 255).to(torch.uint8)
    return pixels.sub_(base).mul_(factor).add_(base).clamp_(0, 255).to(torch.uint8)


def adjust_brightness(image: Picture, factor: float) -> Picture:
    """0 is black, 1 the picture itself."""
    return blend(0.0, image, factor)


def adjust_contrast(image: Picture, factor: float) -> Picture:
    """0 is the picture's mean grey everywhere, 1 the picture itself."""
    return blend(float(int(luma(image).float().mean().item() + 0.5)), image, factor)


def adjust_saturation(image: Picture, factor: float) -> Picture:
    """0 is grey, 1 the picture itself."""
    return blend(luma(image).float(), image, factor)


def adjust_sharpness(image: Picture, factor: float) -> Picture:
    """0 is smoothed, 1 the picture itself; the outermost pixels stay as they are."""
    if min(image.shape[-2:]) < 3:
        return image
    kernel = torch.ones(3, 1, 3, 3)
    kernel[:, :, 1, 1] = 5
    smooth = image.float()
    inner = F.conv2d(image.float()[None], kernel / 13, groups=3)[0]
    smooth[:, 1:-1, 1:-1] = inner.add_(0.5).floor_().clamp_(0, 255)
    return blend(smooth, image, factor)


def hue_matrix(turn: float) -> Float[Tensor, "3 3"]:
    """The change of RGB that turns the hue by this share of the circle."""
    still, cosine, sine = _hue_parts()
    angle = 2 * math.pi * turn
    return still + math.cos(angle) * cosine + math.sin(angle) * sine


@functools.cache
def _hue_parts() -> tuple[Tensor, Tensor, Tensor]:
    """inv(YIQ) · (luminance kept, I and Q kept, I and Q exchanged with a sign) · YIQ."""
    to_yiq = torch.tensor(_YIQ, dtype=torch.float64)
    still, cosine, sine = torch.zeros(3, 3, 3, dtype=torch.float64).unbind(0)
    still[0, 0] = cosine[1, 1] = cosine[2, 2] = sine[2, 1] = 1
    sine[1, 2] = -1
    back = torch.linalg.inv(to_yiq)
    still, cosine, sine = ((back @ part @ to_yiq).float() for part in (still, cosine, sine))
    return still, cosine, sine


def adjust_hue(image: Picture, turn: float) -> Picture:
    """Turn the hue by this share of the circle, -0.5 to 0.5, luminance kept."""
    return _bytes((hue_matrix(turn) @ _flat(image)).round_().clamp_(0, 255), image)


def jitter(image: Picture, changes: Sequence[tuple[Adjustment, float]]) -> Picture:
    """Several adjustments in turn in floating point, rounded once: within two levels of one after the other on bytes.

    Args:
        image: the picture.
        changes: (what, factor or turn) in the order in which they are applied.
    """
    weights = torch.tensor(_YIQ[0])
    pixels = _flat(image)
    for what, factor in changes:
        if what == "brightness":
            pixels = pixels.mul_(factor)
        elif what == "contrast":
            mean = float((weights @ pixels).mean())
            pixels = pixels.mul_(factor).add_(mean * (1 - factor))
        else:
            grey = weights.expand(3, 3) * (1 - factor) + torch.eye(3) * factor
            pixels = (hue_matrix(factor) if what == "hue" else grey) @ pixels
        pixels.clamp_(0, 255)
    return _bytes(pixels.round_(), image)


def solarize(image: Picture, threshold: int) -> Picture:
    """Invert the values at or above the threshold."""
    return torch.where(image < threshold, image, 255 - image)


def posterize(image: Picture, bits: int) -> Picture:
    """Keep the highest bits of each value."""
    return image & (0xFF << (8 - bits) & 0xFF)


def invert(image: Picture) -> Picture:
    """255 minus each value."""
    return 255 - image


def autocontrast(image: Picture) -> Picture:
    """Stretch each channel so that its darkest value becomes 0 and its brightest 255."""
    low = image.amin((1, 2), keepdim=True).double()
    high = image.amax((1, 2), keepdim=True).double()
    flat = high <= low
    scale = 255.0 / torch.where(flat, 255.0, high - low)
    stretched = (image.double() * scale - low * scale).clamp_(0, 255).to(torch.uint8)
    return torch.where(flat, image, stretched)


def equalize(image: Picture) -> Picture:
    """Spread each channel's values evenly over the scale, by Pillow's integer table."""
    return torch.stack([_equalize_channel(channel) for channel in image])


def _equalize_channel(channel: UInt8[Tensor, "height width"]) -> UInt8[Tensor, "height width"]:
    counts = torch.bincount(channel.flatten().long(), minlength=256)
    present = counts[counts > 0]
    step = int((present.sum() - present[-1]).item()) // 255
    if len(present) < 2 or step == 0:
        return channel
    before = counts.cumsum(0) - counts
    table = ((before + step // 2) // step).clamp(max=255).to(torch.uint8)
    return table[channel.long()]


def gaussian_blur(image: Picture, sigma: float) -> Picture:
    """Blur with a Gaussian of this standard deviation in pixels; the edges are mirrored.

    Each direction is a product of strips of the picture with a banded matrix: two to four times as fast on a CPU as a
    convolution that has one channel.
    """
    height, width = image.shape[-2:]
    radius = min(math.ceil(3 * sigma), height - 1, width - 1)
    if radius < 1:
        return image
    band = _gaussian_band(sigma, radius)
    strip, reach = band.shape
    pixels = F.pad(image.float(), (radius, radius, radius, radius), mode="reflect")
    pixels = F.pad(pixels, (0, -width % strip, 0, -height % strip))
    # The strips are copied: a product with overlapping views costs ten times as much.
    strips = pixels.unfold(2, reach, strip).reshape(-1, reach)
    pixels = (strips @ band.T).view(3, pixels.shape[1], -1)
    pixels = (band @ pixels.unfold(1, reach, strip).transpose(2, 3)).flatten(1, 2)
    return pixels[:, :height, :width].round_().to(torch.uint8)


def _gaussian_band(sigma: float, radius: int) -> Float[Tensor, "strip reach"]:
    """The matrix that makes a strip of 32 blurred pixels from those that they see."""
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float32)
    weights = torch.exp(-0.5 * (offsets / sigma) ** 2)
    # A row is one longer than the matrix is wide: read with that width, each begins one column further right.
    rows = torch.zeros(32, 32 + len(weights))
    rows[:, : len(weights)] = weights / weights.sum()
    return rows.flatten()[: 32 * (31 + len(weights))].view(32, -1)
