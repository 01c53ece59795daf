"""A small DETR, two padded pictures with objects, and how far two tensors are apart."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from odonata.data.framing import Framing
from odonata.data.object_batches import ObjectBatch
from odonata.detect.assets import DetectorAssets
from odonata.detect.detr import DETR, DETRConfig
from odonata.detect.predictor import DetectorPredictor
from odonata.detect.set_prediction import Target

CLASSES, QUERIES = 5, 7
SIZES = torch.tensor([[96, 128], [75, 101]])
BOXES = [
    torch.tensor([[10.0, 20.0, 50.0, 70.0], [60.0, 12.0, 119.0, 88.0], [5.0, 5.0, 30.0, 22.0]]),
    torch.tensor([[31.0, 14.0, 77.0, 66.0]]),
]
LABELS = [torch.tensor([1, 3, 4]), torch.tensor([2])]


def relative(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    return float((ours - theirs).double().norm() / theirs.double().norm())


def targets() -> list[Target]:
    found: list[Target] = []
    for boxes, labels, (height, width) in zip(BOXES, LABELS, SIZES.tolist(), strict=True):
        sides = torch.tensor([width, height, width, height]).double()
        middle = torch.cat([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], 1) / sides
        found.append(Target(middle, labels, torch.zeros(0, 4).double()))
    return found


def batch_of(sizes=SIZES, boxes=BOXES, labels=LABELS, ignore=None, frame=(96, 128), seed=5) -> ObjectBatch:
    images = 255 * torch.rand(len(sizes), 3, *frame, generator=torch.Generator().manual_seed(seed))
    ignore = ignore or [torch.zeros(len(x), dtype=torch.bool) for x in labels]
    count = len(sizes)
    return ObjectBatch(images, sizes, list(boxes), list(labels), ignore, torch.ones(count), torch.arange(count))


def small(**changes) -> DETR:
    torch.manual_seed(0)
    sizes = {"dim": 32, "encoder_layers": 1, "decoder_layers": 2, "mlp_width": 64, "queries": QUERIES}
    sizes |= {"num_heads": 8, "norm": "post"}
    framing = Framing(size=64, max_size=128, divisor=8, rounding="detr")
    return DETR(replace(DETRConfig(framing=framing, **sizes), **changes), CLASSES)


def predictor(config: DETRConfig, classes: int) -> DetectorPredictor:
    from odonata.data.objects import Category

    assets = DetectorAssets("detr", config, tuple(Category(i, f"c{i}") for i in range(classes)))
    return DetectorPredictor(assets.build().eval(), assets, torch.device("cpu"))
