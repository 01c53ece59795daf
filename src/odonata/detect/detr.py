"""DETR: queries look at the picture together, and each says one object or nothing. No anchors, no suppression.

A transformer reads the last map of a tower; a fixed number of learned queries ask it, and a matching decides in
training which query learns which object (`odonata.detect.set_prediction`), after every layer of the decoder anew.

Notable:
- Boxes are shares of the picture itself, not of the padded frame, and padding is masked in every attention over the
  map. What the frame is padded to reaches an answer only through the tower's convolutions near the edge, as in the
  original.
- Each query has one class, and nothing is suppressed; `nms_threshold` joins answers of windows and of several sizes.
- The published figures count every query, however unsure: `--score-threshold 0`.
- DC5 is the tower's own option: `resnet50:norm=frozen_batch,output_stride=16`.

The attention over a map of a random network sees everything at once and nothing in particular, so DETR learns slowly
(the paper: 500 passes over COCO). The defaults are for a laptop, and shorten that: a small tower that dilates, few
queries that see its map without an encoder between, pre-norm, and positions at the input too, because a query that must
say where its object is has nothing but values to tell it by. The presets have none of these.

Reference: Carion, Massa, Synnaeve, Usunier, Kirillov and Zagoruyko, End-to-End Object Detection with Transformers,
arXiv:2005.12872; facebookresearch/detr.

Differences: the mask of padding is left out where no picture is padded; crowds are ignored, not dropped
(`set_prediction`); query positions do not decay.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from odonata.backbones.create import create
from odonata.backbones.interface import Backbone
from odonata.data.detections import Detections
from odonata.data.framing import Framing, outside
from odonata.data.object_batches import ObjectBatch
from odonata.detect.detector import Detector, DetectorOptions, clip_to, found, freeze_stages
from odonata.detect.detr_transformer import NormPlace, PositionsAt, QueryTransformer
from odonata.detect.set_prediction import Costs, Losses, Target, set_losses
from odonata.errors import RecipeError
from odonata.nn.positions import sines_of_mask
from odonata.ops.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh

log = logging.getLogger(__name__)

COCO_FRAMING = Framing(size=800, max_size=1333, divisor=1, rounding="detr", antialias=True)
"""The original's: Pillow's bilinear filter, and batches padded to their largest picture and no further."""
_COCO = {
    "framing": COCO_FRAMING,
    "freeze": 1,
    "backbone_lr": 0.1,
    "dim": 256,
    "num_heads": 8,
    "encoder_layers": 6,
    "decoder_layers": 6,
    "mlp_width": 2048,
    "norm": "post",
    "positions_at": "attention",
    "dropout": 0.1,
    "queries": 100,
}


def tower_name(depth: int, dc5: bool) -> str:
    """Name of a published DETR's tower."""
    return f"resnet{depth}:norm=frozen_batch{',output_stride=16' if dc5 else ''}"


