"""Towers from images to features. This index needs no torch; the modules that it names do."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """One family of towers.

    Its module offers `VARIANTS`, name → frozen configuration, and `build(configuration)`.
    """

    summary: str
    """One line: what it is."""
    paper: str
    """Authors, year and arXiv number."""
    module: str
    """Where it is."""
    config: str
    """Name of its configuration dataclass in that module."""
    names: tuple[str, ...]
    """Its variants, as `--backbone` takes them."""


_VIT_SIZES = ("ti", "s", "b", "l", "h", "so400m", "g", "giant_opt")

FAMILIES = {
    "resnet": Family(
        "Residual networks: ImageNet's and CIFAR's forms, strided in the 3 × 3 (v1.5) or the 1 × 1 (v1), dilated.",
        "He et al. 2015, arXiv:1512.03385",
        "odonata.backbones.resnet",
        "ResNetConfig",
        (
            *(f"resnet{depth}" for depth in (18, 34, 50, 101, 152)),
            *(f"resnet{depth}" for depth in (8, 14, 20, 32, 44, 56, 110)),
            *(f"resnet{depth}x4" for depth in (8, 32)),
            "resnet50x2",
            *("resnet18-small", "resnet10-small", "resnet10-small-gn", "resnet14-small"),
        ),
    ),
    "vit": Family(
        "The Vision Transformer, with the options that DeiT, MAE, MoCo v3, DINO and DINOv2 added to it.",
        "Dosovitskiy et al. 2020, arXiv:2010.11929",
        "odonata.backbones.vit",
        "ViTConfig",
        (
            *(f"vit-{size}{patch}" for size in _VIT_SIZES for patch in (8, 14, 16, 32)),
            *(f"vit-tiny{patch}" for patch in (4, 8, 16)),
            *(f"deit-{size}16{suffix}" for size in ("ti", "s", "b") for suffix in ("", "-distilled")),
            *("mae-b16", "mae-l16", "mae-h14", "moco-v3-s16", "moco-v3-b16"),
            *(f"dino-{size}" for size in ("ti16", "s16", "s8", "b16", "b8")),
            *(f"dinov2-{size}14{suffix}" for size in "sblg" for suffix in ("", "-reg")),
            *(f"dinov3-{size}" for size in ("s16", "s16plus", "b16", "l16", "h16plus", "7b16")),
        ),
    ),
    "swin": Family(
        "Swin Transformers: attention in windows that shift, maps that halve from stage to stage.",
        "Liu et al. 2021, arXiv:2103.14030",
        "odonata.backbones.swin",
        "SwinConfig",
        (*(f"swin-{size}" for size in "tsbl"), "swin-b-384", "swin-l-384", "swin-tiny32"),
    ),
    "convnext": Family(
        "ConvNeXt: residual networks with a transformer's habits, with layer scale or (V2) response normalisation.",
        "Liu et al. 2022, arXiv:2201.03545; Woo et al. 2023, arXiv:2301.00808",
        "odonata.backbones.convnext",
        "ConvNeXtConfig",
        (
            *(f"convnext-{size}" for size in ("t", "s", "b", "l", "xl")),
            *(f"convnextv2-{size}" for size in ("atto", "femto", "pico", "nano", "t", "b", "l", "h")),
            "convnext-tiny32",
        ),
    ),
    "modified_resnet": Family(
        "CLIP's residual networks: a stem of three convolutions, anti-aliased strides, attention pooling.",
        "Radford et al. 2021, arXiv:2103.00020",
        "odonata.backbones.modified_resnet",
        "ModifiedResNetConfig",
        ("RN50", "RN101", "RN50x4", "RN50x16", "RN50x64"),
    ),
    "efficientnet": Family(
        "Mobile inverted bottlenecks with squeeze-and-excitation, scaled in depth, width and resolution together.",
        "Tan and Le 2019, arXiv:1905.11946",
        "odonata.backbones.efficientnet",
        "EfficientNetConfig",
        (*(f"efficientnet-b{size}" for size in range(8)), "efficientnet-small"),
    ),
    "squeezenet": Family(
        "Fire modules: AlexNet's accuracy with fifty times fewer parameters.",
        "Iandola et al. 2016, arXiv:1602.07360",
        "odonata.backbones.squeezenet",
        "SqueezeNetConfig",
        ("squeezenet1_0", "squeezenet1_1"),
    ),
    "darknet": Family(
        "YOLO's trunks: Darknet-19 without residuals, Darknet-53 with them.",
        "Redmon and Farhadi 2016, arXiv:1612.08242; 2018, arXiv:1804.02767",
        "odonata.backbones.darknet",
        "DarknetConfig",
        ("darknet19", "darknet53", "darknet-small"),
    ),
    "vgg": Family(
        "Stacks of 3 × 3 convolutions; with its dense layers as convolutions the tower of FCN and SSD.",
        "Simonyan and Zisserman 2014, arXiv:1409.1556",
        "odonata.backbones.vgg",
        "VGGConfig",
        (
            *(f"vgg{depth}{suffix}" for depth in (11, 13, 16, 19) for suffix in ("", "_bn")),
            *("vgg16-fcn", "vgg16-ssd", "vgg-small"),
        ),
    ),
    "hourglass": Family(
        "Stacked hourglasses: down to a few cells and up again, twice, at a quarter of the picture's size.",
        "Newell et al. 2016, arXiv:1603.06937; Law and Deng 2018, arXiv:1808.01244",
        "odonata.backbones.hourglass",
        "HourglassConfig",
        ("hourglass104", "hourglass-small"),
    ),
}
"""Every family by name."""
