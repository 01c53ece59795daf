"""What all towers share."""

import pytest
import torch

from odonata.backbones.create import create
from odonata.backbones.interface import channels_last


@pytest.mark.parametrize("name", ["resnet18-small", "efficientnet-small"])
def test_on_a_cpu_maps_are_channels_last_whatever_the_order_of_the_images(name):
    tower, images = create(name).eval(), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        first = tower.features(images, [-1])[0]
        second = tower.features(images.contiguous(memory_format=torch.channels_last), [-1])[0]
    assert first.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(first, second)


def test_other_devices_keep_the_order_of_float32_images():
    images = torch.empty(2, 3, 8, 8, device="meta")
    assert channels_last(images) is images
