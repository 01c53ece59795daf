"""Augmentation that keeps a picture's ratio."""

import dataclasses

import pytest
import torch

from odonata.align.naflex import KeepRatioCrop, native_augmentation
from odonata.data.image_text import ImageTextData
from odonata.data.item import Item


def item(height=40, width=120):
    return Item(torch.randint(256, (3, height, width), dtype=torch.uint8))


def test_a_crop_keeps_the_ratio_and_the_share_of_area():
    for seed in range(50):
        window = KeepRatioCrop((0.25, 0.5))(item(400, 1200), torch.Generator().manual_seed(seed)).image
        height, width = window.shape[1:]
        assert width / height == pytest.approx(3, rel=0.02)
        assert 0.24 < height * width / 480_000 < 0.51


def test_the_whole_picture_is_a_window_of_itself():
    picture = item()
    assert torch.equal(KeepRatioCrop((1.0, 1.0))(picture, torch.Generator()).image, picture.image)


@pytest.mark.parametrize("augment", ["none", "flip", "crop", "strong"])
def test_no_augmentation_makes_a_square(augment):
    made = native_augmentation(dataclasses.replace(ImageTextData(), augment=augment, crop_scale=(0.5, 1.0)))
    height, width = made(item(), torch.Generator().manual_seed(1)).image.shape[1:]
    assert width / height == pytest.approx(3, rel=0.05)
