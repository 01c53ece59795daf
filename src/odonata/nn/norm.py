"""Normalisations of feature maps by name, frozen statistics among them."""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

NormName = Literal["batch", "frozen_batch", "group", "layer"]


class FrozenBatchNorm2d(nn.Module):
    """Batch normalisation whose statistics and affine parameters are constants, as detectors use pretrained towers.

    Args:
        channels: of the map.
        eps: added to the variance.

    Its state has the names of `nn.BatchNorm2d` but for `num_batches_tracked`, which is dropped on reading.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels height width"]:
        """Returns the map, each channel scaled and shifted."""
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: object) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        state_dict.pop(f"{prefix}num_batches_tracked", None)
        super()._load_from_state_dict(state_dict, prefix, *rest)  # pyright: ignore[reportArgumentType]

    def extra_repr(self) -> str:
        return f"{len(self.weight)}, eps={self.eps}"


def make_norm(name: NormName, channels: int, eps: float = 1e-5, momentum: float = 0.1, groups: int = 32) -> nn.Module:
    """Returns a normalisation of maps.

    Args:
        name: `batch`, `frozen_batch`, `group` (Wu and He 2018), or `layer`: one group, all channels and cells of a
            picture (Ba et al. 2016).
        channels: of the map.
        eps: added to the variance.
        momentum: of the running statistics, PyTorch's: the share of the new batch.
        groups: for `group`; fewer where a group would be a single channel, which would lose how strongly it answers.
    """
    if name == "group":
        return nn.GroupNorm(min(groups, max(1, channels // 2)), channels, eps)
    if name == "layer":
        return nn.GroupNorm(1, channels, eps)
    if name == "frozen_batch":
        return FrozenBatchNorm2d(channels, eps)
    return nn.BatchNorm2d(channels, eps, momentum)
