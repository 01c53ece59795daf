"""MoCo v3: contrast within the batch, without a queue, stable for Vision Transformers.

Both views are queries and keys in turn. A query, after a prediction head, must find its key among the keys of the whole
batch on all ranks. A slow encoder makes the keys. Vision Transformers train without dips in accuracy where the patch
projection stays as it was drawn.

Reference: Chen, Xie and He, An Empirical Study of Training Self-Supervised Vision Transformers, arXiv:2104.02057,
algorithm 1, sec. 4.2 (frozen patch projection) and app. A. Details from facebookresearch/moco-v3 `moco/builder.py`:
residual networks have a projector of two layers and no normalisation at the predictor's end, Vision Transformers a
projector of three and one there; no Linear has a bias; batch normalisation sees all ranks. ViT-S has 12 heads: take
`--backbone moco-v3-s16`.

Differences: for pictures below 48 pixels there is no blur. The slow encoder follows after the update instead of before
the next keys, with the momentum of that next step: the same numbers, and at the end of the run it is up to date.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from odonata.backbones.interface import Backbone
from odonata.data.pictures import View, ViewBatch
from odonata.data.preprocess import Preprocess
from odonata.errors import RecipeError
from odonata.nn.momentum import cosine_momentum, follow, gather_rows, slow_copy
from odonata.nn.synced_norm import sync_batch_norms
from odonata.represent.augmentations import byol
from odonata.represent.representation import Representation, TowerOptions, embedding_spread

_TRANSFORMERS = ("vit", "swin")


@dataclass(frozen=True)
class MoCoV3Config(TowerOptions):
    """MoCo v3 at laptop size; the paper's values beside each."""

    dim: int = 256
    """Width of an embedding."""
    hidden: int = 512
    """Hidden width of projector and predictor (the paper: 4096)."""
    heads: Literal["auto", "resnet", "vit"] = "auto"
    """Whose projector and predictor: auto takes those of the tower's kind."""
    momentum: float = 0.99
    """How slowly the key encoder follows at the start; a half cosine leads to 1."""
    temperature: float = 0.0
    """Of the softmax (0 = the paper's: 1 for residual networks, 0.2 for Vision Transformers)."""
    freeze_patch_embed: bool = True
    """Whether a Vision Transformer's patch projection stays as it was drawn."""
    crop_scale: tuple[float, float] = (0.2, 1.0)
    """Least and most share of the area in a view (the paper: 0.2 for ResNet-50, 0.08 for ViT)."""

    def __post_init__(self) -> None:
        if not 0 <= self.momentum <= 1:
            raise RecipeError(f"--momentum is {self.momentum}; it lies in [0, 1]")
        if self.temperature < 0:
            raise RecipeError(f"--temperature is {self.temperature}; it must be positive, or 0 for the paper's")


def mlp(layers: int, width: int, hidden: int, dim: int, last_norm: bool) -> nn.Sequential:
    """Return MoCo v3's head: Linears without bias, each but the last with normalisation and ReLU.

    Args:
        layers: number of Linears.
        width: of what enters.
        hidden: of the layers between.
        dim: of what leaves.
        last_norm: whether a normalisation without affine parameters ends it.
    """
    parts: list[nn.Module] = []
    for number in range(layers):
        last = number == layers - 1
        out = dim if last else hidden
        parts.append(nn.Linear(hidden if number else width, out, bias=False))
        if not last:
            parts += [nn.BatchNorm1d(out), nn.ReLU(inplace=True)]
        elif last_norm:
            parts.append(nn.BatchNorm1d(out, affine=False))
    return nn.Sequential(*parts)


