from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from odonata.backbones.convnext import VARIANTS, ConvNeXtConfig, ResponseNorm, build
from odonata.backbones.create import create
from odonata.nn.transformer import DropPath

V1 = ConvNeXtConfig((1, 2, 1, 1), (8, 12, 16, 20), layer_scale=1.0)
V2 = replace(V1, layer_scale=None, response_norm=True)


def tower(config=V1):
    torch.manual_seed(0)
    made = build(config).eval()
    with torch.no_grad():
        for part in made.modules():
            if isinstance(part, ResponseNorm):  # starts at zero, as if it were not there
                part.weight.normal_()
                part.bias.normal_()
    return made


def test_published_sizes_have_the_published_numbers_of_parameters():
    # 2201.03545 table 1 and 2301.00808 table 9, in millions, with the classifier of 1000 classes.
    published = {"t": 28.6, "s": 50.2, "b": 88.6, "l": 197.8, "xl": 350.2}
    published = {f"convnext-{size}": count for size, count in published.items()}
    second = {"atto": 3.7, "femto": 5.2, "pico": 9.1, "nano": 15.6, "t": 28.6, "b": 88.7, "l": 198.0, "h": 660.3}
    published |= {f"convnextv2-{size}": count for size, count in second.items()}
    assert published.keys() == VARIANTS.keys() - {"convnext-tiny32"}
    for name, count in published.items():
        with torch.device("meta"):
            made = create(name)
            made.reset_head(1000)
        assert sum(p.numel() for p in made.parameters()) / 1e6 == pytest.approx(count, abs=0.05), name


@pytest.mark.parametrize("config", [V1, V2], ids=["v1", "v2"])
def test_pictures_of_a_batch_do_not_see_each_other(config):
    made, images = tower(config), torch.randn(4, 3, 64, 96)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(made(images)[order], made(images[order]))
    torch.testing.assert_close(made(images)[1:2], made(images[1:2]), rtol=1e-4, atol=1e-5)


def test_shifting_the_picture_by_the_stride_shifts_the_maps():
    """Away from the edges, as the receptive field of the tapped stage reaches them only near the border."""
    made, picture = tower(), torch.randn(1, 3, 192, 192)
    stage, stride = 1, 8
    with torch.no_grad():
        whole = made.features(picture[..., stride:, :-stride], [stage])[0]
        moved = made.features(picture[..., :-stride, stride:], [stage])[0]
    # Three 7 × 7 convolutions: 3 cells of stride 4, then 6 of stride 8, and a cell for rounding.
    edge = 9
    ours, theirs = whole[..., :-1, 1:], moved[..., 1:, :-1]
    inner = (..., slice(edge, -edge), slice(edge, -edge))
    assert theirs[inner].numel() > 0
    torch.testing.assert_close(ours[inner], theirs[inner], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(ours[..., :2, :], theirs[..., :2, :], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("config", [V1, V2], ids=["v1", "v2"])
def test_checkpointing_changes_no_gradient(config):
    made, images = tower(replace(config, drop_path=0.2)).train(), torch.randn(2, 3, 64, 64)
    gradients = []
    for on in (False, True):
        made.set_checkpointing(on)
        made.zero_grad()
        torch.manual_seed(1)
        made(images).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in made.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert all(stage.checkpointing for stage in made.stages)


def test_the_tower_offers_the_backbone_interface():
    made, images = tower(), torch.randn(2, 3, 64, 96)
    maps = made.features(images, [0, 1, 2, -1])
    assert [tap.stride for tap in made.taps] == [4, 8, 16, 32]
    for tap, found in zip(made.taps, maps, strict=True):
        assert found.shape == (2, tap.channels, 64 // tap.stride, 96 // tap.stride)
    torch.testing.assert_close(made.features(images, [1], "nlc")[0], maps[1].flatten(2).transpose(1, 2))
    torch.testing.assert_close(made.forward_features(images), maps[-1])
    torch.testing.assert_close(made(images), F.layer_norm(maps[-1].mean((2, 3)), (20,), eps=1e-6))
    made.reset_head(5)
    assert made(images).shape == (2, 5) and made.forward_head(maps[-1], pre_logits=True).shape == (2, 20)


def test_maps_lie_with_their_channels_last():
    last = tower().forward_features(torch.randn(2, 3, 64, 64))
    assert last.is_contiguous(memory_format=torch.channels_last)


def test_response_norm_starts_as_the_identity_and_makes_channels_compete():
    norm, x = ResponseNorm(3), torch.rand(2, 4, 5, 3)
    assert torch.equal(norm(x), x)
    with torch.no_grad():
        norm.weight.fill_(1)
    # Scaling the whole map changes no share, so the output scales with it.
    torch.testing.assert_close(norm(10 * x), 10 * norm(x), rtol=1e-4, atol=1e-5)
    louder = x * torch.tensor([4.0, 1.0, 1.0])
    assert (norm(louder)[..., 1] < norm(x)[..., 1]).all()


def test_stochastic_depth_grows_over_all_blocks():
    rates = [part.rate for part in build(replace(V1, drop_path=0.4)).modules() if isinstance(part, DropPath)]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


def test_wrong_use_is_explained():
    with pytest.raises(ValueError, match=r"images of shape \(1, 1, 64, 64\): want \[batch, 3, height, width\]"):
        tower()(torch.randn(1, 1, 64, 64))
    with pytest.raises(ValueError, match="at least 32 pixels a side"):
        tower()(torch.randn(1, 3, 64, 31))
    with pytest.raises(ValueError, match="3 depths for 4 widths"):
        replace(V1, depths=(1, 1, 1))
