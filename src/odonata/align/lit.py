"""LiT: CLIP with a pretrained tower locked, so that the other one learns to read out what it knows.

"Locked-image tuning" keeps a strong pretrained image tower and trains only the text tower: with few pairs it beats
both fine-tuning that tower and training from scratch (2111.07991, fig. 2–4, settings Lu > uu > UU), since the pairs
cannot spoil what the tower learned on better data. The locked tower stays in evaluation mode: no dropout, no update of
statistics.

Reference: Zhai et al., LiT: Zero-Shot Transfer with Locked-image text Tuning, arXiv:2111.07991. As there, the image
feature is used without a projection and the text feature is projected to its width. With a logit bias the objective is
SigLIP's (SigLiT, 2303.15343, sec. 4.1); without, CLIP's.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Self

import torch
from torch import Tensor, nn

from odonata.align.batch import ImageTextBatch
from odonata.align.dual_encoder import DualEncoder
from odonata.align.losses import sigmoid_loss, softmax_loss
from odonata.align.two_tower import TwoTowerConfig, alike, clamp_logit_scale, contrastive_step
from odonata.engine.method import Method
from odonata.errors import RecipeError

if TYPE_CHECKING:
    from odonata.engine.fit import Engine


@dataclass(frozen=True)
class LiTConfig(TwoTowerConfig):
    """LiT: one tower locked."""

    lock: Literal["image", "text", "none"] = "image"
    """Which tower keeps its weights."""
    tower: str = ""
    """Run or published weights to take the locked tower from; empty, on the embedded scenes: a classifier of digits
    and colours, trained first."""
    tower_steps: int = 300
    """Steps of that classifier."""

    def check(self) -> None:
        """Refuse values that contradict each other.

        Raises:
            RecipeError: names the option.
        """
        super().check()
        if self.tower_steps < 1:
            raise RecipeError(f"--tower-steps is {self.tower_steps}; it must be at least 1")
        if self.tower and self.init:
            raise RecipeError("--tower does not go together with --init: the weights bring their own image tower")
        if self.tower and self.lock != "image":
            raise RecipeError(f"--tower names the image tower to lock, and --lock is {self.lock}")
        if self.lock == "text" and not self.init:
            raise RecipeError("--lock text keeps a pretrained text tower: name its weights with --init")


class LiT(Method):
    """A pair of towers of which one is locked.

    Args:
        config: the method's options.
        model: the towers, the locked one with its pretrained weights.
    """

    def __init__(self, config: LiTConfig, model: DualEncoder) -> None:
        super().__init__()
        self.config, self.model = config, model
        for module in self.locked():
            module.requires_grad_(False)

    def locked(self) -> tuple[nn.Module, ...]:
        """Return the modules that keep their weights."""
        match self.config.lock:
            case "image":
                return self.model.visual, self.model.visual_projection
            case "text":
                return self.model.text, self.model.text_projection
            case "none":
                return ()

    def train(self, mode: bool = True) -> Self:
        """Switch to training, except what is locked."""
        super().train(mode)
        for module in self.locked():
            module.eval()
        return self

    def objective(self, image: Tensor, text: Tensor, batch: ImageTextBatch) -> dict[str, Tensor]:
        """Return CLIP's loss, or SigLIP's where the towers have a bias, and the scale."""
        scale, bias = self.model.logit_scale, self.model.logit_bias
        pairs = alike(batch, self.config.duplicates)
        if bias is None:
            loss = softmax_loss(image, text, scale, **pairs)
        else:
            loss = sigmoid_loss(image, text, scale, bias, **pairs)
        return {"loss": loss, "logit_scale": scale.detach().exp()}

    def loss(self, batch: ImageTextBatch) -> dict[str, Tensor]:
        """Return the loss of a batch and the logit scale; no graph is kept through a locked tower."""
        with self._graph("image"):
            image = self.model.encode_image(batch.images, mask=batch.mask, grids=batch.grids)
        with self._graph("text"):
            text = self.model.encode_text(batch.tokens)
        return self.objective(image, text, batch)

    def _graph(self, tower: str) -> contextlib.AbstractContextManager[object]:
        return torch.no_grad() if self.config.lock == tower else contextlib.nullcontext()

    def step(self, batch: ImageTextBatch, engine: Engine) -> dict[str, Tensor]:
        """Do one update."""
        return contrastive_step(self, self.model, self.objective, batch, engine, self.config.micro_batch)

    def after_update(self) -> None:
        """Clip the temperature."""
        clamp_logit_scale(self.model)
