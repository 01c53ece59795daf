"""What every tower offers, so that no method needs to know which one it stands on."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

Format = Literal["native", "nchw", "nlc"]
"""How `features` returns what it taps: as the tower has it, as maps, or as a sequence of cells row by row."""


@dataclass(frozen=True)
class Tap:
    """What one layer of a tower gives."""

    channels: int
    """Width of a cell or token."""
    stride: int
    """Pixels of the image from one cell to the next."""


class Backbone(nn.Module, ABC):
    """A network from images to features.

    Transformers have tokens as features, convolutional towers have maps. A layer is a block of a plain transformer, and
    a stage of a tower that has stages. The classifier, where there is one, is `head`.
    """

    family: ClassVar[str]
    """Name of the family in `odonata.backbones.FAMILIES`."""
    config: Any
    """The frozen dataclass that it was built from."""
    num_features: int
    """Width of the pooled features that `forward_head(…, pre_logits=True)` returns."""
    head: nn.Module
    """The classifier, or an identity."""
    checkpointing: bool = False
    """Whether activations are recomputed in the backward pass; see `set_checkpointing`."""

    @property
    @abstractmethod
    def taps(self) -> tuple[Tap, ...]:
        """What each layer gives, in order."""

    @abstractmethod
    def forward_features(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch tokens dim"] | Float[Tensor, "batch dim height width"]:
        """Tokens after the final norm, or the last feature map."""

    @abstractmethod
    def forward_head(
        self, features: Tensor, pre_logits: bool = False
    ) -> Float[Tensor, "batch out_dim"] | Float[Tensor, "batch tokens dim"]:
        """Pools what `forward_features` returned; `pre_logits` leaves the classifier out."""

    @abstractmethod
    def features(
        self, images: Float[Tensor, "batch channels height width"], layers: Sequence[int], format: Format = "native"
    ) -> list[Tensor]:
        """Intermediate tokens or maps after the named layers; negative numbers count back.

        What lies above the topmost of them is not computed. `nchw` and `nlc` leave out class, register and other
        prefix tokens.

        Raises:
            ValueError: a layer does not exist.
        """

    def forward(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch out_dim"] | Float[Tensor, "batch tokens dim"]:
        """Pooled features, or class logits after `reset_head`."""
        return self.forward_head(self.forward_features(images))

    def reset_head(self, num_classes: int) -> None:
        """Puts a new linear classifier on the pooled features, N(0, 0.01²) with zero bias; 0 takes it away."""
        if num_classes == 0:
            self.head = nn.Identity()
            return
        self.head = nn.Linear(self.num_features, num_classes).to(next(self.parameters()))
        nn.init.trunc_normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def set_checkpointing(self, on: bool) -> None:
        """Recompute activations in the backward pass instead of keeping them."""
        for module in self.modules():
            if hasattr(module, "checkpointing"):
                setattr(module, "checkpointing", on)  # noqa: B010 - no type declares it on nn.Module


def channels_last(
    images: Float[Tensor, "batch channels height width"],
) -> Float[Tensor, "batch channels height width"]:
    """Returns the same images in the memory order in which a convolutional tower is fastest; all its maps keep it.

    That is channels last on CPUs, at any size of picture, and on GPUs in half precision. In float32 a GPU's
    convolutions are fastest as the images come.
    """
    device = images.device.type
    half = device == "cuda" and (images.dtype != torch.float32 or torch.is_autocast_enabled(device))
    return images.contiguous(memory_format=torch.channels_last) if half or device == "cpu" else images


def map_in_format(feature_map: Float[Tensor, "batch channels height width"], format: Format) -> Tensor:
    """Returns a feature map as it is asked for."""
    return feature_map.flatten(2).transpose(1, 2) if format == "nlc" else feature_map


def tokens_in_format(
    tokens: Float[Tensor, "batch tokens dim"], prefix_tokens: int, grid: tuple[int, int], format: Format
) -> Tensor:
    """Returns tokens as they are asked for.

    Args:
        tokens: prefix tokens first, then the patches row by row.
        prefix_tokens: their number.
        grid: rows and columns of the patches.
        format: `native` returns all tokens.
    """
    if format == "native":
        return tokens
    patches = tokens[:, prefix_tokens:]
    return patches if format == "nlc" else patches.transpose(1, 2).unflatten(2, grid)
