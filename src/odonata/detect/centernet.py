"""CenterNet: an object is a point. Peaks of a heat map are objects; beside each stands how large it is.

A cell is trained as the middle of one object or not at all, so that nothing overlaps and nothing must be suppressed: a
peak is a cell that none of its eight neighbours exceeds. One map at a quarter of the picture's size serves objects of
all sizes.

Towers, named by `neck`:
- `deconvolutions`: a residual network and three transposed convolutions, the paper's ResNet without deformable
  convolutions (`--preset resnet18`, `resnet101`). The published `resdcn` and `dla` weights need deformable ones, and
  are refused.
- `stacks`: stacked hourglasses, a set of outputs on each of them while training (`--preset hourglass104`).
- `pyramid`: the finest level of a feature pyramid. It is not in the paper; it learns small objects sooner, and is the
  default.

Reference: Zhou, Wang and Krähenbühl, Objects as Points, arXiv:1904.07850; xingyizhou/CenterNet `models/losses.py`,
`models/decode.py`, `datasets/sample/ctdet.py`, `models/networks/msra_resnet.py`, `large_hourglass.py`.

Conventions of the authors' code that the paper does not have, kept: the Gaussian's radius (`odonata.ops.gaussian`), the
L1 losses as means over both coordinates, 1e-4 added to their count.

Differences: a box is not cut a cell short of the map's edge. Two objects of a class whose middles share a cell count
once, as in the code. Peaks whose box has no area are dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from odonata.backbones.create import create
from odonata.backbones.fpn import FPN, FPNConfig
from odonata.backbones.interface import Backbone
from odonata.data.detections import Detections
from odonata.data.object_batches import ObjectBatch
from odonata.detect.detector import Detector, DetectorOptions, clip_to, found, freeze_stages, keep_best
from odonata.detect.key_points import (
    EPSILON,
    HEAT_BIAS,
    PUBLISHED_FRAMING,
    Branch,
    cell_of,
    countable,
    frames_of,
    full_precision,
    heatmap_loss,
    values_at,
)
from odonata.errors import RecipeError
from odonata.nn.norm import NormName, make_norm
from odonata.nn.ranks import mean_over_ranks
from odonata.ops.gaussian import RadiusKind, draw_gaussian, gaussian_radius, local_maxima, top_peaks

_RESNET = {
    "neck": "deconvolutions",
    "neck_width": 256,
    "neck_norm": "batch",
    "framing": PUBLISHED_FRAMING,
    "pad_bits": 31,
    "score_threshold": 0.0,
}


@dataclass(frozen=True)
class CenterNetConfig(DetectorOptions):
    """CenterNet; see the presets for published networks."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "resnet18": {**_RESNET, "backbone": "resnet18"},
        "resnet101": {**_RESNET, "backbone": "resnet101"},
        "hourglass104": {
            **_RESNET,
            "backbone": "hourglass104",
            "neck": "stacks",
            "head_width": 256,
            "pad_bits": 127,
        },
    }

    neck: Literal["pyramid", "deconvolutions", "stacks"] = "pyramid"
    """What stands between the tower and the outputs."""
    neck_width: int = 64
    """Its channels."""
    neck_norm: NormName = "group"
    """Normalisation after each transposed convolution."""
    head_width: int = 64
    """Channels before each output."""
    radius: RadiusKind = "centernet"
    """How wide Gaussians are: "centernet", as its weights were trained, or "corner", as CornerNet computes it."""
    min_overlap: float = 0.7
    """IoU that a box moved by the radius still has."""
    alpha: float = 2.0
    """Exponent of the focal loss."""
    beta: float = 4.0
    """Exponent by which negatives near a middle count less."""
    size_weight: float = 0.1
    """Weight of the loss of sizes, which are in cells."""
    offset_weight: float = 1.0
    """Weight of the loss of places within a cell."""
    flip_test: bool = False
    """Whether heat maps and sizes are averaged with those of the mirrored picture in prediction."""
    nms: bool = False
    """Whether overlapping boxes are suppressed after all."""
    pad_bits: int = 0
    """In prediction, each picture stands in the middle of a frame of (side | bits) + 1: 31 and 127 are the published
    ones; 0 pads as `framing` says."""


@dataclass
class Maps:
    """What one set of outputs says of a batch, in cells."""

    heat: Float[Tensor, "batch classes height width"]
    """Logits."""
    size: Float[Tensor, "batch 2 height width"]
    """Width and height of the object whose middle is here."""
    offset: Float[Tensor, "batch 2 height width"]
    """Where in the cell (x, y) the middle is."""


@dataclass
class Targets:
    """What `Maps` are to say."""

    heat: Float[Tensor, "batch classes height width"]
    counted: Bool[Tensor, "batch 1 height width"]
    """Cells that may be negatives."""
    pictures: Int64[Tensor, " objects"]
    cells: Int64[Tensor, "objects 2"]
    size: Float[Tensor, "objects 2"]
    offset: Float[Tensor, "objects 2"]


