"""FT: the teacher's last map is first paraphrased into fewer channels, then the student's translation must match that.

The paraphraser is an autoencoder of the teacher's map that learns alone in the first stage; its code has `rate` times
the teacher's channels. In the main stage it stands still, and the translator learns with the student.

Reference: Kim et al., Paraphrasing Complex Network: Network Compression via Factor Transfer, arXiv:1802.04977:
the reconstruction loss and the factor transfer loss.

Deliberate differences: as in RepDistiller, whose weight 200 goes with it, the factors are compared as attention maps:
squares averaged over channels, of unit length, in absolute differences. The paper normalises the whole factors. For the
first stage of ResNets RepDistiller takes a learning rate of .01 instead of .05.
"""

import itertools
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from odonata.distill.losses.attention import attention_map
from odonata.distill.losses.interface import DistillLoss, Taps, TapShapes, stage_pairs, to_common_size

_SLOPE = 0.1


def factor_loss(
    student: Float[Tensor, "batch channels student_height student_width"],
    teacher: Float[Tensor, "batch channels teacher_height teacher_width"],
) -> Float[Tensor, ""]:
    """Mean absolute difference of the factors' attention maps.

    Source: RepDistiller `distiller_zoo/FT.py`; Kim et al. 2018, the factor transfer loss with p = 1.
    """
    student, teacher = to_common_size(student, teacher)
    return (attention_map(student) - attention_map(teacher)).abs().mean()


class Paraphraser(nn.Module):
    """An autoencoder of maps: three 3 × 3 convolutions, three transposed ones.

    Args:
        channels: of the map.
        factors: channels of the code.

    Source: Kim et al. 2018, figure 2; without batch norm, as in RepDistiller.
    """

    def __init__(self, channels: int, factors: int) -> None:
        super().__init__()
        self.encoder = _convolutions(nn.Conv2d, (channels, channels, factors, factors))
        self.decoder = _convolutions(nn.ConvTranspose2d, (factors, factors, channels, channels))

    def forward(self, features: Float[Tensor, "batch channels height width"]) -> Tensor:
        """Returns the map as the code allows to rebuild it."""
        return self.decoder(self.encoder(features))


class FactorLoss(DistillLoss):
    """FT of the last maps.

    Args:
        student, teacher: shapes of the taps.
        rate: channels of the factors over the teacher's.
    """

    needs = frozenset({"maps"})
    beta = 200.0
    two_stage = True

    def __init__(self, student: TapShapes, teacher: TapShapes, rate: float = 0.5) -> None:
        super().__init__(student, teacher)
        stage_pairs(student, teacher)
        ours, theirs = student.maps[-1][0], teacher.maps[-1][0]
        factors = max(int(theirs * rate), 1)
        self.paraphraser = Paraphraser(theirs, factors)
        self.translator = _convolutions(nn.Conv2d, (ours, ours, factors, factors), norm=True)

    def loss(self, student: Taps, teacher: Taps, labels: Tensor | None, indices: Tensor | None) -> dict[str, Tensor]:
        """See `factor_loss`."""
        with torch.no_grad():
            factors = self.paraphraser.encoder(teacher.maps[-1])
        return {"loss": factor_loss(self.translator(student.maps[-1]), factors)}

    def init_loss(self, student: Taps, teacher: Taps) -> dict[str, Tensor]:
        """Mean squared error of the paraphraser, its reconstruction loss."""
        features = teacher.maps[-1]
        return {"loss": F.mse_loss(self.paraphraser(features), features)}

    def init_parameters(self) -> Iterator[nn.Parameter]:
        """The paraphraser."""
        return self.paraphraser.parameters()

    def main_parameters(self) -> Iterator[nn.Parameter]:
        """The translator."""
        return self.translator.parameters()


def _convolutions(
    kind: type[nn.Conv2d] | type[nn.ConvTranspose2d], widths: tuple[int, ...], norm: bool = False
) -> nn.Sequential:
    parts: list[nn.Module] = []
    for channels, out_channels in itertools.pairwise(widths):
        parts.append(kind(channels, out_channels, 3, stride=1, padding=1))
        if norm:
            parts.append(nn.BatchNorm2d(out_channels))
        parts.append(nn.LeakyReLU(_SLOPE))
    return nn.Sequential(*parts)
