"""Set prediction: each object is learned by the one query that fits it best; all other queries learn to say nothing.

Notable: the costs of all layers and pictures are computed together and cross to the CPU once; each picture of each
layer is then matched by itself, as eq. 1 has it. Probabilities, not their logarithms, stand in the cost.

Differences from the original: a query without an object whose box lies on a region to be ignored (a crowd, or an object
outside the range of a scale policy) is left out of the classes' loss; the original drops crowds from its data and
punishes what is found there. Costs that are not finite stop the run with a message.

Reference: Carion et al., End-to-End Object Detection with Transformers, arXiv:2005.12872, sec. 3.1, appendix A.2;
facebookresearch/detr `models/matcher.py`, `models/detr.py` (`SetCriterion`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from odonata.nn.ranks import mean_over_ranks
from odonata.ops.boxes import cxcywh_to_xyxy, paired_giou
from odonata.ops.matching import hungarian, ignore_overlap

IGNORED = -100
"""Target of a query that counts for nothing; cross-entropy's own sign for it."""


@dataclass(frozen=True)
class Costs:
    """What a query and an object cost each other: probability, distance and overlap, weighed."""

    class_: float = 1.0
    l1: float = 5.0
    giou: float = 2.0


@dataclass
class Target:
    """What is to be found in one picture."""

    boxes_cxcywh_normalized: Float[Tensor, "objects 4"]
    labels: Int64[Tensor, " objects"]
    ignored_normalized: Float[Tensor, "ignored 4"]
    """Regions (xyxy) that are neither to be found nor to be punished."""


@dataclass
class Pairs:
    """Which query has which object, over all layers and pictures."""

    layers: Int64[Tensor, " pairs"]
    pictures: Int64[Tensor, " pairs"]
    queries: Int64[Tensor, " pairs"]
    objects: Int64[Tensor, " pairs"]


@dataclass
class Losses:
    """A loss of each decoder layer, not weighed."""

    class_: Float[Tensor, " layers"]
    l1: Float[Tensor, " layers"]
    giou: Float[Tensor, " layers"]


def set_losses(
    logits: Float[Tensor, "layers batch queries outputs"],
    boxes: Float[Tensor, "layers batch queries 4"],
    targets: Sequence[Target],
    costs: Costs,
    no_object_weight: float = 0.1,
) -> Losses:
    """The losses of every decoder layer, each with a matching of its own (eq. 2).

    The classes' is a cross-entropy averaged by the weights of its targets; those of the boxes are summed over objects
    and divided by their number, the mean over all ranks.

    Args:
        logits: of the classes, "no object" last.
        boxes: cxcywh as shares of each picture's sides.
        targets: of each picture.
        costs: for the matching.
        no_object_weight: of queries without an object in the classes' loss.
    """
    logits, boxes = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (logits, boxes))
    pairs = match(logits.detach(), boxes.detach(), targets, costs)
    goals, labels = _rows(targets, pairs)
    count = mean_over_ranks(sum(len(target.labels) for target in targets), logits)
    found = boxes[pairs.layers, pairs.pictures, pairs.queries]
    l1 = (found - goals).abs().sum(1)
    giou = 1 - paired_giou(cxcywh_to_xyxy(found), cxcywh_to_xyxy(goals))
    zeros = logits.new_zeros(len(logits))
    wanted = wanted_classes(logits, boxes.detach(), targets, pairs, labels)
    return Losses(
        class_loss(logits, wanted, no_object_weight),
        zeros.index_add(0, pairs.layers, l1) / count,
        zeros.index_add(0, pairs.layers, giou) / count,
    )


