"""Darknet's cfg and weights: what is read, that it goes back bit for bit, and what is said of files that are wrong."""

import struct

import numpy as np
import pytest
import torch

from odonata.errors import WeightsError
from odonata.weights.darknet import Header, cfg_beside, count_floats, read_weights, to_bytes, write_weights
from odonata.weights.darknet_cfg import parse_cfg, read_cfg
from odonata.weights.darknet_plan import plan_layers
from odonata.weights.read import read_state

CFG = """[net]
width=8
height = 6
channels=2
; a remark
[convolutional]
batch_normalize=1
filters=4
size=3
pad=1
stride=2
groups=2
activation=leaky

[local]
filters=3
size=3
pad=1
activation=leaky  # a remark

[connected]
output=5
activation=linear
batch_normalize=1
"""
# convolution: 4 · 4 + 4 · 1 · 9; local: (3 + 3 · 4 · 9) · 4 · 3; connected: 5 · 4 + 5 · 36
FLOATS = (16 + 36, 12 * (3 + 108), 20 + 180)


def test_sections_keep_their_lines():
    cfg = parse_cfg(CFG, "net.cfg")
    assert [(layer.kind, layer.line, layer.index) for layer in cfg.layers] == [
        ("convolutional", 6, 0),
        ("local", 15, 1),
        ("connected", 21, 2),
    ]
    assert (cfg.net.integer("height", 0), cfg.net.lines["height"]) == (6, 3)
    assert cfg.layers[1].text("activation", "") == "leaky"
    assert str(cfg.layers[0].wrong("bad", "size")) == "net.cfg:9: layer 0 [convolutional]: bad"


def test_of_an_option_given_twice_the_first_counts():
    cfg = parse_cfg("[net]\nwidth=8\nheight=8\n[conv]\nfilters=3\nfilters=4\n[max]\nsize=2")
    assert cfg.layers[0].integer("filters", 1) == 3
    assert [layer.kind for layer in cfg.layers] == ["convolutional", "maxpool"]


def test_lists_may_have_blanks():
    cfg = parse_cfg("[net]\n[yolo]\nanchors = 10,13,  16,30\nmask = 0, 1")
    assert cfg.layers[0].numbers("anchors") == (10, 13, 16, 30)
    assert cfg.layers[0].integers("mask") == (0, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "net.cfg: a darknet cfg begins with .net.; it has no sections"),
        ("[convolutional]\n", "it begins with .convolutional."),
        ("[net]\n", "no layers after .net."),
        ("width=3\n[net]", "net.cfg:1: 'width=3' stands before the first"),
        ("[net]\nwidth", "net.cfg:2: 'width' is neither a .section. nor option=value"),
        ("[net]\nwidth=\n", "net.cfg:2: 'width=' is neither"),
        ("[net\n", "net.cfg:1: '.net' lacks its closing bracket"),
    ],
)
def test_text_that_is_no_cfg_is_refused(text, message):
    with pytest.raises(WeightsError, match=message):
        parse_cfg(text, "net.cfg")


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("[lstm]\noutput=3", r"net.cfg:5: layer 0 \[lstm\]: this kind of layer is unknown; known are convolutional"),
        (
            "[convolutional]\nfilter=3",
            r"net.cfg:6: layer 0 \[convolutional\]: option 'filter' is unknown; did you mean ",
        ),
        ("[maxpool]\nantialiasing=1", "net.cfg:6: layer 0 .maxpool.: antialiasing=1 makes another network"),
        ("[convolutional]\nfilters=x", "net.cfg:6: .*filters=x wants a whole number"),
        ("[convolutional]\nfilters=0", "net.cfg:6: .*filters=0 wants 1 or more"),
        ("[convolutional]\nactivation=sine", "net.cfg:6: .*activation=sine is unknown; known are linear, leaky"),
        ("[convolutional]\nfilters=4\ngroups=2", "groups=2 does not divide 3 channels and 4 filters"),
        ("[convolutional]\nsize=9", "a map of 3 × 8 × 8 is too small for it"),
        ("[convolutional]\nstride_x=2", "stride_x=2 and stride_y=1 differ"),
        ("[dropout]\n[route]\n", r"layer 1 \[route\]: layers is missing"),
        ("[dropout]\n[route]\nlayers=-1,5", "net.cfg:7: .*layers=5: there is no such layer before layer 1"),
        ("[dropout]\n[shortcut]\nfrom=-3", "from=-3: there is no such layer before layer 1"),
        ("[dropout]\n[maxpool]\nstride=2\n[route]\nlayers=-1,0", "different sizes: 3 × 4 × 4, 3 × 8 × 8"),
        ("[dropout]\n[maxpool]\nstride=2\n[shortcut]\nfrom=0\n[shortcut]\nfrom=-2\n[upsample]\n[upsample]\n", "finer"),
        ("[reorg]\nstride=2", "stride=2 does not divide a map of 3 × 8 × 8"),
        ("[route]\nlayers=-1", "there is no such layer before layer 0"),
        ("[dropout]\n[route]\nlayers=0\ngroups=2", r"groups=2 does not divide \[3\] channels"),
        ("[dropout]\n[route]\nlayers=0\ngroups=3\ngroup_id=3", "group_id=3 wants a number below groups=3"),
        ("[local]\nsize=5\npad=1", "only pad=1 with size=3 has a meaning"),
        ("[dropout]\nprobability=1", "probability=1 wants a number from 0 up to 1"),
        ("[yolo]\nmask=0,1\nclasses=3", r"layer 0 \[yolo\]: the layer before it gives 3 channels and it wants 16"),
        ("[region]\nnum=2\nclasses=3", r"layer 0 \[region\]: the layer before it gives 3 channels and it wants 16"),
        ("[detection]\nnum=2\nside=4", "gives 192 channels and it wants 480"),
        (
            "[conv]\nfilters=6\n[yolo]\nmask=0\nclasses=1\n[dropout]",
            "reads layer 1 .yolo., which gives boxes and no map",
        ),
    ],
)
def test_layers_that_cannot_be_are_refused(layers, message):
    text = f"[net]\nwidth=8\nheight=8\nchannels=3\n{layers}\n"
    with pytest.raises(WeightsError, match=message):
        plan_layers(parse_cfg(text, "net.cfg"))