@dataclass(frozen=True)
class DETRConfig(DetectorOptions):
    """DETR; the presets are the published models."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "r50": {**_COCO, "backbone": tower_name(50, False)},
        "r50-dc5": {**_COCO, "backbone": tower_name(50, True)},
        "r101": {**_COCO, "backbone": tower_name(101, False)},
        "r101-dc5": {**_COCO, "backbone": tower_name(101, True)},
    }

    backbone: str = "resnet10-small-gn:output_stride=16"
    """Tower by name, with options; `output_stride=16` of a residual network is DC5."""
    framing: Framing = field(default_factory=lambda: Framing(size=128, max_size=224, divisor=16, rounding="detr"))
    """What pictures are scaled to."""
    layer: int = -1
    """Stage of the tower whose map is read."""
    dim: int = 64
    """Width of the transformer."""
    num_heads: int = 4
    """Heads of every attention."""
    encoder_layers: int = 0
    """Layers over the cells of the map; 0: the queries see the tower's map."""
    decoder_layers: int = 3
    """Layers of the queries."""
    mlp_width: int = 256
    """Hidden width of the layers' MLPs."""
    norm: NormPlace = "pre"
    """Where norms stand: behind each sum (published), or before each branch (the original's --pre_norm)."""
    positions_at: PositionsAt = "both"
    """Where positions are added: to queries and keys (published), or to the tokens at the input too."""
    dropout: float = 0.0
    """Of attention weights, branches and MLPs."""
    queries: int = 12
    """Most objects that can be found in a picture."""
    auxiliary: bool = True
    """Whether every layer of the decoder learns, each with a matching of its own."""
    class_cost: float = 1.0
    """Weight of a class's probability in the matching."""
    l1_cost: float = 5.0
    """Weight of the distance of boxes, as shares of the picture, in the matching."""
    giou_cost: float = 2.0
    """Weight of the generalised IoU in the matching."""
    class_weight: float = 1.0
    """Weight of the classes' loss."""
    l1_weight: float = 5.0
    """Weight of the distance of boxes."""
    giou_weight: float = 2.0
    """Weight of 1 − GIoU."""
    no_object_weight: float = 0.1
    """Weight of queries without an object in the classes' loss."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.queries < 1 or self.decoder_layers < 1 or self.encoder_layers < 0:
            raise RecipeError(
                f"--queries {self.queries} and --decoder-layers {self.decoder_layers} want 1 or more, "
                f"--encoder-layers {self.encoder_layers} 0 or more"
            )
        if self.dim % 4 or self.dim % self.num_heads:
            raise RecipeError(f"--dim {self.dim} wants to be divisible by 4 and by --num-heads {self.num_heads}")


@dataclass
class Outputs:
    """What the decoder's layers say of a batch, the last one last."""

    logits: Float[Tensor, "layers batch queries outputs"]
    """Of the classes, "no object" last."""
    boxes: Float[Tensor, "layers batch queries 4"]
    """Centre, width and height as shares of each picture's own sides."""


