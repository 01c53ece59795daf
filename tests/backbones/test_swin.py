from dataclasses import replace

import pytest
import torch

from odonata.backbones.create import create
from odonata.backbones.swin import SwinConfig, build
from odonata.backbones.swin_windows import from_windows, grid_of, into_windows, shifted_mask
from odonata.nn.positions import relative_position_index
from odonata.nn.transformer import DropPath

TINY = SwinConfig(12, (2, 2, 2), (1, 2, 4), (4, 4, 4))
CONVENTIONS = ["official", "torchvision", "timm"]


def tower(config=TINY):
    torch.manual_seed(0)
    return build(config).eval()


def test_published_sizes_have_the_published_numbers_of_parameters():
    # microsoft/Swin-Transformer's README, in millions, with the classifier of 1000 classes.
    published = {
        "swin-t": 28.3,
        "swin-s": 49.6,
        "swin-b": 87.8,
        "swin-l": 196.5,
        "swin-b-384": 87.9,
        "swin-l-384": 196.7,
    }
    for name, count in published.items():
        with torch.device("meta"):
            made = create(name)
            made.reset_head(1000)
        assert sum(p.numel() for p in made.parameters()) / 1e6 == pytest.approx(count, abs=0.05), name


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("size", [(64, 64), (96, 64), (45, 70), (7, 30)])
def test_any_size_is_taken(size, convention):
    made = tower(replace(TINY, convention=convention))
    height, width = size
    for tap, found in zip(made.taps, made.features(torch.randn(2, 3, *size), [0, 1, 2]), strict=True):
        assert found.shape == (2, tap.channels, -(-height // tap.stride), -(-width // tap.stride))


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("size", [(8, 8), (9, 6), (3, 13), (4, 5)])
def test_cutting_into_windows_is_undone(size, convention):
    grid, x = grid_of(*size, 4, convention), torch.randn(2, *size, 3)
    windows = into_windows(x, grid)
    assert windows.shape[2] == grid.window[0] * grid.window[1]
    assert torch.equal(from_windows(windows, grid, *size), x)


def test_conventions_agree_on_whole_windows_and_nowhere_else():
    cases = {(8, 12): True, (4, 4): True, (9, 8): False, (4, 8): False, (3, 8): False}
    for size, agree in cases.items():
        torch.manual_seed(0)
        images = torch.randn(1, 3, 4 * size[0], 4 * size[1])
        ours = [
            tower(replace(TINY, depths=(2,), num_heads=(2,), windows=(4,), convention=c))(images) for c in CONVENTIONS
        ]
        same = [torch.allclose(ours[0], other, rtol=1e-4, atol=1e-6) for other in ours[1:]]
        assert all(same) is agree, size


def test_cells_of_different_regions_do_not_see_each_other():
    """After a shift the first column lies beside the last, in one window; no gradient may pass between them."""
    made = tower(replace(TINY, depths=(2,), num_heads=(1,), windows=(4,)))
    x = torch.randn(1, 8, 8, 12, requires_grad=True)
    block, grid = made.stages[0].layers[1], grid_of(8, 8, 4)
    out = block(x, grid, shifted_mask(grid))
    (gradient,) = torch.autograd.grad(out[0, 0, 0].square().sum(), x)
    seen = gradient[0].abs().sum(-1) > 0
    assert seen[:2, :2].all() and seen.sum() == 4  # the corner's own region: 2 × 2 cells of the shifted window
    (gradient,) = torch.autograd.grad(block(x, grid, None)[0, 0, 0].square().sum(), x)
    assert (gradient[0].abs().sum(-1) > 0).sum() == 16  # without the mask, all four corners of the map
    (gradient,) = torch.autograd.grad(block(x, grid, shifted_mask(grid))[0, 3, 3].square().sum(), x)
    seen = gradient[0].abs().sum(-1) > 0
    assert seen[2:6, 2:6].all() and seen.sum() == 16  # a window in the middle is whole


def test_unshifted_windows_see_themselves_only():
    made = tower(replace(TINY, depths=(1,), num_heads=(1,), windows=(4,)))
    images = torch.randn(1, 3, 32, 32, requires_grad=True)
    made.features(images, [0])[0][0, :, 5, 1].square().sum().backward()
    seen = images.grad[0].abs().sum(0) > 0
    assert seen[16:, :16].all() and seen.sum() == 16 * 16


def test_a_smaller_window_uses_the_biases_of_the_same_offsets():
    index = relative_position_index(4)
    assert index[0, 0] == index[5, 5] == 24 and index.unique().numel() == 49
    attention = tower().stages[0].layers[0].attn
    small, whole = attention._bias((2, 3)), attention._bias((4, 4))
    assert small.shape == (1, 6, 6)
    # Cells (0, 0) and (1, 2) are numbers 0 and 5 of a window of 2 × 3, and 0 and 6 of one of 4 × 4.
    assert small[0, 0, 5] == whole[0, 0, 6] and small[0, 5, 0] == whole[0, 6, 0]


def test_pictures_of_a_batch_do_not_see_each_other():
    made, images = tower(), torch.randn(4, 3, 45, 70)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(made(images)[order], made(images[order]))
    torch.testing.assert_close(made(images)[1:2], made(images[1:2]), rtol=1e-4, atol=1e-5)


def test_checkpointing_changes_no_gradient():
    made, images = tower(replace(TINY, drop_path=0.2)).train(), torch.randn(2, 3, 64, 64)
    gradients = []
    for on in (False, True):
        made.set_checkpointing(on)
        made.zero_grad()
        torch.manual_seed(1)
        made(images).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in made.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert all(stage.checkpointing for stage in made.stages)


def test_a_mask_from_inference_serves_training():
    made, images = tower(), torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        made(images)
    assert made.stages[0]._masks
    made.train()(images).sum().backward()
    assert made.patch_embed.weight.grad is not None


def test_the_tower_offers_the_backbone_interface():
    made, images = tower(), torch.randn(2, 3, 64, 96)
    maps = made.features(images, [0, 1, -1])
    assert [tap.stride for tap in made.taps] == [4, 8, 16]
    torch.testing.assert_close(made.features(images, [1], "nlc")[0], maps[1].flatten(2).transpose(1, 2))
    last = made.forward_features(images)
    torch.testing.assert_close(last, made.norm(maps[-1].permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
    torch.testing.assert_close(made(images), last.mean((2, 3)))
    made.reset_head(5)
    assert made(images).shape == (2, 5) and made.forward_head(last, pre_logits=True).shape == (2, 48)
    assert not any("relative_position_index" in name for name in made.state_dict())


def test_stochastic_depth_grows_over_all_blocks_and_acts_in_training():
    made = build(replace(TINY, drop_path=0.5))
    rates = [part.rate for part in made.modules() if isinstance(part, DropPath)]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5])
    images = torch.randn(2, 3, 64, 64)
    assert not torch.equal(made.train()(images), made(images))
    assert torch.equal(made.eval()(images), made(images))


def test_wrong_use_is_explained():
    with pytest.raises(ValueError, match=r"images of shape \(1, 1, 64, 64\): want \[batch, 3, height, width\]"):
        tower()(torch.randn(1, 1, 64, 64))
    with pytest.raises(ValueError, match="width 12 of stage 0 is not a multiple of 5 heads"):
        replace(TINY, num_heads=(5, 5, 5))
    with pytest.raises(ValueError, match="3 depths, 2 num_heads and 3 windows"):
        replace(TINY, num_heads=(1, 2))