def test_a_network_without_a_size_is_refused():
    with pytest.raises(
        WeightsError, match=r"net.cfg:1: \[net\]: width=0, height=0 and channels=3 want numbers above 0"
    ):
        plan_layers(parse_cfg("[net]\n[dropout]\n", "net.cfg"))


def test_options_of_training_are_let_pass():
    text = "[net]\nwidth=8\nheight=8\n[convolutional]\nfilters=4\nstopbackward=1\nxnor=0\nactivation=linear\n"
    assert plan_layers(parse_cfg(text))[0].shape == (4, 8, 8)


@pytest.fixture
def pair(tmp_path):
    """A small network's files: the floats are 0, 1, 2, …"""
    (tmp_path / "net.cfg").write_text(CFG)
    floats = np.arange(sum(FLOATS), dtype="<f4").tobytes()
    (tmp_path / "net.weights").write_bytes(struct.pack("<3iQ", 0, 2, 5, 2**40) + floats)
    return tmp_path / "net.weights"


def test_floats_lie_in_darknets_order(pair):
    read = read_weights(pair)
    assert read.header == Header(0, 2, 5, 2**40)
    assert count_floats(read_cfg(cfg_beside(pair)[0])) == sum(FLOATS)
    first = {name: float(value.flatten()[0]) for name, value in read.state.items()}
    local, connected = FLOATS[0], FLOATS[0] + FLOATS[1]
    assert first == {
        "layers.0.norm.bias": 0,
        "layers.0.norm.weight": 4,
        "layers.0.norm.running_mean": 8,
        "layers.0.norm.running_var": 12,
        "layers.0.conv.weight": 16,
        "layers.1.bias": local,
        "layers.1.weight": local + 36,
        "layers.2.norm.bias": connected,
        "layers.2.linear.weight": connected + 5,  # in second place, unlike a convolution's
        "layers.2.norm.weight": connected + 185,
        "layers.2.norm.running_mean": connected + 190,
        "layers.2.norm.running_var": connected + 195,
    }
    assert read.state["layers.0.conv.weight"].shape == (4, 1, 3, 3)
    assert read.state["layers.1.weight"].shape == (12, 3, 36)


@pytest.mark.parametrize(
    ("header", "size"),
    [
        (Header(0, 1, 0, 77), 16),
        (Header(0, 2, 0, 2**33), 20),
        (Header(1, 0, 0, 77), 20),
        (Header(1001, 2, 0, 77), 16),
        (Header(0, 1001, 0, 77), 16),
    ],
)
def test_a_file_of_any_version_comes_back_bit_for_bit(header, size, tmp_path, pair):
    content = header.to_bytes() + pair.read_bytes()[20:]
    assert len(header.to_bytes()) == size
    (tmp_path / "old.weights").write_bytes(content)
    cfg = read_cfg(tmp_path / "net.cfg")
    read = read_weights(tmp_path / "old.weights", cfg)
    assert read.header == header
    assert to_bytes(cfg, read.state, read.header) == content
    write_weights(tmp_path / "new.weights", cfg, read.state, read.header)
    assert (tmp_path / "new.weights").read_bytes() == content
    assert (tmp_path / "new.cfg").read_text() == CFG
    linear = read.state["layers.2.linear.weight"]
    begin = FLOATS[0] + FLOATS[1] + 5
    stored = torch.arange(begin, begin + 180.0)
    expected = stored.reshape(36, 5).T if max(header.major, header.minor) > 1000 else stored.reshape(5, 36)
    assert torch.equal(linear, expected)


