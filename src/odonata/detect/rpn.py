"""Region proposals: a small network that says of every anchor whether an object is there, and where exactly.

Notable:
- `Targets` is what a picture teaches a detector of two stages. Besides its objects it names two kinds of regions where
  nothing is punished: crowds, in which a box lies by its own area, and objects that do not count here (of the wrong
  size for a scale or a branch), which a box overlaps by IoU.
- The best anchors of each level are chosen before suppression and suppressed level by level, then the best of all
  levels together are kept: torchvision's way, and Detectron2's.
- What the published families do differently stands in `RPNOptions`.

Deliberate difference: an object that no anchor touches has no best anchor; torchvision then gives it all of them.

Sources: Ren et al. 2015 (1506.01497), sec. 3.1; Lin et al. 2017 (1612.03144), sec. 4.1; torchvision
`models/detection/rpn.py`, whose numbers it gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from odonata.detect.dense import StrideRule, init_normal, level_strides, rows
from odonata.detect.scale_policy import INFINITE, Range, in_range
from odonata.errors import RecipeError
from odonata.nn.ranks import mean_over_ranks
from odonata.ops.box_coding import decode_deltas, encode_deltas
from odonata.ops.boxes import clip_boxes, iou_matrix, sides_reach
from odonata.ops.grids import anchors, base_anchors
from odonata.ops.matching import BETWEEN, ignore_overlap, match_by_iou
from odonata.ops.nms import batched_nms
from odonata.ops.sampling import sample_balanced

INSIDE_CROWD = 0.5
"""Share of a box's own area in a crowd from which on it is not punished."""


@dataclass(frozen=True)
class RPNOptions:
    """How regions are proposed."""

    depth: int = 1
    """3 × 3 convolutions before the two outputs."""
    anchor_sizes: tuple[float, ...] = (16.0, 32.0, 64.0, 128.0)
    """√area in pixels: one for each level of a pyramid; all of them on a single map."""
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Heights by widths."""
    anchor_offset: float = 0.0
    """Share of a stride from a cell's corner to the middle of its anchors."""
    anchor_rounded: bool = True
    """Whether anchors have whole corners (torchvision)."""
    stride_rule: StrideRule = "nominal"
    """Whether strides are the levels' own, or follow from the sizes of picture and map (torchvision)."""
    inside_only: bool = False
    """Whether anchors that cross the edge of the picture learn nothing (the first paper)."""
    positive_iou: float = 0.7
    """From here on an anchor is an object's."""
    negative_iou: float = 0.3
    """Below it an anchor is background."""
    invalid_iou: float = 0.3
    """Above it an anchor is not punished for an object that does not count here."""
    invalid_wins: bool = False
    """Whether such an anchor learns nothing even where it has an object of its own (SNIP, TridentNet)."""
    samples: int = 128
    """Anchors of a picture that learn."""
    positive_share: float = 0.5
    """At most this share of them has an object."""
    beta: float = 1 / 9
    """Where the smooth L1 turns from square to straight; 0: straight all the way."""
    normalizer: Literal["sampled", "fixed"] = "sampled"
    """What the losses are divided by: anchors that learned, or pictures times `samples` (Detectron2)."""
    pre_nms_train: int = 500
    """Anchors kept of each level before suppression, in training; in prediction see --pre-nms."""
    post_nms_train: int = 300
    """Proposals of a picture, in training."""
    post_nms: int = 200
    """The same in prediction."""
    nms_threshold: float = 0.7
    """Overlap (IoU) above which the less sure of two proposals of a level is dropped."""
    min_size: float = 1e-3
    """Least width and height of a proposal in pixels."""

    def __post_init__(self) -> None:
        if not 0 <= self.negative_iou <= self.positive_iou <= 1:
            raise RecipeError(
                f"--rpn.negative-iou {self.negative_iou} and --rpn.positive-iou {self.positive_iou}: "
                "want 0 <= negative <= positive <= 1"
            )
        if not 0 <= self.nms_threshold <= 1 or not 0 <= self.positive_share <= 1 or self.samples < 1:
            raise RecipeError(
                f"--rpn.nms-threshold {self.nms_threshold} and --rpn.positive-share {self.positive_share} lie in "
                f"[0, 1]; --rpn.samples is {self.samples} and wants at least 1"
            )


