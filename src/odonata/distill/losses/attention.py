"""AT: the student looks where the teacher looks.

A map's attention is where its activations are strong: their squares, averaged over channels, as a vector of unit
length. No parameter is needed, and channels may differ.

Reference: Zagoruyko and Komodakis, Paying More Attention to Attention, arXiv:1612.03928, equation 2 (with p = 2).

Deliberate differences: as in RepDistiller and the authors' code, the loss is the mean of the squared differences over
batch and places, where the paper's equation has β/2 times the norm, not squared. Maps of different sizes meet at the
smaller one (`odonata.distill.losses.interface`).
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from odonata.distill.losses.interface import DistillLoss, Taps, TapShapes, stage_pairs, to_common_size


def attention_map(
    features: Float[Tensor, "batch channels height width"], power: float = 2.0
) -> Float[Tensor, "batch places"]:
    """Mean of |x|^p over channels, flattened, of unit length.

    Source: Zagoruyko and Komodakis 2017, sec. 3.1 (F_sum^p; the mean differs from the sum by a factor that cancels).
    """
    return F.normalize(features.abs().pow(power).mean(1).flatten(1))


def attention_loss(
    student: Float[Tensor, "batch student_channels student_height student_width"],
    teacher: Float[Tensor, "batch teacher_channels teacher_height teacher_width"],
    power: float = 2.0,
) -> Float[Tensor, ""]:
    """Mean squared difference of the attention of two maps.

    Source: Zagoruyko and Komodakis 2017, equation 2, second term, with the squared norm.
    """
    student, teacher = to_common_size(student, teacher)
    return (attention_map(student, power) - attention_map(teacher, power)).square().mean()


class AttentionLoss(DistillLoss):
    """AT summed over all paired stages.

    Args:
        student, teacher: shapes of the taps.
        power: p.
    """

    needs = frozenset({"maps"})
    beta = 1000.0

    def __init__(self, student: TapShapes, teacher: TapShapes, power: float = 2.0) -> None:
        super().__init__(student, teacher)
        self.pairs = stage_pairs(student, teacher)
        self.power = power

    def loss(self, student: Taps, teacher: Taps, labels: Tensor | None, indices: Tensor | None) -> dict[str, Tensor]:
        """See `attention_loss`."""
        losses = [attention_loss(student.maps[s], teacher.maps[t], self.power) for s, t in self.pairs]
        return {"loss": torch.stack(losses).sum()}
