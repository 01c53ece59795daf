"""PolarMask beside a reference written line by line from its paper, in NumPy, and what rays can and cannot say."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from detect.overfitting import recall_after
from odonata.app.api import train
from odonata.backbones.fpn import FPNConfig
from odonata.data.framing import Framing
from odonata.data.object_batches import ObjectBatch
from odonata.detect.polarmask import Outputs, PolarMask, PolarMaskConfig, polar_iou_loss
from odonata.detect.polarmask_targets import polar_targets
from odonata.errors import DataError

SIZE = 96
ELLIPSES = [[(27.3, 43.6, 17.0, 24.0), (66.2, 30.4, 12.0, 9.0)], [(48.1, 50.2, 30.0, 21.0)]]
LABELS = [[2, 0], [1]]


def ellipse(x: float, y: float, a: float, b: float) -> np.ndarray:
    """The pixels whose middle lies in an ellipse."""
    row, column = np.mgrid[:SIZE, :SIZE] + 0.5
    return ((column - x) / a) ** 2 + ((row - y) / b) ** 2 <= 1


def scene() -> ObjectBatch:
    """Two pictures of ellipses; the first one's larger object lacks a corner, so that its mass is not in the middle."""
    masks = [np.stack([ellipse(*e) for e in picture]) for picture in ELLIPSES]
    masks[0][0, 30:, 22:] = False
    boxes = []
    for picture in masks:
        spans = [(np.flatnonzero(m.any(0)), np.flatnonzero(m.any(1))) for m in picture]
        boxes.append(torch.tensor([[float(c[0]), float(r[0]), c[-1] + 1.0, r[-1] + 1.0] for c, r in spans]))
    generator = torch.Generator().manual_seed(0)
    return ObjectBatch(
        images=torch.rand(2, 3, SIZE, SIZE, generator=generator) * 255,
        sizes=torch.full((2, 2), SIZE),
        boxes=boxes,
        labels=[torch.tensor(rows) for rows in LABELS],
        ignore=[torch.zeros(len(rows), dtype=torch.bool) for rows in LABELS],
        scales=torch.ones(2),
        indices=torch.arange(2),
        masks=[torch.from_numpy(picture) for picture in masks],
    )


def small(**changes):
    config = PolarMaskConfig(framing=Framing(size=96, max_size=192), fpn=FPNConfig(16), tower_depth=1)
    torch.manual_seed(0)
    return PolarMask(replace(config, **changes), 3)


def farthest(mask: np.ndarray, x: float, y: float, angle: float) -> float:
    """How far a ray from (x, y) reaches within the pixels of a mask: the far side of the last pixel that it enters."""
    direction, reach = (math.sin(angle), math.cos(angle)), 0.0
    for row, column in zip(*np.nonzero(mask), strict=True):
        enter, leave = 0.0, math.inf
        for low, origin, step in ((column, x, direction[0]), (row, y, direction[1])):
            if abs(step) < 1e-12:
                if not low <= origin <= low + 1:
                    leave = -1.0
                continue
            one, other = (low - origin) / step, (low + 1 - origin) / step
            enter, leave = max(enter, min(one, other)), min(leave, max(one, other))
        if leave > enter:
            reach = max(reach, leave)
    return reach or 1e-6


def reference(batch: ObjectBatch, points, strides, ranges, count, radius, centre):
    """Labels and rays of every point of every picture, by loops (sec. 3.2)."""
    all_labels, all_rays = [], []
    for boxes, labels, masks in zip(batch.boxes, batch.labels, batch.masks, strict=True):
        chosen, rays = [], []
        for (x, y), stride, (low, high) in zip(points, strides, ranges, strict=True):
            best, smallest = -1, math.inf
            for number, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
                mask = masks[number].numpy()
                rows, columns = np.nonzero(mask)
                middle = ((x1 + x2) / 2, (y1 + y2) / 2)
                if centre == "mass":
                    middle = (columns.mean() + 0.5, rows.mean() + 0.5)
                near = max(abs(x - middle[0]), abs(y - middle[1])) < radius * stride
                sides = (x - x1, y - y1, x2 - x, y2 - y)
                area = (x2 - x1) * (y2 - y1)
                if near and min(sides) > 0 and low <= max(sides) <= high and area < smallest:
                    best, smallest = number, area
            chosen.append(-1 if best < 0 else int(labels[best]))
            angles = [2 * math.pi * i / count for i in range(count)]
            rays.append([1e-6] * count if best < 0 else [farthest(masks[best].numpy(), x, y, a) for a in angles])
        all_labels.append(chosen)
        all_rays.append(rays)
    return np.array(all_labels), np.array(all_rays)


