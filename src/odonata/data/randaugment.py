"""RandAugment (Cubuk et al., arXiv 1909.13719): n operations drawn from fourteen, all at one magnitude.

The magnitudes are those of the paper's code (AutoAugment's ranges, 0 to 10), the sign of a signed one is drawn.
Geometric operations move boxes, masks and points too. Differences: geometry samples bilinearly with black outside,
where the original takes the nearest pixel and fills with grey 125; it runs on tensors.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from odonata.data import color
from odonata.data.item import Item, affine_item, rotation
from odonata.data.transforms import draw

_ENHANCERS = {
    "color": color.adjust_saturation,
    "contrast": color.adjust_contrast,
    "brightness": color.adjust_brightness,
    "sharpness": color.adjust_sharpness,
}
_SIMPLE: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "autocontrast": color.autocontrast,
    "equalize": color.equalize,
}
_UPRIGHT = ((1.0, 0.0), (0.0, 1.0))
OPERATIONS = (
    "identity",
    *_SIMPLE,
    "rotate",
    "solarize",
    "posterize",
    *_ENHANCERS,
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
)


def apply_operation(item: Item, name: str, level: float, sign: float = 1.0) -> Item:
    """Apply one operation.

    Args:
        item: what is changed.
        name: one of `OPERATIONS`.
        level: 0 (nothing) to 1 (AutoAugment's extreme).
        sign: -1 or 1, the direction of operations that have one.
    """
    if name in _SIMPLE:
        return item.with_image(_SIMPLE[name](item.image))
    if name in _ENHANCERS:
        return item.with_image(_ENHANCERS[name](item.image, 1 + sign * 0.9 * level))
    if name == "solarize":
        return item.with_image(color.solarize(item.image, round(256 * (1 - level))))
    if name == "posterize":
        return item.with_image(color.posterize(item.image, 8 - round(4 * level)))
    if name == "rotate":
        return affine_item(item, rotation(sign * 30 * level), (0.0, 0.0))
    if name in ("shear_x", "shear_y"):
        slope = sign * 0.3 * level
        matrix = ((1.0, slope), (0.0, 1.0)) if name == "shear_x" else ((1.0, 0.0), (slope, 1.0))
        return affine_item(item, matrix, (0.0, 0.0))
    if name in ("translate_x", "translate_y"):
        height, width = item.height_width
        shift = sign * 0.45 * level
        return affine_item(item, _UPRIGHT, (shift * width, 0.0) if name == "translate_x" else (0.0, shift * height))
    if name != "identity":
        raise ValueError(f"operation {name!r} is unknown; known: {', '.join(OPERATIONS)}")
    return item


@dataclass(frozen=True)
class RandAugment:
    """Apply `n` operations drawn at random, each at this magnitude of 10."""

    n: int = 2
    magnitude: float = 9.0

    def __post_init__(self) -> None:
        if self.n < 0 or not 0 <= self.magnitude <= 10:
            raise ValueError(f"want n >= 0 and a magnitude from 0 to 10, got {self.n} and {self.magnitude}")

    def __call__(self, item: Item, generator: torch.Generator) -> Item:
        numbers = draw(generator, 2 * self.n)
        for chosen, direction in zip(numbers[::2], numbers[1::2], strict=True):
            name = OPERATIONS[int(chosen * len(OPERATIONS))]
            item = apply_operation(item, name, self.magnitude / 10, 1.0 if direction < 0.5 else -1.0)
        return item
