"""NST: the student's channels, as a set of patterns over places, must be distributed like the teacher's.

Each channel is a sample: its map, of unit length. The distance is the squared maximum mean discrepancy under the
polynomial kernel (xᵀy)², which needs neither equal channels nor parameters.

Reference: Huang and Wang, Like What You Like: Knowledge Distill via Neuron Selectivity Transfer, arXiv:1707.01219,
the variant with the polynomial kernel (d = 2, c = 0).

Notable: with X of C channels by HW places, the mean of the kernel between channels of X and Y is ‖X Yᵀ‖² / (C_x C_y),
and that is ⟨XᵀX, YᵀY⟩ / (C_x C_y). So the discrepancy equals ‖X_sᵀX_s / C_s − X_tᵀX_t / C_t‖², a distance of two
matrices of HW × HW. It costs (C_s + C_t)·(HW)² multiplications where the kernels cost (C_s² + C_s C_t + C_t²)·HW: late
stages, with many channels and few places, are cheaper that way, early ones the other. `nst_loss` takes the cheaper. The
Gram form has no cancellation, is never negative, and is 0 for equal maps to the last bit.

Deliberate differences: none from RepDistiller in what is computed. It writes the kernel as a broadcast product of
C_s × C_t × HW numbers per sample, which neither form here needs.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from odonata.distill.losses.interface import DistillLoss, Taps, TapShapes, stage_pairs, to_common_size


def kernel_discrepancy(
    student: Float[Tensor, "batch student_channels places"], teacher: Float[Tensor, "batch teacher_channels places"]
) -> Float[Tensor, ""]:
    """Squared MMD by three matrices of kernels, mean over the batch.

    Source: Huang and Wang 2017, the NST loss with the polynomial kernel, d = 2 and c = 0.
    """

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.transpose(1, 2)).square().mean()

    return kernel(teacher, teacher) + kernel(student, student) - 2 * kernel(student, teacher)


def gram_discrepancy(
    student: Float[Tensor, "batch student_channels places"], teacher: Float[Tensor, "batch teacher_channels places"]
) -> Float[Tensor, ""]:
    """The same by the Gram matrices of the places; see the notes of this file."""
    ours = student.transpose(1, 2) @ student / student.shape[1]
    theirs = teacher.transpose(1, 2) @ teacher / teacher.shape[1]
    return (ours - theirs).square().sum((1, 2)).mean()


def is_gram_cheaper(student_channels: int, teacher_channels: int, places: int) -> bool:
    """Whether the Gram form takes fewer multiplications than the kernels."""
    kernels = student_channels**2 + student_channels * teacher_channels + teacher_channels**2
    return (student_channels + teacher_channels) * places < kernels


def nst_loss(
    student: Float[Tensor, "batch student_channels student_height student_width"],
    teacher: Float[Tensor, "batch teacher_channels teacher_height teacher_width"],
) -> Float[Tensor, ""]:
    """Squared MMD between the channels of two maps, in the cheaper of its two forms.

    Source: Huang and Wang 2017, the NST loss with the polynomial kernel.
    """
    student, teacher = to_common_size(student, teacher)
    ours, theirs = F.normalize(student.flatten(2), dim=2), F.normalize(teacher.flatten(2), dim=2)
    discrepancy = gram_discrepancy if is_gram_cheaper(ours.shape[1], *theirs.shape[1:]) else kernel_discrepancy
    return discrepancy(ours, theirs)


class NSTLoss(DistillLoss):
    """NST summed over all paired stages.

    Args:
        student, teacher: shapes of the taps.
    """

    needs = frozenset({"maps"})
    beta = 50.0

    def __init__(self, student: TapShapes, teacher: TapShapes) -> None:
        super().__init__(student, teacher)
        self.pairs = stage_pairs(student, teacher)

    def loss(self, student: Taps, teacher: Taps, labels: Tensor | None, indices: Tensor | None) -> dict[str, Tensor]:
        """See `nst_loss`."""
        return {"loss": torch.stack([nst_loss(student.maps[s], teacher.maps[t]) for s, t in self.pairs]).sum()}
