"""Which anchors learn what, and which become proposals."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from odonata.detect.rpn import RPNOptions, RPNOutputs, Targets, match_anchors, propose, rpn_loss
from odonata.ops.boxes import iou_matrix

ALL = 10**6
"""So many samples that everything learns and nothing is drawn."""


def grid(side: int = 64) -> torch.Tensor:
    """Anchors of 16 px, every 8 px."""
    corner = torch.arange(0, side - 15, 8).float()
    x, y = torch.meshgrid(corner, corner, indexing="xy")
    return torch.stack([x, y, x + 16, y + 16], 2).reshape(-1, 4)


def targets(boxes=(), crowds=(), invalid=(), **more) -> Targets:
    as_boxes = [torch.tensor(rows, dtype=torch.float32).reshape(-1, 4) for rows in (boxes, crowds, invalid)]
    return Targets(as_boxes[0], torch.zeros(len(as_boxes[0])).long(), as_boxes[1], as_boxes[2], **more)


def test_what_lies_in_a_crowd_is_not_background_and_an_object_there_is_still_one():
    anchors, options = grid(), RPNOptions()
    crowd = [[0, 0, 32, 64]]
    matches = match_anchors(anchors, targets([[8, 8, 24, 24]], crowds=crowd), (64, 64), options)
    left = anchors[:, 2] <= 32
    object_at = (anchors == torch.tensor([8.0, 8, 24, 24])).all(1)
    assert matches[object_at].tolist() == [0]
    assert (matches[left & ~object_at] == -2).all()
    # At least half of an anchor must lie in the crowd.
    assert (matches[anchors[:, 0] >= 32] == -1).all()


def test_an_object_that_does_not_count_frees_the_anchors_that_overlap_it():
    anchors, options = grid(), RPNOptions()
    invalid = [[8.0, 8, 24, 24]]
    overlap = iou_matrix(torch.tensor(invalid), anchors)[0]
    matches = match_anchors(anchors, targets(invalid=invalid), (64, 64), options)
    assert torch.equal(matches == -2, overlap > 0.3)
    both = targets([[10.0, 8, 26, 24]], invalid=invalid)
    assert 0 in match_anchors(anchors, both, (64, 64), options)
    # SNIP's rule: then even the anchor of another object learns nothing.
    assert 0 not in match_anchors(anchors, both, (64, 64), replace(options, invalid_wins=True))


def test_every_object_has_an_anchor_and_an_object_out_of_reach_has_none():
    anchors, options = grid(), RPNOptions()
    tiny = match_anchors(anchors, targets([[30, 30, 33, 33]]), (64, 64), options)
    assert (tiny == 0).any()
    away = match_anchors(anchors, targets([[200, 200, 210, 210]]), (64, 64), options)
    assert (away == -1).all()
    outside = torch.cat([anchors, torch.tensor([[-8.0, 0, 8, 16]])])
    inside = match_anchors(outside, targets([[-8, 0, 8, 16]]), (64, 64), replace(options, inside_only=True))
    assert inside[-1] == -2


def test_proposals_are_suppressed_level_by_level_and_cut_at_the_edge():
    box = torch.tensor([[4.0, 4, 20, 20]])
    out = RPNOutputs(torch.tensor([[2.0, 1.0, 0.0]]), torch.zeros(1, 3, 4), box.repeat(3, 1), [2, 1])
    found = propose(out, torch.tensor([[12, 64]]), RPNOptions(), 10, 10)[0]
    assert found.tolist() == [[4, 4, 20, 12]] * 2  # one of each level


def test_the_loss_of_the_proposals_is_divided_as_each_family_does_it():
    anchors, sizes = grid(), torch.tensor([[64, 64]])
    torch.manual_seed(0)
    out = RPNOutputs(torch.randn(1, len(anchors)), torch.randn(1, len(anchors), 4), anchors, [len(anchors)])
    target = [targets([[8, 8, 24, 24]])]
    sampled = rpn_loss(out, target, sizes, RPNOptions(samples=ALL))
    fixed = rpn_loss(out, target, sizes, RPNOptions(samples=ALL, normalizer="fixed"))
    learned = int((match_anchors(anchors, target[0], (64, 64), RPNOptions()) > -2).sum())
    assert fixed["objectness"] * ALL == pytest.approx(float(sampled["objectness"]) * learned, rel=1e-5)
