"""FitNets: a middle map of the student, through a regressor, must equal a middle map of the teacher.

The hint lets students that are thinner and deeper than their teacher train at all (equation 3). The paper trains the
student up to the hint first and then distils with KD; RepDistiller, whose weight of 100 is the default here, adds the
hint to the cross-entropy for the whole training, and so does this file.

Reference: Romero et al., FitNets: Hints for Thin Deep Nets, arXiv:1412.6550, equation 3.

Deliberate differences: mean instead of half the sum of squares, and batch norm in the regressor (both RepDistiller's);
regressors for sizes that neither provides for (`odonata.distill.losses.regressor`).
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from odonata.distill.losses.interface import DistillLoss, Taps, TapShapes, stage_pairs
from odonata.distill.losses.regressor import ConvRegressor
from odonata.errors import RecipeError


def hint_loss(
    student: Float[Tensor, "batch channels height width"], teacher: Float[Tensor, "batch channels height width"]
) -> Float[Tensor, ""]:
    """Mean squared difference of the student's regressed map and the teacher's.

    Source: Romero et al. 2015, equation 3, without its factor ½ and with a mean.
    """
    return F.mse_loss(student, teacher)


class HintLoss(DistillLoss):
    """A regressor on the student's hinted map, and the distance from the teacher's.

    Args:
        student, teacher: shapes of the taps.
        layer: which of the paired stages, from 1; 0 is the stem.

    Raises:
        RecipeError: there is no such stage.
    """

    needs = frozenset({"maps"})
    beta = 100.0

    def __init__(self, student: TapShapes, teacher: TapShapes, layer: int = 2) -> None:
        super().__init__(student, teacher)
        pairs = [(0, 0), *stage_pairs(student, teacher)]
        if not 0 <= layer < len(pairs):
            raise RecipeError(f"layer = {layer}: {student} and {teacher} have the paired stages 0 to {len(pairs) - 1}")
        self.guided, self.hint = pairs[layer]
        self.regressor = ConvRegressor(student.maps[self.guided], teacher.maps[self.hint])

    def loss(self, student: Taps, teacher: Taps, labels: Tensor | None, indices: Tensor | None) -> dict[str, Tensor]:
        """See `hint_loss`."""
        return {"loss": hint_loss(self.regressor(student.maps[self.guided]), teacher.maps[self.hint])}
