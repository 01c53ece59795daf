import pytest
import torch
from torch import nn

from odonata.nn.attention import Attention


def pair(dim=24, heads=3, context_dim=None):
    ours = Attention(dim, heads, context_dim=context_dim)
    theirs = nn.MultiheadAttention(dim, heads, batch_first=True, kdim=context_dim, vdim=context_dim)
    with torch.no_grad():
        weights = [ours.q.weight, ours.k.weight, ours.v.weight]
        if context_dim is None:
            theirs.in_proj_weight.copy_(torch.cat(weights))
        else:
            theirs.q_proj_weight.copy_(weights[0])
            theirs.k_proj_weight.copy_(weights[1])
            theirs.v_proj_weight.copy_(weights[2])
        theirs.in_proj_bias.copy_(torch.cat([ours.q.bias, ours.k.bias, ours.v.bias]))
        theirs.out_proj.load_state_dict(ours.proj.state_dict())
    return ours, theirs


def test_equals_torch_with_a_padding_mask():
    ours, theirs = pair()
    x, mask = torch.randn(2, 5, 24), torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]).bool()
    torch.testing.assert_close(ours(x, mask=mask), theirs(x, x, x, key_padding_mask=~mask)[0])


def test_equals_torch_across_a_context_of_another_width():
    ours, theirs = pair(context_dim=10)
    x, context = torch.randn(2, 5, 24), torch.randn(2, 7, 10)
    torch.testing.assert_close(ours(x, context), theirs(x, context, context)[0])


def test_causal_output_ignores_what_follows():
    ours, _ = pair()
    x = torch.randn(1, 6, 24)
    changed = x.clone()
    changed[:, 4:] += 1
    torch.testing.assert_close(ours(x, is_causal=True)[:, :4], ours(changed, is_causal=True)[:, :4])


def test_head_dim_is_free():
    assert Attention(10, 4, head_dim=7)(torch.randn(1, 2, 10)).shape == (1, 2, 10)
    with pytest.raises(ValueError, match="dim 10 is not divisible by num_heads 4"):
        Attention(10, 4)


def test_mask_and_causal_together_are_refused():
    with pytest.raises(ValueError, match="either mask or is_causal"):
        Attention(8, 2)(torch.randn(1, 2, 8), mask=torch.ones(1, 2).bool(), is_causal=True)
