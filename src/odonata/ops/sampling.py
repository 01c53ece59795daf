"""Which of very many anchors take part in a loss: a balanced draw, or the negatives that are hardest.

Deliberate difference: torchvision's SSD takes positives as negatives too where a picture has too few negatives (their
loss is then minus infinity in the order, but not in the sum); here a positive never is one.
"""

import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor


def sample_balanced(
    labels: Int[Tensor, "anchors"], count: int, positive_share: float, generator: torch.Generator | None = None
) -> tuple[Int64[Tensor, "positives"], Int64[Tensor, "negatives"]]:
    """Draw positives and negatives of one picture at random.

    Args:
        labels: 1 and more: positive; 0: negative; below 0: never drawn.
        count: how many are drawn together, if there are so many.
        positive_share: at most this share of `count` is positive; negatives fill the rest.
        generator: draws; on its own device.

    Returns:
        Indices of the positives and of the negatives that were drawn, each in a random order.

    Raises:
        ValueError: `count` is negative, or the share is outside [0, 1].

    Source: Ren et al. 2015 (Faster R-CNN), sec. 3.1.3; torchvision's `BalancedPositiveNegativeSampler`.
    """
    if count < 0 or not 0 <= positive_share <= 1:
        raise ValueError(f"count = {count}, positive_share = {positive_share}: at least 0, and within [0, 1]")
    positives, negatives = (labels >= 1).nonzero()[:, 0], (labels == 0).nonzero()[:, 0]
    drawn = _draw(positives, int(count * positive_share), generator)
    return drawn, _draw(negatives, count - len(drawn), generator)


def _draw(index: Int64[Tensor, "all"], count: int, generator: torch.Generator | None) -> Int64[Tensor, "drawn"]:
    device = generator.device if generator is not None else index.device
    return index[torch.randperm(len(index), generator=generator, device=device)[:count].to(index.device)]


def hard_negatives(
    losses: Float[Tensor, "batch anchors"],
    positives: Bool[Tensor, "batch anchors"],
    ratio: float = 3.0,
    ignored: Bool[Tensor, "batch anchors"] | None = None,
) -> Bool[Tensor, "batch anchors"]:
    """Choose in every picture the negatives with the greatest losses.

    Args:
        losses: what each anchor would contribute.
        positives: which of them have an object.
        ratio: negatives per positive; a picture without positives has no negatives either.
        ignored: anchors that are neither.

    Returns:
        Which negatives take part; of equal losses the first.

    Source: Liu et al. 2016 (SSD), sec. 2.2, "Hard negative mining".
    """
    excluded = positives if ignored is None else positives | ignored
    order = losses.detach().masked_fill(excluded, -torch.inf).argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(order)
    rank.scatter_(1, order, torch.arange(order.shape[1], device=order.device).expand_as(order))
    return (rank < ratio * positives.sum(1, keepdim=True)) & ~excluded
