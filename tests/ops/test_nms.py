import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from odonata.errors import DataError, RecipeError
from odonata.ops.boxes import iom_matrix, iou_matrix, paired_iou
from odonata.ops.nms import batched_nms, nmm, nms, nms_by_fixpoint, soft_nms

FIXTURE = Path(__file__).resolve().parents[1] / "fixtures" / "box_ops.npz"
THRESHOLDS = (0.0, 0.3, 0.5, 0.7, 1.0)
BOX = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
# Halves, thirds and quarters are overlaps that boxes on a small grid meet exactly.
thresholds = st.sampled_from([0.0, 0.25, 0.3, 1 / 3, 0.5, 0.6, 1.0])
metrics = st.sampled_from(["iou", "iom"])


@pytest.fixture(scope="module")
def recorded():
    with np.load(FIXTURE) as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


@st.composite
def detections(draw, dtype=np.float32):
    """Boxes on a small grid, some without area or equal; few different scores and groups, so that many tie."""
    count = draw(st.integers(0, 14))
    corners = torch.from_numpy(draw(hnp.arrays(dtype, (count, 4), elements=st.integers(0, 5).map(float))))
    scores = torch.from_numpy(draw(hnp.arrays(dtype, count, elements=st.integers(0, 6).map(lambda x: x / 8))))
    groups = torch.from_numpy(draw(hnp.arrays(np.int64, count, elements=st.sampled_from([-7, 0, 3, 90_000]))))
    return torch.cat([corners[:, :2], corners[:, :2] + corners[:, 2:]], 1), scores, groups


def overlap(a, b, metric="iou"):
    """Of two boxes, in the precision of NumPy's scalars."""
    zero = a.dtype.type(0)
    inter = max(min(a[2], b[2]) - max(a[0], b[0]), zero) * max(min(a[3], b[3]) - max(a[1], b[1]), zero)
    area_a, area_b = (a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1])
    whole = min(area_a, area_b) if metric == "iom" else area_a + area_b - inter
    return inter / whole if whole > 0 else zero


def greedy(boxes, scores, groups, threshold, metric):
    """The definition, pair by pair."""
    boxes, order, kept = boxes.numpy(), sorted(range(len(boxes)), key=lambda i: -scores[i]), []
    for i in order:
        rivals = [j for j in kept if groups[j] == groups[i]]
        if not any(float(overlap(boxes[j], boxes[i], metric)) > threshold for j in rivals):
            kept.append(i)
    return kept


def soft(boxes, scores, groups, decay, minimum):
    """The paper's algorithm of figure 2, and the scores with which boxes were taken."""
    boxes, scores, left, taken = boxes.numpy(), scores.tolist(), set(range(len(boxes))), {}
    while left:
        best = min(left, key=lambda i: (-scores[i], i))
        left.remove(best)
        if scores[best] >= minimum:
            taken[best] = scores[best]
            for i in left:
                if groups[i] == groups[best]:
                    scores[i] *= decay(float(overlap(boxes[best], boxes[i])))
    return taken


@settings(deadline=None, max_examples=200)
@given(detections(), thresholds, metrics)
def test_suppression_is_the_definition_on_the_cpu_and_by_the_fixpoint(some, threshold, metric):
    boxes, scores, groups = some
    alone = greedy(boxes, scores, torch.zeros_like(groups), threshold, metric)
    assert nms(boxes, scores, threshold, metric).tolist() == alone
    assert nms_by_fixpoint(boxes, scores, threshold, metric=metric, block=5).tolist() == alone
    by_group = greedy(boxes, scores, groups, threshold, metric)
    assert batched_nms(boxes, scores, groups, threshold, metric).tolist() == by_group
    assert nms_by_fixpoint(boxes, scores, threshold, groups, metric).tolist() == by_group


@settings(deadline=None)
@given(detections(np.float64), thresholds)
def test_groups_are_suppressed_as_if_each_were_alone(some, threshold):
    boxes, scores, groups = some
    kept = batched_nms(boxes, scores, groups, threshold)
    for group in groups.unique():
        own = (groups == group).nonzero()[:, 0]
        assert kept[groups[kept] == group].tolist() == own[nms(boxes[own], scores[own], threshold)].tolist()
    assert (scores[kept].diff() <= 0).all()
    again = batched_nms(boxes[kept], scores[kept], groups[kept], threshold)
    assert again.tolist() == list(range(len(kept)))


