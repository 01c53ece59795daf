"""Darknet's networks: every layer against loops written from its C, published sizes and costs, and the trunks."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from backbones import darknet_reference as reference
from odonata.backbones.create import create, from_plain, to_plain
from odonata.backbones.darknet_cfgs import yolo_cfg
from odonata.backbones.darknet_network import DarknetNetwork, load_darknet
from odonata.backbones.measure import count, on_meta
from odonata.backbones.pretrained import load_backbone, published_files
from odonata.errors import DataError, WeightsError
from odonata.weights.darknet import read_weights, to_bytes, write_weights
from odonata.weights.darknet_cfg import parse_cfg
from odonata.weights.darknet_options import ACTIVATIONS
from odonata.weights.published import write_files
from odonata.weights.towers import is_tower


def conv(filters, size=1, **options):
    return "convolutional", {"filters": filters, "size": size, "pad": 1, "activation": "leaky", **options}


EVERY_LAYER = [
    conv(6, 3, batch_normalize=1),
    ("maxpool", {"size": 2, "stride": 2}),
    conv(8, 3, groups=2, activation="mish"),
    conv(8, 3, dilation=2, batch_normalize=1, activation="swish"),
    ("shortcut", {"from": (-2,), "activation": "leaky"}),
    ("maxpool", {"size": 2, "stride": 1}),
    ("maxpool", {"size": 5, "stride": 1}),
    ("route", {"layers": (-1, -2, 4)}),
    ("route", {"layers": (-1,), "groups": 2, "group_id": 1}),
    conv(4, 3, stride=2, batch_normalize=1),
    ("shortcut", {"from": (-2, 0), "alpha": 0.5, "beta": 2}),
    ("upsample", {"stride": 2, "scale": 0.5}),
    ("route", {"layers": (-1, 4)}),
    ("reorg", {"stride": 2}),
    ("maxpool", {"stride": 3, "size": 3, "padding": 1}),
    ("reorg", {"stride": 2, "reverse": 1}),
    conv(5, 2, pad=0, padding=0, activation="logistic"),
    ("dropout", {"probability": 0.5}),
    ("local", {"filters": 3, "size": 3, "stride": 1, "pad": 1, "activation": "tanh"}),
    ("local", {"filters": 2, "size": 2, "stride": 1, "pad": 0, "activation": "leaky"}),
    ("connected", {"output": 7, "activation": "relu", "batch_normalize": 1}),
    ("connected", {"output": 11, "activation": "linear"}),
    ("softmax", {"groups": 1}),
]
"""Each kind of layer, and each way in which it can be set."""


def randomized(network):
    """Weights and statistics that no symmetry hides."""
    generator = torch.Generator().manual_seed(1)
    for name, value in network.state_dict().items():
        if value.is_floating_point():
            value.normal_(generator=generator)
            if name.endswith("running_var"):
                value.square_().add_(0.05)
    return network.double().eval()


def compare(sections, height, width, cpu=False):
    text = reference.cfg_text(sections, width, height)
    network = randomized(DarknetNetwork(text, "cpu" if cpu else "gpu"))
    images = torch.randn(2, 3, height, width, dtype=torch.float64)
    with torch.no_grad():
        ours = network.features(images, range(len(sections)))
    state = {name: value.numpy() for name, value in network.state_dict().items()}
    for row, image in enumerate(images.numpy()):
        for number, expected in enumerate(reference.run(sections, state, image, cpu)):
            assert ours[number][row].shape == expected.shape == network.plan[number].shape, number
            error = np.linalg.norm(ours[number][row].numpy() - expected) / np.linalg.norm(expected)
            assert error < 1e-6 if network.plan[number].section.kind == "selu" else error < 1e-12, number
    return network


@pytest.mark.parametrize("cpu", [False, True])
def test_every_layer_computes_what_darknets_loops_compute(cpu):
    compare(EVERY_LAYER, 24, 28, cpu)


def test_odd_sizes_are_rounded_as_darknet_rounds_them():
    sections = [
        conv(4, 3, stride=2),
        ("maxpool", {"size": 2, "stride": 2}),
        ("maxpool", {"size": 3, "stride": 2}),
        conv(3, 5, stride=3, batch_normalize=1),
        ("avgpool", {}),
        conv(2, 1, activation="linear"),
    ]
    network = compare(sections, 29, 43)
    assert network.divisor == 1
    with torch.no_grad():  # at another size than the cfg's too
        assert network(torch.rand(1, 3, 50, 31, dtype=torch.float64))[0].shape == (1, 2, 1, 1)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_darknets(name):
    x = torch.linspace(-5, 5, 101, dtype=torch.float64)
    network = DarknetNetwork(reference.cfg_text([conv(1, activation=name)], 101, 1, 1)).double()
    network.layers[0].conv.weight.data.fill_(1)
    with torch.no_grad():
        found = network(x.reshape(1, 1, 1, -1))[0].flatten().numpy()
    named = "leaky" if name == "revleaky" else name
    # Darknet rounds the constants of selu and gelu to five digits.
    assert np.allclose(found, reference.activate(x.numpy(), named), atol=1e-4 if name in ("selu", "gelu") else 1e-12)


def test_reorg_is_not_pixel_unshuffle():
    x = torch.arange(64.0).reshape(1, 4, 4, 4)
    sections = [("reorg", {"stride": 2})]
    ours = DarknetNetwork(reference.cfg_text(sections, 4, 4, 4))(x)[0]
    assert np.array_equal(ours[0].numpy(), reference.reorg(x[0].numpy(), 2, 0))
    assert not torch.equal(ours, torch.nn.functional.pixel_unshuffle(x, 2))
    back = DarknetNetwork(reference.cfg_text([*sections, ("reorg", {"stride": 2, "reverse": 1})], 4, 4, 4))(x)[0]
    assert sorted(back.flatten().tolist()) == x.flatten().tolist()


@pytest.mark.parametrize(
    ("name", "size", "billions", "convolutions"),
    [("darknet19", 224, 5.58, 18), ("darknet19", 256, 7.29, 18), ("darknet53", 256, 18.57, 52)],
)
def test_trunks_cost_what_is_published(name, size, billions, convolutions):
    """Redmon and Farhadi 2016, sec. 3; 2018, table 2, which says 18.7 where the authors' page says 18.57. Darknet-19
    is counted with its classifier on each cell."""
    tower = create(name)
    tower.reset_head(1000)
    assert sum(isinstance(m, torch.nn.Conv2d) for m in tower.modules()) == convolutions  # and the classifier
    each_cell = 1024 * 1000 * ((size // 32) ** 2 - 1) if name == "darknet19" else 0
    assert 2 * (count(tower, size).macs + each_cell) / 1e9 == pytest.approx(billions, abs=0.005)


def test_darknet53_has_the_floats_of_the_published_trunk():
    held = sum(v.numel() for k, v in on_meta(create("darknet53")).state_dict().items() if "num_batches" not in k)
    assert held == (162_482_580 - 20) // 4  # darknet53.conv.74


@pytest.mark.parametrize("name", ["darknet19", "darknet-small"])
def test_a_trunk_computes_what_darknet_computes_and_comes_back(name, tmp_path):
    """Through the classifier's files and darknet's own kind of network; the weights come back bit for bit."""
    tower = create(name)
    tower.reset_head(10)
    tower.head.weight.data.normal_()
    tower.head.bias.data.normal_()
    for module in tower.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    write_files(tmp_path, published_files(tower.eval(), "darknet"), {})
    loaded = load_backbone(tmp_path / "model.weights")
    assert loaded.backbone.config == tower.config == from_plain(to_plain(tower.config))
    theirs = {k: v for k, v in tower.state_dict().items() if "num_batches" not in k}
    assert all(torch.equal(loaded.backbone.state_dict()[k], v) for k, v in theirs.items())
    assert (loaded.preprocess.size, loaded.preprocess.mean) == (256, (0, 0, 0))
    images = torch.rand(2, 3, 70, 50)
    with torch.no_grad():
        network = load_darknet(tmp_path / "model.weights").double()
        logits = network(images.double())[0].flatten(1)
        torch.testing.assert_close(tower.double()(images.double()), logits, rtol=1e-9, atol=1e-9)


def test_the_first_part_of_a_detector_is_a_trunk(tmp_path):
    """What `darknet53.conv.74` is to the detector: its first layers, the rest of which keep their own weights."""
    tower, text = create("darknet-small"), yolo_cfg("yolov3-small", 2, width_multiple=0.25, depth_multiple=0.25)
    cfg = parse_cfg(text, "yolov3-small.cfg")
    whole = DarknetNetwork(cfg)
    layers = next(i for i, layer in enumerate(cfg.layers) if layer.kind == "yolo") - 7
    (tmp_path / f"trunk.conv.{layers}").write_bytes(to_bytes(cfg, whole.state_dict(), layers=layers))
    (tmp_path / "trunk.cfg").write_text(text)
    loaded = load_backbone(tmp_path / f"trunk.conv.{layers}").backbone
    assert [tap.channels for tap in loaded.taps] == [tap.channels for tap in tower.taps] == [16, 32, 64, 128, 256]
    other = DarknetNetwork(cfg)
    last = other.state_dict()[f"layers.{len(cfg.layers) - 2}.conv.weight"].clone()
    other.load_weights(tmp_path / f"trunk.conv.{layers}", layers)
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        maps = [net.eval().features(images, [layers - 1])[0] for net in (whole, other)]
        torch.testing.assert_close(loaded(images), maps[0].mean((2, 3)))
    assert torch.equal(*maps)
    assert torch.equal(other.state_dict()[f"layers.{len(cfg.layers) - 2}.conv.weight"], last)


def test_a_detector_is_not_taken_for_a_tower(tmp_path):
    cfg = parse_cfg(yolo_cfg("yolov3-small", 1))
    write_weights(tmp_path / "net.weights", cfg, DarknetNetwork(cfg).state_dict())
    assert not is_tower(tmp_path / "net.weights")


@pytest.mark.parametrize("name", ["darknet19", "darknet53", "darknet-small"])
def test_taps_are_what_they_say(name):
    tower = create(name, widths=(8, 16, 32, 64, 128), stem_width=8).eval()
    with torch.no_grad():
        maps = tower.features(torch.rand(1, 3, 64, 96), range(5))
    assert [tuple(m.shape) for m in maps] == [(1, t.channels, 64 // t.stride, 96 // t.stride) for t in tower.taps]
    assert [tap.stride for tap in tower.taps] == [2, 4, 8, 16, 32]


def test_recomputing_activations_changes_nothing():
    tower, images = create("darknet-small"), torch.rand(2, 3, 64, 64)
    grads = []
    for on in (False, True):
        tower.set_checkpointing(on)
        tower.zero_grad()
        tower(images).square().sum().backward()
        grads.append([p.grad.clone() for p in tower.parameters()])
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(*grads, strict=True))


def test_in_training_a_hundredth_of_each_batch_enters_the_statistics():
    network = DarknetNetwork(reference.cfg_text([conv(4, batch_normalize=1)], 8, 8)).train()
    images = torch.rand(4, 3, 8, 8)
    network(images)
    with torch.no_grad():
        maps = network.layers[0].conv(images)
    torch.testing.assert_close(network.layers[0].norm.running_mean, 0.01 * maps.mean((0, 2, 3)))
    variance = maps.transpose(0, 1).flatten(1).var(1, unbiased=True)  # rolling_variance is darknet's unbiased one
    torch.testing.assert_close(network.layers[0].norm.running_var, 0.99 + 0.01 * variance)


@pytest.fixture(scope="module")
def fastest(shared_data):
    return shared_data / "weights/yolo-fastest/yolo-fastest-1.1.weights"


def test_published_weights_tell_what_is_in_unseen_photos(fastest, shared_data):
    """On pictures of COCO's validation set, which the network was not trained on: the most certain box of a class is
    more certain where the class is there than where it is not. One half is chance; over the classes that at least five
    pictures have, and for people, more than nine in ten pairs of pictures are in order."""
    network = load_darknet(fastest)
    folder = shared_data / "image-text/coco-mini"
    boxes = json.loads((folder / "annotations/boxes_val2017.json").read_text())
    ids = sorted(category["id"] for category in boxes["categories"])
    there = {picture["id"]: torch.zeros(80, dtype=torch.bool) for picture in boxes["images"]}
    for box in boxes["annotations"]:
        there[box["image_id"]][ids.index(box["category_id"])] = True
    certain = []
    for picture in boxes["images"]:
        image = Image.open(folder / "val2017" / picture["file_name"]).convert("RGB").resize((320, 320))
        with torch.no_grad():
            maps = network(torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255)
        assert [tuple(m.shape) for m in maps] == [(1, 255, 10, 10), (1, 255, 20, 20)]
        cells = torch.cat([m.unflatten(1, (3, 85)).flatten(3) for m in maps], 3)[0].sigmoid()
        certain.append((cells[:, 4:5] * cells[:, 5:]).amax((0, 2)))
    certain, present = torch.stack(certain), torch.stack(list(there.values()))
    ordered = []
    for scores, labels in zip(certain.T, present.T, strict=True):
        if labels.sum() >= 5:
            ordered.append(float((scores[labels][:, None] > scores[~labels]).float().mean()))
    assert len(ordered) >= 30 and sum(ordered) / len(ordered) > 0.9 and ordered[0] > 0.9


def test_darknets_two_ways_to_normalise_hardly_differ(fastest):
    images = torch.rand(1, 3, 160, 192)
    with torch.no_grad():
        pairs = zip(load_darknet(fastest)(images), load_darknet(fastest, numerics="cpu")(images), strict=True)
        differences = [float((a - b).norm() / b.norm()) for a, b in pairs]
    assert all(0 < difference < 1e-3 for difference in differences)


def test_published_weights_go_back_to_the_same_file(fastest, tmp_path):
    load_darknet(fastest).save(tmp_path / "back.weights")
    assert (tmp_path / "back.weights").read_bytes() == fastest.read_bytes()
    assert (tmp_path / "back.cfg").read_bytes() == fastest.with_suffix(".cfg").read_bytes()


def test_images_that_do_not_fit_are_refused():
    network = DarknetNetwork(yolo_cfg("yolov3-small", 1))
    with pytest.raises(
        DataError, match=r"100 × 96 do not fit .*layer \d+ \[route\]: the maps that it joins .*multiples of 32 fit"
    ):
        network(torch.rand(1, 3, 100, 96))
    with pytest.raises(DataError, match="1 channels and the network wants 3"):
        network(torch.rand(1, 1, 96, 96))
    with pytest.raises(DataError, match="192 × 192 and a connected or local layer wants 256 × 256"):
        DarknetNetwork(yolo_cfg("yolov1-small"))(torch.rand(1, 3, 192, 192))


def test_a_trunk_whose_epsilon_a_cfg_cannot_say_is_not_written():
    with pytest.raises(WeightsError, match="its norm_eps is 1e-5"):
        published_files(create("darknet-small", norm_eps=1e-3), "darknet")


def test_weights_of_another_network_are_refused(tmp_path):
    cfg = parse_cfg(yolo_cfg("yolov3-small", 1))
    write_weights(tmp_path / "net.weights", cfg, DarknetNetwork(cfg).state_dict())
    assert read_weights(tmp_path / "net.weights").header.minor == 2
    with pytest.raises(WeightsError, match=r"wants .* floats and the file holds"):
        DarknetNetwork(yolo_cfg("yolov3-small", 2)).load_weights(tmp_path / "net.weights")
