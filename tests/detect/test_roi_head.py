"""Which regions learn what, and what the outputs of the second stage mean."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from detect.test_rpn import targets
from odonata.detect.roi_head import RoIHead, RoIOptions, sample_regions


def test_a_quarter_of_the_regions_at_most_has_an_object():
    torch.manual_seed(0)
    target = targets([[8, 8, 40, 40]])
    near = torch.tensor([8.0, 8, 40, 40]) + torch.randn(200, 4)
    far = torch.tensor([44.0, 44, 60, 60]) + torch.randn(200, 4)
    sample = sample_regions(torch.cat([near, far]), target, RoIOptions(samples=64))
    assert len(sample.boxes) == 64 and (sample.labels >= 0).sum() == 16 == len(sample.goals)
    assert (sample.labels[:16] >= 0).all()


def test_objects_are_proposals_themselves_unless_told_otherwise():
    target, nothing = targets([[8, 8, 40, 40]]), torch.zeros(0, 4)
    sample = sample_regions(nothing, target, RoIOptions())
    assert sample.boxes.tolist() == [[8, 8, 40, 40]] and sample.goals.abs().max() == 0
    assert len(sample_regions(nothing, target, RoIOptions(append_objects=False)).boxes) == 0


@pytest.mark.parametrize("background", ["first", "last"])
@pytest.mark.parametrize("outputs", ["one", "classes", "all"])
def test_the_place_of_the_background_changes_names_only(background, outputs):
    head = RoIHead(4, [8], 3, RoIOptions(background=background, box_outputs=outputs, fcs=0, bins=1))
    logits = torch.arange(8.0).reshape(2, 4)
    deltas = torch.arange(2.0 * head.box_deltas.out_features).reshape(2, -1, 4)
    labels = torch.tensor([2, 0])
    assert head.output_of(torch.tensor([-1, 0, 2])).tolist() == ([0, 1, 3] if background == "first" else [3, 0, 2])
    scores, offsets = head.per_class(logits, deltas)
    assert torch.equal(head.box_of(deltas, labels), offsets[[0, 1], labels])
    kept = logits[:, 1:] if background == "first" else logits[:, :3]
    torch.testing.assert_close(
        scores, F.softmax(logits, 1)[:, 1:] if background == "first" else F.softmax(logits, 1)[:, :3]
    )
    assert kept.shape == scores.shape and offsets.shape == (2, 3, 4)
