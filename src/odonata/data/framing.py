"""From a picture of any size to the frame that a detector sees, and boxes back from the frame to the picture.

Detectors differ in this more than in anything else, and each difference costs accuracy when it is missed: the shortest
side or a square, padded or not, which way sizes are rounded, the order of the channels, the scale of the values. All of
it is data here, kept with the weights.

The frame's pixels are normalised on the device, and what lies outside the picture is zero afterwards (torchvision,
Detectron2 and DETR all do so); a letterbox's grey margins belong to the picture.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, Real, UInt8
from torch import Tensor

from odonata.data.preprocess import IMAGENET_MEAN, IMAGENET_STD
from odonata.errors import DataError

MAX_SIDE = 16384
"""No frame is larger than this."""


@dataclass(frozen=True)
class Place:
    """Where a picture came to lie in its frame: frame = picture · scale + offset, in (x, y)."""

    size: tuple[int, int]
    """(height, width) of the picture as it was."""
    scale: tuple[float, float]
    offset: tuple[float, float] = (0.0, 0.0)

    def to_frame(self, boxes: Float[Tensor, "objects 4"]) -> Float[Tensor, "objects 4"]:
        """Boxes of the picture as boxes of the frame."""
        return boxes * boxes.new_tensor(self.scale).repeat(2) + boxes.new_tensor(self.offset).repeat(2)

    def to_picture(self, boxes: Float[Tensor, "objects 4"], clip: bool = True) -> Float[Tensor, "objects 4"]:
        """Boxes of the frame as boxes of the picture, cut at its edge."""
        back = (boxes - boxes.new_tensor(self.offset).repeat(2)) / boxes.new_tensor(self.scale).repeat(2)
        if not clip:
            return back
        height, width = self.size
        return torch.minimum(back.clamp(min=0), back.new_tensor([width, height, width, height]))


@dataclass(frozen=True)
class Framing:
    """How a detector wants its pictures.

    Args:
        resize: "shortest" scales the shorter side to `size` but the longer to at most `max_size`; "letterbox" fits into
            a square and fills the margins; "squash" scales to a square, aspect not kept; "keep" leaves the size.
        size: shorter side, or side of the square, in pixels.
        max_size: longest side for "shortest" (0 = no limit).
        divisor: batches are padded, right and below, to a multiple of this.
        rounding: of the scaled sides: "floor" (torchvision), "nearest" (Detectron2), "detr" (the shorter side is
            exact, the longer cut off).
        corners: sample from corner to corner (darknet) instead of from edge to edge.
        antialias: filter when shrinking; torchvision's and darknet's detectors do not.
        fill: grey level of a letterbox's margins.
        mean, std: of each channel, for values from 0 to 1.
        order: of the channels that the weights expect.
    """

    resize: Literal["shortest", "letterbox", "squash", "keep"] = "shortest"
    size: int = 800
    max_size: int = 1333
    divisor: int = 32
    rounding: Literal["floor", "nearest", "detr"] = "floor"
    corners: bool = False
    antialias: bool = False
    fill: float = 114
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    order: Literal["rgb", "bgr"] = "rgb"

    def __post_init__(self) -> None:
        if self.size < 1 or self.divisor < 1 or self.max_size < 0:
            raise ValueError(f"want size and divisor of at least 1 and max_size of at least 0, got {self}")

    def with_size(self, size: int) -> Framing:
        """The same at another size; the limit on the longer side grows in proportion."""
        return dataclasses.replace(self, size=size, max_size=round(self.max_size * size / self.size))

    def scaled_size(self, height: int, width: int) -> tuple[int, int]:
        """Size in pixels that a picture is scaled to; a letterbox's margins not counted.

        Raises:
            DataError: a side would be larger than any detector takes.
        """
        if self.resize == "keep":
            new = (height, width)
        elif self.resize == "squash":
            new = (self.size, self.size)
        elif self.resize == "letterbox":
            # In whole numbers, rounded down, as darknet's letterbox_image has it.
            longer = max(height, width)
            new = (max(1, height * self.size // longer), max(1, width * self.size // longer))
        else:
            new = self._shortest(height, width)
        if max(new) > MAX_SIDE:
            raise DataError(f"a picture of {width} × {height} px would become {new[1]} × {new[0]}; cut it into tiles")
        return new

    def _shortest(self, height: int, width: int) -> tuple[int, int]:
        short, long = min(height, width), max(height, width)
        if self.rounding == "detr":
            size = self.size
            if self.max_size and long / short * size > self.max_size:
                size = round(self.max_size * short / long)
            lower = max(1, int(size * long / short))
            return (max(1, size), lower) if height <= width else (lower, max(1, size))
        scale = self.size / short
        if self.max_size:
            scale = min(scale, self.max_size / long)
        add = 0.5 if self.rounding == "nearest" else 0.0
        # The product may fall short of a whole number by rounding alone; torchvision's interpolate has the same floor.
        return max(1, math.floor(height * scale + add)), max(1, math.floor(width * scale + add))

    def place(self, height: int, width: int) -> Place:
        """Where a picture of this size comes to lie."""
        new_height, new_width = self.scaled_size(height, width)
        offset = (0.0, 0.0)
        if self.resize == "letterbox":
            offset = (float((self.size - new_width) // 2), float((self.size - new_height) // 2))
        return Place((height, width), (new_width / width, new_height / height), offset)

    def frame(self, image: UInt8[Tensor, "3 height width"]) -> tuple[Float[Tensor, "3 new_height new_width"], Place]:
        """One picture in its frame, values from 0 to 255 in RGB, and where it lies."""
        height, width = image.shape[-2:]
        place, new = self.place(height, width), self.scaled_size(height, width)
        pixels = image.float()
        if new != (height, width):
            pixels = F.interpolate(
                pixels[None],
                new,
                mode="bilinear",
                align_corners=self.corners,
                antialias=self.antialias and not self.corners,
            )[0]
        if self.resize == "letterbox":
            left, top = int(place.offset[0]), int(place.offset[1])
            padding = (left, self.size - new[1] - left, top, self.size - new[0] - top)
            pixels = F.pad(pixels, padding, value=float(self.fill))
        return pixels, place

    def normalize(
        self, images: Real[Tensor, "batch 3 height width"], sizes: Int64[Tensor, "batch 2"]
    ) -> Float[Tensor, "batch 3 height width"]:
        """Values from 0 to 255 as the detector expects them; zero outside each picture's (height, width)."""
        mean = torch.tensor(self.mean, device=images.device)[:, None, None]
        std = torch.tensor(self.std, device=images.device)[:, None, None]
        pixels = (images.float() / 255 - mean) / std
        if self.order == "bgr":
            pixels = pixels.flip(1)
        return pixels.masked_fill_(outside(sizes, (images.shape[-2], images.shape[-1]))[:, None], 0.0)

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Framing:
        """What `to_dict` described. Raises ValueError on a key that it does not know."""
        if unknown := plain.keys() - {f.name for f in fields(cls)}:
            raise ValueError(f"framing: unknown keys {sorted(unknown)}")
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in plain.items()}
        return cls(**values)


def outside(sizes: Int64[Tensor, "batch 2"], frame: tuple[int, int]) -> Tensor:
    """Which cells of a frame lie outside each picture, bool [batch, height, width]."""
    rows = torch.arange(frame[0], device=sizes.device)[None, :, None] >= sizes[:, 0, None, None]
    columns = torch.arange(frame[1], device=sizes.device)[None, None, :] >= sizes[:, 1, None, None]
    return rows | columns
