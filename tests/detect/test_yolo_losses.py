"""The losses of YOLO beside darknet's deltas: the gradient of ours is minus theirs, for every number."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from detect.darknet_deltas import detection_deltas, region_deltas, yolo_deltas
from odonata.detect.yolo_heads import DetectionHead, RegionHead, YoloHead, decode
from odonata.detect.yolo_targets import Objects
from odonata.detect.yolo_v1_loss import yolo_v1_loss
from odonata.detect.yolo_v2_loss import yolo_v2_loss
from odonata.detect.yolo_v3_loss import yolo_v3_loss

FRAME = (128, 96)
CLASSES = 4
# As shares of the picture; the second and third share a cell and an anchor, the fourth lies alone, the fifth is large.
SHARES = [
    [(0.31, 0.22, 0.11, 0.17, 1)],
    [(0.62, 0.55, 0.30, 0.21, 0), (0.64, 0.56, 0.28, 0.22, 3), (0.1, 0.9, 0.08, 0.06, 2), (0.45, 0.4, 0.8, 0.7, 2)],
    [],
]
V1 = DetectionHead(side=4, boxes=3, classes=CLASSES)
V2 = RegionHead(anchors=((0.5, 0.6), (1.2, 1.1), (2.5, 2.1)), classes=CLASSES)
V3 = YoloHead(
    anchors=((8.0, 11.0), (12.0, 20.0), (30.0, 26.0), (20.0, 44.0), (70.0, 90.0), (33.0, 61.0)),
    mask=(0, 2, 4),
    classes=CLASSES,
)


def objects(frame=FRAME):
    made = []
    for picture in SHARES:
        rows = torch.tensor(picture, dtype=torch.float64).reshape(-1, 5)
        scale = torch.tensor([frame[1], frame[0]], dtype=torch.float64)
        centre, side = rows[:, :2] * scale, rows[:, 2:4] * scale
        boxes = torch.cat([centre - side / 2, centre + side / 2], 1)
        made.append(Objects(boxes, rows[:, 4].long(), torch.zeros(0, 4, dtype=torch.float64)))
    return made


def raw_numbers(*shape, spread=1.0):
    return (
        torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * spread
    ).requires_grad_()


def check(raw, parts, deltas):
    (parts["box"] + parts["object"] + parts["class"]).backward()
    theirs = torch.from_numpy(np.stack(deltas))
    error = (raw.grad + theirs).norm() / theirs.norm()
    assert error < 1e-9
    return theirs


@pytest.mark.shows("yolo-v1", "parity")
@pytest.mark.parametrize(
    "changes", [{}, {"softmax": True}, {"sqrt": False}, {"rescore": False, "object_scale": 2.0, "class_scale": 0.7}]
)
def test_v1_gives_minus_darknets_delta(changes):
    head = replace(V1, **changes)
    raw = raw_numbers(3, 16 * (CLASSES + 3 * 5), spread=0.5)
    parts = yolo_v1_loss(raw, head, objects(), FRAME)
    check(raw, parts, [detection_deltas(one.detach().numpy(), head, o) for one, o in zip(raw, SHARES, strict=True)])
    assert parts["objects"] == 4  # the second of a cell does not count


@pytest.mark.shows("yolo-v2", "parity")
@pytest.mark.parametrize("prior", [False, True])
@pytest.mark.parametrize(
    "changes", [{}, {"softmax": False}, {"bias_match": False}, {"rescore": False, "noobject_scale": 0.5, "thresh": 0.2}]
)
def test_v2_gives_minus_darknets_delta(changes, prior):
    head = replace(V2, **changes)
    raw = raw_numbers(3, 3 * (5 + CLASSES), 4, 3)
    parts = yolo_v2_loss(raw, head, objects(), FRAME, prior)
    check(raw, parts, [region_deltas(one.detach().numpy(), head, o, prior) for one, o in zip(raw, SHARES, strict=True)])


@pytest.mark.shows("yolo-v3", "parity")
@pytest.mark.shows("yolo-v3-spp", "parity")
@pytest.mark.parametrize("changes", [{}, {"mask": (1, 3, 5)}, {"scale_x_y": 1.2, "ignore_thresh": 0.2}])
def test_v3_gives_minus_darknets_delta(changes):
    head = replace(V3, **changes)
    raw = raw_numbers(3, 3 * (5 + CLASSES), 8, 6)
    parts = yolo_v3_loss(raw, head, objects(), FRAME)
    check(raw, parts, [yolo_deltas(one.detach().numpy(), head, o, FRAME) for one, o in zip(raw, SHARES, strict=True)])


def test_every_object_is_learned_at_one_scale_of_v3():
    scales = [replace(V3, mask=(0, 1)), replace(V3, mask=(2, 3)), replace(V3, mask=(4, 5))]
    counts = [
        yolo_v3_loss(raw_numbers(3, 2 * (5 + CLASSES), 8, 6), head, objects(), FRAME)["objects"] for head in scales
    ]
    assert sum(counts) == 5


def test_a_second_object_of_an_anchor_adds_its_class_in_v3_and_replaces_it_in_v2():
    one = [replace(objects()[1], boxes=objects()[1].boxes[:2], labels=objects()[1].labels[:2])]
    raw = raw_numbers(1, 3 * (5 + CLASSES), 8, 6)
    yolo_v3_loss(raw, V3, one, FRAME)["class"].backward()
    assert (raw.grad < 0).sum() == 2  # two classes are pulled up
    raw = raw_numbers(1, 3 * (5 + CLASSES), 4, 3)
    yolo_v2_loss(raw, V2, one, FRAME)["class"].backward()
    assert (raw.grad < 0).sum() == 1


@pytest.mark.parametrize(
    ("loss", "head", "shape"),
    [
        (yolo_v1_loss, V1, (3, 16 * (CLASSES + 15))),
        (yolo_v2_loss, V2, (3, 3 * (5 + CLASSES), 4, 3)),
        (yolo_v3_loss, V3, (3, 3 * (5 + CLASSES), 8, 6)),
    ],
)
def test_nothing_is_learned_of_what_an_ignored_region_covers(loss, head, shape):
    raw = raw_numbers(*shape, spread=0.3)
    # Boxes of the first version are free: let them be small and lie in their cells.
    everywhere = torch.tensor([[-500.0, -500, 800, 800]], dtype=torch.float64)
    none = torch.zeros(0, 4, dtype=torch.float64)
    ignored = [Objects(none, torch.zeros(0, dtype=torch.int64), everywhere)] * 3
    assert loss(raw, head, ignored, FRAME)["object"].item() == 0
    empty = [Objects(none, torch.zeros(0, dtype=torch.int64), none)] * 3
    parts = loss(raw, head, empty, FRAME)
    assert parts["object"].item() > 0 and parts["box"].item() == parts["class"].item() == 0


def test_a_prediction_that_is_its_object_has_no_box_error_left_but_the_entropy_of_its_place():
    # With t = σ the gradient of x and y vanishes, and so does that of w and h.
    raw = raw_numbers(3, 3 * (5 + CLASSES), 8, 6)
    rows = decode(raw, V3, FRAME)[0]
    box = rows[0, 40].detach()
    label = torch.tensor([2])
    sides = (box[2:] - box[:2]).clone()
    head = replace(V3, anchors=((float(sides[0]), float(sides[1])),), mask=(0,))
    raw = torch.zeros(1, 5 + CLASSES, 8, 6, dtype=torch.float64, requires_grad=True)
    centre = torch.tensor([16.0 * 2 + 8, 16.0 * 3 + 8], dtype=torch.float64)  # the middle of a cell
    boxes = torch.cat([centre - sides / 2, centre + sides / 2])[None]
    parts = yolo_v3_loss(raw, head, [Objects(boxes, label, boxes[:0])], FRAME)
    parts["box"].backward()
    assert raw.grad.abs().max() < 1e-6
    assert parts["iou"].item() == pytest.approx(1, abs=1e-6)
