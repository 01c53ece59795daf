"""CornerNet: a box is a pair of corners. Two heat maps find the left upper and the right lower ones, tags join them.

A corner mostly lies outside of its object. Corner pooling therefore lets every place look along its row and its column
for the object's edges. The tags of an object's two corners are drawn together, those of different objects pushed
apart; their values mean nothing else.

Reference: Law and Deng, CornerNet: Detecting Objects as Paired Keypoints, arXiv:1808.01244; princeton-vl/CornerNet
`models/CornerNet.py`, `models/py_utils/kp.py`, `kp_utils.py`, `sample/coco.py`, `test/coco.py`.

Conventions of the authors' code that differ from the paper or are not in it, kept:
- The radius of the Gaussians is for an overlap of 0.3 (as in the paper's text), their σ a sixth of the diameter.
- Pull and push are means over the objects of a picture, and sums over pictures; 1e-4 is added to all counts. The losses
  of all hourglasses are averaged.
- Training pictures of 511 pixels give maps of 128 cells: a cell is picture / map pixels, a little less than 4.
- In prediction the mirrored picture's boxes are added to the picture's own before soft suppression, and each picture
  stands in the middle of a frame of (side | 127) (`--preset hourglass104`).

Differences: boxes are not cut a pixel short of the frame's edge; a corner on the far edge belongs to the last cell.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from odonata.backbones.create import create
from odonata.backbones.hourglass import ConvNorm, HourglassConfig, Hourglasses
from odonata.data.detections import Detections
from odonata.data.framing import Framing
from odonata.data.object_batches import ObjectBatch
from odonata.detect.detector import Detector, DetectorOptions, clip_to, found, freeze_stages
from odonata.detect.key_points import (
    EPSILON,
    HEAT_BIAS,
    PUBLISHED_FRAMING,
    Branch,
    boxes_in_cells,
    cell_of,
    cell_size,
    countable,
    frames_of,
    full_precision,
    heatmap_loss,
    values_at,
)
from odonata.errors import RecipeError
from odonata.nn.ranks import mean_over_ranks
from odonata.ops.corner_pool import bottom_pool, left_pool, right_pool, top_pool
from odonata.ops.gaussian import RadiusKind, draw_gaussian, gaussian_radius, local_maxima, top_peaks
from odonata.ops.nms import soft_nms


@dataclass(frozen=True)
class CornerNetConfig(DetectorOptions):
    """CornerNet; see the preset for the published network."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "hourglass104": {
            "backbone": "hourglass104",
            "pool_width": 128,
            "head_width": 256,
            "framing": PUBLISHED_FRAMING,
            "flip_test": True,
            "pad_bits": 127,
            "score_threshold": 0.0,
        },
    }

    backbone: str = "hourglass-small:norm=group"
    """Tower of hourglasses by name, with options."""
    framing: Framing = field(default_factory=lambda: Framing(size=128, max_size=256))
    """What pictures are scaled to."""
    pool_width: int = 32
    """Channels that corner pooling sees."""
    corner_pooling: bool = True
    """Whether every place looks along its row and column; without it (the paper's ablation) it sees itself only."""
    head_width: int = 32
    """Channels before each output."""
    radius: RadiusKind = "corner"
    """How wide Gaussians are: "corner" as the paper computes it, or "centernet"."""
    min_overlap: float = 0.3
    """IoU that a box with its corners moved by the radius still has."""
    alpha: float = 2.0
    """Exponent of the focal loss."""
    beta: float = 4.0
    """Exponent by which negatives near a corner count less."""
    pull_weight: float = 0.1
    """Weight of the loss that draws the tags of an object together."""
    push_weight: float = 0.1
    """Weight of the loss that pushes the tags of different objects apart."""
    offset_weight: float = 1.0
    """Weight of the loss of places within a cell."""
    corners: int = 100
    """Corners of each kind that are paired."""
    pairs: int = 1000
    """Pairs that go on to the suppression."""
    tag_distance: float = 0.5
    """Largest difference of the tags of a pair."""
    soft_sigma: float = 0.5
    """Width of the soft suppression."""
    flip_test: bool = False
    """Whether the mirrored picture is looked at as well."""
    pad_bits: int = 0
    """In prediction, each picture stands in the middle of a frame of (side | bits): 127 is the published one; 0 pads as
    `framing` says."""


@dataclass
class Corner:
    """What one hourglass says of one kind of corner."""

    heat: Float[Tensor, "batch classes height width"]
    """Logits."""
    tag: Float[Tensor, "batch 1 height width"]
    offset: Float[Tensor, "batch 2 height width"]
    """Where in the cell (x, y) the corner is."""


