"""k nearest neighbours on frozen features: a probe without anything to train.

Source: Wu et al., arXiv:1805.01978, section 3.4, as DINO's `eval_knn.py` runs it: cosine similarity, k = 20, votes
weighted by exp(similarity / 0.07).
"""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from odonata.errors import DataError

BANK_ROWS = 65_536
"""Training samples compared at a time: 256 MiB of similarities with 1,024 rows, however large the bank is."""


@torch.no_grad()
def knn_scores(
    train: Float[Tensor, "train dim"],
    train_labels: Int[Tensor, "train"],
    test: Float[Tensor, "batch dim"],
    *,
    k: int = 20,
    weights: Literal["exponential", "uniform"] = "exponential",
    temperature: float = 0.07,
    classes: int | None = None,
    chunk: int = 1024,
) -> Float[Tensor, "batch classes"]:
    """Let the k most similar training samples vote.

    Args:
        train: features; they are brought to unit length.
        train_labels: their classes.
        test: features of the samples to classify.
        k: neighbours; all of them where there are fewer.
        weights: "exponential" weighs a vote by exp(cosine / temperature), "uniform" counts it.
        temperature: of the exponential.
        classes: number of classes; None for one more than the largest label.
        chunk: samples compared at a time.

    Returns:
        the votes per class, summing to 1 for each sample; for `odonata.metrics.classification.classification`.

    Raises:
        DataError: shapes do not fit, or k is not positive.
    """
    if train.shape[1:] != test.shape[1:] or train_labels.shape != train.shape[:1] or len(train) == 0:
        raise DataError(
            f"kNN needs features of one width with a label each: training {list(train.shape)} with "
            f"{len(train_labels)} labels, test {list(test.shape)}"
        )
    if k < 1:
        raise DataError(f"kNN needs k ≥ 1, not {k}")
    count = int(train_labels.max()) + 1 if classes is None else classes
    bank = F.normalize(train.float(), dim=-1)
    votes: list[Tensor] = []
    for rows in test.split(chunk):
        similarity, nearest = _nearest(F.normalize(rows.float(), dim=-1), bank, min(k, len(train)))
        # Softmax is exp(cosine / temperature) with its sum divided out; the ranking is the same and nothing overflows.
        weight = (similarity / temperature).softmax(1) if weights == "exponential" else similarity.new_full((), 1.0)
        weight = weight.expand_as(similarity) / (1 if weights == "exponential" else similarity.shape[1])
        votes.append(similarity.new_zeros(len(rows), count).scatter_add_(1, train_labels.long()[nearest], weight))
    return torch.cat(votes) if votes else test.new_zeros(0, count)


def _nearest(
    rows: Float[Tensor, "batch dim"], bank: Float[Tensor, "train dim"], k: int
) -> tuple[Float[Tensor, "batch k"], Int[Tensor, "batch k"]]:
    """The greatest similarities of each row and where they are, the greatest first."""
    best, places = rows.new_empty(len(rows), 0), torch.empty(len(rows), 0, dtype=torch.long, device=rows.device)
    for number, part in enumerate(bank.split(BANK_ROWS)):
        similarity, nearest = (rows @ part.T).topk(min(k, len(part)), dim=1)
        best, kept = torch.cat([best, similarity], 1).topk(min(k, best.shape[1] + similarity.shape[1]), dim=1)
        places = torch.cat([places, nearest + number * BANK_ROWS], 1).gather(1, kept)
    return best, places
