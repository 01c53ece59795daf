"""Token merging: which pairs, and what is kept."""

import pytest
import torch

from odonata.nn.token_merging import match_tokens, merge, run_merging
from odonata.nn.transformer import Transformer


@pytest.fixture
def blocks():
    return Transformer(16, 3, 2).eval()


def test_merging_nothing_is_the_identity(blocks):
    x = torch.randn(2, 9, 16)
    torch.testing.assert_close(run_merging(blocks.layers, x, 0, 1), blocks(x))


def test_merging_tokens_that_are_equal_loses_nothing(blocks):
    twins = torch.randn(2, 4, 16).repeat_interleave(2, 1)
    x = torch.cat([torch.randn(2, 2, 16), twins], 1)
    merged = run_merging(blocks.layers, x, 4, 2)
    torch.testing.assert_close(run_merging(list(blocks.layers)[:1], x, 4, 2), blocks.layers[0](x), rtol=1e-4, atol=1e-5)
    assert merged.shape == x.shape and merged.isfinite().all()


def test_the_most_similar_pair_merges_first_and_prefix_tokens_never():
    keys = torch.eye(6)[None].clone()
    keys[0, 3] = keys[0, 4] + 0.1 * keys[0, 2]
    keys[0, 1] = keys[0, 0]  # the best pair, but of prefix tokens
    slots, count = match_tokens(keys, 1, prefix_tokens=2)
    assert count == 5
    assert slots.tolist() == [[0, 1, 2, 3, 3, 4]]
    assert match_tokens(keys, 99, prefix_tokens=2)[1] == 4


def test_means_are_weighted_by_what_a_token_stands_for():
    x, sizes = torch.tensor([[[1.0], [4.0], [7.0]]]), torch.tensor([[1.0, 2.0, 1.0]])
    merged, sizes = merge(x, sizes, torch.tensor([[0, 0, 1]]), 2)
    assert merged.flatten().tolist() == [3.0, 7.0]
    assert sizes.tolist() == [[3.0, 1.0]]


def test_later_blocks_see_fewer_tokens(blocks):
    seen = []
    for layer in blocks.layers:
        layer.mlp.register_forward_hook(lambda module, args, out: seen.append(out.shape[1]))
    run_merging(blocks.layers, torch.randn(1, 17, 16), 4, 1)
    assert seen == [13, 9, 5]
