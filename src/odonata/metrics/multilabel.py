"""Mean average precision where a sample may have many classes (VOC07 classification, CatLIP's nouns)."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from odonata.errors import DataError


def average_precision(
    scores: Float[Tensor, "batch classes"], labels: Bool[Tensor, "batch classes"]
) -> Float[Tensor, "classes"]:
    """Return each class's average precision: Σ over thresholds of (recall gained) · precision, not interpolated.

    Samples of equal score stand at one threshold together, as in scikit-learn's ``average_precision_score``, so their
    order does not matter.

    Args:
        scores: higher is more likely.
        labels: which classes each sample has.

    Returns:
        float64 in [0, 1]; NaN for a class that no sample has.

    Raises:
        DataError: shapes differ, or a score is not a number.
    """
    if scores.ndim != 2 or scores.shape != labels.shape or len(scores) == 0:
        raise DataError(
            f"scores and labels must have one shape [batch, classes]: {list(scores.shape)}, {list(labels.shape)}"
        )
    if scores.isnan().any():
        row, column = (int(index) for index in scores.isnan().nonzero()[0])
        raise DataError(f"the score of sample {row} for class {column} is not a number")
    ordered, order = scores.sort(dim=0, descending=True)
    right = labels.bool().gather(0, order).double()
    found = right.cumsum(0)
    place = torch.arange(1, len(scores) + 1, dtype=torch.float64, device=scores.device)[:, None]
    # The last of equal scores speaks for all of them: its precision is the threshold's.
    is_threshold = torch.ones_like(labels, dtype=torch.bool)
    is_threshold[:-1] = ordered[:-1] != ordered[1:]
    precision = torch.where(is_threshold, found / place, torch.inf)
    # Walking up from the end, the nearest threshold below a sample is the first that is not infinite.
    index = torch.where(is_threshold, place.long() - 1, len(scores)).flip(0).cummin(0).values.flip(0)
    return (right * precision.gather(0, index)).sum(0) / right.sum(0)


def mean_average_precision(scores: Float[Tensor, "batch classes"], labels: Bool[Tensor, "batch classes"]) -> float:
    """Return the mean over the classes that have samples; see `average_precision`."""
    return average_precision(scores, labels).nanmean().item()
