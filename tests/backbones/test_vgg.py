"""VGG: recorded parity with torchvision as classifier and as SSD's tower, and what FCN makes of it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fixtures.named_numbers import numbers
from odonata.backbones.create import create
from odonata.backbones.vgg import convolutional_state
from odonata.errors import RecipeError
from odonata.weights.vgg_torchvision import key_map

RECORDED = np.load(Path(__file__).parents[1] / "fixtures/detector_towers.npz")
NARROW = {"widths": (8, 12, 16, 24, 24), "fc_width": 40}
CONFIG = {"depths": (1, 1, 2, 2, 2), "top": "dense"}


def recorded(name: str) -> dict[str, torch.Tensor]:
    shapes = json.loads(RECORDED[f"{name}/shapes"].tobytes())
    return {key: numbers(key, tuple(shape)) for key, shape in shapes.items()}


def images(height: int, width: int) -> torch.Tensor:
    return numbers("images", (1, 3, height, width)).double() * (3 * height * width) ** 0.5


def relative(ours: torch.Tensor, expected: np.ndarray) -> float:
    theirs = torch.from_numpy(expected)
    return float((ours.detach() - theirs).norm() / theirs.norm())


@pytest.mark.parametrize(("name", "variant", "norm"), [("vgg", "vgg11", "none"), ("vgg_bn", "vgg11_bn", "batch")])
def test_torchvision_computes_the_same_classes_loss_and_gradients(name, variant, norm):
    """At 224 pixels, and at 97 × 75, where the last map is spread over 7 × 7 cells."""
    tower = create(variant, **NARROW)
    tower.reset_head(10)
    rules = key_map(CONFIG | {"norm": norm}, 10)
    tower.load_state_dict(rules.to_ours(recorded(name))[0])
    tower.double().eval()
    for height, width in ((224, 224), (97, 75)):
        assert relative(tower(images(height, width))[0], RECORDED[f"{name}/{height}x{width}"]) < 1e-12
    loss = F.cross_entropy(tower(images(97, 75)), torch.tensor([3]))
    assert float(loss.detach()) == pytest.approx(float(RECORDED[f"{name}/loss"]), rel=1e-12)
    loss.backward()
    parameters = dict(tower.named_parameters())
    names = {rule.theirs[0]: rule.ours[0] for rule in rules.rules}
    gradients = json.loads(RECORDED[f"{name}/gradients"].tobytes())
    assert len(gradients) == len(parameters)
    for key, norm in gradients.items():
        assert float(parameters[names[key]].grad.norm()) == pytest.approx(norm, rel=1e-9)


def test_torchvisions_ssd_has_the_same_conv4_3_and_fc7():
    """At full width, where the third pooling rounds 21 up to 11. In float32."""
    tower = create("vgg16-ssd").eval()
    theirs = recorded("ssd")
    state, number = {}, 0
    convs = [key for key in theirs if key.endswith(".weight")]
    for stage, depth in enumerate(tower.config.depths):
        for layer in range(depth):
            for part in ("weight", "bias"):
                state[f"stages.{stage}.layers.{layer}.conv.{part}"] = theirs[convs[number].replace("weight", part)]
            number += 1
    for name in ("fc6", "fc7"):
        for part in ("weight", "bias"):
            state[f"{name}.{part}"] = theirs[convs[number].replace("weight", part)]
        number += 1
    tower.load_state_dict(state)
    assert number == len(convs)
    with torch.no_grad():
        maps = tower.features(images(84, 100).float(), [tower.layer("conv4_3"), tower.layer("fc7")])
    for given, name in zip(maps, ("conv4_3", "fc7"), strict=True):
        assert given.shape[2:] == RECORDED[f"ssd/{name}"].shape[1:]
        assert relative(given[0, ::16], RECORDED[f"ssd/{name}"]) < 1e-5


@pytest.mark.parametrize(("name", "millions"), [("vgg11", 132.86), ("vgg13", 133.05), ("vgg16", 138.36),
                                                ("vgg19", 143.67), ("vgg16_bn", 138.37)])  # fmt: skip
def test_parameters_are_those_of_torchvisions_table(name, millions):
    with torch.device("meta"):
        tower = create(name)
        tower.reset_head(1000)
    assert sum(p.numel() for p in tower.parameters()) / 1e6 == pytest.approx(millions, abs=0.01)


def test_layers_go_by_the_names_of_papers():
    with torch.device("meta"):
        ssd, fcn = create("vgg16-ssd"), create("vgg16-fcn")
        maps = ssd.eval().features(torch.empty(1, 3, 300, 300), [ssd.layer("conv4_3"), ssd.layer("fc7")])
    assert [tuple(given.shape[1:]) for given in maps] == [(512, 38, 38), (1024, 19, 19)]  # the paper's figure 2
    assert [ssd.taps[ssd.layer(name)].stride for name in ("conv4_3", "pool5", "fc7")] == [8, 16, 16]
    assert [fcn.taps[fcn.layer(name)].stride for name in ("pool3", "pool4", "pool5", "fc7")] == [8, 16, 32, 32]
    assert create("vgg-small").names[-2:] == ("conv5_2", "pool5")
    with pytest.raises(ValueError, match="no layer 'fc8'; there are conv1_2, pool1, conv2_2"):
        ssd.layer("fc8")


@pytest.mark.parametrize("size", [1, 33, 500, 513])
def test_fcns_padding_lets_32_pixels_a_cell_cover_every_picture(size):
    """A score map enlarged by 32 with a kernel of 64 is at least 19 pixels larger than the picture, on which the
    published crop counts, and ends less than 64 after it."""
    with torch.device("meta"):
        tower = create("vgg16-fcn", widths=(1, 1, 1, 1, 1), fc_width=1)
        cells = tower.eval().forward_features(torch.empty(1, 3, size, size)).shape[-1]
    enlarged = (cells - 1) * 32 + 64
    assert 19 + size <= enlarged < 19 + size + 64


def test_dense_layers_and_the_same_as_convolutions_agree_on_one_window():
    """Long et al. 2015, fig. 2."""
    dense = create("vgg-small", top="dense", fc_width=20).double().eval()
    sliding = create("vgg-small", top="convolutions", fc_width=20).double().eval()
    sliding.load_state_dict(convolutional_state(dense.state_dict(), dense.config, sliding.config))
    x = torch.randn(1, 3, 224, 224, dtype=torch.float64)
    with torch.no_grad():
        window = dense.forward_head(dense.forward_features(x), pre_logits=True)
        cells = sliding.forward_features(x)
        assert cells.shape[2:] == (1, 1)
        torch.testing.assert_close(cells[:, :, 0, 0], window)
        assert sliding.forward_features(torch.randn(1, 3, 288, 256, dtype=torch.float64)).shape[2:] == (3, 2)


def test_ssd_takes_every_fourth_unit_and_every_third_cell():
    dense = create("vgg-small", top="dense", fc_width=16)
    sliding = create("vgg-small", top="convolutions", fc_width=4, fc6_kernel=3)
    state = convolutional_state(dense.state_dict(), dense.config, sliding.config)
    sliding.load_state_dict(state)
    fc6 = dense.fc6.weight.reshape(16, 96, 7, 7)
    assert torch.equal(sliding.fc6.weight, fc6[::4, :, ::3, ::3])
    assert torch.equal(sliding.fc7.weight[:, :, 0, 0], dense.fc7.weight[::4, ::4])
    with pytest.raises(ValueError, match="fc6 of 32 units on 3 cells a side cannot be taken from one of 16 units on 7"):
        convolutional_state(dense.state_dict(), dense.config, create("vgg-small", fc_width=32, fc6_kernel=3).config)


def test_only_the_named_poolings_round_up():
    sizes = {(): [32, 16, 8, 4, 2], (1, 2, 3, 4, 5): [33, 17, 9, 5, 3], (3,): [32, 16, 8, 4, 2]}
    for named, wanted in sizes.items():
        tower = create("vgg-small", ceil_pools=named).eval()
        pools = [tower.layer(f"pool{number}") for number in range(1, 6)]
        assert [given.shape[-1] for given in tower.features(torch.randn(1, 3, 65, 65), pools)] == wanted
    with pytest.raises(RecipeError, match="ceil_pools names pooling 6; there are 1 to 5"):
        create("vgg-small", ceil_pools=(6,))


def test_small_has_a_classifier_on_the_mean_and_recomputes_to_the_same_gradient():
    tower = create("vgg-small", norm="group")
    tower.reset_head(3)
    assert isinstance(tower.head, nn.Linear)
    x, norms = torch.randn(2, 3, 64, 64), []
    for on in (False, True):
        tower.set_checkpointing(on)
        tower.zero_grad()
        F.cross_entropy(tower(x), torch.tensor([0, 2])).backward()
        norms.append([float(p.grad.norm()) for p in tower.parameters()])
    assert norms[0] == pytest.approx(norms[1], rel=1e-6)


def test_an_option_of_a_name_may_be_a_list():
    config = create("vgg-small:ceil_pools=[1,2],widths=[4,8,8,8,8],norm=group").config
    assert (config.ceil_pools, config.widths, config.norm) == ((1, 2), (4, 8, 8, 8, 8), "group")
    with pytest.raises(RecipeError, match="wants the form name=value"):
        create("vgg-small:ceil_pools")
