"""SP: images that excite the teacher alike must excite the student alike.

The rows of the batch's Gram matrix are its similarities; only these are compared, so that channels, sizes and even the
meaning of the features may differ.

Reference: Tung and Mori, Similarity-Preserving Knowledge Distillation, arXiv:1907.09682, sec. 3.

Deliberate differences: only the last map is compared, as in RepDistiller; the paper takes the end of every stage where
the two networks have as many.
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from odonata.distill.losses.interface import DistillLoss, Taps, TapShapes, stage_pairs


def batch_similarity(features: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch batch"]:
    """The batch's Gram matrix with rows of unit length.

    Source: Tung and Mori 2019, the matrices G of sec. 3.
    """
    flat = features.flatten(1)
    return F.normalize(flat @ flat.T)


def similarity_loss(student: Float[Tensor, "batch ..."], teacher: Float[Tensor, "batch ..."]) -> Float[Tensor, ""]:
    """Squared Frobenius distance of the two similarity matrices over B².

    Source: Tung and Mori 2019, the loss L_SP of sec. 3 for one pair of layers.
    """
    return (batch_similarity(teacher) - batch_similarity(student)).square().mean()


class SimilarityLoss(DistillLoss):
    """SP of the last maps.

    Args:
        student, teacher: shapes of the taps.
    """

    needs = frozenset({"maps"})
    beta = 3000.0

    def __init__(self, student: TapShapes, teacher: TapShapes) -> None:
        super().__init__(student, teacher)
        stage_pairs(student, teacher)

    def loss(self, student: Taps, teacher: Taps, labels: Tensor | None, indices: Tensor | None) -> dict[str, Tensor]:
        """See `similarity_loss`."""
        return {"loss": similarity_loss(student.maps[-1], teacher.maps[-1])}
