"""Pyramid pooling: parity with transformers' module, and what it is."""

import pytest
import torch
from transformers.models.upernet.modeling_upernet import UperNetPyramidPoolingModule

from fixtures.named_numbers import numbers
from odonata.backbones.pyramid_pooling import PyramidPooling


def peers(align_corners: bool) -> tuple[PyramidPooling, UperNetPyramidPoolingModule]:
    theirs = UperNetPyramidPoolingModule((1, 2, 3, 6), 24, 6, align_corners)
    theirs.load_state_dict({key: numbers(key, tuple(value.shape)) for key, value in theirs.state_dict().items()})
    ours = PyramidPooling(24, align_corners=align_corners)
    state = {}
    for key, value in theirs.state_dict().items():
        number, _, part = key.partition(".1.")
        state[part.replace("conv", f"convs.{number}").replace("batch_norm", f"norms.{number}")] = value
    ours.load_state_dict(state)
    return ours.double(), theirs.double()


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("side", [(60, 60), (13, 7), (5, 4)])
def test_transformers_computes_the_same(align_corners, train, side):
    """Values and gradients, with the statistics of the batch and with those that are stored."""
    ours, theirs = peers(align_corners)
    maps = [torch.randn(2, 24, *side, dtype=torch.float64).requires_grad_()]
    maps.append(maps[0].detach().clone().requires_grad_())
    out = ours.train(train)(maps[0])
    expected = torch.cat([maps[1], *theirs.train(train)(maps[1])], 1)
    assert out.shape[1] == ours.out_channels == 48
    assert (out - expected).norm() / expected.norm() < 1e-12
    weights = torch.randn_like(out)
    (out * weights).sum().backward()
    (expected * weights).sum().backward()
    assert (maps[0].grad - maps[1].grad).norm() / maps[1].grad.norm() < 1e-10
    for conv, block in zip(ours.convs, theirs.blocks, strict=True):
        wanted = next(block.parameters()).grad
        assert (conv.weight.grad - wanted).norm() / wanted.norm() < 1e-10


def test_every_cell_hears_of_the_whole_map():
    ours = PyramidPooling(8, norm="frozen_batch").eval()
    x = torch.rand(1, 8, 12, 12)
    other = x.clone()
    other[..., 11, 11] += 5
    alone = PyramidPooling(8, bins=(6,), norm="frozen_batch").eval()
    with torch.no_grad():
        for conv in (*ours.convs, *alone.convs):
            conv.weight.abs_()  # no ReLU hides what changes
    assert (ours(x) != ours(other)).any(1).all()
    assert torch.equal(alone(x)[..., 0, 0], alone(other)[..., 0, 0])  # the finest bins alone do not tell it


def test_the_map_comes_first_and_each_pooling_has_its_share():
    ours = PyramidPooling(2048).eval()
    assert [conv.weight.shape[0] for conv in ours.convs] == [512] * 4
    assert ours.out_channels == 4096
    small, x = PyramidPooling(8, (1, 3), width=5).eval(), torch.randn(1, 8, 9, 9)
    with torch.no_grad():
        out = small(x)
    assert torch.equal(out[:, :8], x)
    assert out.shape[1] == small.out_channels == 18
    assert float((out[:, 8:13] - out[:, 8:13, :1, :1]).abs().max()) < 1e-6  # one bin is the same everywhere


def test_more_bins_than_channels_are_named():
    with pytest.raises(ValueError, match=r"3 channels do not divide among the bins \[1, 2, 3, 6\]"):
        PyramidPooling(3)
