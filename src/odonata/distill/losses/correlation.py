"""CC: beside the features themselves, the way that samples of a batch relate to each other is to be kept.

Reference: Peng et al., Correlation Congruence for Knowledge Distillation, arXiv:1904.01802.

Deliberate differences: the paper compares the correlation matrices of both networks under a Gaussian kernel, expanded
to a low order. The code that its authors gave to RepDistiller, which the weight .02 and the
published figures belong to, is this file's instead: both pooled vectors are embedded linearly into 128 dimensions, and
the absolute differences of neighbours in the batch are multiplied. It is zero when every other sample is right, and
depends on the order of the batch, which is random.
"""

from jaxtyping import Float
from torch import Tensor, nn

from odonata.distill.losses.interface import DistillLoss, Taps, TapShapes, needed


def correlation_loss(student: Float[Tensor, "batch dim"], teacher: Float[Tensor, "batch dim"]) -> Float[Tensor, ""]:
    """Mean over neighbours in the batch of the inner product of their absolute differences; 0 for a single sample.

    Source: RepDistiller `distiller_zoo/CC.py`, from the authors of Peng et al. 2019.
    """
    delta = (student - teacher).abs()
    return (delta[:-1] * delta[1:]).sum() / max(len(delta) - 1, 1)


class CorrelationLoss(DistillLoss):
    """CC of the pooled vectors, each through a linear embedding that learns.

    Args:
        student, teacher: shapes of the taps.
        dim: of the embeddings.
    """

    needs = frozenset({"pooled"})
    beta = 0.02

    def __init__(self, student: TapShapes, teacher: TapShapes, dim: int = 128) -> None:
        super().__init__(student, teacher)
        self.embed_student = nn.Linear(student.dim, dim)
        self.embed_teacher = nn.Linear(teacher.dim, dim)

    def loss(self, student: Taps, teacher: Taps, labels: Tensor | None, indices: Tensor | None) -> dict[str, Tensor]:
        """See `correlation_loss`."""
        embedded_student = self.embed_student(needed(student.pooled, "a pooled vector"))
        return {"loss": correlation_loss(embedded_student, self.embed_teacher(needed(teacher.pooled, "pooled vector")))}