@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("name", ["clustered", "grid"])
def test_indices_are_torchvisions(recorded, name, threshold):
    boxes, scores, groups = (recorded[f"{name}/{part}"] for part in ("boxes", "scores", "groups"))
    assert torch.equal(nms(boxes, scores, threshold), recorded[f"{name}/nms/{threshold}"])
    assert torch.equal(nms_by_fixpoint(boxes, scores, threshold), recorded[f"{name}/nms/{threshold}"])
    found, expected = batched_nms(boxes, scores, groups, threshold), recorded[f"{name}/batched/{threshold}"]
    if name == "grid":  # it sorts the classes' survivors again, and not stably
        assert scores[found].tolist() == scores[expected].tolist()
        found, expected = found.sort().values, expected.sort().values
    assert torch.equal(found, expected)


def test_many_boxes_and_blocks_agree():
    corner, size = torch.rand(5000, 2) * 500, torch.rand(5000, 2) * 60
    boxes, scores = torch.cat([corner, corner + size], 1), torch.rand(5000)
    groups = torch.randint(0, 20, (5000,))
    assert torch.equal(nms(boxes, scores, 0.4), nms_by_fixpoint(boxes, scores, 0.4))
    expected = nms_by_fixpoint(boxes, scores, 0.4, groups, "iom", block=700)
    assert torch.equal(batched_nms(boxes, scores, groups, 0.4, "iom"), expected)
    far = groups * 2**40 - 2**61
    assert torch.equal(batched_nms(boxes, scores, far, 0.4, "iom"), expected)


def test_an_overlap_equal_to_the_threshold_does_not_suppress():
    # 3 / 10 in float32 is a little more than 0.3, and 1 / 2 is 0.5.
    boxes = torch.tensor([[0.0, 0.0, 10.0, 1.0], [0.0, 0.0, 3.0, 1.0], [20.0, 0.0, 22.0, 1.0], [20.0, 0.0, 21.0, 1.0]])
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6])
    for suppress in (nms, nms_by_fixpoint):
        assert suppress(boxes, scores, 0.5).tolist() == [0, 1, 2, 3]
        assert suppress(boxes, scores, 0.3).tolist() == [0, 2]
        assert suppress(boxes.double(), scores, 0.3).tolist() == [0, 1, 2]


def test_a_box_within_a_better_one_goes_by_the_smaller_area():
    boxes, scores = torch.tensor([[2.0, 2.0, 4.0, 4.0], [0.0, 0.0, 10.0, 10.0]]), torch.tensor([0.5, 0.9])
    assert nms(boxes, scores, 0.7).tolist() == [1, 0]
    assert nms(boxes, scores, 0.7, "iom").tolist() == [1]


def test_scores_of_either_sign_and_beyond_are_in_order():
    scores = torch.tensor([-1.0, 0.0, 3e-45, -math.inf, math.inf, -0.0, 1.0, -3e-45, 0.5, -2.0])
    boxes = torch.arange(10.0)[:, None] * 5 + BOX
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        expected = scores.to(dtype).argsort(descending=True, stable=True)
        assert torch.equal(nms(boxes, scores.to(dtype), 0.5), expected)


def test_half_precision_is_compared_in_float32_and_gradients_do_not_matter():
    boxes = torch.tensor([[0.0, 0.0, 400.0, 400.0], [0.0, 0.0, 400.0, 399.0]], requires_grad=True)
    assert nms(boxes.bfloat16(), torch.tensor([0.5, 0.9]).half(), 0.9).tolist() == [1]


@settings(deadline=None)
@given(
    detections(np.float64), st.sampled_from([0.2, 0.5]), st.sampled_from([0.0, 0.3, 1.0]), st.sampled_from([0.001, 0.3])
)
def test_soft_suppression_is_the_papers(some, sigma, threshold, minimum):
    boxes, scores, groups = some
    decays = {
        "gaussian": lambda iou: math.exp(-(iou**2) / sigma),
        "linear": lambda iou: 1 - iou if iou > threshold else 1.0,
    }
    for method, decay in decays.items():
        options = {"method": method, "sigma": sigma, "threshold": threshold, "minimum_score": minimum}
        indices, new = soft_nms(boxes, scores, groups, **options)
        expected = soft(boxes, scores, groups, decay, minimum)
        assert dict(zip(indices.tolist(), new.tolist(), strict=True)) == pytest.approx(expected)
        assert (new.diff() <= 0).all() and new.dtype == scores.dtype


def test_a_soft_score_falls_by_the_overlap():
    boxes, scores = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 5.0]]), torch.tensor([0.9, 0.8])
    assert soft_nms(boxes, scores, sigma=0.5)[1].tolist() == pytest.approx([0.9, 0.8 * math.exp(-0.5)])
    assert soft_nms(boxes, scores, method="linear")[1].tolist() == pytest.approx([0.9, 0.4])
    indices, left = soft_nms(boxes, scores, method="linear", minimum_score=0.5)
    assert indices.tolist() == [0] and left.tolist() == pytest.approx([0.9])


