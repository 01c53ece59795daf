"""MoBY: MoCo v2's queue and BYOL's asymmetry, for hierarchical Vision Transformers.

Both views are queries in turn. The online network ends in a projector and a predictor; the target network, which
follows slowly, in a projector. Each view has a queue of its own: the queries of view 1 are compared with keys of view
2, their own and those of earlier batches, and the other way round.

Reference: Xie et al., Self-Supervised Learning with Swin Transformers, arXiv:2105.04553, sec. 3.1 and algorithm 1.
Details from SwinTransformer/Transformer-SSL `models/moby.py`: the two losses are summed, not averaged; batch
normalisation of the heads sees all ranks; stochastic depth acts online only.

Differences: K need not be a multiple of the batch, the queues wrap around. For pictures below 48 pixels there is no
blur. The target follows after the update instead of before the next keys, with the momentum of that next step: the
same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from odonata.backbones.interface import Backbone
from odonata.data.pictures import View, ViewBatch
from odonata.data.preprocess import Preprocess
from odonata.errors import RecipeError
from odonata.nn.momentum import Queue, cosine_momentum, follow, slow_copy
from odonata.nn.synced_norm import sync_batch_norms
from odonata.nn.transformer import DropPath
from odonata.represent.augmentations import byol
from odonata.represent.moco import info_nce
from odonata.represent.representation import Representation, TowerOptions, embedding_spread


@dataclass(frozen=True)
class MoBYConfig(TowerOptions):
    """MoBY at laptop size; the paper's values beside each."""

    dim: int = 256
    """Width of an embedding."""
    hidden: int = 512
    """Hidden width of projector and predictor (the paper: 4096)."""
    queue: int = 4096
    """K, the keys of each queue."""
    momentum: float = 0.99
    """How slowly the target follows at the start; a half cosine leads to 1."""
    temperature: float = 0.2
    """Of the softmax."""
    drop_path: float = 0.0
    """Stochastic depth of the online network's last block, for towers that have it (the paper: 0.2)."""
    crop_scale: tuple[float, float] = (0.2, 1.0)
    """Least and most share of the area in a view (the original: 0.08)."""
    lr_per: int = 512
    """--optim.lr is meant for so many pictures a step and scaled to the batch in proportion (0 = take it as it is)."""

    def __post_init__(self) -> None:
        if not 0 <= self.momentum <= 1:
            raise RecipeError(f"--momentum is {self.momentum}; it lies in [0, 1]")
        if self.temperature <= 0:
            raise RecipeError(f"--temperature is {self.temperature}; it must be positive")
        if self.queue < 1:
            raise RecipeError(f"--queue is {self.queue}; it must be at least 1")


def head(width: int, hidden: int, dim: int) -> nn.Sequential:
    """Return MoBY's head: Linear, batch normalisation, ReLU, Linear."""
    layers = (nn.Linear(width, hidden), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True), nn.Linear(hidden, dim))
    return sync_batch_norms(nn.Sequential(*layers))


class MoBY(Representation):
    """Online network, slow target and two queues.

    Args:
        config: the method's options.
        backbone: the tower that learns.
        preprocess: of the pictures.
    """

    def __init__(self, config: MoBYConfig, backbone: Backbone, preprocess: Preprocess) -> None:
        super().__init__(config, backbone, preprocess)
        self.config = config
        self.chance = 2 * math.log(config.queue + 1)
        self.projector = head(backbone.num_features, config.hidden, config.dim)
        self.predictor = head(config.dim, config.hidden, config.dim)
        self.slow_backbone, self.slow_projector = slow_copy(backbone), slow_copy(self.projector)
        for module in self.slow_backbone.modules():
            if isinstance(module, DropPath):
                module.rate = 0.0
        self.queue1, self.queue2 = Queue(config.queue, config.dim), Queue(config.queue, config.dim)
        self.momentum = config.momentum

    @staticmethod
    def views(config: TowerOptions) -> Sequence[View]:
        """BYOL's two distributions, one view of each."""
        assert isinstance(config, MoBYConfig)
        size, scale = config.image_size, config.crop_scale
        return (View(byol(size, scale, 1.0, 0.0)), View(byol(size, scale, 0.1, 0.2)))

    def loss(self, batch: ViewBatch) -> dict[str, Tensor]:
        """Return the symmetric loss of a batch of two views, and how often the positive comes first; keys enter."""
        first, second = (self.pixels(view) for view in batch.views)
        query1, query2 = self._query(first), self._query(second)
        with torch.no_grad():
            key1, key2 = (F.normalize(self.slow_projector(self.slow_backbone(view)), dim=1) for view in (first, second))
        loss1, logits1 = info_nce(query1, key2, self.queue2(), self.config.temperature)
        loss2, logits2 = info_nce(query2, key1, self.queue1(), self.config.temperature)
        self.queue1.push(key1)
        self.queue2.push(key2)
        right = torch.cat([logits1, logits2]).detach().argmax(1) == 0
        return {"loss": loss1 + loss2, "instance_top1": right.float().mean(), "spread": embedding_spread(query1)}

    def _query(self, view: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch dim"]:
        return F.normalize(self.predictor(self.projector(self.backbone(view))), dim=1)

    def begin_step(self, step: int, steps: int) -> None:
        """Set the momentum of the keys that come next; the original's first step leaves equal weights equal."""
        super().begin_step(step, steps)
        self.momentum = cosine_momentum(step + 1, steps, self.config.momentum)

    def after_update(self) -> None:
        """Let the target follow, before the next batch's keys."""
        follow(self.slow_backbone, self.backbone, self.momentum)
        follow(self.slow_projector, self.projector, self.momentum)
