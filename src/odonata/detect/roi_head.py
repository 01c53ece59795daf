"""The second stage of a detector: what the features of each proposed region say of its class and its exact box.

What the published families do differently stands in `RoIOptions`: RoIAlign (with or without the half cell) or RoIPool,
where the background's output is, whether boxes have an output for every class, and what the head is made of.

Sources: Girshick 2015 (1504.08083), sec. 2; Ren et al. 2015 (1506.01497); Lin et al. 2017 (1612.03144), sec. 4.2; He et
al. 2017 (1703.06870), sec. 3; torchvision `models/detection/roi_heads.py`, whose numbers it gives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from odonata.data.detections import Detections
from odonata.detect.detector import DetectorOptions, clip_to, found, keep_best
from odonata.detect.rpn import Targets, full_precision
from odonata.errors import RecipeError
from odonata.nn.norm import NormName, make_norm
from odonata.nn.ranks import mean_over_ranks
from odonata.ops.box_coding import BOX_HEAD_WEIGHTS, Weights, decode_deltas, encode_deltas
from odonata.ops.boxes import iou_matrix, sides_reach
from odonata.ops.matching import BETWEEN, match_by_iou
from odonata.ops.roi_align import multi_level_roi_align, roi_align, roi_pool
from odonata.ops.sampling import sample_balanced

LEAST_SIDE = 0.01
"""Least width and height in pixels of a detection (torchvision)."""

Top = Callable[[Tensor], Tensor]
"""From the pooled regions [regions, channels, bins, bins] to their features [regions, dim]."""


@dataclass(frozen=True)
class RoIOptions:
    """How regions are told apart."""

    op: Literal["align", "pool"] = "align"
    """RoIAlign, or RoIPool with its rounding to whole cells (on a single map)."""
    bins: int = 7
    """Bins along each side of a region."""
    sampling_ratio: int = 2
    """Samples of a bin along each side; 0: as many as it has cells (Detectron2, mmdet)."""
    aligned: bool = False
    """Whether pixels are areas, so that regions move by half a cell (Detectron2, mmdet)."""
    canonical_size: float = 64.0
    """Side in pixels of the region that the level of stride 16 is for; the papers' is 224."""
    head: Literal["layers", "tower"] = "layers"
    """What turns bins into features: layers of its own, or what is left of the tower (VGG's fc6 and fc7, ResNet's last
    stage)."""
    convs: int = 0
    """3 × 3 convolutions of the head's own."""
    conv_width: int = 256
    """Their channels."""
    conv_norm: Literal["none"] | NormName = "none"
    """Normalisation after each."""
    fcs: int = 2
    """Dense layers of the head's own."""
    width: int = 192
    """Their width."""
    background: Literal["first", "last"] = "last"
    """Place of the background among the outputs for classes: first in torchvision and Caffe, last in Detectron2."""
    box_outputs: Literal["one", "classes", "all"] = "classes"
    """Offsets for all classes together, for each class, or for the background as well (torchvision, Caffe)."""
    weights: Weights = BOX_HEAD_WEIGHTS
    """Of dx, dy, dw and dh."""
    beta: float = 1 / 9
    """Where the smooth L1 turns from square to straight; 0: straight all the way."""
    iou: float = 0.5
    """From here on a region is an object's, below it it is background."""
    invalid_iou: float = 0.5
    """Above it a region is not punished for an object that does not count here."""
    samples: int = 64
    """Regions of a picture that learn."""
    positive_share: float = 0.25
    """At most this share of them has an object."""
    append_objects: bool = True
    """Whether the objects themselves are among the proposals in training."""

    def __post_init__(self) -> None:
        if not 0 <= self.iou <= 1 or not 0 <= self.positive_share <= 1 or self.samples < 1 or self.bins < 1:
            raise RecipeError(
                f"--roi.iou {self.iou} and --roi.positive-share {self.positive_share} lie in [0, 1]; --roi.samples "
                f"{self.samples} and --roi.bins {self.bins} want at least 1"
            )


