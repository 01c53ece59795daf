"""VID: maximise a lower bound of the mutual information between the two networks' maps.

The teacher's map is modelled as a Gaussian whose mean is a small network of the student's map and whose variance is one
number per channel, constant over places and samples. Channels that the student cannot predict get a large variance and
cease to matter.

Reference: Ahn et al., Variational Information Distillation for Knowledge Transfer, arXiv:1904.05835:
the variational bound with a Gaussian whose variance depends on the channel alone.

Deliberate differences: RepDistiller's mean network (three 1 × 1 convolutions without bias and norm), start of the
variance (5) and mean over all entries; the softplus is torch's, which does not overflow.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from odonata.distill.losses.interface import DistillLoss, Taps, TapShapes, stage_pairs, to_common_size

_EPS = 1e-5


def gaussian_nll(
    mean: Float[Tensor, "batch channels height width"],
    variance: Float[Tensor, "channels"],
    target: Float[Tensor, "batch channels height width"],
) -> Float[Tensor, ""]:
    """Negative log-likelihood of `target`, without its constant, mean over all entries.

    Source: Ahn et al. 2019, −log q(t | s) of the Gaussian, divided by the number of entries.
    """
    variance = variance.view(1, -1, 1, 1)
    return ((mean - target).square() / variance + variance.log()).mean() / 2


class GaussianHead(nn.Module):
    """The variational distribution of one pair of maps.

    Args:
        student_channels, teacher_channels: of the maps.
        initial_variance: of every channel at the start.
    """

    def __init__(self, student_channels: int, teacher_channels: int, initial_variance: float = 5.0) -> None:
        super().__init__()
        self.mean = nn.Sequential(
            nn.Conv2d(student_channels, teacher_channels, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(teacher_channels, teacher_channels, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(teacher_channels, teacher_channels, 1, bias=False),
        )
        start = math.log(math.expm1(initial_variance - _EPS))
        self.alpha = nn.Parameter(torch.full((teacher_channels,), start))

    def forward(
        self,
        student: Float[Tensor, "batch student_channels student_height student_width"],
        teacher: Float[Tensor, "batch teacher_channels teacher_height teacher_width"],
    ) -> Float[Tensor, ""]:
        """Returns the negative log-likelihood of the teacher's map."""
        student, teacher = to_common_size(student, teacher)
        # As in the paper, the variance is a softplus and stays above epsilon.
        return gaussian_nll(self.mean(student), F.softplus(self.alpha) + _EPS, teacher)


class VIDLoss(DistillLoss):
    """VID summed over all paired stages.

    Args:
        student, teacher: shapes of the taps.
        initial_variance: of every channel at the start.
    """

    needs = frozenset({"maps"})
    beta = 1.0

    def __init__(self, student: TapShapes, teacher: TapShapes, initial_variance: float = 5.0) -> None:
        super().__init__(student, teacher)
        self.pairs = stage_pairs(student, teacher)
        self.heads = nn.ModuleList(
            [GaussianHead(student.maps[s][0], teacher.maps[t][0], initial_variance) for s, t in self.pairs]
        )

    def loss(self, student: Taps, teacher: Taps, labels: Tensor | None, indices: Tensor | None) -> dict[str, Tensor]:
        """See `gaussian_nll`."""
        losses = [head(student.maps[s], teacher.maps[t]) for head, (s, t) in zip(self.heads, self.pairs, strict=True)]
        return {"loss": torch.stack(losses).sum()}
