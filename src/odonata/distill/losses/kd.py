"""KD: the student learns the teacher's softened probabilities.

Logits divided by a temperature T keep the small probabilities of wrong classes, which tell how the teacher generalises.
Gradients of soft targets shrink as 1/T² (sec. 2.1), so the loss is multiplied by T²; at large T it is then, to first
order, half the squared difference of centred logits over the number of classes, whatever T is.

Reference: Hinton, Vinyals, Dean, Distilling the Knowledge in a Neural Network, arXiv:1503.02531.

Deliberate differences: none from RepDistiller (KL divergence, batch mean, T 4, weights .1 and .9). The paper writes the
cross-entropy with soft targets; the two differ by the teacher's entropy, which has no gradient.
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from odonata.distill.losses.interface import DistillLoss, Taps, TapShapes, needed
from odonata.errors import RecipeError


def kd_loss(
    student: Float[Tensor, "batch classes"], teacher: Float[Tensor, "batch classes"], temperature: float
) -> Float[Tensor, ""]:
    """T² · KL(teacher ‖ student) of the softened probabilities, mean over the batch.

    Args:
        student, teacher: logits.
        temperature: T, above 0.

    Source: Hinton et al. 2015, equation 1 and sec. 2.1.
    """
    log_p = F.log_softmax(student / temperature, dim=1)
    log_q = F.log_softmax(teacher / temperature, dim=1)
    return F.kl_div(log_p, log_q, reduction="batchmean", log_target=True) * temperature**2


class KDLoss(DistillLoss):
    """KD between the logits.

    Args:
        student, teacher: shapes of the taps; equal numbers of classes.
        temperature: T.

    Raises:
        RecipeError: the numbers of classes differ.
    """

    needs = frozenset({"logits"})
    beta = 0.9
    ce_weight = 0.1

    def __init__(self, student: TapShapes, teacher: TapShapes, temperature: float = 4.0) -> None:
        super().__init__(student, teacher)
        if student.classes != teacher.classes:
            raise RecipeError(
                f"kd compares logits: {student.name} has {student.classes} classes and {teacher.name} "
                f"{teacher.classes}; fit the teacher's classifier to these classes or choose a loss of features"
            )
        self.temperature = temperature

    def loss(self, student: Taps, teacher: Taps, labels: Tensor | None, indices: Tensor | None) -> dict[str, Tensor]:
        """See `kd_loss`."""
        return {"loss": kd_loss(needed(student.logits, "logits"), needed(teacher.logits, "logits"), self.temperature)}