class RoIHead(nn.Module):
    """Pools regions and says their classes and boxes.

    Args:
        channels: of the maps.
        strides: of the maps that regions are pooled from.
        num_classes: without the background.
        options: see `RoIOptions`.
        tower_features: width of what the rest of the tower gives, where that is the head.

    Raises:
        RecipeError: RoIPool from several maps.
    """

    def __init__(
        self, channels: int, strides: Sequence[int], num_classes: int, options: RoIOptions, tower_features: int = 0
    ) -> None:
        super().__init__()
        if options.op == "pool" and len(strides) > 1:
            raise RecipeError("--roi.op pool is for a single map; take --no-pyramid, or --roi.op align")
        self.options, self.strides, self.num_classes = options, tuple(strides), num_classes
        self.convs, self.fcs = nn.ModuleList(), nn.ModuleList()
        features = tower_features
        if options.head == "layers":
            for _ in range(options.convs):
                self.convs.append(_ConvNorm(channels, options.conv_width, options.conv_norm))
                channels = options.conv_width
            features = channels * options.bins**2
            for _ in range(options.fcs):
                self.fcs.append(nn.Linear(features, options.width))
                features = options.width
        self.class_logits = nn.Linear(features, num_classes + 1)
        outputs = {"one": 1, "classes": num_classes, "all": num_classes + 1}[options.box_outputs]
        self.box_deltas = nn.Linear(features, 4 * outputs)
        self._init_weights()

    def _init_weights(self) -> None:
        for layer in self.fcs:
            assert isinstance(layer, nn.Linear)
            nn.init.kaiming_uniform_(layer.weight, a=1)
            nn.init.zeros_(layer.bias)
        for layer, std in ((self.class_logits, 0.01), (self.box_deltas, 0.001)):  # Fast R-CNN, sec. 2.3
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def forward(
        self,
        maps: Sequence[Float[Tensor, "batch channels _height _width"]],
        regions: Sequence[Float[Tensor, "regions 4"]],
        top: Top | None = None,
    ) -> tuple[Float[Tensor, "all_regions outputs"], Float[Tensor, "all_regions boxes 4"]]:
        """Logits of classes and background, and offsets, of the regions of all pictures.

        Args:
            maps: those that regions are pooled from, finest first.
            regions: of each picture, xyxy in pixels.
            top: the rest of the tower, where that is the head.
        """
        x = self.pool(maps, regions)
        if top is not None:
            x = top(x)
        else:
            for conv in self.convs:
                x = conv(x)
            x = x.flatten(1)
            for layer in self.fcs:
                x = F.relu(layer(x))
        return full_precision(self.class_logits(x)), full_precision(self.box_deltas(x)).unflatten(1, (-1, 4))

    def pool(
        self, maps: Sequence[Float[Tensor, "batch channels _height _width"]], regions: Sequence[Float[Tensor, "n 4"]]
    ) -> Float[Tensor, "all_regions channels bins bins"]:
        """The bins of all regions."""
        options = self.options
        numbers = torch.cat([region.new_full((len(region), 1), i) for i, region in enumerate(regions)])
        rois = torch.cat([numbers, torch.cat(list(regions))], 1)
        scales = [1 / stride for stride in self.strides]
        ratio, aligned = options.sampling_ratio, options.aligned
        if options.op == "pool":
            return roi_pool(maps[0], rois, options.bins, spatial_scale=scales[0])
        if len(scales) == 1:
            return roi_align(
                maps[0], rois, options.bins, spatial_scale=scales[0], sampling_ratio=ratio, aligned=aligned
            )
        return multi_level_roi_align(
            maps[: len(scales)],
            rois,
            options.bins,
            scales,
            sampling_ratio=ratio,
            aligned=aligned,
            canonical_size=options.canonical_size,
        )

    def output_of(self, labels: Int64[Tensor, " regions"]) -> Int64[Tensor, " regions"]:
        """Which class output belongs to these labels; −1 is the background."""
        if self.options.background == "first":
            return labels + 1
        return torch.where(labels < 0, self.num_classes, labels)

    def box_of(
        self, deltas: Float[Tensor, "regions boxes 4"], labels: Int64[Tensor, " regions"]
    ) -> Float[Tensor, "regions 4"]:
        """The offsets that regions have for these labels."""
        index = {"one": torch.zeros_like(labels), "classes": labels, "all": self.output_of(labels)}
        return deltas[torch.arange(len(labels), device=labels.device), index[self.options.box_outputs]]

    def per_class(
        self, logits: Float[Tensor, "regions outputs"], deltas: Float[Tensor, "regions boxes 4"]
    ) -> tuple[Float[Tensor, "regions classes"], Float[Tensor, "regions classes 4"]]:
        """Scores and offsets of every class, without the background."""
        scores, start = logits.softmax(1), int(self.options.background == "first")
        if self.options.box_outputs == "all":
            deltas = deltas[:, start : start + self.num_classes]
        return scores[:, start : start + self.num_classes], deltas.expand(-1, self.num_classes, -1)