def contrast_in_batch(
    queries: Float[Tensor, "batch dim"], keys: Float[Tensor, "batch dim"], temperature: float
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Return 2τ times the cross-entropy of each query's own key among all ranks' keys, and how often it is the nearest.

    Args:
        queries: of any length.
        keys: of any length; row i is the positive of query i; no gradient reaches them.
        temperature: τ.

    Source: algorithm 1, `ctr`; the factor 2τ keeps the gradient's size where τ changes.
    """
    wide = torch.promote_types(queries.dtype, torch.float32)
    with torch.autocast(queries.device.type, enabled=False):
        own = F.normalize(queries.to(wide), dim=1)
        everyone = gather_rows(F.normalize(keys.detach().to(wide), dim=1))
        logits = own @ everyone.T / temperature
    first = len(keys) * dist.get_rank() if dist.is_initialized() else 0
    labels = torch.arange(first, first + len(keys), device=logits.device)
    right = (logits.detach().argmax(1) == labels).float().mean()
    return 2 * temperature * F.cross_entropy(logits, labels), right


class MoCoV3(Representation):
    """Encoder with projector and predictor, and a slow copy of the first two.

    Args:
        config: the method's options.
        backbone: the tower that learns.
        preprocess: of the pictures.

    Its batch normalisations are replaced by ones over all ranks.
    """

    def __init__(self, config: MoCoV3Config, backbone: Backbone, preprocess: Preprocess) -> None:
        super().__init__(config, sync_batch_norms(backbone), preprocess)
        self.config = config
        of_vit = backbone.family in _TRANSFORMERS if config.heads == "auto" else config.heads == "vit"
        self.temperature = config.temperature or (0.2 if backbone.family in _TRANSFORMERS else 1.0)
        if config.freeze_patch_embed and backbone.family == "vit":
            self.backbone.get_submodule("patch_embed").requires_grad_(False)
        width = backbone.num_features
        self.projector = sync_batch_norms(mlp(3 if of_vit else 2, width, config.hidden, config.dim, True))
        self.predictor = sync_batch_norms(mlp(2, config.dim, config.hidden, config.dim, of_vit))
        self.slow_backbone, self.slow_projector = slow_copy(self.backbone), slow_copy(self.projector)
        self.momentum = config.momentum

    @staticmethod
    def views(config: TowerOptions) -> Sequence[View]:
        """BYOL's two distributions, one view of each."""
        assert isinstance(config, MoCoV3Config)
        size, scale = config.image_size, config.crop_scale
        return (View(byol(size, scale, 1.0, 0.0)), View(byol(size, scale, 0.1, 0.2)))

    def loss(self, batch: ViewBatch) -> dict[str, Tensor]:
        """Return the symmetric loss of a batch of two views, and how often a query's own key is the nearest."""
        first, second = (self.pixels(view) for view in batch.views)
        query1, query2 = self._query(first), self._query(second)
        with torch.no_grad():
            key1, key2 = (self.slow_projector(self.slow_backbone(view)) for view in (first, second))
        loss1, right1 = contrast_in_batch(query1, key2, self.temperature)
        loss2, right2 = contrast_in_batch(query2, key1, self.temperature)
        # What a model that knows nothing has depends on the batch over all ranks.
        ranks = dist.get_world_size() if dist.is_initialized() else 1
        self.chance = 4 * self.temperature * math.log(len(first) * ranks)
        return {"loss": loss1 + loss2, "instance_top1": (right1 + right2) / 2, "spread": embedding_spread(query1)}

    def _query(self, view: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch dim"]:
        return self.predictor(self.projector(self.backbone(view)))

    def load_published_rest(self, rest: dict[str, Tensor]) -> list[str]:
        """Take the projector of the original's checkpoint: `fc` of a residual network, `head` of a ViT."""
        for name in ("fc", "head"):
            found = {key.removeprefix(f"{name}."): value for key, value in rest.items() if key.startswith(f"{name}.")}
            own = self.projector.state_dict()
            if found.keys() == own.keys() and all(found[key].shape == own[key].shape for key in own):
                self.projector.load_state_dict(found)
                self.slow_projector.load_state_dict(found)
                return [f"projector: {name} of the checkpoint; the predictor starts anew"]
        return ["projector and predictor start anew"]

    def begin_step(self, step: int, steps: int) -> None:
        """Set the momentum of the keys that come next; the original's first step leaves equal weights equal."""
        super().begin_step(step, steps)
        self.momentum = cosine_momentum(step + 1, steps, self.config.momentum)

    def after_update(self) -> None:
        """Let the slow encoder follow, before the next batch's keys."""
        follow(self.slow_backbone, self.backbone, self.momentum)
        follow(self.slow_projector, self.projector, self.momentum)