@torch.no_grad()
def match(
    logits: Float[Tensor, "layers batch queries outputs"],
    boxes: Float[Tensor, "layers batch queries 4"],
    targets: Sequence[Target],
    costs: Costs,
) -> Pairs:
    """Pair queries with objects, for each layer and each picture, so that the sum of costs is the least (eq. 1).

    Raises:
        RunError: a cost is NaN: the model diverged.
    """
    table = pair_costs(logits, boxes, targets, costs).cpu()
    rows: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    for layer in range(len(table)):
        for picture, target in enumerate(targets):
            queries, objects = hungarian(table[layer, picture, :, : len(target.labels)])
            rows.append((torch.full_like(queries, layer), torch.full_like(queries, picture), queries, objects))
    layers, pictures, queries, objects = torch.stack([torch.cat(part) for part in zip(*rows, strict=True)]).to(
        logits.device
    )
    return Pairs(layers, pictures, queries, objects)


def pair_costs(
    logits: Float[Tensor, "layers batch queries outputs"],
    boxes: Float[Tensor, "layers batch queries 4"],
    targets: Sequence[Target],
    costs: Costs,
) -> Float[Tensor, "layers batch queries most"]:
    """Cost of each query with each object of its picture; columns beyond a picture's objects mean nothing."""
    most = max((len(target.labels) for target in targets), default=0)
    labels = torch.stack([F.pad(t.labels, (0, most - len(t.labels))) for t in targets])
    # A box for the empty places too: one without extent would do, this one divides by nothing small.
    goals = torch.stack([F.pad(t.boxes_cxcywh_normalized, (0, 0, 0, most - len(t.labels)), value=0.5) for t in targets])
    index = labels[None, :, None].expand(*logits.shape[:3], most)
    probability = logits.softmax(-1).gather(-1, index)
    pairs = boxes[..., None, :], goals[None, :, None].to(boxes)
    l1 = (pairs[0] - pairs[1]).abs().sum(-1)
    giou = paired_giou(cxcywh_to_xyxy(pairs[0]), cxcywh_to_xyxy(pairs[1]))
    return costs.l1 * l1 - costs.class_ * probability - costs.giou * giou


def wanted_classes(
    logits: Float[Tensor, "layers batch queries outputs"],
    boxes: Float[Tensor, "layers batch queries 4"],
    targets: Sequence[Target],
    pairs: Pairs,
    labels: Int64[Tensor, " pairs"],
) -> Int64[Tensor, "layers batch queries"]:
    """The class that each query is to say: its object's, "no object", or `IGNORED` on a region to be ignored."""
    nothing = logits.shape[-1] - 1
    wanted = torch.full(logits.shape[:3], nothing, dtype=torch.int64, device=logits.device)
    for picture, target in enumerate(targets):
        if len(target.ignored_normalized):
            lying = cxcywh_to_xyxy(boxes[:, picture]).flatten(0, 1)
            on_it = ignore_overlap(lying, target.ignored_normalized, 0.5).unflatten(0, wanted.shape[::2])
            wanted[:, picture] = torch.where(on_it, IGNORED, nothing)
    wanted[pairs.layers, pairs.pictures, pairs.queries] = labels
    return wanted


def class_loss(
    logits: Float[Tensor, "layers batch queries outputs"],
    wanted: Int64[Tensor, "layers batch queries"],
    no_object_weight: float,
) -> Float[Tensor, " layers"]:
    """Cross-entropy of each layer, averaged by the weights of the targets: 1, and less for "no object"."""
    nothing = logits.shape[-1] - 1
    each = F.cross_entropy(logits.movedim(-1, 1), wanted, reduction="none", ignore_index=IGNORED)
    weight = torch.where(wanted == nothing, no_object_weight, 1.0) * (wanted != IGNORED)
    weight = weight.to(each)
    return (each * weight).flatten(1).sum(1) / weight.flatten(1).sum(1).clamp(min=torch.finfo(each.dtype).tiny)


def _rows(targets: Sequence[Target], pairs: Pairs) -> tuple[Tensor, Tensor]:
    """Box and label of the object of every pair."""
    boxes, labels = (
        torch.cat(parts) for parts in zip(*((t.boxes_cxcywh_normalized, t.labels) for t in targets), strict=True)
    )
    counts = torch.tensor([0, *(len(target.labels) for target in targets)][:-1], device=pairs.objects.device)
    place = counts.cumsum(0)[pairs.pictures] + pairs.objects
    return boxes[place], labels[place]
