"""Residual networks for detection and segmentation: strides, stems, dilation, frozen and group norms."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import nn

from fixtures.named_numbers import numbers
from odonata.backbones.create import create
from odonata.backbones.pretrained import load_backbone, published_files
from odonata.errors import WeightsError
from odonata.weights.resnet_torchvision import key_map

RECORDED = np.load(Path(__file__).parents[1] / "fixtures/detector_towers.npz")


def shapes(name: str) -> dict[str, tuple[int, ...]]:
    return {key: tuple(shape) for key, shape in json.loads(RECORDED[f"{name}/shapes"].tobytes()).items()}


def images(height: int, width: int) -> torch.Tensor:
    return numbers("images", (1, 3, height, width)).double() * (3 * height * width) ** 0.5


def relative(ours: torch.Tensor, expected: np.ndarray) -> float:
    theirs = torch.from_numpy(expected)
    return float((ours.detach() - theirs).norm() / theirs.norm())


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("basic", {"block": "basic", "depths": (1, 1, 1, 1)}),
        ("bottleneck-16", {"depths": (1, 1, 2, 2), "output_stride": 16}),
        ("bottleneck-8", {"depths": (1, 1, 2, 2), "output_stride": 8}),
    ],
)
def test_torchvision_computes_the_same(name, options):
    """Dilated as `replace_stride_with_dilation` has it, at a size that halves and at one that does not."""
    tower = create("resnet50", **options).double().eval()
    tower.reset_head(10)
    theirs = {key: numbers(key, shape) for key, shape in shapes(f"resnet/{name}").items()}
    config = {"stem_width": 64, "shortcut": "conv", "depths": tower.config.depths, "widths": tower.config.widths}
    state, unused = key_map(config | {"block": tower.config.block}, 10).to_ours(theirs)
    tower.load_state_dict(state)
    assert not unused
    with torch.no_grad():
        for height, width in ((64, 64), (75, 53)):
            expected = RECORDED[f"resnet/{name}/{height}x{width}"]
            assert relative(tower(images(height, width))[0], expected) < 1e-12


def test_pspnets_authors_compute_the_same_with_their_stem_and_their_dilation():
    tower = create(
        "resnet50", stem="deep", stem_width=128, output_stride=8, dilate_first=True, depths=(1, 1, 2, 2)
    )  # fmt: skip
    assert [conv.weight.shape[0] for conv in tower.stem.convs] == [64, 64, 128]
    theirs = {key: numbers(key, shape) for key, shape in shapes("pspnet").items()}
    state = {}
    for key, value in theirs.items():
        layer, number, *rest = key.split(".")
        if layer == "layer0":  # a convolution, its norm and a ReLU, three times over
            part = "convs" if int(number) % 3 == 0 else "norms"
            state[".".join([f"stem.{part}.{int(number) // 3}", *rest])] = value
        else:
            name = ".".join(rest).replace("downsample.0", "shortcut.conv").replace("downsample.1", "shortcut.norm")
            state[f"stages.{int(layer[-1]) - 1}.layers.{number}.{name.replace('bn', 'norm')}"] = value
    tower.load_state_dict(state)
    tower.double().eval()
    with torch.no_grad():
        for height, width in ((65, 65), (49, 41)):
            ours = tower.forward_features(images(height, width))[0]
            assert relative(ours[::16], RECORDED[f"pspnet/{height}x{width}"]) < 1e-12
            assert ours.shape[1:] == ((height - 1) // 8 + 1, (width - 1) // 8 + 1)


@pytest.mark.parametrize(("stride_in", "first"), [("1x1", True), ("3x3", False)])
def test_transformers_computes_the_same_with_the_stride_in_either_convolution(tmp_path, stride_in, first):
    """v1 and v1.5."""
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[32, 48, 64, 80], depths=[1, 2, 1, 1], downsample_in_bottleneck=first
    )
    peer = transformers.ResNetModel(config).double().eval()
    peer.load_state_dict({key: numbers(key, tuple(value.shape)) for key, value in peer.state_dict().items()})
    peer.save_pretrained(tmp_path)
    tower = load_backbone(tmp_path).backbone.double()
    assert tower.config.stride_in == stride_in
    for size in (224, 97):
        with torch.no_grad():
            theirs = peer(images(size, size)).last_hidden_state
            assert relative(tower.forward_features(images(size, size)), theirs.numpy()) < 1e-12


def frozen_tower() -> nn.Module:
    """Returns a tower with frozen norms, and the weights of a detection file of torchvision: no batches counted."""
    source = create("resnet10-small")
    with torch.no_grad():
        for name, value in source.state_dict().items():
            value.copy_(numbers(name, tuple(value.shape)))
    state = {key: value for key, value in source.state_dict().items() if not key.endswith("num_batches_tracked")}
    tower = create("resnet10-small", norm="frozen_batch")
    tower.load_state_dict(state)
    return tower


def test_a_frozen_norm_is_not_trained_and_its_statistics_stay():
    tower = frozen_tower().train()
    names = [name for name, _ in tower.named_parameters()]
    assert names
    assert all("norm" not in name for name in names)
    before = {name: value.clone() for name, value in tower.state_dict().items() if "norm" in name}
    optimizer = torch.optim.SGD(tower.parameters(), lr=0.1)
    tower(torch.randn(2, 3, 64, 64)).square().mean().backward()
    optimizer.step()
    after = tower.state_dict()
    assert len(before) == 4 * 12
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_frozen_norms_answer_in_training_as_norms_do_in_evaluation():
    """The same file goes into both, batches counted or not."""
    frozen = frozen_tower().train()
    trained = create("resnet10-small")
    state = frozen.state_dict()
    counts = {k: v for k, v in trained.state_dict().items() if k.endswith("num_batches_tracked")}
    trained.load_state_dict(state | counts)
    again = create("resnet10-small", norm="frozen_batch")
    again.load_state_dict(trained.state_dict())  # strict: the counts are dropped
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(frozen(x), trained.eval()(x))
        assert torch.equal(again(x), frozen(x))


def test_group_norms_of_a_narrow_map_have_two_channels_a_group():
    """One channel a group would take away how strongly it answers."""
    tower = create("resnet10-small-gn")
    groups = {m.num_channels: m.num_groups for m in tower.modules() if isinstance(m, nn.GroupNorm)}
    assert groups == {16: 8, 32: 16, 64: 32, 128: 32}
    one, two = torch.randn(2, 1, 3, 64, 64)
    tower.train()
    with torch.no_grad():
        torch.testing.assert_close(tower(torch.cat([one, two]))[:1], tower(one))  # no picture sees another


@pytest.mark.parametrize("name", ["resnet10-small", "resnet10-small-gn", "resnet14-small"])
def test_small_towers_have_the_strides_of_large_ones(name):
    tower = create(name).eval()
    large = create("resnet50") if name == "resnet14-small" else create("resnet18")
    assert [tap.stride for tap in tower.taps] == [tap.stride for tap in large.taps] == [4, 8, 16, 32]
    assert [tap.channels * 4 for tap in tower.taps] == [tap.channels for tap in large.taps]
    assert sum(p.numel() for p in tower.parameters()) < 600_000


def test_a_deep_stem_does_not_go_out_as_torchvisions(tmp_path):
    with pytest.raises(WeightsError, match="torchvision's residual networks have no deep stem"):
        published_files(create("resnet10-small", stem="deep"), "torchvision")
    files = published_files(create("resnet10-small"), "torchvision")
    save_file(files.state, tmp_path / "w.safetensors")
    assert load_backbone(tmp_path / "w.safetensors").backbone.config == create("resnet10-small").config
