"""Token merging (ToMe): each block joins the r most similar pairs of tokens, so that later blocks have less to do.

Notable:
- Needs no training; similar means similar keys, averaged over the heads (Bolya et al. 2022, sec. 3).
- A merged token stands for several, and says so: log size is added to its attention logits (proportional attention,
  eq. 1).
- Merged tokens are put back at all their places after the last block. The mean over patches is then the mean weighted
  by size, which the authors take for towers that pool by a mean, and dense features keep their grid.

Deliberate difference: the tokens that stay keep their order. The original puts the second set of the bipartite matching
behind the first, which changes how later blocks split their tokens in two; prefix tokens would not stay in front.

Source: Bolya et al. 2022, Token Merging: Your ViT But Faster, arXiv:2210.09461, sec. 3 and appendix D.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from odonata.nn.transformer import Block


def match_tokens(
    keys: Float[Tensor, "batch tokens dim"], r: int, prefix_tokens: int = 0
) -> tuple[Int[Tensor, "batch tokens"], int]:
    """Bipartite soft matching: tokens alternate between two sets, and the r best edges from the first to the second
    merge.

    Args:
        keys: what similarity is measured by (cosine).
        r: pairs to merge; at most half of the tokens that may.
        prefix_tokens: leading tokens that neither merge nor are merged into.

    Returns:
        Which of the remaining tokens each token goes to, numbered in order, and how many remain.
    """
    batch, count, _ = keys.shape
    r = max(0, min(r, (count - prefix_tokens) // 2))
    target = torch.arange(count, device=keys.device).expand(batch, -1).clone()
    if r:
        keys = F.normalize(keys, dim=-1)
        scores = keys[:, ::2] @ keys[:, 1::2].transpose(1, 2)
        scores[:, : (prefix_tokens + 1) // 2] = -torch.inf
        scores[:, :, : prefix_tokens // 2] = -torch.inf
        best, partner = scores.max(-1)
        chosen = best.argsort(1, descending=True)[:, :r]
        target.scatter_(1, 2 * chosen, 2 * partner.gather(1, chosen) + 1)
    stays = target == torch.arange(count, device=keys.device)
    return (stays.cumsum(1) - 1).gather(1, target), count - r


def merge(
    x: Float[Tensor, "batch tokens dim"],
    sizes: Float[Tensor, "batch tokens"],
    slots: Int[Tensor, "batch tokens"],
    count: int,
) -> tuple[Float[Tensor, "batch merged dim"], Float[Tensor, "batch merged"]]:
    """Averages tokens that go to the same one of `count` slots, weighted by how many each stands for.

    Returns:
        The merged tokens, and how many each stands for now.
    """
    merged_sizes = sizes.new_zeros(x.shape[0], count).scatter_add_(1, slots, sizes)
    sums = x.new_zeros(x.shape[0], count, x.shape[2])
    sums.scatter_add_(1, slots[..., None].expand_as(x), x * sizes[..., None].to(x.dtype))
    return sums / merged_sizes[..., None].to(x.dtype), merged_sizes


def run_merging(
    layers: Iterable[Block], x: Float[Tensor, "batch tokens dim"], r: int, prefix_tokens: int
) -> Float[Tensor, "batch tokens dim"]:
    """Runs pre-norm blocks that each merge r pairs of tokens between attention and MLP.

    Args:
        layers: the blocks.
        x: tokens, the prefix first.
        r: pairs per block.
        prefix_tokens: tokens that never merge.

    Returns:
        As many tokens as came in; those that merged are equal.
    """
    sizes = x.new_ones(x.shape[:2])
    place = torch.arange(x.shape[1], device=x.device).expand(x.shape[0], -1)
    for layer in layers:
        q, k, v = layer.attn.project(layer.norm1(x))
        bias = sizes.log()[:, None, None, :].to(q.dtype)
        x = x + layer.drop_path(layer.scale1(layer.attn.attend(q, k, v, bias)))
        slots, count = match_tokens(k.mean(1), r, prefix_tokens)
        x, sizes = merge(x, sizes, slots, count)
        place = slots.gather(1, place)
        x = x + layer.drop_path(layer.scale2(layer.mlp(layer.norm2(x))))
    return x.gather(1, place[..., None].expand(-1, -1, x.shape[2]))
