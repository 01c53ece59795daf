"""Accuracy of classifiers: top-k, per class, confusion. Ties are pessimistic, so that equal scores earn nothing."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from odonata.errors import DataError


@dataclass(frozen=True)
class Classification:
    """What a classifier scored.

    Args:
        top: k to the share of samples, in [0, 1], whose right class is among the k best.
        per_class: top-1 accuracy of every class; NaN where a class has no sample.
        confusion: rows are right classes, columns predicted ones (the first of equally good); counts.
    """

    top: dict[int, float]
    per_class: Float[Tensor, "classes"]
    confusion: Int[Tensor, "classes classes"]

    @property
    def mean_per_class(self) -> float:
        """The mean of the per-class accuracies over the classes that have samples."""
        return self.per_class.nanmean().item()


def classification(
    scores: Float[Tensor, "batch classes"], labels: Int[Tensor, "batch"], ks: Sequence[int] = (1, 5)
) -> Classification:
    """Compare class scores with the right classes.

    Args:
        scores: higher is more likely.
        labels: the right classes, 0 … classes - 1.
        ks: which top-k to report; one beyond the number of classes is 1 by definition.

    Raises:
        DataError: shapes do not fit, or a label is out of range.
    """
    if scores.ndim != 2 or labels.shape != scores.shape[:1] or len(labels) == 0:
        raise DataError(
            f"scores must be [batch, classes] with a label each, not {list(scores.shape)} with {len(labels)}"
        )
    classes = scores.shape[1]
    labels = labels.long()
    if labels.min() < 0 or labels.max() >= classes:
        row = int(((labels < 0) | (labels >= classes)).nonzero()[0])
        raise DataError(f"sample {row} has the label {int(labels[row])}, but there are {classes} classes")
    own = scores.gather(1, labels[:, None])
    # The right class itself is not ahead of itself; NaN scores count as ahead.
    rank = (~(scores < own)).sum(1)
    right = rank == 1
    predicted = scores.argmax(1)
    count = torch.bincount(labels, minlength=classes)
    hits = torch.bincount(labels[right], minlength=classes)
    confusion = torch.bincount(labels * classes + predicted, minlength=classes * classes).view(classes, classes)
    top = {k: (rank <= k).double().mean().item() if k < classes else 1.0 for k in ks}
    return Classification(top, hits / count, confusion)
