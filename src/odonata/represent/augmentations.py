"""The augmentations of self-supervised papers, one function each, for pictures of any size."""

from __future__ import annotations

from odonata.data.item import Item
from odonata.data.transforms import (
    ColorJitter,
    Compose,
    GaussianBlur,
    Grayscale,
    HorizontalFlip,
    RandomResizedCrop,
    Solarize,
    Transform,
)


def blur(size: int, p: float) -> Transform:
    """Blur by σ in [0.1, 2] pixels at a side of 224, in proportion at others; below 48 pixels papers leave it out.

    Source: SimCLR, Chen et al. 2020, app. A (blur) and app. B.9 (CIFAR-10 without it).
    """
    scale = size / 224
    return GaussianBlur((0.1 * scale, 2.0 * scale), p if size >= 48 else 0.0)


def crop_and_flip(size: int, scale: tuple[float, float] = (0.2, 1.0)) -> Transform:
    """Random resized crop and mirroring: MAE's, bicubic (He et al. 2021, app. A.1)."""
    return Compose((RandomResizedCrop(size, scale, interpolation="bicubic"), HorizontalFlip()))


def moco_v1(size: int) -> Transform:
    """MoCo v1: crop, greyscale, colour, mirroring (`main_moco.py`, `--aug-plus` off)."""
    return Compose(
        (RandomResizedCrop(size, (0.2, 1.0)), Grayscale(0.2), ColorJitter(0.4, 0.4, 0.4, 0.4), HorizontalFlip())
    )


def moco_v2(size: int) -> Transform:
    """MoCo v2: weaker colour at 80 %, and blur (`main_moco.py --aug-plus`)."""
    return Compose(
        (
            RandomResizedCrop(size, (0.2, 1.0)),
            ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8),
            Grayscale(0.2),
            blur(size, 0.5),
            HorizontalFlip(),
        )
    )


def byol(size: int, scale: tuple[float, float], blur_p: float, solarize_p: float) -> Transform:
    """BYOL's asymmetric views, as MoCo v3, DINO and MoBY use them: σ of colour 0.4, 0.4, 0.2, 0.1.

    Args:
        size: side in pixels.
        scale: of the crop.
        blur_p: probability of a blur: 1 for the first view, 0.1 for the second.
        solarize_p: probability of solarisation: 0 for the first, 0.2 for the second.

    Source: Grill et al. 2020, table 6.
    """
    return Compose(
        (
            RandomResizedCrop(size, scale, interpolation="bicubic"),
            HorizontalFlip(),
            ColorJitter(0.4, 0.4, 0.2, 0.1, p=0.8),
            Grayscale(0.2),
            blur(size, blur_p),
            Solarize(128, solarize_p),
        )
    )


def swav(size: int, scale: tuple[float, float]) -> Transform:
    """SwAV's views: strong colour at 80 %, greyscale, blur (`src/multicropdataset.py`)."""
    return Compose(
        (
            RandomResizedCrop(size, scale),
            HorizontalFlip(),
            ColorJitter(0.8, 0.8, 0.8, 0.2, p=0.8),
            Grayscale(0.2),
            blur(size, 0.5),
        )
    )


def supervised(size: int, scale: tuple[float, float] = (0.08, 1.0)) -> Transform:
    """The usual training augmentation of classifiers: Inception's crop, and mirroring."""
    return Compose((RandomResizedCrop(size, scale), HorizontalFlip()))


def as_is(item: Item, generator: object) -> Item:
    """No augmentation."""
    return item
