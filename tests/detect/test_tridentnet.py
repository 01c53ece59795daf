"""TridentNet: a reference of its rules written out in loops, and what must hold between its forms."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from detect.test_faster_rcnn import scenes
from odonata.backbones.create import create
from odonata.data.framing import Framing
from odonata.detect.detector import with_preset
from odonata.detect.faster_rcnn import FasterRCNN, targets_of, two_stage_candidates
from odonata.detect.roi_head import RoIOptions, sample_regions
from odonata.detect.rpn import RPNOptions, Targets, match_anchors
from odonata.detect.scale_policy import INFINITE
from odonata.detect.tridentnet import TridentNet, TridentNetConfig, branched_stage, of_branch
from odonata.errors import RecipeError
from odonata.ops.boxes import iou_matrix

OPEN = (0.0, INFINITE)


def small(**changes) -> TridentNet:
    config = TridentNetConfig(
        framing=Framing(size=64, max_size=128),
        valid_ranges=((0.0, 20.0), (15.0, 26.0), (22.0, INFINITE)),
        rpn=RPNOptions(anchor_sizes=(16.0, 32.0), samples=64, post_nms=20, post_nms_train=40, invalid_wins=True),
        roi=RoIOptions(head="tower", bins=4, samples=16, positive_share=0.5),
        score_threshold=0.01,
    )
    torch.manual_seed(0)
    return TridentNet(replace(config, **changes), 3).eval()


# A reference in loops, in float64, as the paper and the original's anchor rule say it.


def overlap(a, b) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return width * height / (areas - width * height)


def valid(box, scale: float, low: float, high: float) -> bool:
    """Sec. 3.3: l_i ≤ √(w·h) ≤ u_i, in pixels of the picture before it was resized."""
    return low <= math.sqrt((box[2] - box[0]) * (box[3] - box[1])) / scale <= high


def anchor_labels(anchors, boxes, scale: float, low: float, high: float) -> list[int]:
    """1, 0 or −1 for each anchor: it has an object, is background, or learns nothing, in one branch."""
    right = [box for box in boxes if valid(box, scale, low, high)]
    wrong = [box for box in boxes if not valid(box, scale, low, high)]
    best = [max((overlap(anchor, box) for anchor in anchors), default=0.0) for box in right]
    labels: list[int] = []
    for anchor in anchors:
        own = [overlap(anchor, box) for box in right]
        label = -1
        if max(own, default=0.0) < 0.3:
            label = 0
        if max(own, default=0.0) >= 0.7:
            label = 1
        if any(value == most and most > 0 for value, most in zip(own, best, strict=True)):
            label = 1  # the best anchor of an object
        if any(overlap(anchor, box) > 0.3 for box in wrong):
            label = -1  # it overlaps an object that is none here
        labels.append(label)
    return labels


def region_labels(regions, boxes, classes, scale: float, low: float, high: float) -> dict[tuple[float, ...], int]:
    """The class of each region that a branch learns from, −1 for background; those that it does not are absent."""
    right = [number for number, box in enumerate(boxes) if valid(box, scale, low, high)]
    wrong = [box for box in boxes if not valid(box, scale, low, high)]
    found = {}
    for region in regions:
        if not valid(region, scale, low, high):
            continue
        own = [overlap(region, boxes[number]) for number in right]
        if own and max(own) >= 0.5:
            found[tuple(region)] = classes[right[int(np.argmax(own))]]
        elif not any(overlap(region, box) > 0.5 for box in wrong):
            found[tuple(region)] = -1
    return found


def scene(seed: int) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Regions, objects and classes of many sizes; corners are multiples of 1/8, so that float32 is exact."""
    draw = np.random.RandomState(seed)

    def boxes(count: int, spread: float) -> np.ndarray:
        side = np.exp(draw.uniform(np.log(8), np.log(120), (count, 1))) * draw.uniform(0.8, 1.25, (count, 2))
        corner = draw.uniform(0, spread, (count, 2))
        return np.round(np.concatenate([corner, corner + side], 1) * 8) / 8

    objects = boxes(6, 120)
    near = np.round((objects.repeat(30, 0) + draw.normal(0, 4, (180, 4))) * 8) / 8
    near = near[(near[:, 2] > near[:, 0] + 1) & (near[:, 3] > near[:, 1] + 1)]
    return np.concatenate([boxes(150, 150), near]), objects, draw.randint(0, 3, 6).tolist()