class DETR(Detector):
    """A tower, a transformer, and two heads on its queries.

    Args:
        config: its options.
        num_classes: categories in the table.

    Raises:
        RecipeError: the tower has no maps, or no such stage.
    """

    suppresses: ClassVar[bool] = False

    def __init__(self, config: DETRConfig, num_classes: int) -> None:
        super().__init__(config, num_classes)
        self.config = config
        self.backbone: Backbone = create(config.backbone)
        if not -len(self.backbone.taps) <= config.layer < len(self.backbone.taps):
            raise RecipeError(f"--layer is {config.layer}, and {config.backbone} has {len(self.backbone.taps)} stages")
        dim = config.dim
        self.project = nn.Conv2d(self.backbone.taps[config.layer].channels, dim, 1)
        self.transformer = QueryTransformer(
            dim, config.num_heads, config.encoder_layers, config.decoder_layers, config.mlp_width, config.norm,
            config.dropout, config.positions_at,
        )  # fmt: skip
        self.query_positions = nn.Parameter(torch.randn(config.queries, dim))
        self.class_logits = nn.Linear(dim, num_classes + 1)
        self.box_head = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, 4))
        freeze_stages(self.backbone, config.freeze)

    @property
    def tower(self) -> nn.Module:
        """See `Detector.tower`."""
        return self.backbone

    def forward_head(
        self,
        images: Float[Tensor, "batch 3 height width"],
        padding: Bool[Tensor, "batch height width"] | None = None,
        every_layer: bool = False,
    ) -> Outputs:
        """What the network says of prepared pictures.

        Args:
            images: as `pixels` prepares them.
            padding: which pixels lie outside the pictures; None: no picture is padded.
            every_layer: of every layer of the decoder, or of the last only.
        """
        (level,) = self.backbone.features(images, [self.config.layer], "nchw")
        return self.from_map(level, cells_inside(padding, (level.shape[-2], level.shape[-1])), every_layer)

    def from_map(
        self,
        level: Float[Tensor, "batch channels rows columns"],
        inside: Bool[Tensor, "batch rows columns"] | None = None,
        every_layer: bool = False,
    ) -> Outputs:
        """The same from the tower's map, and which of its cells lie inside the pictures."""
        grid = inside
        if grid is None:
            grid = torch.ones(1, level.shape[-2], level.shape[-1], dtype=torch.bool, device=level.device)
        cells = self.project(level).flatten(2).transpose(1, 2)
        positions = sines_of_mask(grid, self.config.dim, dtype=self.query_positions.dtype)
        seen = None if inside is None else inside.flatten(1)
        tokens = self.transformer(cells, positions, self.query_positions, seen, every_layer)
        return Outputs(self.class_logits(tokens), self.box_head(tokens).sigmoid())

    def loss(self, batch: ObjectBatch) -> dict[str, Tensor]:
        """Return the losses of classes and boxes of the last layer, and the sum of the earlier layers' (eq. 2)."""
        config = self.config
        targets = [target_of(batch, number) for number in range(len(batch))]
        if any(len(target.labels) > config.queries for target in targets):
            most = max(len(target.labels) for target in targets)
            log.warning("a picture has %d objects for %d queries; those beyond teach nothing", most, config.queries)
        out = self.forward_head(self.pixels(batch), padding_of(batch), config.auxiliary)
        costs = Costs(config.class_cost, config.l1_cost, config.giou_cost)
        losses = set_losses(out.logits, out.boxes, targets, costs, config.no_object_weight)
        layers = self.weighed(losses)
        last = {"class": losses.class_[-1], "l1": losses.l1[-1], "giou": losses.giou[-1]}
        return {"loss": layers.sum(), **last, "auxiliary": layers[:-1].sum()}

    def weighed(self, losses: Losses) -> Float[Tensor, " layers"]:
        """The loss of each layer of the decoder."""
        config = self.config
        return config.class_weight * losses.class_ + config.l1_weight * losses.l1 + config.giou_weight * losses.giou

    def predict(self, batch: ObjectBatch) -> list[Detections]:
        """See `Detector.predict`."""
        out = self.forward_head(self.pixels(batch), padding_of(batch))
        scores, labels = best_class(out.logits[-1].float())
        boxes = cxcywh_to_xyxy(out.boxes[-1].float())
        answers: list[Detections] = []
        for number in range(len(batch)):
            size = batch.sizes[number]
            best, order = scores[number].sort(descending=True, stable=True)
            order = order[best > self.options.score_threshold][: self.options.max_detections]
            chosen = clip_to(boxes[number][order] * size.flip(0).repeat(2), size)
            answers.append(found(chosen, scores[number][order], labels[number][order], size))
        return answers

    def dense(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> tuple[Float[Tensor, "batch queries 4"], Float[Tensor, "batch queries classes"]]:
        """The box of every query in pixels of the frame, and the score of its class, 0 for all others; for export.

        The pictures fill their frames. What stands here needs no suppression.
        """
        out = self.forward_head(images)
        height, width = images.shape[-2:]
        shares = cxcywh_to_xyxy(out.boxes[-1])
        # Not by a tensor of the sides: an export would keep those of its example.
        boxes = torch.stack([shares[..., 0::2] * width, shares[..., 1::2] * height], -1).flatten(-2)
        scores, labels = best_class(out.logits[-1])
        return boxes, F.one_hot(labels, self.num_classes) * scores[..., None]


def best_class(logits: Float[Tensor, "batch queries outputs"]) -> tuple[Tensor, Tensor]:
    """Score and label of each query: its likeliest class, "no object" aside."""
    scores, labels = logits.softmax(-1)[..., :-1].max(-1)
    return scores, labels


def padding_of(batch: ObjectBatch) -> Bool[Tensor, "batch height width"] | None:
    """Which pixels of a batch are padding, or None where every picture fills the frame."""
    frame = (batch.images.shape[-2], batch.images.shape[-1])
    full = bool((batch.sizes == batch.sizes.new_tensor(frame)).all())
    return None if full else outside(batch.sizes, frame)


def cells_inside(
    padding: Bool[Tensor, "batch height width"] | None, grid: tuple[int, int]
) -> Bool[Tensor, "batch rows columns"] | None:
    """Which cells of a map lie inside the pictures: those whose nearest pixel, up and left, does."""
    if padding is None:
        return None
    return F.interpolate((~padding)[:, None].float(), grid, mode="nearest")[:, 0].bool()


def target_of(batch: ObjectBatch, number: int) -> Target:
    """What is to be found in one picture of a batch, in shares of its sides."""
    boxes, labels = batch.trained(number)
    sides = batch.sizes[number].flip(0).repeat(2).to(boxes)
    ignored = batch.boxes[number][batch.ignore[number]]
    return Target(xyxy_to_cxcywh(boxes / sides), labels, ignored / sides)