class CenterNet(Detector):
    """A trunk to a single fine map, and three outputs on it.

    Args:
        config: its options.
        num_classes: categories in the table.
    """

    suppresses: ClassVar[bool] = False

    def __init__(self, config: CenterNetConfig, num_classes: int) -> None:
        super().__init__(config, num_classes)
        self.config = config
        self.trunk = Trunk(create(config.backbone), config)
        self.heads = nn.ModuleList(
            Head(self.trunk.channels, config.head_width, num_classes) for _ in range(self.trunk.outputs)
        )
        freeze_stages(self.trunk.backbone, config.freeze)

    @property
    def tower(self) -> nn.Module:
        """See `Detector.tower`."""
        return self.trunk.backbone

    def forward_maps(self, images: Float[Tensor, "batch 3 height width"]) -> list[Maps]:
        """What each set of outputs says of prepared pictures; the last one is believed."""
        return [head(x) for head, x in zip(self.heads, self.trunk(images), strict=True)]

    def loss(self, batch: ObjectBatch) -> dict[str, Tensor]:
        """Return the focal loss of the heat map and the L1 losses of sizes and offsets (eq. 4), means over stacks."""
        maps = self.forward_maps(self.pixels(batch))
        goal = self.targets(batch, maps[-1].heat.shape[-2], maps[-1].heat.shape[-1])
        count = 2 * mean_over_ranks(len(goal.cells), goal.heat, 0.0) + EPSILON
        parts = {"heat": goal.heat.new_zeros(()), "size": goal.heat.new_zeros(()), "offset": goal.heat.new_zeros(())}
        for said in maps:
            heat = heatmap_loss(said.heat, goal.heat, goal.counted, self.config.alpha, self.config.beta)
            parts["heat"] = parts["heat"] + heat / len(maps)
            for name, wanted in (("size", goal.size), ("offset", goal.offset)):
                values = full_precision(values_at(getattr(said, name), goal.pictures, goal.cells))
                parts[name] = parts[name] + (values - wanted).abs().sum() / count / len(maps)
        loss = parts["heat"] + self.config.size_weight * parts["size"] + self.config.offset_weight * parts["offset"]
        return {"loss": loss, **parts}

    @torch.no_grad()
    def targets(self, batch: ObjectBatch, height: int, width: int) -> Targets:
        """What maps of this size are to say (sec. 3)."""
        config, stride = self.config, self.trunk.stride
        heat = batch.images.new_zeros(len(batch), self.num_classes, height, width, dtype=torch.float32)
        rows: list[tuple[Tensor, ...]] = []
        for number in range(len(batch)):
            boxes, labels = batch.trained(number)
            boxes = boxes / stride
            size = boxes[:, 2:] - boxes[:, :2]
            there = (size > 0).all(1)
            size, labels, middle = size[there], labels[there], ((boxes[:, :2] + boxes[:, 2:]) / 2)[there]
            cells = cell_of(middle, height, width)
            radii = gaussian_radius(size[:, 1].ceil(), size[:, 0].ceil(), config.min_overlap, config.radius)
            draw_gaussian(heat[number], cells, labels, radii.clamp(min=0).long())
            rows.append((torch.full_like(labels, number), cells, size, middle - cells))
        ignored = [boxes[flags] / stride for boxes, flags in zip(batch.boxes, batch.ignore, strict=True)]
        pictures, cells, size, offset = (torch.cat(parts) for parts in zip(*rows, strict=True))
        return Targets(heat, countable(ignored, height, width), pictures, cells, size, offset)

    def predict(self, batch: ObjectBatch) -> list[Detections]:
        """See `Detector.predict`."""
        answers: list[Detections] = []
        for images, sizes, shift in frames_of(batch, self.config.framing, self.config.pad_bits, 1):
            boxes, scores, labels = self.peaks(images)
            boxes = boxes - boxes.new_tensor([*shift, *shift])
            for number, size in enumerate(sizes):
                answers.append(self.chosen(clip_to(boxes[number], size), scores[number], labels[number], size))
        return answers

    def chosen(
        self,
        boxes: Float[Tensor, "peaks 4"],
        scores: Float[Tensor, " peaks"],
        labels: Int64[Tensor, " peaks"],
        size: tuple[int, int],
    ) -> Detections:
        """The peaks that are sure enough and have a box."""
        kept = (scores > self.options.score_threshold) & (boxes[:, 2:] > boxes[:, :2]).all(1)
        boxes, scores, labels = boxes[kept], scores[kept], labels[kept]
        if self.config.nms:
            best = keep_best(boxes, scores, labels, self.options)
            boxes, scores, labels = boxes[best], scores[best], labels[best]
        return found(boxes, scores, labels, size)

    def peaks(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> tuple[Float[Tensor, "batch peaks 4"], Float[Tensor, "batch peaks"], Int64[Tensor, "batch peaks"]]:
        """Boxes in pixels of the frame, scores and classes of the highest peaks of prepared pictures (sec. 4.1)."""
        said, heat = self.believed(images)
        scores, labels, cells = top_peaks(local_maxima(heat), self.options.max_detections)
        index = (cells[..., 1] * heat.shape[-1] + cells[..., 0])[..., None].expand(-1, -1, 2)
        offset, size = (full_precision(x).flatten(2).mT.gather(1, index) for x in (said.offset, said.size))
        return _boxes(cells + offset, size, self.trunk.stride), scores, labels

    def believed(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> tuple[Maps, Float[Tensor, "batch classes height width"]]:
        """The last maps and the chances of middles, averaged with those of the mirrored picture where that is asked."""
        said = self.forward_maps(images)[-1]
        heat = full_precision(said.heat).sigmoid()
        if not self.config.flip_test:
            return said, heat
        mirrored = self.forward_maps(images.flip(3))[-1]
        # offsets are not averaged: the middle of a cell's mirror image is not where the cell's is
        heat = (heat + full_precision(mirrored.heat).sigmoid().flip(3)) / 2
        return Maps(said.heat, (said.size + mirrored.size.flip(3)) / 2, said.offset), heat

    def dense(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> tuple[Float[Tensor, "batch cells 4"], Float[Tensor, "batch cells classes"]]:
        """All boxes in pixels of the frame and the scores of peaks, 0 for what is none, of prepared pictures."""
        said, heat = self.believed(images)
        height, width = heat.shape[-2:]
        y, x = torch.meshgrid(
            torch.arange(height, device=heat.device), torch.arange(width, device=heat.device), indexing="ij"
        )
        cells = torch.stack([x, y], 2).reshape(1, -1, 2)
        middles = cells + said.offset.flatten(2).mT
        return _boxes(middles, said.size.flatten(2).mT, self.trunk.stride), local_maxima(heat).flatten(2).mT


class Trunk(nn.Module):
    """A tower and what makes one fine map of it, or one for each hourglass.

    Args:
        backbone: the tower.
        config: of the method.

    Raises:
        RecipeError: the neck is for other towers.
    """

    def __init__(self, backbone: Backbone, config: CenterNetConfig) -> None:
        super().__init__()
        self.backbone, taps = backbone, backbone.taps
        same = len({tap.stride for tap in taps}) == 1
        if same != (config.neck == "stacks"):
            wanted = "towers of hourglasses" if config.neck == "stacks" else "towers whose stages have several strides"
            raise RecipeError(f"--neck {config.neck} is for {wanted}, and --backbone is {config.backbone}")
        self.outputs = len(taps) if same else 1
        self.channels = taps[-1].channels if same else config.neck_width
        self.stride = taps[0].stride
        self.neck: nn.Module = nn.Identity()
        if config.neck == "pyramid":
            self.neck = FPN([tap.channels for tap in taps], FPNConfig(config.neck_width))
            # the outputs of the coarser levels lead nowhere
            for output in self.neck.outputs[1:]:
                output.requires_grad_(False)
        elif config.neck == "deconvolutions":
            steps = max(0, (taps[-1].stride // 4).bit_length() - 1)
            self.neck = Deconvolutions(taps[-1].channels, config.neck_width, steps, config.neck_norm)
            self.stride = taps[-1].stride // 2**steps

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> list[Float[Tensor, "batch channels _h _w"]]:
        """Returns the maps that outputs stand on, the one to believe last."""
        if isinstance(self.neck, Deconvolutions):
            return [self.neck(self.backbone.features(images, [-1], "nchw")[0])]
        maps = self.backbone.features(images, list(range(len(self.backbone.taps))), "nchw")
        return self.neck(maps)[:1] if isinstance(self.neck, FPN) else maps


class Deconvolutions(nn.Module):
    """Transposed convolutions that double a map, each normalised and rectified.

    Args:
        channels: of the map.
        width: of each result.
        steps: how many.
        norm: their normalisation.
    """

    def __init__(self, channels: int, width: int, steps: int, norm: NormName) -> None:
        super().__init__()
        widths = [channels] + [width] * steps
        self.convs = nn.ModuleList(nn.ConvTranspose2d(a, width, 4, 2, 1, bias=False) for a in widths[:-1])
        self.norms = nn.ModuleList(make_norm(norm, width) for _ in range(steps))
        for conv in self.convs:
            nn.init.normal_(conv.weight, std=0.001)  # pyright: ignore[reportArgumentType]

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch width height2 width2"]:
        """Returns the enlarged map."""
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = norm(conv(x)).relu()
        return x


class Head(nn.Module):
    """The outputs on one map.

    Args:
        channels: of the map.
        hidden: channels before each output.
        num_classes: heat maps.
    """

    def __init__(self, channels: int, hidden: int, num_classes: int) -> None:
        super().__init__()
        self.class_logits = Branch(channels, hidden, num_classes, HEAT_BIAS)
        self.size = Branch(channels, hidden, 2)
        self.offset = Branch(channels, hidden, 2)
        for branch in (self.size, self.offset):
            nn.init.normal_(branch[2].weight, std=0.001)  # pyright: ignore[reportArgumentType]

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Maps:
        """Returns what it says."""
        return Maps(self.class_logits(x), self.size(x), self.offset(x))


def _boxes(middles: Tensor, sizes: Tensor, stride: int) -> Tensor:
    """Boxes in pixels from middles and sizes in cells."""
    return torch.cat([middles - sizes / 2, middles + sizes / 2], -1) * stride
