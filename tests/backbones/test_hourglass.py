"""Stacked hourglasses: recorded parity with CornerNet's own, and the form."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from fixtures.named_numbers import numbers
from odonata.backbones.create import create
from odonata.errors import RecipeError

RECORDED = np.load(Path(__file__).parents[1] / "fixtures/detector_towers.npz")
_PARTS = {"up1": "beside", "low1": "down", "low2": "inner", "low3": "up"}


def ours(theirs: str) -> str:
    """Returns our name of a tensor of CornerNet's."""
    name = re.sub(r"\bbn(\d?)\b", r"norm\1", theirs)
    name = name.replace("skip.0", "shortcut.conv").replace("skip.1", "shortcut.norm")
    name = re.sub(r"^pre\.0", "stem.conv", name)
    name = re.sub(r"^pre\.1", "stem.block", name)
    name = re.sub(r"^cnvs\.(\d)", r"stages.\1.output", name)
    name = re.sub(r"^inters\.(\d)", r"merges.\1.block", name)
    for part, called in (("inters_", "skip"), ("cnvs_", "output")):
        name = re.sub(rf"^{part}\.(\d)\.0", rf"merges.\1.{called}.conv", name)
        name = re.sub(rf"^{part}\.(\d)\.1", rf"merges.\1.{called}.norm", name)
    if not theirs.startswith("kps"):
        return name
    for part, called in _PARTS.items():
        name = re.sub(rf"\b{part}\b", called, name)
    name = re.sub(r"^kps\.(\d)", r"stages.\1.hourglass", name)
    return re.sub(r"\b(beside|down|up|inner)\.(\d)", r"\1.layers.\2", name)


@pytest.mark.parametrize("size", ["128x128", "64x96"])
def test_cornernet_computes_the_same_maps_and_gradients(size):
    tower = create(
        "hourglass104", widths=(8, 8, 12, 16), depths=(2, 2, 1, 3), stem_width=6, out_width=10
    ).double()  # fmt: skip
    names = json.loads(RECORDED["hourglass/shapes"].tobytes())
    tower.load_state_dict({ours(key): numbers(key, tuple(shape)) for key, shape in names.items()})
    tower.eval()
    height, width = (int(side) for side in size.split("x"))
    maps = tower.features(numbers("images", (1, 3, height, width)).double() * (3 * height * width) ** 0.5, [0, 1])
    for i, given in enumerate(maps):
        expected = torch.from_numpy(RECORDED[f"hourglass/{size}/{i}"])
        assert (given[0] - expected).norm() / expected.norm() < 1e-12
    sum(given.square().mean() for given in maps).backward()
    parameters = dict(tower.named_parameters())
    gradients = json.loads(RECORDED[f"hourglass/{size}/gradients"].tobytes())
    assert len(gradients) == len(parameters)
    for key, norm in gradients.items():
        assert float(parameters[ours(key)].grad.norm()) == pytest.approx(norm, rel=1e-9)


def test_it_has_the_layers_that_name_it():
    """104 are the convolutions on the longest way through: the stem's three, and in each hourglass five sizes down and
    up with two blocks each, four blocks at the bottom and the output; one block and one 1 × 1 between the two."""
    config = create("hourglass-small").config
    with torch.device("meta"):
        tower = create("hourglass104")
    assert (config.stacks, tower.config.stacks, tower.config.widths) == (2, 2, (256, 256, 384, 384, 384, 512))
    one = 2 * (5 * 2 + 4 + 5 * 2) + 1
    assert 3 + one + 1 + 2 + one == 104
    blocks = tower.stages[0].hourglass
    way = 0
    while hasattr(blocks, "down"):
        way += 2 * (len(blocks.down.layers) + len(blocks.up.layers))
        blocks = blocks.inner
    assert way + 2 * len(blocks.layers) + 1 == one
    assert 186e6 < sum(p.numel() for p in tower.parameters()) < 190e6


@pytest.mark.parametrize("size", [(64, 64), (75, 101), (4, 9)])
def test_every_hourglass_gives_a_quarter_of_the_picture(size):
    tower = create("hourglass-small").eval()
    maps = tower.features(torch.randn(1, 3, *size), [0, 1])
    wanted = tuple(-(-side // 4) for side in size)
    assert [tuple(given.shape[1:]) for given in maps] == [(32, *wanted)] * 2
    assert [tap.stride for tap in tower.taps] == [4, 4]


def test_the_second_hourglass_hears_of_the_first_and_not_the_other_way():
    tower = create("hourglass-small").eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        first, second = tower.features(x, [0, 1])
        tower.stages[0].output.norm.bias.add_(1.0)
        moved, heard = tower.features(x, [0, 1])
        tower.stages[1].output.norm.bias.add_(1.0)
        still = tower.features(x, [0])[0]
    assert not torch.equal(first, moved)
    assert not torch.equal(second, heard)
    assert torch.equal(still, moved)


def test_recomputing_changes_no_gradient():
    tower = create("hourglass-small", norm="group")
    x = torch.randn(1, 3, 32, 32)
    norms = []
    for on in (False, True):
        tower.set_checkpointing(on)
        tower.zero_grad()
        tower(x).square().mean().backward()
        norms.append([float(p.grad.norm()) for p in tower.parameters()])
    assert norms[0] == pytest.approx(norms[1], rel=1e-6)


def test_what_does_not_fit_is_named():
    with pytest.raises(RecipeError, match="4 widths for 2 depths; want as many, two at least"):
        create("hourglass-small", depths=(1, 1))
    with pytest.raises(RecipeError, match="stacks is 0; want one at least"):
        create("hourglass-small", stacks=0)