@dataclass(frozen=True, eq=False)
class Targets:
    """What one picture teaches.

    Args:
        boxes: of the objects that count, xyxy in pixels of the frame.
        labels: their classes.
        crowds: regions that hold objects which are not told apart.
        invalid: objects that do not count here.
        range: least and largest √area, in the picture's own pixels, of regions that the second stage learns from.
        scale: pixels of the frame for one of the picture.
    """

    boxes: Float[Tensor, "objects 4"]
    labels: Int64[Tensor, " objects"]
    crowds: Float[Tensor, "crowds 4"]
    invalid: Float[Tensor, "invalid 4"]
    range: Range = (0.0, INFINITE)
    scale: float = 1.0

    def unpunished(self, boxes: Float[Tensor, "boxes 4"], invalid_iou: float) -> Bool[Tensor, " boxes"]:
        """Which boxes are not punished for lying on nothing that counts."""
        crowded = ignore_overlap(boxes, self.crowds, INSIDE_CROWD)
        return crowded | ignore_overlap(boxes, self.invalid, invalid_iou, "iou")

    def learns_from(self, boxes: Float[Tensor, "boxes 4"]) -> Bool[Tensor, " boxes"]:
        """Which boxes are of a size that counts."""
        return in_range(boxes, self.scale, self.range)


@dataclass
class RPNOutputs:
    """What the network says of a batch, all levels one after the other."""

    logits: Float[Tensor, "batch anchors"]
    deltas: Float[Tensor, "batch anchors 4"]
    anchors: Float[Tensor, "anchors 4"]
    counts: list[int] = field(default_factory=list[int])
    """Anchors of each level."""


class RPN(nn.Module):
    """The network that proposes, the same on every level.

    Args:
        channels: of the maps.
        strides: of the maps, in pixels.
        options: see `RPNOptions`.

    Raises:
        RecipeError: there is not one anchor size for each level.
    """

    def __init__(self, channels: int, strides: Sequence[int], options: RPNOptions) -> None:
        super().__init__()
        if len(strides) > 1 and len(strides) != len(options.anchor_sizes):
            raise RecipeError(
                f"--rpn.anchor-sizes has {len(options.anchor_sizes)} sizes for the {len(strides)} levels of strides "
                f"{tuple(strides)}; give one for each"
            )
        self.options, self.strides = options, tuple(strides)
        sizes = [options.anchor_sizes] if len(strides) == 1 else [(size,) for size in options.anchor_sizes]
        self.sizes = sizes
        per_cell = len(sizes[0]) * len(options.anchor_ratios)
        self.convs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(options.depth))
        self.objectness = nn.Conv2d(channels, per_cell, 1)
        self.deltas = nn.Conv2d(channels, 4 * per_cell, 1)
        for conv in (*self.convs, self.objectness, self.deltas):
            assert isinstance(conv, nn.Conv2d)
            init_normal(conv)

    def forward(
        self, maps: Sequence[Float[Tensor, "batch channels _height _width"]], frame: tuple[int, int]
    ) -> RPNOutputs:
        """Logits and offsets of every anchor of every level.

        Args:
            maps: finest first.
            frame: (height, width) of the padded pictures.
        """
        options, logits, deltas = self.options, list[Tensor](), list[Tensor]()
        for level in maps:
            hidden = level
            for conv in self.convs:
                hidden = F.relu(conv(hidden), inplace=True)
            logits.append(full_precision(rows(self.objectness(hidden), 1)[..., 0]))
            deltas.append(full_precision(rows(self.deltas(hidden), 4)))
        grids: list[Tensor] = []
        steps = level_strides(maps, self.strides, frame, options.stride_rule)
        for level, step, sizes in zip(maps, steps, self.sizes, strict=True):
            base = base_anchors(sizes, options.anchor_ratios, options.anchor_rounded, level.device)
            grids.append(anchors(level.shape[-2], level.shape[-1], step, base, options.anchor_offset))
        return RPNOutputs(torch.cat(logits, 1), torch.cat(deltas, 1), torch.cat(grids), [len(grid) for grid in grids])


