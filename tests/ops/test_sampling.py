"""How many anchors are drawn, from where, and that the draw is even and repeatable."""

import pytest
import torch

from odonata.ops.sampling import hard_negatives, sample_balanced

LABELS = torch.tensor([1] * 40 + [0] * 50 + [-1] * 10 + [2] * 5)


@pytest.mark.parametrize(
    ("count", "share", "positives", "negatives"),
    [(32, 0.5, 16, 16), (64, 0.25, 16, 48), (200, 0.5, 45, 50), (0, 1.0, 0, 0)],
)
def test_shares_are_kept_and_negatives_fill_the_rest(count, share, positives, negatives):
    drawn = sample_balanced(LABELS, count, share, torch.Generator().manual_seed(0))
    assert [len(side) for side in drawn] == [positives, negatives]
    assert (LABELS[drawn[0]] >= 1).all() and (LABELS[drawn[1]] == 0).all()
    assert len(torch.cat(drawn).unique()) == positives + negatives


def test_few_positives_leave_their_place_to_negatives():
    labels = torch.cat([torch.ones(3), torch.zeros(100)]).long()
    positives, negatives = sample_balanced(labels, 64, 0.5)
    assert (len(positives), len(negatives)) == (3, 61)


def test_the_same_generator_draws_the_same_and_every_anchor_has_its_chance():
    one, other = (sample_balanced(LABELS, 20, 0.5, torch.Generator().manual_seed(3)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    generator = torch.Generator().manual_seed(0)
    times = torch.zeros(len(LABELS))
    for _ in range(900):
        times[sample_balanced(LABELS, 18, 0.5, generator)[0]] += 1
    expected = 900 * 9 / 45  # 180 each, with a standard deviation of 12
    assert (times[LABELS >= 1] - expected).abs().max() < 60


def test_impossible_draws_are_refused():
    with pytest.raises(ValueError, match=r"positive_share = 1\.5"):
        sample_balanced(LABELS, 10, 1.5)


def test_the_hardest_negatives_of_every_picture_are_those_with_the_greatest_losses():
    losses = torch.rand(4, 60, generator=torch.Generator().manual_seed(0))
    positives = torch.zeros(4, 60, dtype=torch.bool)
    for picture, count in enumerate((0, 1, 5, 30)):
        positives[picture, :count] = True
    chosen = hard_negatives(losses, positives, 3.0)
    assert chosen.sum(1).tolist() == [0, 3, 15, 30]  # none without objects; in the last there are no more
    assert not (chosen & positives).any()
    for picture in (1, 2):
        rest = ~positives[picture] & ~chosen[picture]
        assert losses[picture][chosen[picture]].min() > losses[picture][rest].max()


def test_ignored_anchors_are_never_negatives_and_equal_losses_go_to_the_first():
    positives = torch.tensor([[True, False, False, False, False, False]])
    ignored = torch.tensor([[False, True, False, False, False, False]])
    chosen = hard_negatives(torch.ones(1, 6), positives, 2.0, ignored)
    assert chosen.tolist() == [[False, False, True, True, False, False]]
