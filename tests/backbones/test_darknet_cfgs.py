"""YOLO's networks as cfg: as many floats and operations as what is published, and heads where they belong."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from odonata.backbones.darknet_cfgs import DESIGNS, yolo_cfg
from odonata.backbones.darknet_network import DarknetNetwork
from odonata.errors import RecipeError
from odonata.weights.darknet import count_floats
from odonata.weights.darknet_cfg import parse_cfg


def on_meta_device(text):
    """Shapes without numbers: the large networks take no memory."""
    with torch.device("meta"):
        return DarknetNetwork(text).eval()


FLOATS = {
    # Sizes of the published files in bytes; the header has 20 from version 0.2 on and 16 before.
    "yolov3": (248_007_048 - 20) // 4,
    "yolov3-spp": (252_209_544 - 20) // 4,
    "yolov3-tiny": (35_434_956 - 20) // 4,
    "yolov2": (203_934_260 - 16) // 4,
    "yolov2-tiny": (44_948_596 - 16) // 4,
}


@pytest.mark.parametrize("name", FLOATS)
def test_networks_have_as_many_floats_as_the_published_files(name):
    network = on_meta_device(yolo_cfg(name))
    held = sum(v.numel() for k, v in network.state_dict().items() if not k.endswith("num_batches_tracked"))
    assert held == count_floats(network.cfg) == FLOATS[name]
    assert name != "yolov3" or held == 62_001_757


def test_a_detector_of_20_classes_has_the_floats_of_the_published_voc_network():
    anchors = (1.08, 1.19, 3.42, 4.41, 6.63, 11.38, 9.42, 5.11, 16.62, 10.52)
    assert count_floats(parse_cfg(yolo_cfg("yolov2", 20, anchors))) == 50_676_061


@pytest.mark.parametrize(
    ("name", "size", "billions"),
    [
        ("yolov3", 320, 38.97),
        ("yolov3", 416, 65.86),
        ("yolov3", 608, 140.69),
        ("yolov3-spp", 608, 141.45),
        ("yolov3-tiny", 416, 5.56),
        ("yolov2", 608, 62.94),
        ("yolov2-tiny", 416, 5.41),
    ],
)
def test_detectors_cost_what_is_published(name, size, billions):
    """The authors' table of COCO models, in operations: a multiply-add is two."""
    network = on_meta_device(yolo_cfg(name, width=size))
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        network(torch.empty(1, 3, size, size, device="meta"))
    assert counter.get_total_flops() / 1e9 == pytest.approx(billions, abs=0.02)


@pytest.mark.parametrize("name", DESIGNS)
def test_every_design_gives_maps_where_its_heads_say(name):
    network = on_meta_device(yolo_cfg(name, classes=3))
    size = DESIGNS[name].size
    assert network.image_size == (size, size)
    with torch.no_grad():
        maps = network(torch.empty(2, 3, size, size, device="meta"))
    assert len(maps) == len(network.heads) == DESIGNS[name].heads
    for head, found in zip(network.heads, maps, strict=True):
        if head.kind == "detection":
            side = head.section.integer("side", 0)
            assert found.shape == (2, side * side * (2 * 5 + 3)) and side == size // 64
        else:
            boxes = len(head.section.integers("mask")) or head.section.integer("num", 0)
            assert found.shape == (2, boxes * (5 + 3), size // head.stride, size // head.stride)
            assert head.shape == found.shape[1:]


def test_masks_give_small_anchors_to_fine_maps():
    heads = DarknetNetwork(yolo_cfg("yolov3-small", 2, range(1, 13))).heads  # 6 anchors
    assert [(h.stride, h.section.integers("mask")) for h in heads] == [(32, (4, 5)), (16, (2, 3)), (8, (0, 1))]
    assert heads[0].section.numbers("anchors") == tuple(range(1, 13))


def test_spp_puts_the_largest_window_first():
    network = DarknetNetwork(yolo_cfg("yolov3-spp-small"))
    (joined,) = [layer for layer in network.plan if layer.section.kind == "route" and len(layer.inputs) == 4]
    kinds = [(network.plan[i].section.kind, network.plan[i].section.integer("size", 0)) for i in joined.inputs]
    assert kinds == [("maxpool", 13), ("maxpool", 9), ("maxpool", 5), ("convolutional", 1)]


def test_the_first_version_is_the_papers():
    kinds = [layer.kind for layer in parse_cfg(yolo_cfg("yolov1")).layers]
    assert (kinds.count("convolutional"), kinds.count("connected"), kinds.count("maxpool")) == (24, 2, 4)
    network = on_meta_device(yolo_cfg("yolov1"))
    assert network(torch.empty(1, 3, 448, 448, device="meta"))[0].shape == (1, 7 * 7 * 30)


def test_a_small_detector_learns_a_map():
    """Gradients reach every weight, and a few steps lower a squared error."""
    network = DarknetNetwork(yolo_cfg("yolov3-small", 1, width=64)).train()
    images, optimizer = torch.rand(2, 3, 64, 64), torch.optim.Adam(network.parameters(), 1e-3)
    errors = []
    for _ in range(6):
        optimizer.zero_grad()
        error = sum((x - 1).square().mean() for x in network(images))
        error.backward()
        errors.append(float(error.detach()))
        optimizer.step()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())
    assert errors[-1] < 0.5 * errors[0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"name": "yolov9"}, "no YOLO 'yolov9'; there are yolov1"),
        ({"name": "yolov3", "width": 400}, "400 × 400 wants multiples of 32"),
        ({"name": "yolov1", "width": 448, "height": 512}, "wants the same side twice"),
        ({"name": "yolov3", "anchors": [1, 2, 3, 4]}, "4 numbers for anchors"),
        ({"name": "yolov3-tiny", "classes": 0}, "classes=0 wants 1 or more"),
        ({"name": "yolov2", "width_multiple": 0}, "want numbers above 0"),
        ({"name": "yolov1", "anchors": [1, 2]}, "yolov1 has no anchors"),
    ],
)
def test_a_cfg_that_cannot_be_is_refused(call, message):
    with pytest.raises(RecipeError, match=message):
        yolo_cfg(**call)
