from dataclasses import replace

import pytest
import torch

from odonata.backbones.modified_resnet import VARIANTS, ModifiedResNet, ModifiedResNetConfig

TINY = ModifiedResNetConfig(image_size=64, layers=(2, 1, 1, 1), width=8, num_heads=4, embed_dim=20)


def test_maps_have_strides_of_4_to_32():
    maps = ModifiedResNet(TINY).eval().features(torch.randn(1, 3, 64, 96), [0, 1, 2, 3])
    assert [tuple(m.shape[1:]) for m in maps] == [(32, 16, 24), (64, 8, 12), (128, 4, 6), (256, 2, 3)]


def test_blocks_start_as_their_shortcuts():
    tower = ModifiedResNet(TINY).eval()
    x = torch.rand(1, 32, 16, 16)
    torch.testing.assert_close(tower.layer1[1](x), x)


# open_clip docs/model_profile.csv, column image_mparams.
@pytest.mark.parametrize(
    ("name", "millions"), [("RN50", 38.32), ("RN101", 56.26), ("RN50x4", 87.14), ("RN50x16", 167.33)]
)
def test_published_sizes_have_the_published_numbers_of_parameters(name, millions):
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in ModifiedResNet(VARIANTS[name]).parameters()) / 1e6
    assert count == pytest.approx(millions, abs=0.01)


def test_wrong_sizes_are_refused():
    with pytest.raises(ValueError, match="image_size 60 is not a multiple of 32"):
        replace(TINY, image_size=60)
    with pytest.raises(ValueError, match="256 channels do not divide into 7 heads"):
        replace(TINY, num_heads=7)
