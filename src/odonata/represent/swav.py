"""SwAV: predict the cluster of a picture's crop from another crop, clusters balanced online.

The scores of a crop are its cosines with learned prototypes. Sinkhorn's algorithm turns those of a large crop into a
code that uses all prototypes equally over the batch; every other crop of the picture must predict it. Without the
balance all pictures fall into one cluster.

Reference: Caron et al., Unsupervised Learning of Visual Features by Contrasting Cluster Assignments, arXiv:2006.09882.
Details from facebookresearch/swav `main_swav.py` and `src/resnet50.py`: prototypes are brought to unit length before
each step and take no gradient in the first; codes come from scores without the temperature; small batches are helped by
a queue of embeddings (not of scores: the prototypes move), used once it is full.

Differences:
- The queue begins to fill at a share of the run, not at epoch 15, and its length need not divide by the batch.
- It is one queue over all ranks, of which each rank scores its part; the original's ranks have one each.
- Sinkhorn's algorithm runs on logarithms; see `odonata.nn.sinkhorn`.
- Batch statistics are each rank's own; the original synchronises them over groups of GPUs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from odonata.backbones.interface import Backbone
from odonata.data.pictures import View, ViewBatch
from odonata.data.preprocess import Preprocess
from odonata.errors import RecipeError
from odonata.nn.centre import mean_row
from odonata.nn.momentum import Queue
from odonata.nn.precision import full_precision
from odonata.nn.sinkhorn import sinkhorn
from odonata.represent.augmentations import swav
from odonata.represent.multicrop import by_size, small_side, steps_of, target_figures, targets_of_others
from odonata.represent.representation import Representation, TowerOptions, embedding_spread
from odonata.weights.swav import read_head


@dataclass(frozen=True)
class SwAVConfig(TowerOptions):
    """SwAV's options. Where the defaults differ from the paper's, its values are in brackets; see `recipes.swav`."""

    small_crops: int = 4
    """Small crops beside the two large ones (the paper: 6)."""
    small_size: int = 0
    """Their side in pixels (0 = three sevenths of the large ones', in steps of 16: 96 beside 224)."""
    large_scale: tuple[float, float] = (0.14, 1.0)
    """Share of the picture that a large crop covers."""
    small_scale: tuple[float, float] = (0.05, 0.14)
    """Share of the picture that a small crop covers."""
    hidden: int = 512
    """Width of the projector's hidden layer (the paper: 2048)."""
    dim: int = 128
    """Width of an embedding."""
    prototypes: int = 256
    """K (the paper: 3000)."""
    temperature: float = 0.1
    """Of the predictions."""
    epsilon: float = 0.05
    """Of the codes: the smaller, the harder."""
    sinkhorn_iterations: int = 3
    """Rounds of balancing; 0: codes are a plain softmax, and all pictures fall into one cluster."""
    freeze_prototypes: float = 0.05
    """How long the prototypes take no gradient: a share of the run, or steps (the paper: 313 steps, an epoch)."""
    queue: int = 0
    """Embeddings of earlier batches that take part in the balancing (the paper: 3840 at a batch of 256, else none)."""
    queue_start: float = 0.0375
    """Share of the run, or steps, after which the queue begins to fill (the paper: 15 of 400 epochs)."""


class SwAV(Representation):
    """Tower, projector, prototypes, and a queue for each crop that is assigned.

    Args:
        config: the method's options.
        backbone: the tower.
        preprocess: of the pictures.

    Raises:
        RecipeError: an option that the method cannot have.
    """

    filled: Tensor

    def __init__(self, config: SwAVConfig, backbone: Backbone, preprocess: Preprocess) -> None:
        super().__init__(config, backbone, preprocess)
        if config.prototypes < 2:
            raise RecipeError(f"--prototypes is {config.prototypes}; clustering needs 2 or more")
        for name in ("hidden", "dim"):
            if getattr(config, name) < 1:
                raise RecipeError(f"--{name} is {getattr(config, name)}; a layer has a width of 1 or more")
        if config.epsilon <= 0 or config.temperature <= 0:
            raise RecipeError(f"--epsilon {config.epsilon} --temperature {config.temperature}: both must be positive")
        self.config = config
        self.chance = math.log(config.prototypes)
        self.projector = nn.Sequential(
            nn.Linear(backbone.num_features, config.hidden),
            nn.BatchNorm1d(config.hidden),
            nn.ReLU(inplace=True),
            nn.Linear(config.hidden, config.dim),
        )
        self.prototypes = nn.Linear(config.dim, config.prototypes, bias=False)
        self.queues = nn.ModuleList(Queue(config.queue, config.dim) for _ in range(2 if config.queue else 0))
        self.register_buffer("filled", torch.zeros((), dtype=torch.long))
        self.frozen = self.queueing = False

    @staticmethod
    def views(config: TowerOptions) -> Sequence[View]:
        """Two large crops and some small ones."""
        assert isinstance(config, SwAVConfig)
        large = View(swav(config.image_size, config.large_scale), 2)
        small = View(swav(small_side(config.small_size, config.image_size), config.small_scale), config.small_crops)
        return (large, small) if config.small_crops else (large,)

    @torch.no_grad()
    def begin_step(self, step: int, steps: int) -> None:
        """Bring the prototypes to unit length; take note of what is frozen and whether the queue runs."""
        super().begin_step(step, steps)
        self.prototypes.weight.copy_(F.normalize(self.prototypes.weight, dim=1))
        self.frozen = step < steps_of(self.config.freeze_prototypes, steps)
        self.queueing = bool(self.config.queue) and step >= steps_of(self.config.queue_start, steps)

    def after_backward(self) -> None:
        """Drop the prototypes' gradient in the first steps."""
        super().after_backward()
        if self.frozen:
            self.prototypes.weight.grad = None

    def loss(self, batch: ViewBatch) -> dict[str, Tensor]:
        """Return the loss of a batch of crops, and how the codes use the prototypes; large crops enter the queue."""
        views = [self.pixels(view) for view in batch.views]
        embeddings = F.normalize(self.projector(by_size(views, self.backbone)), dim=1)
        scores = self.prototypes(embeddings).unflatten(0, (len(views), -1))
        codes = self.codes(scores[:2].detach(), embeddings.detach().unflatten(0, (len(views), -1))[:2])
        loss = swapped_prediction(scores, codes, self.config.temperature)
        figures = target_figures(codes.flatten(0, 1)) | {"prototypes_used": share_used(codes.flatten(0, 1))}
        return {"loss": loss, **figures, "spread": embedding_spread(embeddings)}

    @torch.no_grad()
    def codes(
        self, scores: Float[Tensor, "large batch classes"], embeddings: Float[Tensor, "large batch dim"]
    ) -> Float[Tensor, "large batch classes"]:
        """Return the assignments of large crops; their embeddings enter the queue afterwards."""
        made: list[Tensor] = []
        use = self.queueing and bool(self.filled >= self.config.queue)
        for crop, own in enumerate(scores):
            earlier = [self.prototypes(_own_part(self.queues[crop]())).to(own.dtype)] if use else []
            balanced = sinkhorn(torch.cat([*earlier, own]), self.config.epsilon, self.config.sinkhorn_iterations)
            made.append(balanced[-len(own) :])
            if self.queueing:
                self.queues[crop].push(embeddings[crop])  # pyright: ignore[reportCallIssue]
        if self.queueing:
            self.filled += embeddings.shape[1] * (dist.get_world_size() if dist.is_initialized() else 1)
        return torch.stack(made)

    def load_published_rest(self, rest: Mapping[str, Tensor]) -> list[str]:
        """Take projector and prototypes from what a published checkpoint holds beside the tower; return notes."""
        return read_head(self, rest)


def _own_part(rows: Float[Tensor, "queue dim"]) -> Float[Tensor, "part dim"]:
    """This rank's part of a queue that all ranks hold: together they count each row once."""
    if not dist.is_initialized():
        return rows
    return rows.tensor_split(dist.get_world_size())[dist.get_rank()]


def swapped_prediction(
    scores: Float[Tensor, "crops batch classes"], codes: Float[Tensor, "large batch classes"], temperature: float
) -> Float[Tensor, ""]:
    """Return SwAV's loss (eq. 6): the mean cross-entropy of each crop's prediction with each other large crop's code.

    Args:
        scores: cosines with the prototypes, large crops first.
        codes: of the large crops; constants.
        temperature: τ.
    """
    logs = (full_precision(scores) / temperature).log_softmax(2)
    targets = torch.stack(targets_of_others(codes, len(scores)))
    return -(targets * logs).sum(2).mean(1).sum() / (len(codes) * (len(scores) - 1))


@torch.no_grad()
def share_used(codes: Float[Tensor, "rows classes"]) -> Float[Tensor, ""]:
    """Return how many prototypes are some row's first choice, on any rank, of those that so many rows could choose."""
    chosen = torch.zeros_like(codes).scatter_(1, codes.argmax(1, keepdim=True), 1.0)
    rows = len(codes) * (dist.get_world_size() if dist.is_initialized() else 1)
    return (mean_row(chosen) > 0).float().sum() / min(rows, codes.shape[1])
