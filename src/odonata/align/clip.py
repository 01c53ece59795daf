"""CLIP: pictures and captions in one space, matched against the rest of the batch.

Two towers embed pictures and captions; each picture must find its caption among all captions of the global batch, and
each caption its picture, by a softmax over cosines with a learned temperature. The trained model classifies by
comparing a picture with sentences about the classes: the zero-shot ImageNet accuracy of ViT-L/14@336 is 76.2 % (table
11).

Reference: Radford et al., Learning Transferable Visual Models From Natural Language Supervision, arXiv:2103.00020.

Differences from the original, all on purpose:
- `duplicates`: rows with the same caption or picture count as further positives; in 400 M pairs they hardly occur, in a
  folder of one's own they dominate. `--duplicates negative` is the paper's.
- the logit scale stays within [1, 100]: the released training code of others clips both ends, the paper the upper one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from jaxtyping import Float
from torch import Tensor

from odonata.align.batch import ImageTextBatch
from odonata.align.dual_encoder import DualEncoder
from odonata.align.losses import softmax_loss
from odonata.align.two_tower import TwoTowerConfig, alike, clamp_logit_scale, contrastive_step, encode
from odonata.engine.method import Method

if TYPE_CHECKING:
    from odonata.engine.fit import Engine


@dataclass(frozen=True)
class CLIPConfig(TwoTowerConfig):
    """CLIP: softmax over the batch."""


def clip_objective(
    model: DualEncoder,
    image: Float[Tensor, "batch dim"],
    text: Float[Tensor, "batch dim"],
    batch: ImageTextBatch,
    duplicates: Literal["positive", "ignore", "negative"],
) -> dict[str, Tensor]:
    """Return the loss of figure 3 over the global batch, which FLIP and DFN share, and the scale."""
    loss = softmax_loss(image, text, model.logit_scale, **alike(batch, duplicates))
    return {"loss": loss, "logit_scale": model.logit_scale.detach().exp()}


class CLIP(Method):
    """CLIP on a pair of towers.

    Args:
        config: the method's options.
        model: the towers; see `odonata.align.dual_encoder_variants` for the paper's sizes.
    """

    def __init__(self, config: CLIPConfig, model: DualEncoder) -> None:
        super().__init__()
        self.config, self.model = config, model

    def objective(self, image: Tensor, text: Tensor, batch: ImageTextBatch) -> dict[str, Tensor]:
        """Return the loss of figure 3 over the global batch, and the scale."""
        return clip_objective(self.model, image, text, batch, self.config.duplicates)

    def loss(self, batch: ImageTextBatch) -> dict[str, Tensor]:
        """Return the loss of a batch and the logit scale."""
        return self.objective(*encode(self.model, batch), batch)

    def step(self, batch: ImageTextBatch, engine: Engine) -> dict[str, Tensor]:
        """Do one update."""
        return contrastive_step(self, self.model, self.objective, batch, engine, self.config.micro_batch)

    def after_update(self) -> None:
        """Clip the temperature."""
        clamp_logit_scale(self.model)
