"""Feature pyramid: recorded parity with torchvision, and what each option means."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from fixtures.named_numbers import numbers
from odonata.backbones.create import create
from odonata.backbones.fpn import FPN, FPNConfig, PyramidTower

RECORDED = np.load(Path(__file__).parents[1] / "fixtures/pyramid.npz")
CHANNELS, WIDTH = (6, 10, 12), 8
SIZES = {"even": ((8, 12), (4, 6), (2, 3)), "odd": ((11, 7), (6, 4), (3, 2))}
OPTIONS = {
    **{name: {"extra": name} for name in ("none", "pool", "p6p7-c5", "p6p7-p5")},
    **{name: {"norm": name} for name in ("batch", "group")},
}


def ours(theirs: str) -> str:
    """Returns our name of a tensor of torchvision's pyramid."""
    name = theirs.replace("inner_blocks", "laterals").replace("layer_blocks", "outputs").replace("extra_blocks.", "")
    name = re.sub(r"^(laterals|outputs)\.(\d+)\.0\.", r"\1.\2.conv.", name)
    return re.sub(r"^(laterals|outputs)\.(\d+)\.1\.", r"\1.\2.norm.", name)


def recorded(name: str) -> tuple[FPN, dict[str, str]]:
    """Returns the pyramid with torchvision's weights, and our names of its tensors by torchvision's."""
    shapes = json.loads(RECORDED[f"{name}/shapes"].tobytes())
    fpn = FPN(CHANNELS, FPNConfig(WIDTH, **OPTIONS[name]))
    fpn.load_state_dict({ours(key): numbers(key, tuple(shape)) for key, shape in shapes.items()})
    return fpn.double().eval(), {key: ours(key) for key in shapes}


def tower_maps(size: str) -> list[torch.Tensor]:
    return [
        (numbers(f"map{i}", (1, c, *side)).double() * (c * side[0] * side[1]) ** 0.5).requires_grad_()
        for i, (c, side) in enumerate(zip(CHANNELS, SIZES[size], strict=True))
    ]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", OPTIONS)
def test_torchvision_computes_the_same_levels_and_gradients(name, size):
    """At sizes that halve exactly and at sizes that do not."""
    fpn, names = recorded(name)
    maps = tower_maps(size)
    levels = fpn(maps)
    assert len(levels) == 3 + fpn.config.extra_levels
    for i, level in enumerate(levels):
        expected = torch.from_numpy(RECORDED[f"{name}/{size}/{i}"])
        assert level.shape == expected.shape
        assert (level - expected).norm() / expected.norm() < 1e-12
    sum(level.square().mean() for level in levels).backward()
    grads = dict(fpn.named_parameters()) | {f"map{i}": x for i, x in enumerate(maps)}
    for key, norm in json.loads(RECORDED[f"{name}/{size}/gradients"].tobytes()).items():
        assert float(grads[names.get(key, key)].grad.norm()) == pytest.approx(norm, rel=1e-10)


def test_without_top_down_a_level_does_not_hear_of_the_one_above():
    with_path, without = (FPN(CHANNELS, FPNConfig(WIDTH, top_down=on)) for on in (True, False))
    without.load_state_dict(with_path.state_dict())  # the same parameters
    maps = [x.detach().float() for x in tower_maps("odd")]
    other = [*maps[:2], maps[2] + 1]
    for fpn, hears in ((with_path, True), (without, False)):
        for level in (0, 1):
            assert torch.equal(fpn(maps)[level], fpn(other)[level]) is not hears
    assert torch.equal(with_path(maps)[2], without(maps)[2])


def test_p6_stands_on_the_map_that_its_option_names():
    for source, moves in (("c5", True), ("p5", False)):
        fpn = FPN(CHANNELS, FPNConfig(WIDTH, extra=f"p6p7-{source}"))
        maps = [x.detach().float() for x in tower_maps("even")]
        before = fpn(maps)[3]
        with torch.no_grad():
            fpn.outputs[2].conv.weight.add_(1.0)  # changes P5 alone
        assert torch.equal(before, fpn(maps)[3]) is moves


@pytest.mark.parametrize("extra", ["none", "pool", "p6p7-c5", "p6p7-p5"])
def test_strides_say_what_the_levels_are(extra):
    tower = PyramidTower(create("resnet18-small", stem="imagenet"), [1, 2, 3], FPNConfig(16, extra))
    levels = tower(torch.randn(1, 3, 256, 128))
    assert [(256 // s, 128 // s) for s in tower.strides] == [tuple(level.shape[2:]) for level in levels]
    assert {level.shape[1] for level in levels} == {tower.channels} == {16}


def test_pictures_of_any_size_fit():
    tower = PyramidTower(create("resnet18-small", stem="imagenet"), [0, 1, 2, 3], FPNConfig(16, "p6p7-p5"))
    levels = tower(torch.randn(1, 3, 75, 101))
    assert [tuple(level.shape[2:]) for level in levels] == [(19, 26), (10, 13), (5, 7), (3, 4), (2, 2), (1, 1)]


def test_what_does_not_fit_is_named():
    backbone = create("resnet18-small")
    with pytest.raises(ValueError, match=r"layers \[3, 1\] have the strides \[8, 2\]: name the finest first"):
        PyramidTower(backbone, [3, 1])
    with pytest.raises(ValueError, match=r"layers \[4\] of a tower that has 4"):
        PyramidTower(backbone, [4])
    with pytest.raises(ValueError, match="a pyramid for 3 maps got 2"):
        FPN(CHANNELS)([torch.randn(1, 6, 8, 8), torch.randn(1, 10, 4, 4)])