def full_precision(outputs: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The outputs of a network in float32 at least: losses and suppression are not for half precision."""
    return outputs.to(torch.promote_types(outputs.dtype, torch.float32))


@torch.no_grad()
def propose(
    out: RPNOutputs, sizes: Int64[Tensor, "batch 2"], options: RPNOptions, pre_nms: int, post_nms: int
) -> list[Float[Tensor, "proposals 4"]]:
    """The proposals of each picture, the surest first; no gradient goes through them.

    Args:
        out: of the network.
        sizes: (height, width) of each picture within the frame; proposals are cut at its edge.
        options: give the suppression's threshold and the least size.
        pre_nms: anchors kept of each level before suppression.
        post_nms: proposals kept of a picture.
    """
    picked: list[Tensor] = []
    levels: list[Tensor] = []
    for number, part in enumerate(out.logits.split(out.counts, 1)):
        best = part.topk(min(pre_nms, part.shape[1]), 1).indices
        picked.append(best + sum(out.counts[:number]))
        levels.append(torch.full_like(best[0], number))
    chosen, level = torch.cat(picked, 1), torch.cat(levels)
    deltas = out.deltas.gather(1, chosen[..., None].expand(-1, -1, 4))
    boxes = decode_deltas(deltas, out.anchors[chosen])
    scores = out.logits.gather(1, chosen).sigmoid()
    found: list[Tensor] = []
    for box, score, size in zip(boxes, scores, sizes.tolist(), strict=True):
        box = clip_boxes(box, (size[0], size[1]))
        large = sides_reach(box, options.min_size).nonzero()[:, 0]
        kept = batched_nms(box[large], score[large], level[large], options.nms_threshold)[:post_nms]
        found.append(box[large][kept])
    return found


@torch.no_grad()
def match_anchors(
    grid: Float[Tensor, "anchors 4"], target: Targets, size: tuple[int, int], options: RPNOptions
) -> Int64[Tensor, " anchors"]:
    """The object of each anchor; −1: background, −2: it learns nothing (sec. 3.1.2).

    Args:
        grid: anchors.
        target: the picture's objects.
        size: its (height, width) within the frame.
        options: thresholds and rules.
    """
    iou = iou_matrix(target.boxes, grid)
    crossing = torch.zeros_like(grid[:, 0], dtype=torch.bool)
    if options.inside_only:
        crossing = (grid[:, :2] < 0).any(1) | (grid[:, 2:] > grid.new_tensor([size[1], size[0]])).any(1)
        iou = iou.masked_fill(crossing, 0.0)
    touched = (iou.amax(1) > 0).nonzero()[:, 0] if iou.numel() else torch.zeros_like(target.labels[:0])
    matches = match_by_iou(iou[touched], options.positive_iou, options.negative_iou, allow_low_quality=True)
    if len(touched):
        matches = torch.where(matches >= 0, touched[matches.clamp(min=0)], matches)
    nothing = (matches < 0) & target.unpunished(grid, options.invalid_iou)
    if options.invalid_wins:
        nothing |= ignore_overlap(grid, target.invalid, options.invalid_iou, "iou")
    return matches.masked_fill(nothing | crossing, BETWEEN)


def rpn_loss(
    out: RPNOutputs, targets: Sequence[Targets], sizes: Int64[Tensor, "batch 2"], options: RPNOptions
) -> dict[str, Tensor]:
    """Cross-entropy of the objectness, and smooth L1 of the offsets of anchors with objects (eq. 1).

    Args:
        out: of the network.
        targets: of each picture.
        sizes: (height, width) of each picture within the frame.
        options: how many anchors learn, and what the losses are divided by.

    Returns:
        `objectness` and `proposal_box`.
    """
    logits: list[Tensor] = []
    wanted: list[Tensor] = []
    deltas: list[Tensor] = []
    goals: list[Tensor] = []
    for number, (target, size) in enumerate(zip(targets, sizes.tolist(), strict=True)):
        matches = match_anchors(out.anchors, target, (size[0], size[1]), options)
        labels = torch.where(matches >= 0, 1, matches + 1)
        positive, negative = sample_balanced(labels, options.samples, options.positive_share)
        logits.append(out.logits[number, torch.cat([positive, negative])])
        wanted.append(torch.cat([torch.ones_like(positive), torch.zeros_like(negative)]))
        deltas.append(out.deltas[number, positive])
        goals.append(encode_deltas(target.boxes[matches[positive]], out.anchors[positive]))
    logit, offset = torch.cat(logits), torch.cat(deltas)
    count = logit.numel() if options.normalizer == "sampled" else options.samples * len(targets)
    total = mean_over_ranks(count, logit)
    truth = torch.cat(wanted).to(logit.dtype)
    return {
        "objectness": F.binary_cross_entropy_with_logits(logit, truth, reduction="sum") / total,
        "proposal_box": F.smooth_l1_loss(offset, torch.cat(goals), reduction="sum", beta=options.beta) / total,
    }
