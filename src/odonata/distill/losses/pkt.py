"""PKT: the student keeps the probability that two samples are neighbours.

A kernel density over the batch, with the cosine scaled to 0 … 1 as its kernel, gives each sample a distribution over
the others; the two networks' distributions are compared by their divergence. There is no temperature and no parameter,
and lengths of features do not matter.

Reference: Passalis and Tefas, Learning Deep Representations with Probabilistic Knowledge Transfer, arXiv:1803.10837:
conditional probabilities under the cosine kernel, and their Kullback–Leibler divergence.

Deliberate differences: rows include the sample itself and the divergence is averaged over B² entries, as in the
authors' code and RepDistiller, whose weight 30,000 goes with it. Features of length zero have a gradient of zero where
theirs is NaN.
"""

from jaxtyping import Float
from torch import Tensor

from odonata.distill.losses.interface import DistillLoss, Taps, TapShapes, needed

_EPS = 1e-7


def neighbour_probabilities(features: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch batch"]:
    """Cosines scaled to 0 … 1, in rows that sum to 1.

    Source: Passalis and Tefas 2018, conditional probabilities with the cosine kernel.
    """
    features = features / (features.norm(dim=1, keepdim=True) + _EPS)
    kernel = (features @ features.T + 1) / 2
    return kernel / kernel.sum(1, keepdim=True)


def pkt_loss(
    student: Float[Tensor, "batch student_dim"], teacher: Float[Tensor, "batch teacher_dim"]
) -> Float[Tensor, ""]:
    """KL(teacher ‖ student) of the neighbour probabilities over B².

    Source: Passalis and Tefas 2018, the divergence.
    """
    p, q = neighbour_probabilities(teacher), neighbour_probabilities(student)
    return (p * ((p + _EPS) / (q + _EPS)).log()).mean()


class PKTLoss(DistillLoss):
    """PKT of the pooled vectors.

    Args:
        student, teacher: shapes of the taps.
    """

    needs = frozenset({"pooled"})
    beta = 30000.0

    def __init__(self, student: TapShapes, teacher: TapShapes) -> None:
        super().__init__(student, teacher)

    def loss(self, student: Taps, teacher: Taps, labels: Tensor | None, indices: Tensor | None) -> dict[str, Tensor]:
        """See `pkt_loss`."""
        return {"loss": pkt_loss(needed(student.pooled, "a pooled vector"), needed(teacher.pooled, "a pooled vector"))}
