"""Axial rotary positions: what they turn, and what they leave alone."""

import pytest
import torch

from odonata.nn.rope import AxialRoPE, patch_centres, rotate


def test_scores_depend_on_differences_of_coordinates_only():
    rope, coordinates = AxialRoPE(16).eval(), patch_centres((3, 5))
    q, k = torch.randn(2, 1, 2, 15, 16).unbind()

    def scores(moved):
        turn = rope.at(moved)
        return rotate(q, turn) @ rotate(k, turn).transpose(-1, -2)

    torch.testing.assert_close(
        scores(coordinates), scores(coordinates + torch.tensor([0.4, -1.3])), rtol=1e-4, atol=1e-4
    )
    assert (scores(coordinates) - scores(1.5 * coordinates)).abs().max() > 0.1


def test_coordinates_are_centres_of_patches_between_minus_one_and_one():
    assert patch_centres((2, 4)).tolist()[:2] == [[-0.5, -0.75], [-0.5, -0.25]]
    assert patch_centres((2, 4)).sum().item() == pytest.approx(0)


def test_prefix_tokens_are_not_turned_and_lengths_stay():
    x = torch.randn(1, 2, 9, 8)
    turned = rotate(x, AxialRoPE(8)((2, 2), prefix_tokens=5))
    assert torch.equal(turned[:, :, :5], x[:, :, :5])
    assert not torch.allclose(turned[:, :, 5:], x[:, :, 5:])
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))


def test_augmentation_moves_coordinates_while_training_only():
    rope, seed = AxialRoPE(8, shift=0.5, jitter=1.2, rescale=2.0), torch.Generator().manual_seed(1)
    still = AxialRoPE(8)((3, 3)).cos
    assert torch.equal(rope.eval()((3, 3)).cos, still)
    assert not torch.allclose(rope.train()((3, 3), generator=seed).cos, still)
    only = AxialRoPE(8, rescale=2.0).train()
    ratios = [(only._moved(patch_centres((2, 2)), seed) / patch_centres((2, 2))).unique() for _ in range(200)]
    assert 0.5 <= min(r.min() for r in ratios) < 0.6 and 1.8 < max(r.max() for r in ratios) <= 2.0


def test_heads_that_do_not_split_in_four_are_refused():
    with pytest.raises(ValueError, match="divisible by 4, not 6"):
        AxialRoPE(6)
