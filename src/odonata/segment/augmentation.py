"""What happens to a picture and its map before training: its frame, a random scale, a random window, mirroring.

What a window shows beyond the picture is not filled here: the item stays smaller, and the batch pads it with pixels
that are zero after normalisation and count as void, as the authors of PSPNet pad with the mean.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from odonata.data.framing import Framing
from odonata.data.item import Item, resize_item, window_item
from odonata.data.object_transforms import RandomAffine, frame_item
from odonata.data.semantic_batches import SemanticData
from odonata.data.transforms import Compose, HorizontalFlip, Transform, between, draw
from odonata.segment.segmenter import SegmenterOptions


@dataclass(frozen=True)
class ScaleAndCrop:
    """Bring a picture into its frame, scale it at random, and cut a window out of it.

    Args:
        framing: how the segmenter wants its pictures.
        scale: least and largest factor on the framed picture.
        crop: side of the window in pixels; 0 for one as large as the framed picture.
    """

    framing: Framing
    scale: tuple[float, float] = (1.0, 1.0)
    crop: int = 0

    def __call__(self, item: Item, generator: torch.Generator) -> Item:
        share, down, across = draw(generator, 3)
        item = frame_item(item, self.framing)
        height, width = item.height_width
        limit = (self.crop, self.crop) if self.crop else (height, width)
        factor = between(share, *self.scale)
        new = max(1, round(height * factor)), max(1, round(width * factor))
        item = resize_item(item, new)
        shown = min(new[0], limit[0]), min(new[1], limit[1])
        if shown == new:
            return item
        top, left = int(down * (new[0] - shown[0] + 1)), int(across * (new[1] - shown[1] + 1))
        return window_item(item, top, left, *shown)


def training_transform(config: SegmenterOptions, data: SemanticData) -> Transform:
    """The transform of a picture in training, by the name that the data's options give."""
    if data.augment == "none":
        return ScaleAndCrop(config.framing, crop=config.crop)
    if data.augment == "flip":
        return Compose((ScaleAndCrop(config.framing, crop=config.crop), HorizontalFlip()))
    steps: list[Transform] = [ScaleAndCrop(config.framing, config.scale, config.crop), HorizontalFlip()]
    if config.rotate:
        # Turned before it is cut, so that the window has as little as possible of what lies outside.
        turn = RandomAffine(degrees=config.rotate, scale=0.0, translate=0.0)
        steps.insert(0, turn)
    return Compose(tuple(steps))
