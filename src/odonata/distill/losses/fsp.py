"""FSP: the student learns how the teacher gets from one stage to the next, not what it finds there.

The flow between two stages is the inner product of their channels over places. The student's body learns the teacher's
flows first, and its classes afterwards.

Reference: Yim et al., A Gift from Knowledge Distillation, CVPR 2017, equations 1 and 2.

Deliberate differences: the flows join every two neighbours of [stem, stage 1 … L] and are compared by a mean of
squares, as in RepDistiller; the paper joins first and last layer of a stage, sums the squares and weighs the stages. In
the main stage the loss is reported and not minimised; `keep` minimises it too.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from odonata.distill.losses.interface import DistillLoss, Taps, TapShapes, to_common_size
from odonata.errors import RecipeError


def flow(
    lower: Float[Tensor, "batch lower_channels lower_height lower_width"],
    upper: Float[Tensor, "batch upper_channels upper_height upper_width"],
) -> Float[Tensor, "batch upper_channels lower_channels"]:
    """Inner products of the channels of two maps of one network, mean over places.

    Source: Yim et al. 2017, equation 1.
    """
    lower, upper = to_common_size(lower, upper)
    places = lower.shape[2] * lower.shape[3]
    return upper.flatten(2) @ lower.flatten(2).transpose(1, 2) / places


def fsp_loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Float[Tensor, ""]:
    """Mean squared difference of the flows, summed over neighbouring maps.

    Args:
        student, teacher: as many maps of each, channels equal one by one.

    Source: Yim et al. 2017, equation 2.
    """
    losses = [
        (flow(student[i], student[i + 1]) - flow(teacher[i], teacher[i + 1])).square().mean()
        for i in range(len(student) - 1)
    ]
    return torch.stack(losses).sum()


class FSPLoss(DistillLoss):
    """FSP of all neighbouring maps.

    Args:
        student, teacher: shapes of the taps, with equal numbers of maps and of channels.
        keep: whether the main stage minimises the loss too.

    Raises:
        RecipeError: the numbers of maps or of channels differ.
    """

    needs = frozenset({"maps"})
    beta = 50.0
    two_stage = True
    init_trains_student = True

    def __init__(self, student: TapShapes, teacher: TapShapes, keep: bool = False) -> None:
        super().__init__(student, teacher)
        channels = [[shape[0] for shape in side.maps] for side in (student, teacher)]
        if channels[0] != channels[1] or len(channels[0]) < 2:
            raise RecipeError(
                f"fsp needs two maps or more on each side, with equal channels: {student} against {teacher}; "
                "choose networks of one width, or a loss that takes any, such as at, sp or vid"
            )
        self.keep = keep

    def loss(self, student: Taps, teacher: Taps, labels: Tensor | None, indices: Tensor | None) -> dict[str, Tensor]:
        """The loss of the first stage if it is kept, else 0 and the loss as a scalar to log."""
        if self.keep:
            return self.init_loss(student, teacher)
        with torch.no_grad():
            loss = self.init_loss(student, teacher)["loss"]
        return {"loss": torch.zeros_like(loss), "fsp": loss}

    def init_loss(self, student: Taps, teacher: Taps) -> dict[str, Tensor]:
        """See `fsp_loss`."""
        return {"loss": fsp_loss(student.maps, teacher.maps)}
