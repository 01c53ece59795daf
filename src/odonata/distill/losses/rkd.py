"""RKD: the student keeps the distances and angles between samples, not their places.

Distances of pairs are taken relative to their mean, so the loss does not change when all features are moved, turned or
scaled; angles of triplets do not either.

Reference: Park et al., Relational Knowledge Distillation, arXiv:1904.05068, sec. 3.2.

Deliberate differences: the weights 25 and 50 and the means over all pairs and triplets, those of a sample with itself
included, are RepDistiller's. Distances come from the differences that the angles need anyway; RepDistiller expands the
square, which loses half of the digits for samples that lie close together. A batch of one gives 0 where it gives NaN.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from odonata.distill.losses.interface import DistillLoss, Taps, TapShapes, needed

_EPS = 1e-12


def relative_distances(differences: Float[Tensor, "batch batch dim"]) -> Float[Tensor, "batch batch"]:
    """Euclidean distances over their mean; zero on the diagonal.

    Source: Park et al. 2019, sec. 3.2.1, the potential ψ_D with its factor 1/μ.
    """
    # Clamped before the root, whose gradient at zero is infinite.
    distances = differences.square().sum(2).clamp(min=_EPS).sqrt()
    distances = distances - torch.diag_embed(distances.diagonal())
    pairs = max(len(distances) * (len(distances) - 1), 1)
    return distances / (distances.sum() / pairs).clamp(min=_EPS)


def angles(differences: Float[Tensor, "batch batch dim"]) -> Float[Tensor, "batch batch batch"]:
    """Cosines of the angle at sample i between samples j and k.

    Source: Park et al. 2019, sec. 3.2.2, the potential ψ_A.
    """
    directions = F.normalize(differences, dim=2)
    return directions @ directions.transpose(1, 2)


def rkd_loss(
    student: Float[Tensor, "batch student_dim"],
    teacher: Float[Tensor, "batch teacher_dim"],
    distance_weight: float = 25.0,
    angle_weight: float = 50.0,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""], Float[Tensor, ""]]:
    """Huber losses of relative distances and of angles.

    Returns:
        their weighted sum, the distance part and the angle part.

    Source: Park et al. 2019, sec. 3.2, RKD-D and RKD-A.
    """
    ours, theirs = student[None] - student[:, None], teacher[None] - teacher[:, None]
    distance = F.smooth_l1_loss(relative_distances(ours), relative_distances(theirs))
    angle = F.smooth_l1_loss(angles(ours), angles(theirs))
    return distance_weight * distance + angle_weight * angle, distance, angle


class RKDLoss(DistillLoss):
    """RKD of the pooled vectors.

    Args:
        student, teacher: shapes of the taps.
        distance_weight, angle_weight: of the two parts.
    """

    needs = frozenset({"pooled"})
    beta = 1.0

    def __init__(
        self, student: TapShapes, teacher: TapShapes, distance_weight: float = 25.0, angle_weight: float = 50.0
    ) -> None:
        super().__init__(student, teacher)
        self.weights = (distance_weight, angle_weight)

    def loss(self, student: Taps, teacher: Taps, labels: Tensor | None, indices: Tensor | None) -> dict[str, Tensor]:
        """See `rkd_loss`."""
        ours, theirs = needed(student.pooled, "a pooled vector"), needed(teacher.pooled, "a pooled vector")
        total, distance, angle = rkd_loss(ours, theirs, *self.weights)
        return {"loss": total, "rkd_distance": distance.detach(), "rkd_angle": angle.detach()}
