"""AB: the student's neurons must be on and off where the teacher's are; how strongly does not matter.

Boundaries between on and off hold most of what a network decides. Before the student learns its classes, its body
learns them: a hinge on what stands before the activation, squared, with a margin that keeps the gradient alive.

Reference: Heo et al., Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons,
arXiv:1811.03233, the alternative (hinge) form of the activation transfer loss.

Deliberate differences: none from RepDistiller, whose scale 3/1000 and halving weights of earlier stages are the
authors' code's, but for the regressor's sizes (`odonata.distill.losses.regressor`). In the main stage the loss is
reported and not minimised, as there; `keep` minimises it too.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn

from odonata.distill.losses.interface import DistillLoss, Taps, TapShapes, pair_stages
from odonata.distill.losses.regressor import ConvRegressor
from odonata.errors import RecipeError


def boundary_loss(
    student: Float[Tensor, "batch channels height width"],
    teacher: Float[Tensor, "batch channels height width"],
    margin: float = 1.0,
) -> Float[Tensor, ""]:
    """Squared hinge of the student's preactivations, sum over all entries.

    Source: Heo et al. 2019, the alternative activation transfer loss; RepDistiller `distiller_zoo/AB.py`.
    """
    on = teacher > 0
    too_high = (student + margin).clamp(min=0).masked_fill(on, 0)
    # A student exactly at the margin is at zero loss either way.
    too_low = (margin - student).clamp(min=0).masked_fill(~on, 0)
    return too_high.square().sum() + too_low.square().sum()


class ABLoss(DistillLoss):
    """AB of the preactivations of all paired stages.

    Args:
        student, teacher: shapes of the taps.
        margin: how far the student's preactivations should be from zero.
        keep: whether the main stage minimises the loss too.

    Raises:
        RecipeError: a network has no preactivations.
    """

    needs = frozenset({"preactivations"})
    two_stage = True
    init_trains_student = True

    def __init__(self, student: TapShapes, teacher: TapShapes, margin: float = 1.0, keep: bool = False) -> None:
        super().__init__(student, teacher)
        for side in (student, teacher):
            if not side.preactivations:
                raise RecipeError(f"ab compares preactivations, and {side} brings none; choose fitnets, at or vid")
        pairs = pair_stages(len(student.preactivations), len(teacher.preactivations))
        self.pairs = [(s - 1, t - 1) for s, t in pairs]
        self.margin, self.keep = margin, keep
        shapes = [(student.preactivations[s], teacher.preactivations[t]) for s, t in self.pairs]
        self.connectors = nn.ModuleList(
            [nn.Identity() if ours == theirs else ConvRegressor(ours, theirs, relu=False) for ours, theirs in shapes]
        )

    def loss(self, student: Taps, teacher: Taps, labels: Tensor | None, indices: Tensor | None) -> dict[str, Tensor]:
        """The loss of the first stage if it is kept, else 0 and the loss as a scalar to log."""
        if self.keep:
            return self.init_loss(student, teacher)
        with torch.no_grad():
            loss = self.init_loss(student, teacher)["loss"]
        return {"loss": torch.zeros_like(loss), "ab": loss}

    def init_loss(self, student: Taps, teacher: Taps) -> dict[str, Tensor]:
        """See `boundary_loss`: over the batch, times 3/1000, and halved with every stage before the last."""
        losses: list[Tensor] = []
        for place, (connector, (s, t)) in enumerate(zip(self.connectors, self.pairs, strict=True), start=1):
            ours, theirs = connector(student.preactivations[s]), teacher.preactivations[t]
            weight = 3e-3 * 2.0 ** (place - len(self.pairs))
            losses.append(boundary_loss(ours, theirs, self.margin) * (weight / len(ours)))
        return {"loss": torch.stack(losses).sum()}

    def init_parameters(self) -> Iterator[nn.Parameter]:
        """The connectors."""
        return self.parameters()

    def main_parameters(self) -> Iterator[nn.Parameter]:
        """The connectors if the loss is kept, else nothing."""
        return self.parameters() if self.keep else iter(())