@pytest.mark.shows("polarmask", "parity")
@pytest.mark.parametrize("centre", ["mass", "box"])
def test_targets_are_those_of_the_paper(centre):
    batch = scene()
    # Off whole numbers: a ray along the border of two pixels belongs to neither.
    grid = [(i * 8 + 4.3, j * 8 + 4.2) for j in range(12) for i in range(12)]
    coarse = [(i * 16 + 8.3, j * 16 + 8.2) for j in range(6) for i in range(6)]
    points = torch.tensor(grid + coarse, dtype=torch.float64)
    strides = torch.tensor([8.0] * 144 + [16.0] * 36, dtype=torch.float64)
    ranges = torch.tensor([[-1.0, 32.0]] * 144 + [[32.0, 1e8]] * 36, dtype=torch.float64)
    ours = polar_targets(batch, points, strides, ranges, count=12, radius=1.5, centre=centre, min_side=0.0)
    labels, rays = reference(batch, points.tolist(), strides.tolist(), ranges.tolist(), 12, 1.5, centre)
    assert 10 < (labels >= 0).sum() < 60
    assert (ours.labels.numpy() == labels).all()
    assert np.abs(ours.rays.numpy() - rays).max() < 1e-5
    if centre == "mass":
        other = polar_targets(batch, points, strides, ranges, count=12, radius=1.5, centre="box", min_side=0.0)
        assert not torch.equal(other.labels, ours.labels)


@pytest.mark.shows("polarmask", "parity")
@pytest.mark.parametrize("boxes", ["rays", "branch"])
def test_losses_are_those_of_the_paper(boxes):
    detector, batch = small(boxes=boxes).double(), scene()
    detector.pixels = lambda batch: batch.images.double() / 255
    with torch.no_grad():
        out = detector.forward_head(batch.images.double() / 255)
        losses = detector.loss(batch)
    goal = detector.targets(batch, out.points)
    logits, rays = torch.cat(out.classes, 1).numpy(), torch.cat(out.rays, 1).numpy()
    off = torch.cat(out.centerness, 1)[..., 0].numpy()
    sides = torch.cat(out.sides, 1).numpy() if out.sides else None
    total = {"class": 0.0, "mask": 0.0, "centerness": 0.0, "box": 0.0}
    count, weights = 0, 0.0
    for i in range(2):
        for j in range(logits.shape[1]):
            label = int(goal.labels[i, j])
            for c in range(3):
                p = 1 / (1 + math.exp(-logits[i, j, c]))
                total["class"] -= 0.25 * (1 - p) ** 2 * math.log(p) if c == label else 0.75 * p**2 * math.log(1 - p)
            if label < 0:
                continue
            d = goal.rays[i, j].double().numpy()
            weight = math.sqrt(d.min() / d.max())
            count, weights = count + 1, weights + weight
            smaller = sum(min(a, b) for a, b in zip(rays[i, j], d, strict=True))
            greater = sum(max(a, b) for a, b in zip(rays[i, j], d, strict=True))
            total["mask"] += weight * math.log(greater / smaller)
            p = 1 / (1 + math.exp(-off[i, j]))
            total["centerness"] -= weight * math.log(p) + (1 - weight) * math.log(1 - p)
            if sides is not None:
                a, b = sides[i, j], goal.sides[i, j].double().numpy()
                shared = (min(a[0], b[0]) + min(a[2], b[2])) * (min(a[1], b[1]) + min(a[3], b[3]))
                areas = [(s[0] + s[2]) * (s[1] + s[3]) for s in (a, b)]
                total["box"] -= weight * math.log((shared + 1) / (sum(areas) - shared + 1))
    assert count > 15
    assert losses["class"].item() == pytest.approx(total["class"] / (count + 2), rel=1e-5)
    assert losses["mask"].item() == pytest.approx(total["mask"] / weights, rel=1e-5)
    assert losses["centerness"].item() == pytest.approx(total["centerness"] / count, rel=1e-5)
    if boxes == "branch":
        assert losses["box"].item() == pytest.approx(total["box"] / weights, rel=1e-5)
    parts = sum(losses[name].item() for name in total if name in losses)
    assert losses["loss"].item() == pytest.approx(parts, rel=1e-6)


