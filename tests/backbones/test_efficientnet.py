"""EfficientNet: rounding, padding, stages, stochastic depth, conventions; parity stands in tests/weights."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from odonata.backbones.create import create, from_plain, to_plain, variant
from odonata.backbones.efficientnet import MBConv, SameConv2d, build, in_convention, same_padding
from odonata.engine.param_groups import layer_indices
from odonata.errors import RecipeError
from odonata.nn.efficientnet_sizes import round_channels

SMALL = {"width": 0.25, "depth": 0.3, "resolution": 32}


def small(**changes):
    return create("efficientnet-b0", **(SMALL | changes)).eval()


@pytest.mark.parametrize(
    ("channels", "rounded"),
    # 1.1 · 16 = 17.6 stays 16 (91 %), 1.1 · 24 = 26.4 stays 24 (just above 90 %), 11 would be 8 (73 %) and goes up.
    [(17.6, 16), (26.4, 24), (28, 32), (20, 24), (11, 16), (3, 8), (1280 * 1.1, 1408)],
)
def test_channels_are_multiples_of_8_and_lose_at_most_a_tenth(channels, rounded):
    assert round_channels(channels) == rounded


def test_b2_has_the_published_widths_and_depths():
    config = variant("efficientnet-b2")
    assert config.stage_widths == (16, 24, 48, 88, 120, 208, 352)
    assert config.stage_repeats == (2, 3, 3, 4, 4, 5, 2)
    assert create("efficientnet-b2", resolution=64).num_features == 1408


@pytest.mark.parametrize("size", [7, 8, 15, 32, 33])
@pytest.mark.parametrize("kernel", [3, 5])
def test_same_padding_gives_the_map_that_tensorflow_defines(size, kernel):
    """⌈size / stride⌉ cells, each under the window that begins at stride · i - ⌊padding / 2⌋."""
    conv = SameConv2d(1, 1, kernel, 2, kernel // 2, bias=False)
    nn.init.ones_(conv.weight)
    x = torch.randn(1, 1, size, size, dtype=torch.float64)
    out = conv.double()(x)
    assert out.shape[-1] == math.ceil(size / 2)
    before = same_padding(size, kernel, 2) // 2
    for i in range(out.shape[-1]):
        rows = slice(max(0, 2 * i - before), 2 * i - before + kernel)
        expected = x[0, 0, rows, rows].sum()
        torch.testing.assert_close(out[0, 0, i, i], expected)


def test_the_two_paddings_agree_on_odd_maps_only():
    same = small(padding="same")
    symmetric = small(padding="symmetric")
    symmetric.load_state_dict(same.state_dict())
    with torch.no_grad():
        # 33 → 17 → 9 → 5 → 3 → 2: every map that is strided over is odd.
        odd, even = torch.randn(2, 3, 33, 33), torch.randn(2, 3, 32, 32)
        torch.testing.assert_close(same(odd), symmetric(odd))
        assert (same(even) - symmetric(even)).norm() > 1e-3 * same(even).norm()


def test_taps_say_what_the_stages_give():
    tower = small(stem_stride=1)
    images = torch.randn(2, 3, 48, 64)
    with torch.no_grad():
        maps = tower.features(images, range(7), "nchw")
    assert [tap.stride for tap in tower.taps] == [1, 2, 4, 8, 8, 16, 16]
    for tap, stage in zip(tower.taps, maps, strict=True):
        assert stage.shape == (2, tap.channels, 48 // tap.stride, 64 // tap.stride)
    assert tower.features(images, [-1], "nlc")[0].shape == (2, 3 * 4, tower.taps[-1].channels)
    assert tower(images).shape == (2, tower.num_features)


def test_a_stage_above_the_last_wanted_is_not_computed():
    tower = small()
    tower.stages[3].register_forward_hook(lambda *_: pytest.fail("computed"))
    assert len(tower.features(torch.randn(1, 3, 32, 32), [2, 0])) == 2


def test_squeeze_is_a_quarter_of_the_blocks_input_not_of_its_expansion():
    tower = create("efficientnet-b0")
    assert tower.stages[1].layers[0].squeeze.reduce.weight.shape[:2] == (4, 96)  # input 16, expanded 96
    assert tower.stages[6].layers[0].squeeze.reduce.weight.shape[:2] == (48, 1152)


def test_drop_connect_grows_linearly_and_drops_whole_samples():
    tower = create("efficientnet-b0")
    rates = [layer.drop.rate for stage in tower.stages for layer in stage.layers]
    assert rates == pytest.approx([0.2 * i / 16 for i in range(16)])
    block = MBConv(variant("efficientnet-b0"), 8, 8, 1, 3, 1, 0.5).train()
    x = torch.randn(256, 8, 4, 4)
    kept = (block(x) - x).flatten(1).abs().amax(1) > 0
    assert 0.35 < kept.float().mean() < 0.65


def test_drop_connect_keeps_the_mean():
    block = MBConv(variant("efficientnet-b0"), 8, 8, 1, 3, 1, 0.25).eval()
    x = torch.randn(1, 8, 4, 4)
    wanted = block(x)
    block.drop.train()  # the normalisations stay in evaluation
    mean = block(x.expand(8000, -1, -1, -1)).mean(0, keepdim=True)
    assert (mean - wanted).norm() < 0.03 * (wanted - x).norm()


def test_conventions_reach_every_normalisation():
    for convention, eps, momentum in (("tf", 1e-3, 0.01), ("torch", 1e-5, 0.1)):
        tower = build(in_convention(small().config, convention))
        norms = [module for module in tower.modules() if isinstance(module, nn.BatchNorm2d)]
        assert {(norm.eps, norm.momentum) for norm in norms} == {(eps, momentum)}


def test_initial_variance_is_two_over_fan_out():
    tower = create("efficientnet-b0")
    depthwise = tower.stages[6].layers[0].depthwise.conv.weight  # 1152 kernels of 3 × 3
    assert depthwise.std().item() == pytest.approx(math.sqrt(2 / 9), rel=0.05)
    assert tower.top.conv.weight.std().item() == pytest.approx(math.sqrt(2 / 1280), rel=0.05)


def test_recomputing_changes_no_gradient():
    torch.manual_seed(0)
    tower = small(drop_connect=0.0, dropout=0.0).double().train()
    other = copy.deepcopy(tower)
    other.set_checkpointing(True)
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    for network in (tower, other):
        network(images).square().sum().backward()
    for a, b in zip(tower.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_the_small_tower_learns_eight_pictures():
    tower = create("efficientnet-small", drop_connect=0.0, dropout=0.0, norm_momentum=0.1)
    tower.reset_head(4)
    images, labels = torch.randn(8, 3, 32, 32), torch.arange(8) % 4
    optimiser = torch.optim.AdamW(tower.parameters(), 3e-3)
    for _ in range(30):
        loss = F.cross_entropy(tower(images), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss < 0.1  # chance is ln 4 = 1.39


def test_layers_are_counted_through_the_stages():
    tower = create("efficientnet-b0")
    indices = layer_indices(f"tower.{name}" for name, _ in tower.named_parameters())
    assert indices["tower.stem.conv.weight"] == (0, 17)
    assert indices["tower.stages.6.layers.0.expand.conv.weight"] == (16, 17)
    assert indices["tower.top.conv.weight"] == (17, 17)


def test_a_configuration_survives_as_plain_values():
    config = variant("efficientnet-small")
    assert from_plain(to_plain(config)) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"widths": (8, 8)}, "one number for each stage"),
        ({"width": 0.0}, "must be positive"),
        ({"widht": 1}, "no option"),
    ],
)
def test_impossible_options_are_refused(change, message):
    with pytest.raises(RecipeError, match=message):
        create("efficientnet-b0", **change)
