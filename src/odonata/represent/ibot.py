"""The parts that DINOv2 adds to DINO: the masked-patch loss of iBOT, and KoLeo, which spreads the class tokens.

References: Zhou et al. 2021, iBOT, arXiv:2111.07832, eq. 2; Sablayrolles et al. 2019, arXiv:1806.03198, eq. 2 (KoLeo);
Oquab et al. 2023, DINOv2, arXiv:2304.07193, sec. 4.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from odonata.backbones.interface import Backbone
from odonata.nn.precision import full_precision


def koleo(features: Float[Tensor, "batch dim"]) -> Float[Tensor, ""]:
    """Return −mean log distance of each unit-length row to its nearest neighbour in this rank's batch, in float32.

    Args:
        features: any length; class tokens before the head.
    """
    with torch.autocast(features.device.type, enabled=False):
        unit = F.normalize(full_precision(features), dim=1, eps=1e-8)
        with torch.no_grad():
            nearest = (unit @ unit.T).fill_diagonal_(-1).argmax(1)
        return -(F.pairwise_distance(unit, unit[nearest], eps=1e-8) + 1e-8).log().mean()


def patch_weights(masks: Bool[Tensor, "pictures patches"]) -> Float[Tensor, "masked"]:
    """Return the weight of each hidden patch in the loss, in the order of `tokens[masks]`.

    Each picture's hidden patches count 1 together, and the loss is the mean over all pictures, those without a mask too
    (DINOv2 `ibot_patch_loss.py`, `forward_masked`).
    """
    weights = 1 / masks.sum(1, keepdim=True).clamp(min=1) / len(masks)
    return weights.expand_as(masks)[masks]


@contextlib.contextmanager
def hidden_patches(
    tower: Backbone, masks: Bool[Tensor, "pictures patches"], token: Float[Tensor, "dim"]
) -> Generator[None]:
    """Within this context the tower sees `token` in place of hidden patches; their positions stay.

    Args:
        tower: a Vision Transformer.
        masks: rows beyond its own, such as those of small crops of the same size, have nothing hidden.
        token: what stands there.
    """

    def replace(module: nn.Module, inputs: object, tokens: Tensor) -> Tensor:
        padded = F.pad(masks, (0, 0, 0, len(tokens) - len(masks)))
        return torch.where(padded[..., None], token.to(tokens.dtype), tokens)

    handle = tower.patch_embed.register_forward_hook(replace)  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
    try:
        yield
    finally:
        handle.remove()