@pytest.mark.shows("polarmask", "parity")
def test_the_gradient_of_an_outline_is_that_of_eq_8():
    """∂/∂d of log Σmax − log Σmin: 1/Σmax where d is the greater, −1/Σmin where it is the smaller."""
    d = torch.tensor([[3.0, 5.0, 2.0]], dtype=torch.float64, requires_grad=True)
    target = torch.tensor([[4.0, 4.0, 1.0]], dtype=torch.float64)
    polar_iou_loss(d, target).sum().backward()
    greater, smaller = 4 + 5 + 2, 3 + 4 + 1
    assert d.grad.tolist() == [pytest.approx([-1 / smaller, 1 / greater, 1 / greater])]


def planted(detector: PolarMask, rays: float, centerness: float) -> Outputs:
    """What a head would say that is sure of one object, of class 1, at the 10th cell of the second level."""
    with torch.no_grad():
        out = detector.forward_head(torch.zeros(1, 3, SIZE, SIZE))
    out.classes = [torch.full_like(level, -20.0) for level in out.classes]
    out.classes[1][0, 100, 1] = 2.0
    out.rays = [torch.full_like(level, rays) for level in out.rays]
    out.centerness = [torch.full_like(level, centerness) for level in out.centerness]
    return out


def test_a_circle_of_rays_is_a_disk_with_its_box():
    detector = small().eval()
    out = planted(detector, 14.0, 0.0)
    x, y = out.points[1][100].tolist()
    detector.forward_head = lambda images: out
    batch = replace(scene(), images=torch.zeros(1, 3, SIZE, SIZE), sizes=torch.tensor([[SIZE, SIZE]]))
    (answer,) = detector.predict(batch)
    assert len(answer) == 1
    assert answer.labels.tolist() == [1]
    assert answer.boxes[0].tolist() == pytest.approx([x - 14, y - 14, x + 14, y + 14], abs=1e-4)
    disk = torch.from_numpy(ellipse(x, y, 14, 14))
    shared = (answer.masks[0] & disk).sum() / (answer.masks[0] | disk).sum()
    assert shared > 0.93
    chance = 1 / (1 + math.exp(-2))
    assert answer.scores.item() == pytest.approx(chance * (0.5 + 0.5) / 1.5)


def test_no_score_leaves_its_range_and_centerness_orders_them():
    detector = small()
    low, high = (detector.score(torch.ones(1, 1), torch.full((1, 1), c)).item() for c in (-20.0, 20.0))
    assert (low, high) == (pytest.approx(1 / 3), pytest.approx(1.0))


def test_dense_gives_the_boxes_around_the_outlines():
    detector = small().eval()
    with torch.no_grad():
        boxes, scores = detector.dense(torch.zeros(2, 3, SIZE, SIZE))
        out = detector.forward_head(torch.zeros(2, 3, SIZE, SIZE))
    assert boxes.shape[:2] == scores.shape[:2] == (2, 24**2 + 12**2 + 6**2 + 3**2)
    centres = torch.cat(out.points)
    # 36 rays hold the four directions of the axes
    reach = torch.cat(out.rays, 1)[0]
    assert torch.all(boxes[0, :, 2] >= centres[:, 0] + reach[:, 9] - 1e-4)
    assert torch.all(boxes[0, :, 1] <= centres[:, 1] - reach[:, 18] + 1e-4)