def test_not_a_number_survives(pair):
    """Bits are kept whatever they mean."""
    content = bytearray(pair.read_bytes())
    content[20:28] = struct.pack("<2I", 0x7FC12345, 0x80000000)
    pair.write_bytes(content)
    cfg = read_cfg(pair.with_suffix(".cfg"))
    read = read_weights(pair, cfg)
    assert to_bytes(cfg, read.state, read.header) == bytes(content)


def test_flipped_weights_are_stored_filters_last():
    text = "[net]\nwidth=4\nheight=4\nchannels=2\n[convolutional]\nfilters=3\nflipped=1\nactivation=linear\n"
    cfg = parse_cfg(text)
    weight = torch.arange(6.0).reshape(3, 2, 1, 1)
    content = to_bytes(cfg, {"layers.0.conv.bias": torch.zeros(3), "layers.0.conv.weight": weight})
    assert np.frombuffer(content[32:], "<f4").tolist() == [0, 2, 4, 1, 3, 5]


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        (
            0,
            r"wants 1,584 floats and the file holds 0: it ends in layer 0 \[convolutional\] \(line 6 of the cfg\)",
        ),
        (60, r"holds 60: it ends in layer 1 \[local\] \(line 15 of the cfg\), after 8 of 1,332 floats"),
        (1583, r"holds 1,583: it ends in layer 2 \[connected\] \(line 21 of the cfg\), after 199 of 200 floats"),
    ],
)
def test_a_file_that_was_cut_off_names_the_layer_where_it_ends(pair, kept, message):
    pair.write_bytes(pair.read_bytes()[: 20 + 4 * kept])
    with pytest.raises(WeightsError, match=message):
        read_weights(pair)


def test_a_file_that_is_too_long_names_what_is_left(pair):
    pair.write_bytes(pair.read_bytes() + bytes(8))
    with pytest.raises(WeightsError, match=r"holds 1,586: 2 are left over; its last layer with weights is layer 2"):
        read_weights(pair)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "0 bytes are less than a header"),
        (bytes(18) + b"\x01", "no whole number of floats"),
        (struct.pack("<3i", 0, 2, 0) + bytes(4), "16 bytes are less than a header"),
        (struct.pack("<3iQ", -1, 2, 0, 0), "begins with -1, 2, 0, which is no version"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS pointer"),
        (b"PK\x03\x04" + bytes(40), "which is no version of darknet's"),
    ],
)
def test_bytes_that_are_no_weights_are_refused(pair, content, message):
    pair.write_bytes(content)
    with pytest.raises(WeightsError, match=message):
        read_weights(pair)


def test_weights_without_their_cfg_ask_for_it(pair):
    pair.with_suffix(".cfg").unlink()
    with pytest.raises(
        WeightsError, match=r"says nothing about its layers: put the network's cfg beside it, as net.cfg"
    ):
        read_state(pair)


def test_the_first_layers_of_a_network_are_read_alone(pair, tmp_path):
    part = tmp_path / "net.conv.1"
    part.write_bytes(pair.read_bytes()[: 20 + 4 * FLOATS[0]])
    raw = read_state(part)
    assert cfg_beside(part) == (tmp_path / "net.cfg", 1)
    assert raw.kind == "darknet" and all(name.startswith("layers.0.") for name in raw.state)
    with pytest.raises(WeightsError, match="holds 52: it ends in layer 1"):
        read_weights(part, tmp_path / "net.cfg")


def test_tensors_that_do_not_fit_are_not_written(pair):
    cfg, state = read_cfg(pair.with_suffix(".cfg")), read_weights(pair).state
    with pytest.raises(WeightsError, match=r"layers.1.bias is \[3\], not \[3, 3, 4\]"):
        to_bytes(cfg, state | {"layers.1.bias": torch.zeros(3)})
    del state["layers.1.bias"]
    with pytest.raises(WeightsError, match=r"layers.1.bias is missing"):
        to_bytes(cfg, state)


def test_published_weights_are_read_to_the_last_float_and_come_back(shared_data):
    file = shared_data / "weights/yolo-fastest/yolo-fastest-1.1.weights"
    cfg, read = read_cfg(file.with_suffix(".cfg")), read_weights(file)
    assert count_floats(cfg) == sum(value.numel() for value in read.state.values()) == 346_062
    assert (read.header.major, read.header.minor, read.header.revision) == (0, 2, 5)
    assert to_bytes(cfg, read.state, read.header) == file.read_bytes()
    variances = [value for name, value in read.state.items() if name.endswith("running_var")]
    assert len(variances) == 82 and all((value >= 0).all() for value in variances)  # floats out of order would not be
    with pytest.raises(WeightsError, match="24 are left over"):  # the first layer's scale, mean and variance
        read_weights(file, parse_cfg(cfg.text.replace("batch_normalize=1", "batch_normalize=0", 1), "other.cfg"))
