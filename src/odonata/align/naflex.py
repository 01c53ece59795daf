"""Augmentation for towers that take pictures in their own ratio: nothing here makes a square of a picture."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from odonata.data.image_text import Augment, ImageTextData
from odonata.data.item import Item
from odonata.data.randaugment import RandAugment
from odonata.data.transforms import ColorJitter, Compose, Grayscale, HorizontalFlip, Transform, between, crop_item, draw


@dataclass(frozen=True)
class KeepRatioCrop:
    """Cut a window of random area and the picture's own ratio.

    Args:
        scale: share of the picture's area, least and most.
    """

    scale: tuple[float, float]

    def __call__(self, item: Item, generator: torch.Generator) -> Item:
        """Return the item within the window."""
        height, width = item.height_width
        area, down, across = draw(generator, 3)
        side = math.sqrt(between(area, *self.scale))
        h, w = max(1, round(height * side)), max(1, round(width * side))
        return crop_item(item, int(down * (height - h + 1)), int(across * (width - w + 1)), h, w)


def native_augmentation(data: ImageTextData) -> Transform:
    """Return the training transform of `odonata.data.image_text.augmentation`, without its resize to one size."""
    crop = KeepRatioCrop(data.crop_scale)
    steps: dict[Augment, tuple[Transform, ...]] = {
        "none": (),
        "flip": (HorizontalFlip(),),
        "crop": (crop,),
        "strong": (crop, HorizontalFlip(), ColorJitter(p=0.8), Grayscale(0.1), RandAugment(2, 5)),
    }
    return Compose(steps[data.augment])
