"""The convolutional regressor from a student's map to a teacher's, which FitNets and AB share.

The size decides its form, as in RepDistiller: stride 2 where the student's map is twice as large, a transposed
convolution where it is half as large, and otherwise a kernel without padding that leaves just the teacher's size (the
paper's own rule, FitNets sec. 2.2). Two cases are new: where the student's map is smaller by another factor, or where
that kernel would be wider than 9 and so outweigh both networks (43 × 43 from a 56 × 56 map to one of 14 × 14), the map
is pooled to the teacher's size and a 3 × 3 convolution follows.
"""

from jaxtyping import Float
from torch import Tensor, nn

from odonata.distill.losses.interface import MapShape

_WIDEST_KERNEL = 9


class ConvRegressor(nn.Module):
    """Convolution, batch norm and, for maps after an activation, ReLU.

    Args:
        student, teacher: channels, height and width of the maps.
        relu: whether the result is activated.
    """

    def __init__(self, student: MapShape, teacher: MapShape, relu: bool = True) -> None:
        super().__init__()
        self.conv = _fitting_convolution(student, teacher)
        self.norm = nn.BatchNorm2d(teacher[0])
        self.relu = nn.ReLU() if relu else nn.Identity()

    def forward(
        self, student: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch teacher_channels teacher_height teacher_width"]:
        """Returns the student's map in the teacher's shape."""
        return self.relu(self.norm(self.conv(student)))


def _fitting_convolution(student: MapShape, teacher: MapShape) -> nn.Module:
    channels, *size = student
    out_channels, *out_size = teacher
    if size == [2 * side for side in out_size]:
        return nn.Conv2d(channels, out_channels, 3, stride=2, padding=1)
    if [2 * side for side in size] == out_size:
        return nn.ConvTranspose2d(channels, out_channels, 4, stride=2, padding=1)
    kernel = (1 + size[0] - out_size[0], 1 + size[1] - out_size[1])
    if min(kernel) >= 1 and max(kernel) <= _WIDEST_KERNEL:
        return nn.Conv2d(channels, out_channels, kernel)
    return nn.Sequential(
        nn.AdaptiveAvgPool2d((out_size[0], out_size[1])), nn.Conv2d(channels, out_channels, 3, padding=1)
    )