@pytest.mark.shows("tridentnet", "parity")
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("range_", [(0.0, 30.0), (15.0, 40.0), (30.0, INFINITE)])
def test_what_each_branch_learns_is_that_of_the_rules_written_out(seed, range_):
    regions, objects, classes = scene(seed)
    scale = 1.6
    boxes = torch.tensor(objects).float()
    none = boxes[:0]
    target = of_branch(Targets(boxes, torch.tensor(classes), none, none, scale=scale), range_)
    anchors = torch.tensor(regions).float()
    matches = match_anchors(anchors, target, (300, 300), RPNOptions(invalid_wins=True))
    assert torch.where(matches >= 0, 1, matches + 1).tolist() == anchor_labels(regions, objects, scale, *range_)
    everything = RoIOptions(samples=10**6, positive_share=0.5, append_objects=False)
    sample = sample_regions(anchors, target, everything)
    learned = {tuple(box.tolist()): int(label) for box, label in zip(sample.boxes, sample.labels, strict=True)}
    assert learned == region_labels(regions.tolist(), objects.tolist(), classes, scale, *range_)


def test_ranges_count_pixels_of_the_picture_and_not_of_its_frame():
    target = Targets(torch.tensor([[0.0, 0, 40, 40]]), torch.tensor([0]), torch.zeros(0, 4), torch.zeros(0, 4))
    assert len(of_branch(target, (0.0, 30.0)).boxes) == 0
    assert len(of_branch(replace(target, scale=2.0), (0.0, 30.0)).boxes) == 1
    assert len(of_branch(replace(target, scale=2.0), (20.0, 20.0)).boxes) == 1  # both ends are included


@pytest.mark.shows("tridentnet", "parity")
def test_one_branch_with_an_open_range_is_faster_rcnn_to_the_bit():
    model = small(dilations=(1,), valid_ranges=(OPEN,))
    plain = FasterRCNN(model.config.as_faster_rcnn(), 3).eval()
    plain.load_state_dict(model.state_dict())
    batch = scenes(3)
    with torch.no_grad():
        for own, theirs in zip(model.predict(batch), plain.predict(batch), strict=True):
            assert len(own) > 0
            assert torch.equal(own.boxes, theirs.boxes) and torch.equal(own.scores, theirs.scores)
    losses = []
    for detector in (model, plain):
        torch.manual_seed(1)
        losses.append(detector.loss(batch))
        losses[-1]["loss"].backward()
    assert all(torch.equal(losses[0][key], losses[1][key]) for key in losses[1])
    for (name, own), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(own.grad, theirs.grad), name


@pytest.mark.shows("tridentnet", "weights")
def test_branches_have_no_weights_of_their_own():
    model = small()
    plain = FasterRCNN(model.config.as_faster_rcnn(), 3)
    assert {k: v.shape for k, v in model.state_dict().items()} == {k: v.shape for k, v in plain.state_dict().items()}
    tower = create(model.config.backbone)
    model.tower.load_state_dict(tower.state_dict())  # a published tower fits as it is
    losses = model.loss(scenes(2))
    losses["loss"].backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("backbone", ["resnet10-small-gn", "resnet14-small", "resnet18-small"])
def test_a_branch_is_the_stage_with_its_dilation_and_dilation_one_is_the_plain_stage(backbone):
    torch.manual_seed(0)
    tower = create(backbone).eval()
    stage, x = tower.stages[2], torch.randn(2, tower.taps[1].channels, 12, 14)
    with torch.no_grad():
        one, two, three = branched_stage(stage, x, (1, 2, 3)).chunk(3)
        torch.testing.assert_close(one, stage(x), rtol=1e-5, atol=1e-5)
        assert one.shape == two.shape == three.shape
        assert not torch.allclose(one, two) and not torch.allclose(two, three)
        # Only the last block in branches: the others are computed once.
        last = branched_stage(stage, x, (1, 2), blocks=1).chunk(2)
        torch.testing.assert_close(last[0], stage(x), rtol=1e-5, atol=1e-5)


def test_a_dilated_branch_is_the_convolution_that_torch_dilates():
    torch.manual_seed(0)
    tower = create("resnet14-small").eval()
    block = tower.stages[1].layers[0]
    x = torch.randn(1, tower.taps[0].channels, 9, 9)
    with torch.no_grad():
        branch = branched_stage(tower.stages[1], x, (1, 3)).chunk(2)[1]
        block.conv2.dilation, block.conv2.padding = (3, 3), (3, 3)
        torch.testing.assert_close(branch, tower.stages[1](x), rtol=1e-5, atol=1e-5)