@dataclass
class CornerTargets:
    """What one kind of corner is to say."""

    heat: Float[Tensor, "batch classes height width"]
    cells: Int64[Tensor, "objects 2"]
    offset: Float[Tensor, "objects 2"]


class CornerNet(Detector):
    """Stacked hourglasses, and two kinds of corners on each.

    Args:
        config: its options.
        num_classes: categories in the table.

    Raises:
        RecipeError: the tower is no stack of hourglasses.
    """

    def __init__(self, config: CornerNetConfig, num_classes: int) -> None:
        super().__init__(config, num_classes)
        self.config = config
        backbone = create(config.backbone)
        if not isinstance(backbone, Hourglasses):
            raise RecipeError(f"CornerNet stands on hourglasses, and --backbone is {config.backbone}")
        self.backbone = backbone
        stacks = range(backbone.config.stacks)
        self.left_upper = nn.ModuleList(CornerHead(config, backbone.config, num_classes, True) for _ in stacks)
        self.right_lower = nn.ModuleList(CornerHead(config, backbone.config, num_classes, False) for _ in stacks)
        freeze_stages(backbone, config.freeze)

    @property
    def tower(self) -> nn.Module:
        """See `Detector.tower`."""
        return self.backbone

    def forward_corners(
        self, images: Float[Tensor, "batch 3 height width"], every: bool = True
    ) -> list[tuple[Corner, Corner]]:
        """What the hourglasses say of prepared pictures; the last one is believed.

        Args:
            images: prepared.
            every: of all hourglasses; otherwise of the last one only.
        """
        wanted = range(len(self.left_upper)) if every else [len(self.left_upper) - 1]
        maps = self.backbone.features(images, list(wanted), "nchw")
        return [(self.left_upper[i](x), self.right_lower[i](x)) for i, x in zip(wanted, maps, strict=True)]

    def loss(self, batch: ObjectBatch) -> dict[str, Tensor]:
        """Return the losses of heat maps, tags and offsets (eq. 6), means over hourglasses."""
        images, config = self.pixels(batch), self.config
        said = self.forward_corners(images)
        height, width = said[-1][0].heat.shape[-2:]
        boxes = boxes_in_cells(batch, height, width)
        goals = [self.targets(batch, boxes, height, width, first) for first in (0, 2)]
        pictures = torch.cat([torch.full_like(batch.trained(n)[1], n) for n in range(len(batch))])
        ignored = [b[flags] for b, flags in zip(boxes, batch.ignore, strict=True)]
        counted = countable(ignored, height, width)
        count = mean_over_ranks(len(pictures), images, 0.0) + EPSILON
        zero = goals[0].heat.new_zeros(())
        parts = {"heat": zero, "pull": zero, "push": zero, "offset": zero}
        for corners in said:
            tags: list[Tensor] = []
            for corner, goal in zip(corners, goals, strict=True):
                heat = heatmap_loss(corner.heat, goal.heat, counted, config.alpha, config.beta)
                parts["heat"] = parts["heat"] + heat / len(said)
                offset = full_precision(values_at(corner.offset, pictures, goal.cells))
                off = F.smooth_l1_loss(offset, goal.offset.to(offset.dtype), reduction="sum") / count
                parts["offset"] = parts["offset"] + off / len(said)
                tags.append(full_precision(values_at(corner.tag, pictures, goal.cells))[:, 0])
            pull, push = tag_losses(tags[0], tags[1], pictures)
            parts["pull"] = parts["pull"] + pull / len(said)
            parts["push"] = parts["push"] + push / len(said)
        tagging = config.pull_weight * parts["pull"] + config.push_weight * parts["push"]
        return {"loss": parts["heat"] + tagging + config.offset_weight * parts["offset"], **parts}

    @torch.no_grad()
    def targets(
        self, batch: ObjectBatch, boxes: list[Float[Tensor, "_objects 4"]], height: int, width: int, first: int
    ) -> CornerTargets:
        """What one kind of corner is to say (sec. 3.2).

        Args:
            batch: of which labels are read.
            boxes: in cells.
            height, width: of the map.
            first: where x stands in a box: 0 for left upper corners, 2 for right lower ones.
        """
        heat = batch.images.new_zeros(len(batch), self.num_classes, height, width, dtype=torch.float32)
        cells: list[Tensor] = []
        offsets: list[Tensor] = []
        for number in range(len(batch)):
            wanted = ~batch.ignore[number]
            trained, labels = boxes[number][wanted], batch.labels[number][wanted]
            size = (trained[:, 2:] - trained[:, :2]).clamp(min=0).ceil()
            radii = gaussian_radius(size[:, 1], size[:, 0], self.config.min_overlap, self.config.radius)
            corners = trained[:, first : first + 2]
            cells.append(cell_of(corners, height, width))
            offsets.append(corners - cells[-1])
            draw_gaussian(heat[number], cells[-1], labels, radii.clamp(min=0).long())
        return CornerTargets(heat, torch.cat(cells), torch.cat(offsets))

    def predict(self, batch: ObjectBatch) -> list[Detections]:
        """See `Detector.predict`."""
        answers: list[Detections] = []
        for images, sizes, shift in frames_of(batch, self.config.framing, self.config.pad_bits, 0):
            boxes, scores, labels = self.paired(images)
            if self.config.flip_test:
                mirrored, *rest = self.paired(images.flip(3))
                mirrored = mirrored[..., [2, 1, 0, 3]] * mirrored.new_tensor([-1, 1, -1, 1])
                mirrored = mirrored + mirrored.new_tensor([images.shape[-1], 0]).repeat(2)
                boxes = torch.cat([boxes, mirrored], 1)
                scores, labels = (torch.cat(both, 1) for both in zip((scores, labels), rest, strict=True))
            boxes = boxes - boxes.new_tensor([*shift, *shift])
            for number, size in enumerate(sizes):
                answers.append(self.chosen(clip_to(boxes[number], size), scores[number], labels[number], size))
        return answers

    def chosen(
        self,
        boxes: Float[Tensor, "pairs 4"],
        scores: Float[Tensor, " pairs"],
        labels: Int64[Tensor, " pairs"],
        size: tuple[int, int],
    ) -> Detections:
        """The pairs that soft suppression leaves sure enough."""
        options = self.options
        kept = (scores >= 0) & (boxes[:, 2:] > boxes[:, :2]).all(1)
        boxes, scores, labels = boxes[kept], scores[kept], labels[kept]
        index, lowered = soft_nms(
            boxes, scores, labels, sigma=self.config.soft_sigma, minimum_score=max(0.001, options.score_threshold)
        )
        index, lowered = index[: options.max_detections], lowered[: options.max_detections]
        return found(boxes[index], lowered, labels[index], size)

    def paired(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> tuple[Float[Tensor, "batch pairs 4"], Float[Tensor, "batch pairs"], Int64[Tensor, "batch pairs"]]:
        """Boxes in pixels of the frame, scores and classes of the surest pairs of prepared pictures (sec. 3.4); the
        score of what is no pair is −1."""
        corners = self.forward_corners(images, every=False)[-1]
        height, width = corners[0].heat.shape[-2:]
        boxes, scores, labels = decode_pairs(corners, self.config.corners, self.config.pairs, self.config.tag_distance)
        cell = cell_size(images.shape[-1], width), cell_size(images.shape[-2], height)
        return boxes * boxes.new_tensor([*cell, *cell]), scores, labels

    def dense(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> tuple[Float[Tensor, "batch pairs 4"], Float[Tensor, "batch pairs classes"]]:
        """The boxes of pairs in pixels of the frame and their scores, 0 for all but one class, of prepared pictures.

        What follows in an exported file is the plain suppression, not the soft one.
        """
        boxes, scores, labels = self.paired(images)
        classes = torch.arange(self.num_classes, device=labels.device)
        return boxes, scores.clamp(min=0)[..., None] * (labels[..., None] == classes)


class CornerHead(nn.Module):
    """Corner pooling and the outputs for one kind of corner.

    Args:
        config: of the method.
        tower: of the hourglasses: its width and normalisation.
        num_classes: heat maps.
        left_upper: which kind of corner.
    """

    def __init__(self, config: CornerNetConfig, tower: HourglassConfig, num_classes: int, left_upper: bool) -> None:
        super().__init__()
        self.pool = CornerPool(config.pool_width, tower, left_upper, config.corner_pooling)
        channels, hidden = tower.out_width, config.head_width
        self.class_logits = Branch(channels, hidden, num_classes, HEAT_BIAS)
        self.tag = Branch(channels, hidden, 1)
        self.offset = Branch(channels, hidden, 2)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Corner:
        """Returns what it says."""
        x = self.pool(x)
        return Corner(self.class_logits(x), self.tag(x), self.offset(x))


class CornerPool(nn.Module):
    """A residual block whose first convolution is replaced by corner pooling (fig. 7).

    Args:
        hidden: channels that are pooled.
        tower: of the hourglasses.
        left_upper: which kind of corner.
        looks: along rows and columns; else the same layers without pooling.
    """

    def __init__(self, hidden: int, tower: HourglassConfig, left_upper: bool, looks: bool = True) -> None:
        super().__init__()
        width = tower.out_width
        self.left_upper, self.looks = left_upper, looks
        self.vertical = ConvNorm(tower, width, hidden, 3, 1)
        self.horizontal = ConvNorm(tower, width, hidden, 3, 1)
        self.pooled = ConvNorm(tower, hidden, width, 3, 1)
        self.skip = ConvNorm(tower, width, width, 1, 1)
        self.output = ConvNorm(tower, width, width, 3, 1)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels height width"]:
        """Returns the map that outputs stand on."""
        down, across = (top_pool, left_pool) if self.left_upper else (bottom_pool, right_pool)
        vertical, horizontal = F.relu(self.vertical(x)), F.relu(self.horizontal(x))
        pooled = down(vertical) + across(horizontal) if self.looks else vertical + horizontal
        return F.relu(self.output(F.relu(self.pooled(pooled) + self.skip(x))))


def tag_losses(
    first: Float[Tensor, " objects"], second: Float[Tensor, " objects"], pictures: Int64[Tensor, " objects"]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """The losses that draw an object's tags together, and push apart those of a picture's different objects.

    Args:
        first, second: tags of each object's two corners.
        pictures: that each object lies in.

    Returns:
        pull and push, sums over pictures.

    Source: Law and Deng 2018, eq. 4 and 5; 1/n is taken off each pair, so that an object's distance 0 to itself adds
    nothing, as in the authors' `_ae_loss`. An object that is alone in its picture adds a constant 1, their 1e-4 / 1e-4.
    """
    together = pictures[:, None] == pictures[None]
    count = together.sum(1).float()
    mean = (first + second) / 2
    pull = (((first - mean) ** 2 + (second - mean) ** 2) / (count + EPSILON)).sum()
    near = (1 - (mean[:, None] - mean[None]).abs()).relu() - 1 / (count + EPSILON)
    push = (near / ((count - 1) * count + EPSILON))[together].sum()
    return pull, push


def decode_pairs(
    corners: tuple[Corner, Corner], count: int, pairs: int, tag_distance: float
) -> tuple[Float[Tensor, "batch pairs 4"], Float[Tensor, "batch pairs"], Int64[Tensor, "batch pairs"]]:
    """Pair the highest peaks of both kinds of corners.

    Args:
        corners: left upper and right lower.
        count: peaks of each.
        pairs: how many are returned, the surest first.
        tag_distance: pairs with a larger difference of their tags are none.

    Returns:
        Boxes in cells, scores (the mean of both corners; −1 for what is no pair: tags or classes that differ, corners
        that are the wrong way round) and classes.

    Source: Law and Deng 2018, sec. 3.4 and 4.1.
    """
    found_corners = [_peaks(corner, count) for corner in corners]
    (score, label, tag, place), (score2, label2, tag2, place2) = found_corners
    first, second = place[:, :, None], place2[:, None]
    no_pair: Bool[Tensor, "batch first second"] = label[:, :, None] != label2[:, None]
    no_pair = no_pair | ((tag[:, :, None] - tag2[:, None]).abs() > tag_distance) | (second < first).any(3)
    scores = ((score[:, :, None] + score2[:, None]) / 2).masked_fill(no_pair, -1.0)
    boxes = torch.cat(torch.broadcast_tensors(first, second), 3).flatten(1, 2)
    best, index = scores.flatten(1).topk(min(pairs, boxes.shape[1]), dim=1)
    labels = label[:, :, None].expand_as(scores).flatten(1).gather(1, index)
    return boxes.gather(1, index[..., None].expand(-1, -1, 4)), best, labels


def _peaks(corner: Corner, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Scores, classes, tags and places (x, y) in cells of the highest peaks."""
    heat = full_precision(corner.heat).sigmoid()
    scores, labels, cells = top_peaks(local_maxima(heat), count)
    index = (cells[..., 1] * heat.shape[-1] + cells[..., 0])[..., None]
    tags = full_precision(corner.tag).flatten(2).mT.gather(1, index)[..., 0]
    offsets = full_precision(corner.offset).flatten(2).mT.gather(1, index.expand(-1, -1, 2))
    return scores, labels, tags, cells + offsets
