"""What towers cost and see, against published tables and against arithmetic."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from odonata.backbones.create import create
from odonata.backbones.measure import count, receptive_field


def on_meta(name, **changes):
    with torch.device("meta"):
        tower = create(name, **changes)
        tower.reset_head(1000)
    return tower


# Parameters in millions and multiply-adds in 10⁹ at the native size: timm 1.0.31's, then Tan and Le 2019, table 2.
EFFICIENTNETS = {
    0: (5.29, 0.386, 5.3, 0.39),
    1: (7.79, 0.687, 7.8, 0.70),
    2: (9.11, 0.994, 9.2, 1.0),
    3: (12.23, 1.827, 12.0, 1.8),
    4: (19.34, 4.39, 19.0, 4.2),
    5: (30.39, 10.27, 30.0, 9.9),
    6: (43.04, 19.07, 43.0, 19.0),
    7: (66.35, 37.75, 66.0, 37.0),
}


@pytest.mark.parametrize("size", EFFICIENTNETS)
def test_efficientnets_cost_what_the_paper_prints(size):
    tower = on_meta(f"efficientnet-b{size}")
    costs = count(tower, tower.config.resolution)
    parameters, macs, papers_parameters, papers_macs = EFFICIENTNETS[size]
    assert costs.parameters / 1e6 == pytest.approx(parameters, rel=0.01)
    assert costs.macs / 1e9 == pytest.approx(macs, rel=0.01)
    assert costs.parameters / 1e6 == pytest.approx(papers_parameters, rel=0.04)
    assert costs.macs / 1e9 == pytest.approx(papers_macs, rel=0.05 if size == 4 else 0.04)


@pytest.mark.parametrize(
    ("name", "parameters", "macs", "activations"),
    [
        ("resnet50", 25.56, 4.09, 11.1),  # torchvision's table, timm's model card
        ("resnet18", 11.69, 1.81, 2.5),
        ("vit-s16", 22.05, 4.6, 11.95),  # timm's vit_small_patch16_224
        ("efficientnet-b0", 5.29, 0.39, 6.75),
        ("squeezenet1_0", 1.248, 0.82, None),  # torchvision's table
        ("squeezenet1_1", 1.235, 0.35, None),
    ],
)
def test_towers_cost_what_is_published(name, parameters, macs, activations):
    costs = count(on_meta(name), 224)
    assert costs.parameters / 1e6 == pytest.approx(parameters, rel=0.005)
    assert costs.macs / 1e9 == pytest.approx(macs, rel=0.015)
    if activations:
        assert costs.activations / 1e6 == pytest.approx(activations, rel=0.01)


def test_attention_is_counted_by_hand():
    """A block of width d on n tokens: 4 d² n for the projections, 2 n² d for the attention, 2 d m n for the MLP."""
    one, two = (create("vit-tiny8", image_size=32, depth=depth) for depth in (1, 2))
    config, n = one.config, 16 + 1
    d, m = config.width, config.mlp_width
    assert count(two, 32).macs - count(one, 32).macs == 4 * d * d * n + 2 * n * n * d + 2 * d * m * n
    scores = config.num_heads * n * n
    assert count(two, 32).activations - count(one, 32).activations == 4 * d * n + scores + n * d + (m + d) * n


def test_costs_grow_with_the_batch_and_parameters_do_not():
    tower = create("resnet18-small")
    one, three = count(tower, 32), count(tower, (32, 32), batch=3)
    assert three.macs == 3 * one.macs
    assert three.activations == 3 * one.activations
    assert three.parameters == one.parameters


def test_counting_leaves_the_tower_as_it_was():
    tower = create("resnet18-small").train()
    before = {key: value.clone() for key, value in tower.state_dict().items()}
    count(tower, 32)
    receptive_field(tower, 0)
    assert tower.training
    assert all(torch.equal(value, before[key]) for key, value in tower.state_dict().items())


NARROW = {"widths": (8, 16, 32, 64), "stem_width": 8}  # what a cell sees does not depend on widths


def by_arithmetic(tower, layer):
    """1 + Σ (k - 1) · jump over the convolutions and poolings of the main path; shortcuts see less."""
    size, jump = 1, 1
    for name, module in tower.named_modules():
        inside = not name.startswith("stages.") or int(name.split(".")[1]) <= layer % len(tower.stages)
        beside = "shortcut" in name or "squeeze.reduce" in name or name.startswith(("top", "head"))
        if isinstance(module, nn.Conv2d | nn.MaxPool2d) and inside and not beside and not name.endswith("expand1x1"):
            kernel, stride, dilation = (
                v if isinstance(v, int) else v[0] for v in (module.kernel_size, module.stride, module.dilation)
            )
            size, jump = size + (kernel - 1) * dilation * jump, jump * stride
    return size


@pytest.mark.parametrize(
    ("name", "changes", "layer", "pixels"),
    [
        ("resnet18", NARROW, -1, 435),
        ("resnet50", NARROW | {"stride_in": "1x1"}, -1, 483),
        ("resnet50", NARROW, -1, 427),
        ("resnet50", NARROW, 0, 35),
        ("resnet20", {}, -1, None),
        ("squeezenet1_0", {}, -1, None),
        ("efficientnet-b0", {"squeeze": 0.0, "width": 0.25}, 5, None),
    ],
)
def test_receptive_fields_are_those_of_the_arithmetic(name, changes, layer, pixels):
    """435, and 483 for ResNet-50 with the stride in the 1 × 1 (v1), as Araujo et al. 2019 have them. v1.5 sees 427."""
    tower = create(name, **changes)
    if pixels is not None:
        assert by_arithmetic(tower, layer) == pixels
    assert receptive_field(tower, layer) == by_arithmetic(tower, layer)


def test_receptive_fields_grow_with_depth():
    tower = create("resnet18-small")
    fields = [receptive_field(tower, layer) for layer in range(4)]
    assert all(a < b for a, b in pairwise(fields))


def test_dilation_widens_what_is_seen_at_the_same_depth():
    tower = create("resnet18", output_stride=8, **NARROW)
    assert receptive_field(tower, -1) == by_arithmetic(tower, -1)


@pytest.mark.parametrize(("name", "layer"), [("efficientnet-small", 0), ("vit-tiny8", 0)])
def test_squeeze_and_excitation_and_attention_see_the_whole_image(name, layer):
    assert receptive_field(create(name), layer) == math.inf