def test_the_branches_answers_are_suppressed_together_each_within_its_range():
    model, batch = small(), scenes(2)
    with torch.no_grad():
        found = two_stage_candidates(model.rpn, model.roi_head, model.see(batch, model.config.dilations), model.options)
        answers = model.predict(batch)
    for number, answer in enumerate(answers):
        boxes = answer.boxes
        side = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
        allowed: set[tuple[float, ...]] = set()
        for branch, (low, high) in enumerate(model.config.valid_ranges):
            part = found[branch * 2 + number]
            allowed |= {tuple(b.tolist()) for b in part.boxes if valid(b.tolist(), 1.0, low, high)}
        assert len(answer) > 0 and (side > 0).all()
        assert {tuple(b.tolist()) for b in boxes} <= allowed
        same = (answer.labels[:, None] == answer.labels).triu(1)
        assert (iou_matrix(boxes, boxes)[same] <= model.config.nms_threshold).all()


@pytest.mark.shows("tridentnet", "parity")
def test_fast_is_the_middle_branch_alone():
    fast, batch = small(fast=True), scenes(2)
    middle = small(dilations=(2,), valid_ranges=(OPEN,))
    with torch.no_grad():
        for own, theirs in zip(fast.predict(batch), middle.predict(batch), strict=True):
            assert len(own) > 0
            assert torch.equal(own.boxes, theirs.boxes) and torch.equal(own.scores, theirs.scores)
    assert fast.config.ranges == (OPEN,) * 3  # all branches learn from all objects


def test_an_object_teaches_the_branches_whose_range_it_is_in():
    model, batch = small(), scenes(1)  # a square of 16 px: the first and the second branch's
    plain = targets_of(batch, 0, model.options)
    counts = [len(of_branch(plain, r).boxes) for r in model.config.ranges]
    assert counts == [1, 1, 0]
    assert len(of_branch(plain, model.config.ranges[2]).invalid) == 1


def test_pictures_without_objects_and_crowds_are_fit_for_training():
    batch = scenes(2)
    empty = replace(
        batch, boxes=[torch.zeros(0, 4)] * 2, labels=[torch.zeros(0).long()] * 2, ignore=[torch.zeros(0).bool()] * 2
    )
    losses = small().loss(empty)
    assert losses["box"] == 0 and losses["objectness"] > 0
    crowd = replace(batch, boxes=[torch.tensor([[0.0, 0, 64, 64]])] * 2, ignore=[torch.ones(1).bool()] * 2)
    inside = replace(small().config.rpn, inside_only=True)
    assert small(rpn=inside).loss(crowd)["loss"] == 0


def test_the_presets_are_the_papers():
    for preset in ("r50", "r101"):
        config = with_preset(TridentNetConfig(preset=preset))
        with torch.device("meta"):
            model = TridentNet(config, 80)
        assert config.valid_ranges == ((0.0, 90.0), (30.0, 160.0), (90.0, INFINITE))  # sec. 4.1
        assert model.trunk.strides == (16,) and not config.roi.append_objects


@pytest.mark.shows("tridentnet", "manners")
def test_what_makes_no_branches_is_named():
    with pytest.raises(RecipeError, match=r"2 ranges for 3 branches"):
        small(valid_ranges=(OPEN, OPEN))
    with pytest.raises(RecipeError, match=r"--dilations"):
        small(dilations=(1, 0), valid_ranges=(OPEN, OPEN))
    with pytest.raises(RecipeError, match=r"least and a largest"):
        small(valid_ranges=((5.0, 2.0), OPEN, OPEN))
    with pytest.raises(RecipeError, match=r"a stage of a residual network"):
        small(backbone="vgg-small")
    with pytest.raises(RecipeError, match=r"leaves nothing to be the head"):
        small(layer=3)


@pytest.mark.slow
@pytest.mark.shows("tridentnet", "trains")
@pytest.mark.parametrize("fast", [False, True])
def test_eight_pictures_are_learned_by_heart(fast):
    model, batch = small(fast=fast).train(), scenes(8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(120):
        optimizer.zero_grad()
        model.loss(batch)["loss"].backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        answers = model.predict(batch)
    for answer, box, label in zip(answers, batch.boxes, batch.labels, strict=True):
        assert answer.labels[0] == label and iou_matrix(answer.boxes[:1], box).item() > 0.6
