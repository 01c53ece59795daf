"""What every tower offers, so that no method needs to know which one it stands on."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor


@runtime_checkable
class Backbone(Protocol):
    """A network from images to features.

    `forward(images)` equals `forward_head(forward_features(images))`. Transformers have tokens as features,
    convolutional towers have maps.
    """

    num_features: int
    """Width of the pooled features that `forward_head(…, pre_logits=True)` returns."""

    def forward(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch out_dim"] | Float[Tensor, "batch tokens dim"]:
        """Pooled features, or class logits after `reset_head`."""
        ...

    def forward_features(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch tokens dim"] | Float[Tensor, "batch dim height width"]:
        """Tokens after the final norm, or the last feature map."""
        ...

    def forward_head(
        self, features: Tensor, pre_logits: bool = False
    ) -> Float[Tensor, "batch out_dim"] | Float[Tensor, "batch tokens dim"]:
        """Pools what `forward_features` returned; `pre_logits` leaves the classifier out."""
        ...

    def features(self, images: Float[Tensor, "batch channels height width"], layers: Sequence[int]) -> list[Tensor]:
        """Intermediate tokens or maps after the named blocks or stages; negative numbers count back."""
        ...

    def reset_head(self, num_classes: int) -> None:
        """Puts a new linear classifier on the pooled features; 0 takes it away."""
        ...