@settings(deadline=None, max_examples=200)
@given(detections(np.float64), st.sampled_from([0.2, 0.5, 0.8]), metrics)
def test_merged_boxes_hold_all_and_overlap_no_more(some, threshold, metric):
    boxes, scores, groups = some
    indices, merged = nmm(boxes, scores, threshold, groups, metric)
    assert (scores[indices].diff() <= 0).all()
    for box, group in zip(boxes, groups, strict=True):
        own = merged[groups[indices] == group]
        assert ((own[:, :2] <= box[:2]) & (own[:, 2:] >= box[2:])).all(1).any()
    overlaps = (iou_matrix if metric == "iou" else iom_matrix)(merged, merged)
    other = ~torch.eye(len(merged), dtype=torch.bool) & (groups[indices][:, None] == groups[indices][None])
    assert not (overlaps[other] > threshold).any()


def test_an_object_cut_by_three_tiles_becomes_whole():
    parts = torch.tensor([[0.0, 0.0, 60.0, 20.0], [40.0, 0.0, 80.0, 20.0], [70.0, 0.0, 84.0, 20.0]])
    alone = torch.tensor([[200.0, 0.0, 210.0, 10.0]])
    indices, merged = nmm(torch.cat([parts, alone]), torch.tensor([0.9, 0.5, 0.4, 0.7]), 0.3)
    assert indices.tolist() == [0, 3]
    assert merged.tolist() == [[0.0, 0.0, 84.0, 20.0], alone[0].tolist()]


def test_merging_leaves_boxes_that_do_not_overlap_as_they_are():
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [2.0, 0.0, 3.0, 1.0]])
    indices, merged = nmm(boxes, torch.tensor([0.1, 0.2]), 0.5)
    assert indices.tolist() == [1, 0] and torch.equal(merged, boxes[[1, 0]])
    assert paired_iou(merged, boxes[[1, 0]]).tolist() == [1.0, 1.0]


def test_nothing_comes_of_nothing():
    boxes, scores, groups = torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.long)
    assert nms(boxes, scores, 0.5).shape == batched_nms(boxes, scores, groups, 0.5).shape == (0,)
    assert nms_by_fixpoint(boxes, scores, 0.5, groups).dtype == torch.int64
    assert [len(part) for part in soft_nms(boxes, scores)] == [0, 0]
    assert nmm(boxes, scores, 0.5)[1].shape == (0, 4)


@pytest.mark.parametrize("threshold", [-0.1, 1.5, math.nan])
@pytest.mark.parametrize("suppress", [nms, nms_by_fixpoint, nmm])
def test_a_threshold_out_of_range_is_named(suppress, threshold):
    with pytest.raises(ValueError, match=rf"threshold of overlap must be within \[0, 1\], not {threshold}"):
        suppress(BOX, torch.ones(1), threshold)


def test_what_cannot_be_suppressed_is_named():
    scores = torch.tensor([0.5, math.nan, 0.2])
    for suppress in (nms, nms_by_fixpoint, nmm):
        with pytest.raises(DataError, match=r"score 1 of 3 is NaN.*diverged"):
            suppress(BOX.repeat(3, 1), scores, 0.5)
        with pytest.raises(DataError, match=r"box 1 of 2 is NaN: \[0.0, 0.0, nan, 1.0\]"):
            suppress(torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, math.nan, 1.0]]), torch.ones(2), 0.5)
    with pytest.raises(DataError, match=r"boxes \[1, 4\], scores \[3\]"):
        nms(BOX, scores, 0.5)
    with pytest.raises(DataError, match=r"scores \[1\], groups \[2\]"):
        batched_nms(BOX, torch.ones(1), torch.zeros(2, dtype=torch.long), 0.5)
    with pytest.raises(RecipeError, match='"iou" or "iom", not \'giou\''):
        nms(BOX, torch.ones(1), 0.5, "giou")
    with pytest.raises(RecipeError, match='"gaussian" or "linear", not \'cubic\''):
        soft_nms(BOX, torch.ones(1), method="cubic")
    with pytest.raises(RecipeError, match="sigma of soft-NMS must be above 0, not 0"):
        soft_nms(BOX, torch.ones(1), sigma=0)


@pytest.mark.slow
def test_the_compiler_is_loaded_at_first_use_only():
    code = "import sys, odonata.ops.nms; assert 'numba' not in sys.modules, 'numba was imported'"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