class _ConvNorm(nn.Module):
    """A 3 × 3 convolution, a normalisation where there is one, and a ReLU."""

    def __init__(self, channels: int, out: int, norm: Literal["none"] | NormName) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, 3, padding=1, bias=norm == "none")
        self.norm = nn.Identity() if norm == "none" else make_norm(norm, out)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")
        if self.conv.bias is not None:
            nn.init.zeros_(self.conv.bias)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch out height width"]:
        """Returns the next map."""
        return F.relu(self.norm(self.conv(x)))


@dataclass
class RoISample:
    """The regions of one picture that learn, those with objects first."""

    boxes: Float[Tensor, "regions 4"]
    labels: Int64[Tensor, " regions"]
    """Class of each; −1 is the background."""
    goals: Float[Tensor, "positives 4"]
    """Offsets to the objects of those that have one."""


@torch.no_grad()
def sample_regions(proposals: Float[Tensor, "proposals 4"], target: Targets, options: RoIOptions) -> RoISample:
    """Draw the regions of a picture that the second stage learns from.

    Regions of a size that does not count are left out, and so is what lies on an ignored object and on no other.

    Args:
        proposals: of the first stage.
        target: the picture's objects.
        options: thresholds and numbers.
    """
    boxes = torch.cat([proposals, target.boxes]) if options.append_objects else proposals
    boxes = boxes[target.learns_from(boxes)]
    matches = match_by_iou(iou_matrix(target.boxes, boxes), options.iou, options.iou)
    nothing = (matches < 0) & target.unpunished(boxes, options.invalid_iou)
    matches = matches.masked_fill(nothing, BETWEEN)
    labels = torch.where(matches >= 0, 1, matches + 1)
    positive, negative = sample_balanced(labels, options.samples, options.positive_share)
    owner = matches[positive]
    return RoISample(
        boxes[torch.cat([positive, negative])],
        torch.cat([target.labels[owner], torch.full_like(negative, -1)]),
        encode_deltas(target.boxes[owner], boxes[positive], options.weights),
    )


def roi_loss(
    head: RoIHead,
    logits: Float[Tensor, "all_regions outputs"],
    deltas: Float[Tensor, "all_regions boxes 4"],
    samples: Sequence[RoISample],
) -> dict[str, Tensor]:
    """Cross-entropy of the classes, and smooth L1 of the boxes of regions with objects, both per region that learned.

    Args:
        head: knows the order of its outputs.
        logits, deltas: of all regions.
        samples: what they should be.

    Returns:
        `class` and `box`.

    Source: Girshick 2015, eqs. 1 to 3.
    """
    labels = torch.cat([sample.labels for sample in samples])
    total = mean_over_ranks(len(labels), logits)
    positive = labels >= 0
    offsets = head.box_of(deltas[positive], labels[positive])
    goals = torch.cat([sample.goals for sample in samples])
    return {
        "class": F.cross_entropy(logits, head.output_of(labels), reduction="sum") / total,
        "box": F.smooth_l1_loss(offsets, goals, reduction="sum", beta=head.options.beta) / total,
    }


@dataclass
class Candidates:
    """What the second stage says of one picture: boxes of regions for their classes, before suppression."""

    boxes: Float[Tensor, "candidates 4"]
    scores: Float[Tensor, " candidates"]
    labels: Int64[Tensor, " candidates"]

    def take(self, chosen: Tensor) -> Candidates:
        """Only the chosen ones."""
        return Candidates(self.boxes[chosen], self.scores[chosen], self.labels[chosen])

    def detections(self, size: Sequence[int] | Tensor, options: DetectorOptions) -> Detections:
        """What survives suppression within each class."""
        kept = self.take(keep_best(self.boxes, self.scores, self.labels, options))
        return found(kept.boxes, kept.scores, kept.labels, size)


def candidates_of(
    head: RoIHead,
    logits: Float[Tensor, "regions outputs"],
    deltas: Float[Tensor, "regions boxes 4"],
    regions: Float[Tensor, "regions 4"],
    size: Sequence[int] | Tensor,
    threshold: float,
) -> Candidates:
    """Every region for every class that it is sure enough of, cut at the picture's edge.

    Args:
        head: knows the order of its outputs.
        logits, deltas: of the picture's regions.
        regions: xyxy in pixels.
        size: (height, width) of the picture in the frame.
        threshold: a score must be above it.
    """
    scores, offsets = head.per_class(logits, deltas)
    where, labels = (scores > threshold).nonzero(as_tuple=True)
    boxes = clip_to(decode_deltas(offsets[where, labels], regions[where], head.options.weights), size)
    made = Candidates(boxes, scores[where, labels], labels)
    return made.take(sides_reach(boxes, LEAST_SIDE))
