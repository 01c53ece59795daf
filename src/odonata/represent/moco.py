"""MoCo: contrast against a queue of keys from a slow encoder.

A query must find its own key, the other view of its picture, among K keys of earlier batches. The keys come from an
encoder that follows the query's slowly, so that the queue stays consistent while it is far larger than a batch. v2
adds a projector of two layers, stronger augmentation, a higher temperature and a cosine schedule.

References: He et al., Momentum Contrast, arXiv:1911.05722; Chen et al., Improved Baselines with Momentum Contrastive
Learning, arXiv:2003.04297. Details from facebookresearch/moco `moco/builder.py`: the key encoder follows before keys
are computed, keys enter the queue after the logits, statistics of batch normalisation do not follow.

Batch normalisation lets a network cheat, because query and key share a batch; the original shuffles keys among GPUs.
Here keys are shuffled and normalised in `bn_groups` parts, so that one device is enough.

Differences: K need not be a multiple of the batch, the queue wraps around. On many devices each shuffles its own
share of the batch; nothing is exchanged but the keys for the queue.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from odonata.backbones.interface import Backbone
from odonata.data.pictures import View, ViewBatch
from odonata.data.preprocess import Preprocess
from odonata.errors import RecipeError
from odonata.nn.momentum import Queue, follow, slow_copy
from odonata.represent.augmentations import moco_v1, moco_v2
from odonata.represent.representation import Representation, TowerOptions, embedding_spread


@dataclass(frozen=True)
class MoCoConfig(TowerOptions):
    """MoCo v1; see `moco_v2` for what the second version changes."""

    dim: int = 128
    """Width of an embedding."""
    queue: int = 4096
    """K, the keys that a query is compared with (the paper: 65,536)."""
    momentum: float = 0.99
    """How slowly the key encoder follows (the paper: 0.999)."""
    temperature: float = 0.07
    """Of the softmax: 0.07 in v1, 0.2 in v2."""
    mlp: bool = False
    """Whether the projector has a hidden layer (v2)."""
    augmentation: Literal["v1", "v2"] = "v1"
    """Views: v1, or v2 with weaker colour and blur."""
    bn_groups: int = 4
    """Parts in which keys are shuffled and batch-normalised, each with statistics of its own and two pictures at least
    (1 = no shuffling)."""

    def __post_init__(self) -> None:
        for name, low in (("dim", 1), ("queue", 1), ("bn_groups", 1)):
            if getattr(self, name) < low:
                raise RecipeError(f"--{name.replace('_', '-')} is {getattr(self, name)}; it must be at least {low}")
        if not 0 <= self.momentum <= 1:
            raise RecipeError(f"--momentum is {self.momentum}; it lies in [0, 1]")
        if self.temperature <= 0:
            raise RecipeError(f"--temperature is {self.temperature}; it must be positive")


def info_nce(
    queries: Float[Tensor, "batch dim"],
    keys: Float[Tensor, "batch dim"],
    negatives: Float[Tensor, "queue dim"],
    temperature: float,
) -> tuple[Float[Tensor, ""], Float[Tensor, "batch candidates"]]:
    """Return MoCo's loss (eq. 1) and the logits, the positive first.

    Args:
        queries: unit length.
        keys: unit length; row i is the positive of query i.
        negatives: unit length, the same for all queries.
        temperature: τ.
    """
    # Half precision has too few digits near a cosine of 1 for a temperature of 0.07.
    wide = torch.promote_types(queries.dtype, torch.float32)
    with torch.autocast(queries.device.type, enabled=False):
        queries, keys, negatives = queries.to(wide), keys.to(wide), negatives.to(wide)
        positive = (queries * keys).sum(1, keepdim=True)
        logits = torch.cat([positive, queries @ negatives.T], 1) / temperature
    return F.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.long)), logits


class MoCo(Representation):
    """Query encoder, key encoder and queue.

    Args:
        config: the method's options.
        backbone: the query's tower.
        preprocess: of the pictures.
    """

    def __init__(self, config: MoCoConfig, backbone: Backbone, preprocess: Preprocess) -> None:
        super().__init__(config, backbone, preprocess)
        self.config = config
        self.chance = math.log(config.queue + 1)
        width = backbone.num_features
        hidden = [nn.Linear(width, width), nn.ReLU(inplace=True)] if config.mlp else []
        self.projector = nn.Sequential(*hidden, nn.Linear(width, config.dim))
        self.slow_backbone, self.slow_projector = slow_copy(backbone), slow_copy(self.projector)
        self.queue = Queue(config.queue, config.dim)

    @staticmethod
    def views(config: TowerOptions) -> Sequence[View]:
        """Two views of one distribution."""
        assert isinstance(config, MoCoConfig)
        return (View((moco_v1 if config.augmentation == "v1" else moco_v2)(config.image_size), 2),)

    def loss(self, batch: ViewBatch) -> dict[str, Tensor]:
        """Return the loss of a batch of two views, and how often the positive comes first; keys enter the queue."""
        query_view, key_view = (self.pixels(view) for view in batch.views)
        queries = F.normalize(self.projector(self.backbone(query_view)), dim=1)
        keys = self._keys(key_view)
        loss, logits = info_nce(queries, keys, self.queue(), self.config.temperature)
        self.queue.push(keys)
        right = (logits.detach().argmax(1) == 0).float().mean()
        return {"loss": loss, "instance_top1": right, "spread": embedding_spread(queries)}

    @torch.no_grad()
    def _keys(self, view: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch dim"]:
        groups = max(1, min(self.config.bn_groups, len(view) // 2))
        order = torch.randperm(len(view)) if groups > 1 else torch.arange(len(view))
        order = order.to(view.device)
        parts = [self.slow_projector(self.slow_backbone(part)) for part in view[order].tensor_split(groups)]
        keys = torch.cat(parts)
        return F.normalize(keys[order.argsort()], dim=1)

    def load_published_rest(self, rest: dict[str, Tensor]) -> list[str]:
        """Take the projector of the original's checkpoint, which calls it `fc`."""
        found = {key.removeprefix("fc."): value for key, value in rest.items() if key.startswith("fc.")}
        if not self.config.mlp:
            found = {f"0.{key}": value for key, value in found.items()}
        own = self.projector.state_dict()
        if found.keys() != own.keys() or any(found[key].shape != own[key].shape for key in own):
            return ["the projector starts anew"]
        self.projector.load_state_dict(found)
        self.slow_projector.load_state_dict(found)
        return ["projector: fc of the checkpoint; the queue starts anew"]

    def after_update(self) -> None:
        """Let the key encoder follow, before the next batch's keys."""
        follow(self.slow_backbone, self.backbone, self.config.momentum)
        follow(self.slow_projector, self.projector, self.config.momentum)