def test_ignored_objects_teach_nothing():
    detector, batch = small(), scene()
    points = detector.forward_head(batch.images).points
    crowd = replace(batch, ignore=[torch.tensor([True, False]), torch.tensor([False])])
    goal, before = detector.targets(crowd, points), detector.targets(batch, points)
    x1, y1, x2, y2 = batch.boxes[0][0].tolist()
    places = torch.cat(points)
    within = (places[:, 0] > x1) & (places[:, 0] < x2) & (places[:, 1] > y1) & (places[:, 1] < y2)
    assert (before.labels[0] == 2).any()
    assert not (goal.labels[0] == 2).any()
    assert (goal.labels[0][within] != -1).all()
    assert torch.equal(goal.labels[1], before.labels[1])
    tiny = detector.targets(replace(batch, masks=[batch.masks[0] & False, batch.masks[1]]), points)
    assert (tiny.labels[0] < 0).all()  # masks without a pixel


def test_objects_below_the_least_side_are_ignored_not_background():
    detector, batch = small(min_side=20.0), scene()
    goal = detector.targets(batch, detector.forward_head(batch.images).points)
    assert (goal.labels[0] == -2).any()
    assert not (goal.labels[0] == 0).any()


def test_a_batch_without_objects_has_finite_losses_and_gradients():
    detector, batch = small(), scene()
    none = [torch.zeros(0, dtype=torch.int64)] * 2
    empty = replace(
        batch,
        boxes=[torch.zeros(0, 4)] * 2,
        labels=none,
        ignore=[x.bool() for x in none],
        masks=[torch.zeros(0, SIZE, SIZE, dtype=torch.bool)] * 2,
    )
    losses = detector.loss(empty)
    losses["loss"].backward()
    assert losses["mask"] == losses["centerness"] == 0
    assert all(p.grad.isfinite().all() for p in detector.parameters() if p.grad is not None)


def test_pictures_may_change_places():
    detector, batch = small().eval(), scene()
    turned = replace(
        batch,
        images=batch.images.flip(0),
        **{name: getattr(batch, name)[::-1] for name in ("boxes", "labels", "ignore", "masks")},
    )
    with torch.no_grad():
        assert detector.loss(batch)["loss"].item() == pytest.approx(detector.loss(turned)["loss"].item(), rel=1e-5)


def test_the_published_presets_are_coco_sized():
    preset = PolarMaskConfig.presets["released-r50"]
    assert (preset["centre"], preset["boxes"], preset["min_side"], preset["unit"]) == ("box", "branch", 10.0, "pixels")
    assert PolarMaskConfig().rays == 36


@pytest.mark.shows("polarmask", "weights")
def test_a_folder_of_weights_comes_back_bit_equal(tmp_path):
    """The authors' licence keeps their layout out; weights go out and in as Odonata's own folder."""
    from odonata.data.objects import Category
    from odonata.detect.assets import DetectorAssets
    from odonata.detect.predictor import DetectorPredictor, load

    detector = small(boxes="branch").eval()
    table = tuple(Category(i, name) for i, name in enumerate("abc"))
    assets = DetectorAssets("polarmask", detector.config, table)
    DetectorPredictor(detector, assets, torch.device("cpu")).convert(tmp_path / "out", "odonata")
    again = load(tmp_path / "out", None, torch.device("cpu"))
    assert again.assets.config == detector.config
    state = again.detector.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in detector.state_dict().items())


@pytest.mark.shows("polarmask", "manners")
def test_boxes_alone_are_refused(tmp_path, shared_data):
    with pytest.raises(DataError, match="learns from outlines, and the batch has boxes only"):
        small().loss(replace(scene(), masks=None))
    with pytest.raises(DataError, match="polarmask learns from outlines, and the objects have boxes only"):
        train("polarmask", data__path=str(shared_data / "detection/bccd"), out=str(tmp_path / "run"), steps=1)


@pytest.mark.slow
@pytest.mark.shows("polarmask", "trains")
def test_a_few_pictures_are_learned_by_heart():
    assert recall_after(PolarMaskConfig(framing=Framing(size=128, max_size=256)), 100) > 0.7
