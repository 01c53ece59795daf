"""SigLIP: every pair of the batch is a question of its own, answered by a sigmoid.

Instead of normalising over the batch, each of the B² pairs is a binary classification with a learned temperature and a
learned bias. No pair needs to see another, so memory does not grow with the square of the batch, and small batches
train better than with a softmax: the paper's figure 2 has sigmoid ahead below 16 k pairs, and both saturate near 32 k.
SigLIP 2's flexible inputs (NaFlex) keep a picture's ratio: flat patches of any grid, positions resized for each
picture.

References: Zhai et al., Sigmoid Loss for Language Image Pre-Training, arXiv:2303.15343; Tschannen et al., SigLIP 2,
arXiv:2502.14786. The loss is divided by the batch, not by the number of pairs (algorithm 1).

Facts that decide whether it trains:
- the bias starts at −10 so that the flood of negatives begins near zero loss; fitted to a batch of 22 k. In short
  runs of small batches temperature and bias hardly move from their start, so both, and their rate, are options here.
- the text tower has neither causal nor padding mask and reads the last position of captions padded to the full length.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from odonata.align.batch import ImageTextBatch
from odonata.align.dual_encoder import DualEncoder
from odonata.align.losses import sigmoid_loss
from odonata.align.two_tower import TwoTowerConfig, alike, clamp_logit_scale, contrastive_step, encode
from odonata.engine.method import Method
from odonata.errors import RecipeError

if TYPE_CHECKING:
    from odonata.engine.fit import Engine


@dataclass(frozen=True)
class SigLIPConfig(TwoTowerConfig):
    """SigLIP: a sigmoid per pair."""

    variant: str = "siglip-laptop"
    """Architecture by name: a published one (ViT-B-16-SigLIP, ViT-B-16-SigLIP2-NaFlex, …) or one for a laptop."""
    scale_init: float = 10.0
    """t at the start; the paper's is 10. Weights given by --init keep theirs."""
    bias_init: float = -10.0
    """b at the start; the paper's is −10. −ln(batch) makes the first guesses calibrated."""


class SigLIP(Method):
    """SigLIP on a pair of towers.

    Args:
        config: the method's options.
        model: the towers; they must have a logit bias.

    Raises:
        RecipeError: the towers have no logit bias.
    """

    def __init__(self, config: SigLIPConfig, model: DualEncoder) -> None:
        super().__init__()
        if model.logit_bias is None:
            raise RecipeError(
                f"--variant {config.variant} has no logit bias; SigLIP needs one, such as ViT-B-16-SigLIP"
            )
        if config.scale_init <= 0:
            raise RecipeError(f"--scale-init is {config.scale_init}; it must be positive")
        self.config, self.model = config, model
        if not config.init:
            with torch.no_grad():
                model.logit_scale.fill_(math.log(config.scale_init))
                model.logit_bias.fill_(config.bias_init)

    def objective(self, image: Tensor, text: Tensor, batch: ImageTextBatch) -> dict[str, Tensor]:
        """Return the loss of algorithm 1 over the global batch, the scale and the bias."""
        scale, bias = self.model.logit_scale, self.model.logit_bias
        assert bias is not None
        loss = sigmoid_loss(image, text, scale, bias, **alike(batch, self.config.duplicates))
        return {"loss": loss, "logit_scale": scale.detach().exp(), "logit_bias": bias.detach()}

    def loss(self, batch: ImageTextBatch) -> dict[str, Tensor]:
        """Return the loss of a batch, the logit scale and the bias."""
        return self.objective(*encode(self.model, batch), batch)

    def step(self, batch: ImageTextBatch, engine: Engine) -> dict[str, Tensor]:
        """Do one update."""
        return contrastive_step(self, self.model, self.objective, batch, engine, self.config.micro_batch)

    def after_update(self) -> None:
        """Clip the temperature."""
        clamp_logit_scale(self.model)
